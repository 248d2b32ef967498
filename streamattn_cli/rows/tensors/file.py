"""Raw rows in a file at an offset: .npy, safetensors and contiguous HDF5 all come down to this.

`os.preadv` straight into the caller's buffer: a memory map of the same file would count every page that was touched
as resident (measured: 2 GiB for a 2 GiB scan), and was slower.
"""

from __future__ import annotations

import os

import numpy as np

from streamattn_cli.errors import InputMalformed, InputMissing, damaged
from streamattn_cli.rows.tensors.layout import Extent
from streamattn_cli.rows.tensors.tensor import SeekableTensor


class OpenFileTensor(SeekableTensor):
    """The base of a tensor that reads bytes of a regular file, which is open from the beginning. Raises InputMissing."""

    def __init__(self, name: str, path: str, extent: Extent, dtype: str):
        super().__init__(name, path, extent, dtype)
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputMissing(f"{name}: cannot be opened: {error.strerror}") from error

    def fill(self, view: memoryview, position: int) -> None:
        """Read from a byte of the file until the view is full: the system may return less (it always does above 2 GiB)."""
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self.fd, [view[done:]], position + done)
            except OSError as error:
                at = position + done
                raise InputMissing(f"{self.name}: reading failed at byte {at}: {error.strerror}") from error
            if got == 0:
                raise InputMalformed(
                    f"{self.name}: truncated: the file ends at byte {position + done}, expected "
                    f"{position + len(view)} (did it shrink while being read?)"
                )
            done += got

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class FileTensor(OpenFileTensor):
    """A RowTensor over O segments of T rows of I items, laid out in C order from `offset` of a regular file."""

    def __init__(self, path: str, offset: int, extent: Extent, dtype: str, name: str | None = None):
        super().__init__(name or path, path, extent, dtype)
        self._offset = offset
        try:
            self._check_size()
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except BaseException:
            self.close()
            raise

    def _check_size(self) -> None:
        needed = self._offset + self.outer * self.rows * self._row
        there = os.fstat(self.fd).st_size
        if there < needed:
            raise damaged(self.name, f"truncated: its header promises {needed} bytes, the file has {there}")

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        count = self.there(buf, start, segment)
        if count * self._row:
            for at, rows in enumerate(buf, segment or 0):
                view = memoryview(rows).cast("B")[: count * self._row]
                self.fill(view, self._offset + (at * self.rows + start) * self._row)
        return count
