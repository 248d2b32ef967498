"""Writing to descriptors until everything is written."""

from __future__ import annotations

import os
import select


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


def sync_folder(path: str) -> None:
    """Make a rename in this folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
