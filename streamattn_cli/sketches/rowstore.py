"""Rows kept exactly in storage dtype: half the bytes of the arithmetic's precision for half-precision input."""

from __future__ import annotations

import numpy as np

from streamattn_cli.kernels import rowstore as kernel
from streamattn_cli.kernels import widen as widening

HOLDER = {"f2": "u2", "bf16": "u2", "f4": "f4", "f8": "f8"}
_NOT_A_NUMBER = {"f2": 0x7E00, "bf16": 0x7FC0, "f4": np.nan, "f8": np.nan}


def put(rows: np.ndarray, k: np.ndarray, c: np.ndarray, storage: str) -> None:
    """Store k (n, d) and c (n, dv + 1) = [v, weight] as rows (n, d + dv); exact for numbers that storage can hold.

    A row of weight 0 was dropped: it is stored as NaN, which no other row can be.
    """
    d = k.shape[1]
    for part, numbers in ((rows[:, :d], k), (rows[:, d:], c[:, :-1])):
        if storage == "f2":
            part[:] = numbers.astype(np.float16).view(np.uint16)
        elif storage == "bf16":
            part[:] = np.ascontiguousarray(numbers, np.float32).view(np.uint32) >> np.uint32(16)
        else:
            part[:] = numbers
    rows[c[:, -1] == 0] = _NOT_A_NUMBER[storage]


def get(rows: np.ndarray, storage: str, k: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stored rows as k (n, d) and c (n, dv + 1), views of the scratch arrays given."""
    kernel.load(rows, widening.KIND[storage], k, c)
    return k[: len(rows)], c[: len(rows)]
