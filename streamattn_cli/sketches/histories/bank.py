"""A bank of rows kept in storage dtype: what the histories that choose rows have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.sketches.coding.rowstore import get, put
from streamattn_cli.sketches.method import History
from streamattn_cli.sketches.partial import Partial


def bank_spec(rows: int, dim: int, value_dim: int, storage: str) -> tuple[tuple[int, int], str]:
    """Shape and dtype of the array that a bank is made on."""
    return (rows, dim + value_dim), DTYPES[storage].holder


Weigh = Callable[[int, np.ndarray], None]


class Bank:
    """Rows of k and v in an array of the state, in the order in which they came; the first `count` of them are live."""

    def __init__(self, rows: np.ndarray, dim: int, storage: str):
        self.rows, self.dim, self.storage = rows, dim, storage

    def put(self, at: int, k: np.ndarray, c: np.ndarray) -> None:
        """Store k (n, d) and c (n, dv + 1), weights aside, from place `at` on."""
        put(self.rows[at : at + len(k)], k, c, self.storage)

    def load(self, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows [a, b) as k (n, d) and c (n, dv + 1) = [v, 1], float64 (storage in float32 loses nothing on the way)."""
        dtype = np.float64 if self.storage == "f8" else np.float32
        k, c = np.empty((b - a, self.dim), dtype), np.empty((b - a, self.rows.shape[1] - self.dim + 1), dtype)
        get(self.rows[a:b], self.storage, k, c)
        return k.astype(np.float64), c.astype(np.float64)

    def partial(self, count: int, work: dict, out: Partial, weigh: Weigh | None = None) -> None:
        """Answer the tile of queries in work["scaled"] over the first `count` rows.

        weigh(first, c) turns c (n, dv + 1) = [v, 1] of rows first.. into the coefficients, in place.
        """
        out.clear()
        self.add_partial(count, work, out, weigh)

    def add_partial(self, count: int, work: dict, out: Partial, weigh: Weigh | None = None) -> None:
        """As `partial`, beside what `out` has already."""
        low, high = work["everything"]
        low[:] = 0
        tile = len(work["tile_k"])
        for first in range(0, count, tile):
            n = min(tile, count - first)
            k, c = get(self.rows[first : first + n], self.storage, work["tile_k"], work["tile_c"])
            if weigh:
                weigh(first, c)
            high[:] = n
            out.attend(work["scaled"], k, c, low, high, work["logits"], work["product"])


class RowHistory(History):
    """A history that keeps rows of the stream in a bank, the state array "rows"."""

    def __init__(self, params: Any, dim: int, value_dim: int, scale: float, dtype: str, state: dict):
        super().__init__(params, dim, value_dim, scale, dtype, state)
        self.bank = Bank(state["rows"], dim, params.storage)

    @staticmethod
    def reduced(params: Any, rows: int) -> Any:
        """Settings with places for so few rows, where there are more."""
        return replace(params, rows=rows) if rows <= params.rows else None


def live(k: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without the rows of weight 0."""
    alive = c[:, -1] != 0
    return (k, c) if alive.all() else (k[alive], c[alive])
