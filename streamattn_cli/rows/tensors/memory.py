"""Rows that are already in memory: a NumPy array behind the same face as a file."""

from __future__ import annotations

import numpy as np

from streamattn_cli.rows.convert import items_of
from streamattn_cli.rows.dtypes import DTYPES, storage_of
from streamattn_cli.rows.tensors.layout import extent
from streamattn_cli.rows.tensors.tensor import SeekableTensor


class MemoryTensor(SeekableTensor):
    """A RowTensor over a float array (uint16: bfloat16 bit patterns) in one of the layouts. It copies only on read."""

    def __init__(self, array: np.ndarray, layout: str = "TD", name: str = "array", heads: int | None = None):
        self.name = name
        self.dtype, _ = storage_of(array.dtype, name)
        self.extent = extent(array.shape, layout, name, heads)
        self.outer, self.rows, self.width = self.extent.outer, self.extent.count, self.extent.width
        # as they are stored: (outer, rows, width)
        contiguous = np.ascontiguousarray(array)
        self.items = contiguous.view(DTYPES[self.dtype].holder).reshape(self.outer, self.rows, self.width)

    @classmethod
    def of(cls, values: np.ndarray, dtype: str) -> MemoryTensor:
        """Made-up numbers, float32 (n, dim), as rows of a storage dtype."""
        tensor = cls(values, name="made up")
        tensor.dtype, tensor.items = dtype, items_of(values, dtype)[None]
        return tensor

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        count = self.there(buf, start, segment)
        first = segment or 0
        buf[:, :count] = self.items[first : first + len(buf), start : start + count]
        return count
