"""Samples of rows that are chosen while a stream passes, evenly or by a size that is known then."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamattn_cli.kernels import counters

_TINY = 1e-300


class SizeSample:
    """`count` rows of a stream, row i kept with a chance that grows with its size x_i (sequential Poisson sampling,
    Ohlsson 1998): those with the smallest u_i / x_i, u_i a hash of the row number. One more is held, whose u / x is the
    threshold. The same rows whatever blocks they come in.

    What is held of a row: its answer (heads, dv), its facts (float64) and, with `query_dim`, its queries.
    """

    def __init__(self, count: int, seed: int, heads: int, value_dim: int, facts: int, query_dim: int, dtype: str):
        self.seed = seed
        self.rows = np.full(count + 1, -1, np.int64)
        self.keys = np.full(count + 1, np.inf)
        self.facts = np.zeros((count + 1, facts))
        self.answers = np.zeros((count + 1, heads, value_dim), dtype)
        self.queries = np.zeros((count + 1, heads, query_dim), dtype)

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Everything that is held, as named arrays."""
        names = ("rows", "keys", "facts", "answers", "queries")
        return {name: getattr(self, name) for name in names}

    @staticmethod
    def projected_bytes(count: int, heads: int, value_dim: int, query_dim: int, item: int) -> int:
        """Bytes of an object, and of the candidates of a block beside it."""
        return 3 * (count + 1) * (heads * (value_dim + query_dim) * item + 64)

    def offer(
        self,
        start: int,
        sizes: np.ndarray,
        facts: np.ndarray,
        answers: np.ndarray,
        queries: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        """Rows start.. of the stream: sizes (n,) >= 0, facts (n, ..), answers (n, heads, dv).

        queries(i) gives the queries (heads, d) of row i of them.
        """
        u = uniform(np.arange(start, start + len(sizes), dtype=np.uint64), self.seed)
        with np.errstate(divide="ignore", over="ignore"):
            keys = np.where(sizes > 0, u / np.maximum(sizes, _TINY), np.inf)
        new = np.flatnonzero(keys < self.keys.max())
        if not len(new):
            return
        new = new[np.argsort(keys[new], kind="stable")[: len(self.keys)]]
        both = np.concatenate([self.keys, keys[new]])
        order = np.lexsort((np.concatenate([self.rows, start + new]), both))[: len(self.keys)]
        came = {
            "rows": start + new, "keys": keys[new], "facts": facts[new], "answers": answers[new],
            "queries": np.array([queries(int(i)) for i in new]) if queries else np.zeros((len(new), *self.queries.shape[1:])),
        }  # fmt: skip
        for name, held in self.state.items():
            held[...] = np.concatenate([held, came[name].astype(held.dtype, copy=False)])[order]

    @property
    def chosen(self) -> slice:
        """Where the rows of the sample are: all that are held but the one that is the threshold."""
        return slice(0, min(len(self.keys) - 1, int(np.isfinite(self.keys).sum())))

    def chances(self, rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """How likely each of these rows (n,) of sizes (n,) was to be chosen, given the others."""
        if not np.isfinite(self.keys[-1]):  # there were no more
            return (sizes > 0).astype(np.float64)
        inside = np.isin(rows, self.rows[self.chosen])
        found: np.ndarray = np.minimum(
            1.0, sizes * np.where(inside, self.keys[-1], self.keys[-2] if len(self.keys) > 1 else 0.0)
        )
        return found


def uniform(rows: np.ndarray, seed: int) -> np.ndarray:
    """A number in (0, 1) for every row number (uint64), by splitmix64 of row and seed."""
    start = np.uint64((seed * int(counters.GOLDEN) + 0x632BE59BD9B4E019) % 2**64)
    x: np.ndarray = counters.mixed(counters.mixed(rows + start))
    return ((x >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
