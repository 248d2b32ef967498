"""Exact attention for queries that are held in memory while keys and values stream by: the oracle and the audit.

The dual of a sketch: the state belongs to the queries (online softmax: m, y), and any number of keys may pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from streamattn_cli.kernels import blas, dense, share
from streamattn_cli.sketches.bend import STRAIGHT, Bend
from streamattn_cli.sketches.partial import Partial
from streamattn_cli.sketches.tiles import ALL, TILE

CHUNK = 128  # queries of one tile
NOWHERE = np.empty(0, np.int64)
NO_SINKS = np.empty(0)
Tile = tuple[int, np.ndarray, np.ndarray]  # its first row, k (TILE, d), c (TILE, dv + 1)


class KeyTiles:
    """Cuts a stream of rows into tiles of TILE rows aligned to the global row; rows of an unfinished tile wait here."""

    def __init__(self, dim: int, width: int, dtype: np.dtype | str):
        self.k = np.zeros((TILE, dim), dtype)
        self.c = np.zeros((TILE, width), dtype)
        self.count = np.zeros(1, np.int64)

    @property
    def state(self) -> dict[str, np.ndarray]:
        """The waiting rows and how many rows have come, as named arrays."""
        return {"tile_k": self.k, "tile_c": self.c, "tile_rows": self.count}

    @property
    def rows(self) -> int:
        """Rows that have come."""
        return int(self.count[0])

    def feed(self, k: np.ndarray, c: np.ndarray) -> Iterator[Tile]:
        """Yield (start, k, c) for every tile that these rows complete."""
        a = 0
        while a < len(k):
            at = self.rows % TILE
            n = min(TILE - at, len(k) - a)
            tile: Tile | None
            if whole := n == TILE and k.dtype == self.k.dtype:
                tile = (self.rows, k[a : a + n], c[a : a + n])
            else:
                self.k[at : at + n], self.c[at : at + n] = k[a : a + n], c[a : a + n]
                tile = (self.rows + n - TILE, self.k, self.c) if at + n == TILE else None
            self.count[0] += n
            a += n
            if tile:
                yield tile
            if tile and not whole:
                self.k[:], self.c[:] = 0, 0  # so that the state does not tell how its rows were cut

    def rest(self) -> Iterator[Tile]:
        """Yield the unfinished tile, if there is one, with its missing rows zero (weight 0)."""
        at = self.rows % TILE
        if at:
            self.k[at:], self.c[at:] = 0, 0
            yield self.rows - at, self.k, self.c


class ExactQueries:
    """Queries q (heads, n, d) of one key head, answered exactly over the rows that `absorb` is shown, in the precision of q.

    positions (n,) int64 are their global rows for causal attention (query i sees j <= positions[i]), None for full.
    window: how many keys each query sees, itself included; with positions. sink_logits (heads,) and
    bend: see HeadAttention; slopes need positions.
    history (first row, ends (n,) int64): which rows' share of each answer is to be told, too (`shares`).
    """

    def __init__(
        self, q: np.ndarray, positions: np.ndarray | None, value_dim: int, scale: float,
        history: tuple[int, np.ndarray] | None = None, window: int | None = None, sink_logits: np.ndarray = NO_SINKS,
        bend: Bend = STRAIGHT,
    ):  # fmt: skip
        heads, n, dim = q.shape
        # queries as columns, scaled: (d, rows) for each CHUNK of them, side by side
        self.q = np.empty((heads, n * dim), q.dtype)
        for head, flat in enumerate(self.q):
            for a in range(0, n, CHUNK):
                part = q[head, a : a + CHUNK]
                np.multiply(part.T, q.dtype.type(scale), out=flat[a * dim : (a + len(part)) * dim].reshape(dim, -1))
        self.positions = positions
        self.tiles = KeyTiles(dim, value_dim + 1, q.dtype)
        self.m = np.full((heads, n), -np.inf, q.dtype)
        self.y = np.zeros((heads, n, value_dim + 1))
        if len(sink_logits):  # the first token that they see
            self.m[:] = sink_logits[:, None]
            self.y[:, :, -1] = np.exp(sink_logits[:, None] - self.m)
        self.window = ALL if window is None else window
        self.bends = [bend.of(slice(h, h + 1)).numbers(q.dtype) if bend else None for h in range(heads)]
        self.history = history
        self.mass = np.zeros((heads, n) if history else (heads, 0))

    @property
    def state(self) -> dict[str, np.ndarray]:
        """What has been gathered, as named arrays that may be copied out and back."""
        return {"m": self.m, "y": self.y, "mass": self.mass, **self.tiles.state}

    @staticmethod
    def work_spec(value_dim: int) -> dict:
        """Scratch arrays of one thread, for queries of either precision."""
        return {
            "exact.logits": ((CHUNK * (TILE + 1),), "f8"),
            "exact.product": ((CHUNK * (value_dim + 1),), "f8"),
            "exact.bounds": ((2, CHUNK), "i8"),
        }

    @staticmethod
    def projected_bytes(heads: int, n: int, dim: int, value_dim: int, dtype: str, history: bool = False) -> int:
        """Bytes of an object for q (heads, n, dim); `history`: with shares."""
        item = np.dtype(dtype).itemsize
        return heads * n * (item * (dim + 1) + 8 * (value_dim + 1 + history)) + TILE * (dim + value_dim + 1) * item

    def absorb(self, k: np.ndarray, c: np.ndarray, work: dict) -> None:
        """Show the next rows, k (n, d) and c (n, dv + 1) = [v, weight]."""
        for start, keys, values in self.tiles.feed(k, c):
            self._see(start, keys, values, TILE, work)

    def finish(self, work: dict) -> None:
        """No more rows."""
        for start, k, c in self.tiles.rest():
            self._see(start, k, c, self.tiles.rows - start, work)

    def outputs(self, out: np.ndarray, rows: slice = slice(None)) -> int:
        """Write the answers to some of the n queries to out (heads, rows, dv); returns how many saw no token."""
        nothing = np.zeros(out.shape[-1])
        parts = (Partial(self.m[head, rows], self.y[head, rows]) for head in range(len(out)))
        return sum(part.finish(nothing, answers) for part, answers in zip(parts, out, strict=True))

    def shares(self) -> np.ndarray:
        """The share of each query's attention that falls on its history, (heads, n) in [0, 1]."""
        return self.mass / np.maximum(self.y[:, :, -1], 1e-300)

    def _scratch(self, work: dict) -> tuple[np.ndarray, np.ndarray]:
        """Logits and products (CHUNK, dv + 1), in the precision of the queries."""
        logits, product = (work[f"exact.{name}"].view(self.q.dtype) for name in ("logits", "product"))
        return logits, product[: CHUNK * self.y.shape[2]].reshape(CHUNK, -1)

    def _see(self, start: int, k: np.ndarray, c: np.ndarray, rows: int, work: dict) -> None:
        scratch = work["exact.bounds"], *self._scratch(work)
        gemm, n = blas.address(k.dtype.str[1:]), self.m.shape[1]
        if self.history is None:
            positions = NOWHERE if self.positions is None else self.positions
            for q, m, y, bend in zip(self.q, self.m, self.y, self.bends, strict=True):
                bent = () if bend is None else (bend,)
                dense.see(gemm, q, CHUNK, positions, self.window, start, rows, k, c, *scratch, m, y, *bent)
            return
        step = dense.tile_rows(min(CHUNK, n), max(k.shape[1], c.shape[1]), len(k))
        for a in range(0, len(k), step):  # in the portions of one product, whose weights are looked at
            b = min(a + step, len(k))
            self._see_portion(self.history, start + a, k[a:b], c[a:b], min(rows - a, b - a), work)

    def _see_portion(
        self, history: tuple[int, np.ndarray], start: int, k: np.ndarray, c: np.ndarray, rows: int, work: dict
    ) -> None:
        first, ends = history
        (logits, product), dim = self._scratch(work), k.shape[1]
        for a in range(0, self.m.shape[1], CHUNK):
            b = min(a + CHUNK, self.m.shape[1])
            low, high = (bounds[: b - a] for bounds in work["exact.bounds"])
            low[:], high[:] = 0, rows
            if self.positions is not None:
                beyond = self.positions[a:b] - start + 1
                np.minimum(rows, beyond, out=high)
                np.maximum(low, beyond - self.window, out=low)
                if high.max() <= 0 or low.min() >= rows:
                    continue
            beside = NOWHERE if self.positions is None else self.positions[a:b]
            for flat, m, y, mass, bend in zip(self.q, self.m, self.y, self.mass, self.bends, strict=True):
                q, out, before = flat[a * dim : b * dim].reshape(dim, -1), Partial(m[a:b], y[a:b]), m[a:b].copy()
                bent = bend and (*bend, CHUNK, beside, ALL, start)
                out.attend(q, k, c, low, high, logits, product[: b - a], bend=bent)
                weights = logits[b - a : (b - a) * (len(k) + 1)].reshape(len(k), -1)
                share.add_range(weights, first - start, ends[a:b] - start, before, out.m, mass[a:b])


