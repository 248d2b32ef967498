"""Rows from a pipe: concatenated .npy records, or raw items with a known row width.

How the pipe was cut into pieces has no effect: every read waits until it is full or the stream ends.
"""

from __future__ import annotations

from math import prod

import numpy as np

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.npyheader import NpyHeader, parse_header, raw_header
from streamattn_cli.rows.tensors.bytestream import ByteStream
from streamattn_cli.rows.tensors.layout import show
from streamattn_cli.rows.tensors.tensor import check_buffer

_LONGEST_ROW = 1 << 28  # bytes; a damaged header must not make us ask for more memory than there is
_MAGIC_READ = 8  # bytes that raw_header asks for first


class RawRows:
    """Framing of headerless rows: every byte is payload."""

    def __init__(self, stream: ByteStream, row_bytes: int):
        self._stream = stream
        self._row = row_bytes

    def fill(self, view: memoryview) -> int:
        """Fill the view with payload; fewer bytes only at the end, and then whole rows."""
        got = self._stream.readinto(view)
        if got % self._row:
            at = self._stream.position
            raise InputMalformed(
                f"{self._stream.name}: ends inside row {at // self._row} at byte {at}: a row is "
                f"{self._row} bytes, the last one has {at % self._row}; check --raw, --dim, "
                f"--heads and --record"
            )
        return got


class NpyRecords:
    """Framing of concatenated .npy records (rows, C) or (rows, H, c): all alike but for their number of rows."""

    def __init__(self, stream: ByteStream, wanted: str | None = None):
        self._stream = stream
        self._wanted = wanted
        self._left = 0  # payload bytes of the current record that are still to come
        self._record = 0  # number of the current record, from 1
        self._raw = b""  # bytes of the last header: an equal one need not be parsed again
        self._header: NpyHeader | None = None
        self.first: NpyHeader | None = None
        self._next()

    def fill(self, view: memoryview) -> int:
        """Fill the view with payload of as many records as it takes; fewer bytes only at the end."""
        done = 0
        while done < len(view):
            if self._left == 0 and not self._next():
                break
            want = min(self._left, len(view) - done)
            got = self._stream.readinto(view[done : done + want])
            self._left -= got
            done += got
            if got < want:
                raise InputMalformed(
                    f"{self._where()}: truncated: the stream ends at byte {self._stream.position}, "
                    f"{self._left} bytes before the record does; its writer was stopped"
                )
        return done

    def _next(self) -> bool:
        """Read the next record's header; False at the end of the stream."""
        one = self._stream.read(1)
        if not one:
            return False
        self._record += 1
        raw = raw_header(lambda n: self._take(n, one), self._where())
        if self._header is None or raw != self._raw:
            self._raw, self._header = raw, self._checked(parse_header(raw, self._where(), self._wanted))
        self._left = self._header.payload
        return True

    def _take(self, n: int, one: bytes) -> bytes:
        """n bytes of a header whose first byte was already read to see whether there is a record at all."""
        return one + self._stream.read(n - 1) if n == _MAGIC_READ else self._stream.read(n)

    def _checked(self, header: NpyHeader) -> NpyHeader:
        """The header, if it agrees with the first one in everything but the number of rows."""
        if len(header.shape) not in (2, 3):
            raise InputMalformed(
                f"{self._where()}: shape {show(header.shape)} found, expected (rows, items) or (rows, heads, items)"
            )
        if not all(header.shape[1:]):
            raise InputMalformed(f"{self._where()}: shape {show(header.shape)} has rows without items")
        first = self.first
        row = prod(header.shape[1:]) * DTYPES[header.dtype].itemsize
        if row > _LONGEST_ROW:
            raise InputMalformed(
                f"{self._where()}: shape {show(header.shape)} {header.dtype} makes rows of {row} "
                f"bytes, expected at most {_LONGEST_ROW}; the header is damaged"
            )
        if first is None:
            self.first = header
        elif (header.shape[1:], header.dtype, header.parts) != (first.shape[1:], first.dtype, first.parts):
            raise InputMalformed(
                f"{self._where()}: rows of {show(header.shape[1:])} {header.dtype} found, expected "
                f"{show(first.shape[1:])} {first.dtype} as in record 1 (a record packs q, k and v of its rows side by side; "
                "records of q, k and v that take turns are not read)"
            )
        return header

    def _where(self) -> str:
        return f"{self._stream.name}: record {self._record} (byte {self._stream.position})"


class StreamTensor:
    """A RowTensor over a pipe: O = 1, rows unknown until the end, each row read once."""

    seekable = False
    path = None
    outer = 1
    rows = None

    def __init__(self, stream: ByteStream, framing: RawRows | NpyRecords, width: int, dtype: str):
        self.name = stream.name
        self.width, self.dtype = width, dtype
        self._stream = stream
        self._framing = framing
        self._row = width * DTYPES[dtype].itemsize
        self._kept = np.empty((1, 0, width), DTYPES[dtype].holder)  # rows peeked at and not yet handed out
        self._next_row = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of peeked rows that wait to be read."""
        return self._kept.nbytes

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        check_buffer(self, buf, segment)
        if start != self._next_row:
            raise ValueError(f"{self.name}: row {start} asked for, but a stream continues at row {self._next_row}")
        taken: int = min(self._kept.shape[1], buf.shape[1])
        buf[:, :taken] = self._kept[:, :taken]
        if taken:
            self._kept = self._kept[:, taken:].copy()
        count = taken + self._fill(buf[0, taken:])
        self._next_row += count
        return count

    def _fill(self, rows: np.ndarray) -> int:
        """Rows read from the pipe into a contiguous (n, I) array."""
        return self._framing.fill(memoryview(rows.reshape(-1)).cast("B")) // self._row if rows.size else 0

    def peek(self, n: int) -> np.ndarray:
        """See RowTensor. The rows wait in memory until they are read."""
        kept = self._kept.shape[1]
        if n > kept:
            longer = np.empty((1, n, self.width), self._kept.dtype)
            longer[:, :kept] = self._kept
            count = kept + self._fill(longer[0, kept:])
            self._kept = longer if count == n else longer[:, :count].copy()
        return self._kept[:, :n].copy()

    def close(self) -> None:
        """Drop peeked rows and close the pipe (never the process's own standard input)."""
        self._kept = self._kept[:, :0].copy()
        self._stream.close()
