"""A file for HDF5 that never fails in front of the library."""

from __future__ import annotations

import os

from streamattn_cli.rows.writers.fdio import pwrite_all


class PatientFile:
    """A descriptor as a file object for h5py's `fileobj` driver. Errors of writing are kept, not raised.

    A full disk makes HDF5 fail while it closes a file, and after that the library is damaged: a later, healthy file
    crashed the process (seen with HDF5 2.0). So the library is told that all is well, and `check` tells us the truth.
    """

    def __init__(self, fd: int):
        self._fd = fd
        self._at = 0
        self._end = os.fstat(fd).st_size  # as the library must see it, also where writing failed
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first error that was kept."""
        if self._error is not None:
            raise self._error

    def write(self, data: memoryview) -> int:
        """Write at the current position."""
        view = memoryview(data).cast("B")
        try:
            pwrite_all(self._fd, view, self._at)
        except OSError as error:
            self._error = self._error or error
        self._at += len(view)
        self._end = max(self._end, self._at)
        return len(view)

    def read(self, size: int) -> bytes:
        """Read at the current position; what could not be written reads as zeros."""
        data = os.pread(self._fd, size, self._at)
        self._at += size
        return data.ljust(size, b"\0")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; returns the position."""
        self._at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence] + offset
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def truncate(self, size: int) -> int:
        """Set the file's length."""
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self._error = self._error or error
        self._end = size
        return size

    def flush(self) -> None:
        """Nothing is held back here."""
