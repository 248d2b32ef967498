"""A few rows of a tensor, spread evenly over it where it can be read anywhere."""

from __future__ import annotations

import numpy as np

from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.tensors.tensor import RowTensor


def spread_rows(tensor: RowTensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to `count` rows (O, n, I) in storage dtype, and their numbers (n,) int64; of a pipe its first rows."""
    if not tensor.seekable or tensor.rows is None:
        block = tensor.peek(count)
        return block, np.arange(block.shape[1])
    if tensor.rows <= count:
        return tensor.peek(count), np.arange(tensor.rows)
    rows = np.unique(np.linspace(0, tensor.rows - 1, min(count, tensor.rows)).astype(np.int64))
    block = np.empty((tensor.outer, len(rows), tensor.width), DTYPES[tensor.dtype].holder)
    one = np.empty((tensor.outer, 1, tensor.width), block.dtype)
    for i, row in enumerate(rows):
        tensor.read_into(one, int(row))
        block[:, i] = one[:, 0]
    return block, rows
