"""Some rows of a tensor, numbered from 0."""

from __future__ import annotations

import numpy as np

from streamattn_cli.errors import InputMalformed, UsageError
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.tensors.tensor import RowTensor, check_buffer, peek_seekable

_SKIP_BYTES = 1 << 18  # piece in which unwanted rows of a pipe are read


def first_row(tensor: RowTensor) -> int:
    """Which row of the tensor underneath is row 0 of this one."""
    return tensor.first if isinstance(tensor, RangeTensor) else 0


class RangeTensor:
    """Rows [first, stop) of another tensor; stop None means to its end, and so does one beyond it, which `note` then says.

    A pipe's rows before `first` are dropped. UsageError for a range that holds no row.
    """

    def __init__(self, base: RowTensor, first: int, stop: int | None):
        there = base.rows
        if first < 0 or (stop is not None and stop <= first) or (there is not None and first >= there):
            raise UsageError(
                f"{base.name}: rows {first}:{'' if stop is None else stop} are outside its "
                f"{'rows' if there is None else f'{there} rows'}"
            )
        self.note: str | None = None
        if there is not None and stop is not None and stop > there:
            self.note = f"{base.name}: rows {first}:{stop} asked for, it has {there}: rows {first}:{there} are taken"
            stop = there
        self.name, self.outer, self.width, self.dtype = base.name, base.outer, base.width, base.dtype
        self.seekable = base.seekable
        end = there if stop is None else stop
        self.rows = None if end is None else end - first
        self.base, self.first = base, first
        self._skipped = base.seekable or first == 0

    @property
    def path(self) -> str | None:
        """File of the tensor underneath."""
        return self.base.path

    @property
    def held_bytes(self) -> int:
        """Buffers of the tensor underneath."""
        return self.base.held_bytes

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        """See RowTensor. InputMalformed if a pipe ends before the range does."""
        check_buffer(self, buf, segment)
        self._skip()
        count = buf.shape[1] if self.rows is None else max(0, min(buf.shape[1], self.rows - start))
        if count == buf.shape[1]:
            got = self.base.read_into(buf, self.first + start, segment)
        else:
            part = np.empty((len(buf), count, self.width), buf.dtype)
            got = self.base.read_into(part, self.first + start, segment)
            buf[:, :count] = part
        self._expect(got, count, start)
        return got

    def _expect(self, got: int, count: int, start: int) -> None:
        if got < count and self.rows is not None:
            raise InputMalformed(
                f"{self.name}: ends after {self.first + start + got} rows, expected rows up to "
                f"{self.first + self.rows} as asked for"
            )

    def _skip(self) -> None:
        """Read and drop the rows of a pipe that come before the range."""
        if self._skipped:
            return
        self._skipped = True
        at, row = 0, self.width * DTYPES[self.dtype].itemsize
        piece = np.empty((1, max(1, min(self.first, _SKIP_BYTES // row)), self.width), DTYPES[self.dtype].holder)
        while at < self.first:
            want = min(piece.shape[1], self.first - at)
            got = self.base.read_into(piece[:, :want], at)
            at += got
            if got < want:
                raise InputMalformed(f"{self.name}: ends after {at} rows, expected rows from {self.first} on")

    def peek(self, n: int) -> np.ndarray:
        if self.seekable:
            return peek_seekable(self, n)
        self._skip()
        return self.base.peek(n if self.rows is None else min(n, self.rows))

    def close(self) -> None:
        """Close the tensor underneath."""
        self.base.close()
