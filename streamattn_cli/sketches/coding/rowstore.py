"""Rows kept exactly in storage dtype: half the bytes of the arithmetic's precision for half-precision input."""

from __future__ import annotations

import numpy as np

from streamattn_cli.kernels import rowstore as kernel
from streamattn_cli.kernels import widen as widening
from streamattn_cli.rows.convert import not_a_number
from streamattn_cli.rows.dtypes import DTYPES


def kind(storage: str) -> int:
    """What kernels call a storage dtype."""
    return int(getattr(widening, DTYPES[storage].kernel))


def put(rows: np.ndarray, k: np.ndarray, c: np.ndarray, storage: str) -> None:
    """Store k (n, d) and c (n, dv + 1) = [v, weight] as rows (n, d + dv); exact for numbers that storage can hold.

    A row of weight 0 was dropped: it is stored as NaN, which no other row can be.
    """
    with np.errstate(over="ignore"):  # without the compiler: bits wrap around on purpose
        kernel.store(k, c, kind(storage), not_a_number(storage), rows)


def get(rows: np.ndarray, storage: str, k: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stored rows as k (n, d) and c (n, dv + 1), views of the scratch arrays given."""
    kernel.load(rows, kind(storage), k, c)
    return k[: len(rows)], c[: len(rows)]
