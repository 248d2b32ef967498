"""Partial attention: the one algebra that sinks, windows, histories and shards share (METHODS.md (A1) to (A4)).

For a set X of tokens and a query q, with values carrying their weight as a last column c_j = [v_j, w_j],
    m = any shift,   y = sum over X of exp(s q.k_j - m) c_j,   z = y[-1];
disjoint sets combine exactly, and attention is y[:-1] / z.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from streamattn_cli.kernels import blas, dense


@dataclass
class Partial:
    """Partial answers to r queries: m (r,) in the rows' precision, y (r, dv + 1) float64 with z last. Empty: m = -inf.

    doubt (r,) float32: about how large the error of each is, relative to the answer; from 1 on it is not to be trusted.
    """

    m: np.ndarray
    y: np.ndarray
    doubt: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    @classmethod
    def empty(cls, queries: int, width: int, dtype: np.dtype) -> Partial:
        """The answer of no tokens; width = dv + 1."""
        return cls(np.full(queries, -np.inf, dtype), np.zeros((queries, width)), np.zeros(queries, np.float32))

    def __getitem__(self, rows: slice) -> Partial:
        """The answers to some of the queries, as views."""
        return Partial(self.m[rows], self.y[rows], self.doubt[rows])

    def clear(self) -> None:
        """Become the answer of no tokens again."""
        self.m[:] = -np.inf
        self.y[:] = 0

    def add(self, other: Partial) -> None:
        """Take in the answer of a disjoint set of tokens."""
        dense.combine(self.m, self.y, other.m, other.y)

    def attend(
        self, q: np.ndarray, k: np.ndarray, c: np.ndarray, low: np.ndarray, high: np.ndarray, logits: np.ndarray,
        product: np.ndarray, *, shift: int = 0, always: int = 0, bend: tuple | None = None,
    ) -> None:  # fmt: skip
        """Take in tokens exactly: k (n, d), c (n, dv + 1), of which query i sees low[i] <= j + shift < high[i].

        The first `always` tokens are seen whatever low says. Tokens of weight 0 are not there, whatever their keys.
        q (d, r), a column a query, is already multiplied by the scale. logits (at least (n + 1) r numbers) and product
        (r, dv + 1) are scratch. One call is one tile, and its shape decides the rounding: callers keep tiles aligned to the
        global row. bend: of the logits (kernels/bend.py).
        """
        gemm, bent = blas.address(q.dtype.str[1:]), () if bend is None else (bend,)
        dense.attend(gemm, q, k, c, shift, always, low, high, logits.reshape(-1), product, self.m, self.y, *bent)

    def guard(self, range_: np.ndarray) -> int:
        """Drop rows with z <= 0 and clip the others to the range (2, dv) of the values behind them; count the drops."""
        return int(dense.guard(self.m, self.y, range_[0], range_[1]))

    def finish(self, fallback: np.ndarray, out: np.ndarray) -> int:
        """Write the attention outputs to out (r, dv); rows without any token get `fallback`. Return their number."""
        return int(dense.finish(self.m, self.y, fallback, out))
