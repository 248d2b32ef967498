"""The shape of an output: where the rows of a block (n, heads, dim) go in each layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OutShape:
    """Rows of `heads` heads (batches included) of `dim` items, stored as `dtype` in `layout`."""

    layout: str  # one of layout.LAYOUTS; TD needs heads == 1
    heads: int
    dim: int
    dtype: np.dtype
    batch: int = 1

    def __post_init__(self) -> None:
        if self.heads % self.batch or (self.layout == "TD" and self.heads != 1):
            raise ValueError(f"{self.heads} heads in {self.batch} batches do not fit layout {self.layout}")

    def shape(self, rows: int) -> tuple[int, ...]:
        """Shape of the whole array."""
        size = {"T": rows, "B": self.batch, "H": self.heads // self.batch, "D": self.dim, "C": self.heads * self.dim}
        if "B" not in self.layout:
            size["H"] = self.heads
        return tuple(size[letter] for letter in self.layout)

    @property
    def segments(self) -> int:
        """Product of the axes before the rows."""
        return {"HTD": self.heads, "BHTD": self.heads, "BTHD": self.batch}.get(self.layout, 1)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all segments."""
        return self.heads * self.dim * self.dtype.itemsize

    def cut(self, block: np.ndarray) -> list[np.ndarray]:
        """The block's share of every segment, C-contiguous in `dtype`; copies only where it must."""
        each = self.heads // self.segments
        return [self._stored(block[:, s * each : (s + 1) * each]) for s in range(self.segments)]

    def _stored(self, part: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # a float32 beyond float16 becomes infinite, as everywhere
            return np.ascontiguousarray(part, self.dtype)

    def check(self, block: np.ndarray, start: int, written: int) -> None:
        """Rows come in order and in shape; anything else is a bug of the caller (ValueError)."""
        if start != written or block.ndim != 3 or block.shape[1:] != (self.heads, self.dim):
            raise ValueError(f"block {block.shape} at row {start}, expected (n, {self.heads}, {self.dim}) at {written}")
