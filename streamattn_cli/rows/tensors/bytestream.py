"""Bytes from a pipe, read exactly: as many as asked for unless the stream ends."""

from __future__ import annotations

import io
import os
import select
from typing import BinaryIO

from streamattn_cli.errors import InputMissing

_NONE, _CLOSED = -1, -2  # instead of a descriptor
_PIECE = 1 << 16  # bytes that are asked for at once where there is none


class ByteStream:
    """A binary file object read through its descriptor where it has one.

    The descriptor is read directly because a thread that waits inside `sys.stdin.buffer` holds its lock, and the
    interpreter aborts at exit when it cannot take that lock. Nothing is read ahead, so nothing is lost.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.name = name
        self.position = 0  # bytes read so far
        self._file = file
        try:
            self._fd = file.fileno()
        except (io.UnsupportedOperation, AttributeError):
            self._fd = _NONE

    def readinto(self, view: memoryview) -> int:
        """Fill the view; return the bytes read, fewer only at the end. Raises InputMissing when reading fails."""
        done = 0
        while done < len(view):
            try:
                got = self._read(view[done:])
            except OSError as error:
                raise InputMissing(f"{self.name}: reading failed at byte {self.position}: {error.strerror}") from error
            if got == 0:
                break
            done += got
            self.position += got
        return done

    def _read(self, view: memoryview) -> int:
        if self._fd == _NONE:
            found = self._file.read(min(len(view), _PIECE))
            view[: len(found)] = found
            return len(found)
        while self._fd != _CLOSED:
            try:
                return os.readv(self._fd, [view])
            except BlockingIOError:  # the other side made the descriptor non-blocking
                select.select([self._fd], [], [])
        return 0

    def read(self, n: int) -> bytes:
        """The next n bytes, fewer only at the end."""
        data = bytearray(n)
        return bytes(data[: self.readinto(memoryview(data))])

    def close(self) -> None:
        """Close the file unless it is the process's own standard input. A thread that still waits for bytes sees the
        end when they come, and never reads from a descriptor that was given to another file since."""
        own, self._fd = self._fd == 0, _CLOSED
        if not own:
            self._file.close()