class ValueMeans:
    """The trivial answer, the mean of the values, for the same queries as an ExactQueries: sums (n, dv + 1) float64."""

    def __init__(self, positions: np.ndarray | None, n: int, value_dim: int):
        self.positions = positions
        self.sums = np.zeros((n, value_dim + 1))
        self.tiles = KeyTiles(0, value_dim + 1, "f8")

    @property
    def state(self) -> dict[str, np.ndarray]:
        """What has been gathered, as named arrays."""
        return {"sums": self.sums, **self.tiles.state}

    @staticmethod
    def projected_bytes(n: int, value_dim: int) -> int:
        """Bytes of an object for n queries, and of the running sums over one tile."""
        return (n + 2 * TILE) * (value_dim + 1) * 8

    def absorb(self, c: np.ndarray) -> None:
        """Show the next rows c (n, dv + 1)."""
        for start, _, tile in self.tiles.feed(c[:, :0], c):
            self._see(start, tile)

    def finish(self) -> None:
        """No more rows."""
        for start, _, tile in self.tiles.rest():
            self._see(start, tile)

    def outputs(self) -> np.ndarray:
        """The means (n, dv), float64."""
        return self.sums[:, :-1] / np.maximum(self.sums[:, -1:], 1e-300)

    def _see(self, start: int, c: np.ndarray) -> None:
        if self.positions is None:
            self.sums += c.sum(axis=0, dtype=np.float64)
        else:
            last = self.positions - start  # of the rows that a query sees, counted in this tile
            self.sums[last >= len(c) - 1] += c.sum(axis=0, dtype=np.float64)
            for i in np.flatnonzero((last >= 0) & (last < len(c) - 1)):
                self.sums[i] += c[: last[i] + 1].sum(axis=0, dtype=np.float64)
