"""Arrays whose axes lie in another order than they are named in, such as a transposed tensor: read through a buffer."""

from __future__ import annotations

import os
from copy import copy
from dataclasses import replace
from itertools import product
from math import prod

import numpy as np

from streamattn_cli.errors import InputMalformed, InputMissing
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.tensors.file import FileTensor
from streamattn_cli.rows.tensors.layout import Extent
from streamattn_cli.rows.tensors.tensor import check_buffer, peek_seekable

PIECE = 1 << 20  # bytes that are read at a time, unless one row spans more
COLUMNS = 1 << 22  # of arrays that are stored by columns, where a larger piece has longer stretches
LARGEST = 1 << 24  # bytes that one row may span


class StridedTensor:
    """A RowTensor over an array of `shape` with `strides` in items, whose first item is at `offset` of a file.

    Axes before the rows that lie within a row (heads of (B, H, T, D) stored as (B, T, H, D)) are read together with it.
    """

    seekable = True

    def __init__(
        self, path: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], extent: Extent, dtype: str, name: str
    ):  # fmt: skip
        self.path, self.name, self.dtype = path, name, dtype
        self.outer, self.rows, self.width = extent.outer, extent.count, extent.width
        self._offset, self._item = offset, DTYPES[dtype].itemsize
        self._axis, self._each = extent.layout.index("T"), extent.outer // extent.batch
        self._shape, self._strides = shape, strides
        self._arrange(shape, strides)
        if self._span * self._item > LARGEST:
            raise InputMalformed(
                f"{name}: its rows are stored {self._span * self._item} bytes apart, so that one cannot be read without the "
                "others; call .contiguous() before saving it"
            )
        self.held_bytes = max(PIECE, self._span * self._item)
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputMissing(f"{name}: cannot be opened: {error.strerror}") from error

    def _arrange(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        """Which axes are read together."""
        at = self._axis
        self._stride = strides[at]
        before, after = list(zip(shape, strides, strict=True))[:at], list(zip(shape, strides, strict=True))[at + 1 :]
        self._after = after
        near = [axis for axis, (_, stride) in enumerate(before) if stride < self._stride]
        self._near = [before[axis] for axis in near]
        far = [axis for axis in range(at) if axis not in near]
        self._sizes = [before[axis][0] for axis in far], [before[axis][1] for axis in far]
        self._order = [*far, *near]
        self._before = [size for size, _ in before]
        self._span = 1 + sum((size - 1) * stride for size, stride in [*self._near, *after])

    def _batch(self, number: int) -> StridedTensor:
        """One batch, of the same file."""
        part = copy(self)
        part.outer, part._offset = self._each, self._offset + number * self._strides[0] * self._item
        part._arrange((1, *self._shape[1:]), self._strides)
        return part

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        """See RowTensor; `segment` is the first of a batch, and buf has the segments of that batch."""
        if segment is not None:
            return self._batch(segment // self._each).read_into(buf, start)
        check_buffer(self, buf)
        count: int = max(0, min(buf.shape[1], self.rows - start))
        if not count * self.width:
            return count
        # axes of the buffer: far ones, near ones, rows, items of a row
        sizes = [size for size, _ in self._after]
        whole = buf.reshape(*self._before, buf.shape[1], *sizes)
        found = whole.transpose(*self._order, *range(len(self._before), whole.ndim))
        step = max(1, 1 + (PIECE // self._item - self._span) // max(self._stride, 1))
        for index in product(*map(range, self._sizes[0])):
            at = sum(i * stride for i, stride in zip(index, self._sizes[1], strict=True))
            for first in range(0, count, step):
                rows = min(step, count - first)
                place = found[index][..., first : first + rows, *(slice(None),) * len(sizes)]
                place[...] = self._piece(at + (start + first) * self._stride, rows)
        return count

    def _piece(self, at: int, rows: int) -> np.ndarray:
        """Rows from item `at` on, of all near axes: (near axes, rows, items)."""
        size = ((rows - 1) * self._stride + self._span) * self._item
        data = bytearray(size)
        got, view = 0, memoryview(data)
        while got < size:
            more = os.preadv(self._file, [view[got:]], self._offset + at * self._item + got)
            if not more:
                raise InputMalformed(
                    f"{self.name}: truncated: the file ends before its last row; write or copy it again"
                )
            got += more
        axes = [*self._near, (rows, self._stride), *self._after]
        shape, strides = [size for size, _ in axes], [stride * self._item for _, stride in axes]
        flat = np.frombuffer(data, DTYPES[self.dtype].holder)
        return np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False)

    def peek(self, n: int) -> np.ndarray:
        """See RowTensor."""
        return peek_seekable(self, n)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def in_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether strides are those of C order; axes of one do not count."""
    expected = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return all(size == 1 or stride == want for size, stride, want in zip(shape, strides, expected, strict=True))


class ColumnsTensor:
    """A RowTensor over an array (T, I) that is stored as (I, T): a stretch of each column is read, and all are turned."""

    seekable = True

    def __init__(self, path: str, offset: int, extent: Extent, dtype: str, name: str):
        self.path, self.name, self.dtype = path, name, dtype
        self.outer, self.width = extent.outer, extent.width
        self.rows: int | None = extent.count
        self._count, self._item = extent.count, DTYPES[dtype].itemsize
        self._step = min(max(1, COLUMNS // (self._item * self.width)), max(1, self._count))
        self._data = np.empty((self.width, self._step), DTYPES[dtype].holder)
        self.held_bytes = self._data.nbytes
        self._inner = FileTensor(
            path, offset, replace(extent, rows=1, width=self._count, outer=self.width), dtype, name
        )
        self._offset = offset

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        """See RowTensor; there is one segment."""
        check_buffer(self, buf, segment)
        count: int = max(0, min(buf.shape[1], self._count - start))
        for first in range(start, start + count, self._step):
            rows = min(self._step, start + count - first)
            for column, into in enumerate(self._data):
                at = self._offset + (column * self._count + first) * self._item
                self._inner.fill(memoryview(into[:rows]).cast("B"), at)
            buf[0, first - start : first - start + rows] = self._data[:, :rows].T
        return count

    def peek(self, n: int) -> np.ndarray:
        """See RowTensor."""
        return peek_seekable(self, n)

    def close(self) -> None:
        """Close the file."""
        self._inner.close()
