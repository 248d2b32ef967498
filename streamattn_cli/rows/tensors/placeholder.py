"""A part of q, k, v that a command does without: its shape is known, its rows are not there."""

from __future__ import annotations

import numpy as np

from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.tensors.heads import Heads


class AbsentTensor:
    """A RowTensor without rows."""

    name = "nothing"
    outer = 1
    width = 0
    rows: int | None = None
    seekable = True
    path = None
    held_bytes = 0

    def __init__(self, dtype: str):
        self.dtype = dtype

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
