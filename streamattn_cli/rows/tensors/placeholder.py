"""q, k and v without rows: those that a command does without, and those that are only numbers yet, for plans."""

from __future__ import annotations

import numpy as np

from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.tensors.heads import Heads


class AbsentTensor:
    """A RowTensor of which no row can be read; rows: how many will come, where that is known."""

    outer = 1
    seekable = True
    path = None
    held_bytes = 0

    def __init__(self, dtype: str, rows: int | None = None, width: int = 0, name: str = "nothing"):
        self.dtype, self.rows, self.width, self.name = dtype, rows, width, name

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        """There is never a row."""
        return 0

    def peek(self, n: int) -> np.ndarray:
        """No rows, (1, 0, 0)."""
        return np.empty((1, 0, 0), DTYPES[self.dtype].holder)

    def close(self) -> None:
        """Nothing is open."""


def absent(heads: int, dim: int, dtype: str, batch: int = 1) -> Heads:
    """Heads of which only the number, of all batches, and the dim are known."""
    return Heads(AbsentTensor(dtype), (0,) * heads, (0,) * heads, dim, batch=batch)


def imagined(dtype: str, rows: int, heads: int, dim: int, name: str = "the numbers given") -> Heads:
    """Heads side by side in one file that does not exist yet."""
    tensor = AbsentTensor(dtype, rows, heads * dim, name)
    return Heads(tensor, (0,) * heads, tuple(h * dim for h in range(heads)), dim)
