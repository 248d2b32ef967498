"""Members of zip archives: where they are, and rows of those that are compressed."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import numpy as np

from streamattn_cli.errors import InputMalformed, damaged
from streamattn_cli.rows.tensors.file import OpenFileTensor
from streamattn_cli.rows.tensors.layout import Extent

CHUNK = 1 << 14
WINDOW = 3 << 14  # bytes that one decompressor holds, at most
DIRECTORY = 1 << 22  # bytes that are read at a time of an archive's list of members: some fifty thousand of them


@dataclass(frozen=True)
class Member:
    """A member of an archive: its bytes are at `offset` of the file, `stored` of them; `size` when they are inflated."""

    path: str
    name: str
    offset: int
    stored: int
    size: int
    deflated: bool

    @property
    def label(self) -> str:
        """For messages: dump.npz:q.npy."""
        return f"{self.path}:{self.name}"

    def read(self, size: int) -> bytes:
        """The first `size` bytes, or all if there are fewer."""
        if self.deflated:
            found = bytearray(min(size, self.size))
            with open(self.path, "rb") as file:
                got = Inflater(self, file.fileno()).read_at(memoryview(found), 0)
            return bytes(found[:got])
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), min(size, self.size), self.offset)


def file_key(path: str) -> tuple[int, ...]:
    """What tells a file from another, and from itself when it has changed: under it what was read of it may be kept."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def members(path: str) -> dict[str, Member]:
    """The members of a zip archive by name. Raises InputMalformed for a damaged one, or one that is encrypted or
    compressed in a way that NumPy and PyTorch do not use."""
    return _members(path, file_key(path))


@lru_cache(maxsize=1)
def _members(path: str, _key: tuple[int, ...]) -> dict[str, Member]:
    try:
        with open(path, "rb") as file, zipfile.ZipFile(_InPieces(file)) as archive:
            return {
                info.filename: _member(path, file.fileno(), info) for info in archive.infolist() if not info.is_dir()
            }
    except InputMalformed:
        raise
    except Exception as error:  # of a damaged archive zipfile raises whatever its parsing meets
        raise damaged(path, f"unreadable zip archive: {error}") from error


class _InPieces:
    """A file of which no more than DIRECTORY bytes are read at a time: zipfile reads the whole list of members at once."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self.seekable, self._file = file.seek, file.tell, file.seekable, file

    def read(self, size: int = -1) -> bytes:
        """At most DIRECTORY bytes, else ValueError."""
        found = self._file.read(DIRECTORY + 1 if size < 0 else min(size, DIRECTORY + 1))
        if len(found) > DIRECTORY:
            raise ValueError("its list of members is too long")
        return found


def _member(path: str, file: int, info: zipfile.ZipInfo) -> Member:
    name = f"{path}:{info.filename}"
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputMalformed(f"{name}: encrypted, or compressed by method {info.compress_type}; save it without that")
    header = os.pread(file, 30, info.header_offset)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise damaged(name, "there is no member where the archive's directory says")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = info.header_offset + 30 + lengths
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    if offset + info.compress_size > os.fstat(file).st_size or (not deflated and info.compress_size != info.file_size):
        raise damaged(name, "truncated, or its sizes disagree")
    return Member(path, info.filename, offset, info.compress_size, info.file_size, deflated)


class Inflater:
    """Reads a compressed member forward, from the file that is open as `file`."""

    def __init__(self, member: Member, file: int):
        self._member, self._file = member, file
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self.at = self._read = 0
        self._waiting = b""

    def copy(self) -> Inflater:
        """Another one at the same place."""
        made = Inflater(self._member, self._file)
        made._inflate = self._inflate.copy()
        made.at, made._read, made._waiting = self.at, self._read, self._waiting
        return made

    def read_at(self, view: memoryview, position: int) -> int:
        """Fill a view with the bytes from `position` on, which is not behind `at`; returns how many there were."""
        while self.at < position:
            if not self._next(min(CHUNK, position - self.at)):
                return 0
        done = 0
        while done < len(view):
            got = self._next(min(CHUNK, len(view) - done))
            if not got:
                break
            view[done : done + len(got)] = got
            done += len(got)
        return done

    def _next(self, size: int) -> bytes:
        """At most `size` further bytes, none at the end. Never more than the member is said to have."""
        m, found = self._member, b""
        while not found and not self._inflate.eof:
            if not self._waiting:
                self._waiting = os.pread(self._file, min(CHUNK, m.stored - self._read), m.offset + self._read)
                self._read += len(self._waiting)
                if not self._waiting:
                    break
            try:
                found = self._inflate.decompress(self._waiting, size)
            except zlib.error as error:
                raise damaged(m.label, f"damaged: {error}") from error
            self._waiting = self._inflate.unconsumed_tail
        self.at += len(found)
        if self.at > m.size:
            raise InputMalformed(f"{m.label}: holds more than the {m.size} bytes that the archive says; copy it again")
        return found


class InflatedTensor(OpenFileTensor):
    """A RowTensor over a compressed member: rows are inflated as they are read, and again for every further pass.

    Each of the O segments has a decompressor at its beginning and one that goes on from there, so that reading segments side
    by side inflates the member about twice, however many they are. Of batches that are read apart only the decompressors of
    the present one are kept.
    """

    def __init__(self, member: Member, offset: int, extent: Extent, dtype: str):
        super().__init__(member.label, member.path, extent, dtype)
        self.held_bytes = 2 * (extent.side_by_side + extent.apart) * (WINDOW + CHUNK)
        self._offset, self._most = offset, extent.side_by_side
        self._begin = {0: Inflater(member, self.fd)}
        self._here: dict[int, Inflater] = {}

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        count = self.there(buf, start, segment)
        for number, rows in enumerate(buf if count * self._row else (), segment or 0):
            view = memoryview(rows).cast("B")[: count * self._row]
            at = self._offset + (number * self.rows + start) * self._row
            got = self._inflater(number, at).read_at(view, at)
            if got < len(view):
                raise damaged(self.name, f"truncated: its data ends at byte {at + got}")
        return count

    def _inflater(self, segment: int, at: int) -> Inflater:
        """The one of a segment, not beyond byte `at`."""
        if segment not in self._begin:
            before = max(number for number in self._begin if number < segment)
            self._begin[segment] = following = self._begin[before].copy()
            following.read_at(memoryview(b""), self._offset + segment * self.rows * self._row)
            for kept in (self._begin, self._here):
                for number in [n for n in kept if 0 < n <= segment - self._most]:
                    del kept[number]
        if segment not in self._here or self._here[segment].at > at:
            self._here[segment] = self._begin[segment].copy()
        return self._here[segment]

    def close(self) -> None:
        """Close the file, and forget the decompressors."""
        self._begin, self._here = {}, {}
        super().close()
