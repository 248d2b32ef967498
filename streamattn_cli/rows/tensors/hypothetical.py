"""q, k and v that are only numbers yet: how many rows, heads and items, in which dtype. For plans."""

from __future__ import annotations

from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.placeholder import AbsentTensor


class ImaginedTensor(AbsentTensor):
    """Rows that will come from a file: their number is known, nothing can be read."""

    def __init__(self, dtype: str, rows: int, width: int, name: str):
        super().__init__(dtype)
        self.rows, self.width, self.name = rows, width, name


def imagined(dtype: str, rows: int, heads: int, dim: int, name: str = "the numbers given") -> Heads:
    """Heads side by side in one file."""
    tensor = ImaginedTensor(dtype, rows, heads * dim, name)
    return Heads(tensor, (0,) * heads, tuple(h * dim for h in range(heads)), dim)
