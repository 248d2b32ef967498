"""Writing to descriptors until everything is written."""

from __future__ import annotations

import os
import select
from contextlib import suppress

WRITEBACK_BYTES = 1 << 20  # what lies together and is at least as long is worth a request of its own


def write_all(fd: int, view: memoryview) -> None:
    """Write all bytes, waiting where the other side made the descriptor non-blocking."""
    done = 0
    while done < len(view):
        try:
            done += os.write(fd, view[done:])
        except BlockingIOError:
            select.select([], [fd], [])


def pwrite_all(fd: int, view: memoryview, position: int) -> None:
    """Write all bytes at a position of a regular file."""
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], position + done)


def begin_writeback(fd: int, position: int, size: int) -> None:
    """Let the system write these bytes to the disk from now on, so that fsync has less left to wait for.

    Linux does that when it is told that they are not needed, and keeps what is not on the disk yet in its cache.
    """
    if size >= WRITEBACK_BYTES and hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # it is only advice
            os.posix_fadvise(fd, position, size, os.POSIX_FADV_DONTNEED)


def sync_folder(path: str) -> None:
    """Make a rename in this folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
