"""Rows kept exactly in storage dtype: half the bytes of the arithmetic's precision for half-precision input."""

from __future__ import annotations

import numpy as np

from streamattn_cli.kernels import rowstore as kernel
from streamattn_cli.kernels import widen as widening

HOLDER = {"f2": "u2", "bf16": "u2", "f4": "f4", "f8": "f8"}
_NOT_A_NUMBER = {"f2": 0x7E00, "bf16": 0x7FC0, "f4": np.nan, "f8": np.nan}


def kind(storage: str) -> int:
    """What kernels call a storage dtype."""
    return widening.KIND[storage]


def dropped(storage: str) -> np.generic:
    """The item that a row of weight 0 is stored as."""
    return np.dtype(HOLDER[storage]).type(_NOT_A_NUMBER[storage])


def put(rows: np.ndarray, k: np.ndarray, c: np.ndarray, storage: str) -> None:
    """Store k (n, d) and c (n, dv + 1) = [v, weight] as rows (n, d + dv); exact for numbers that storage can hold.

    A row of weight 0 was dropped: it is stored as NaN, which no other row can be.
    """
    with np.errstate(over="ignore"):  # without the compiler: bits wrap around on purpose
        kernel.store(k, c, kind(storage), dropped(storage), rows)


def get(rows: np.ndarray, storage: str, k: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stored rows as k (n, d) and c (n, dv + 1), views of the scratch arrays given."""
    kernel.load(rows, kind(storage), k, c)
    return k[: len(rows)], c[: len(rows)]
