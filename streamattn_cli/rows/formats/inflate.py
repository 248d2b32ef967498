"""Members of zip archives: where they are, and rows of those that are compressed."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from streamattn_cli.errors import InputMalformed, InputMissing
from streamattn_cli.rows.layout import Extent
from streamattn_cli.rows.tensor import STORAGE, check_buffer, peek_seekable

CHUNK = 1 << 16
WINDOW = 1 << 16  # bytes that one decompressor holds, at most


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
            got = Inflater(self).read_at(memoryview(found), 0)
            return bytes(found[:got])
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), min(size, self.size), self.offset)


def members(path: str) -> dict[str, Member]:
    """The members of a zip archive by name. Raises InputMalformed for a damaged one, or one that is encrypted or
    compressed in a way that NumPy and PyTorch do not use."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            return {
                info.filename: _member(path, file.fileno(), info) for info in archive.infolist() if not info.is_dir()
            }
    except InputMalformed:
        raise
    except Exception as error:  # of a damaged archive zipfile raises whatever its parsing meets
        raise InputMalformed(f"{path}: unreadable zip archive: {error}; write or copy it again") from error


def _member(path: str, file: int, info: zipfile.ZipInfo) -> Member:
    name = f"{path}:{info.filename}"
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputMalformed(f"{name}: encrypted, or compressed by method {info.compress_type}; save it without that")
    header = os.pread(file, 30, info.header_offset)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise InputMalformed(f"{name}: there is no member where the archive's directory says; write or copy it again")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = info.header_offset + 30 + lengths
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    if offset + info.compress_size > os.fstat(file).st_size or (not deflated and info.compress_size != info.file_size):
        raise InputMalformed(f"{name}: truncated, or its sizes disagree; write or copy it again")
    return Member(path, info.filename, offset, info.compress_size, info.file_size, deflated)


class Inflater:
    """Reads a compressed member forward; going back means beginning again."""

    def __init__(self, member: Member):
        self._member = member
        self._begin()

    def _begin(self) -> None:
        self._inflate, self._at, self._read = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
        self._waiting = b""

    def read_at(self, view: memoryview, position: int) -> int:
        """Fill a view with the bytes from `position` on; returns how many there were."""
        if position < self._at:
            self._begin()
        while self._at < position:
            if not self._next(min(CHUNK, position - self._at)):
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
                with open(m.path, "rb") as file:
                    self._waiting = os.pread(file.fileno(), min(CHUNK, m.stored - self._read), m.offset + self._read)
                self._read += len(self._waiting)
                if not self._waiting:
                    break
            try:
                found = self._inflate.decompress(self._waiting, size)
            except zlib.error as error:
                raise InputMalformed(f"{m.label}: damaged: {error}; write or copy it again") from error
            self._waiting = self._inflate.unconsumed_tail
        self._at += len(found)
        if self._at > m.size:
            raise InputMalformed(f"{m.label}: holds more than the {m.size} bytes that the archive says; copy it again")
        return found


class InflatedTensor:
    """A RowTensor over a compressed member: rows are inflated as they are read, and again for every further pass."""

    seekable = True

    def __init__(self, member: Member, offset: int, extent: Extent, dtype: str):
        self.name, self.path, self.dtype = member.label, member.path, dtype
        self.outer, self.rows, self.width = extent.outer, extent.rows, extent.width
        self.held_bytes = extent.outer * (WINDOW + CHUNK)
        self._offset, self._row = offset, extent.width * STORAGE[dtype].itemsize
        if not os.access(member.path, os.R_OK):
            raise InputMissing(f"{member.path}: cannot be read; see ls -l")
        self._segments = [Inflater(member) for _ in range(extent.outer)]

    def read_into(self, buf: np.ndarray, start: int) -> int:
        """See RowTensor."""
        check_buffer(self, buf)
        count = max(0, min(buf.shape[1], self.rows - start))
        for segment in range(self.outer if count * self._row else 0):
            view = memoryview(buf[segment]).cast("B")[: count * self._row]
            at = self._offset + (segment * self.rows + start) * self._row
            got = self._segments[segment].read_at(view, at)
            if got < len(view):
                raise InputMalformed(
                    f"{self.name}: truncated: its data ends at byte {at + got}; write or copy it again"
                )
        return count

    def peek(self, n: int) -> np.ndarray:
        """See RowTensor."""
        return peek_seekable(self, n)

    def close(self) -> None:
        """Forget the decompressors."""
        self._segments = []
