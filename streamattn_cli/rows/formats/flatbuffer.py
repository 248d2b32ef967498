"""Tables of flatbuffers, read by hand: numbers, tables within and lists of pairs of numbers.

Format: https://flatbuffers.dev/internals. A table begins with the distance back to its list of fields, which has the place of
each, 0 for one that is not there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = b"ARROW1\0\0"  # of an Arrow file, whose descriptions are such tables
LONGEST = 1 << 24  # bytes of one of them


@dataclass(frozen=True)
class Table:
    """One table at a place of its bytes. Everything raises struct.error or ValueError where a place lies outside."""

    data: bytes
    at: int

    @classmethod
    def of(cls, data: bytes) -> Table:
        """The table that is the root."""
        return cls(data, _read("I", data, 0))

    def has(self, field: int) -> bool:
        """Whether a field is there."""
        return self._place(field) is not None

    def number(self, field: int, kind: str) -> int:
        """A whole number, 0 where the field is not there; kind: its letter in struct."""
        place = self._place(field)
        return 0 if place is None else _read(kind, self.data, place)

    def table(self, field: int) -> Table:
        """The table that a field refers to."""
        return Table(self.data, self._target(field))

    def struct(self, field: int, index: int) -> tuple[int, int]:
        """The pair of numbers of 64 bits at `index` of a list."""
        at = self._target(field)
        if not 0 <= index < _read("I", self.data, at):
            raise ValueError("a list is too short")
        at += 4 + 16 * index
        return _read("q", self.data, at), _read("q", self.data, at + 8)

    def _place(self, field: int) -> int | None:
        fields = self.at - _read("i", self.data, self.at)
        if 4 + 2 * field + 2 > _read("H", self.data, fields):
            return None
        place = _read("H", self.data, fields + 4 + 2 * field)
        return self.at + place if place else None

    def _target(self, field: int) -> int:
        place = self._place(field)
        if place is None:
            raise ValueError("a field is not there")
        return place + _read("I", self.data, place)


def _read(kind: str, data: bytes, at: int) -> int:
    if at < 0:
        raise ValueError("a place before the beginning")
    return int(struct.unpack_from(f"<{kind}", data, at)[0])
