"""Arrays whose axes lie in another order than they are named in, such as a transposed tensor: read through a buffer."""

from __future__ import annotations

from copy import copy
from itertools import product
from math import prod

import numpy as np

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.tensors.file import FileTensor, OpenFileTensor
from streamattn_cli.rows.tensors.layout import Extent

PIECE = 1 << 20  # bytes that are read at a time, unless one row spans more
COLUMNS = 1 << 22  # of arrays that are stored by columns, where a larger piece has longer stretches
LARGEST = 1 << 24  # bytes that one row may span


class StridedTensor(OpenFileTensor):
    """A RowTensor over an array of `shape` with `strides` in items, whose first item is at `offset` of a file.

    Axes before the rows that lie within a row (heads of (B, H, T, D) stored as (B, T, H, D)) are read together with it.
    """

    def __init__(
        self, path: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], extent: Extent, dtype: str, name: str
    ):  # fmt: skip
        super().__init__(name, path, extent, dtype)
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
        count = self.there(buf, start)
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
        self.fill(memoryview(data), self._offset + at * self._item)
        axes = [*self._near, (rows, self._stride), *self._after]
        shape, strides = [size for size, _ in axes], [stride * self._item for _, stride in axes]
        flat = np.frombuffer(data, DTYPES[self.dtype].holder)
        return np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False)


def in_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether strides are those of C order; axes of one do not count."""
    expected = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return all(size == 1 or stride == want for size, stride, want in zip(shape, strides, expected, strict=True))


class ColumnsTensor(FileTensor):
    """A RowTensor over an array (T, I) that is stored as (I, T): a stretch of each column is read, and all are turned."""

    def __init__(self, path: str, offset: int, extent: Extent, dtype: str, name: str):
        super().__init__(path, offset, extent, dtype, name)
        self._item = DTYPES[dtype].itemsize
        self._step = min(max(1, COLUMNS // self._row), max(1, self.rows))
        self._data = np.empty((self.width, self._step), DTYPES[dtype].holder)
        self.held_bytes = self._data.nbytes

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        """See RowTensor; there is one segment."""
        count = self.there(buf, start, segment)
        for first in range(start, start + count, self._step):
            rows = min(self._step, start + count - first)
            for column, into in enumerate(self._data):
                at = self._offset + (column * self.rows + first) * self._item
                self.fill(memoryview(into[:rows]).cast("B"), at)
            buf[0, first - start : first - start + rows] = self._data[:, :rows].T
        return count
