"""Attention over one key head's stream: exact sinks, exact recent rows, and a compressed history.

Rows pass through in groups of `group` rows aligned to the global row index. Group g's queries are answered by
    sinks     the first S rows, exactly;
    recent    every row since base(g) = floor((g G - W + 1) / G) G (or since the group's start when W = 0), exactly:
              at least the W most recent rows, the row itself among them;
    history   the groups before base(g), by the method (nothing at all for `window`, which sees exactly W rows).
Nothing depends on how the rows were cut into blocks: tiles have the same shape whenever a row is answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from streamattn_cli.errors import CheckpointIncompatible
from streamattn_cli.kernels import blas, dense
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.bend import STRAIGHT, Bend
from streamattn_cli.sketches.coding.rowstore import get, kind, put
from streamattn_cli.sketches.headparams import HeadParams, allocate
from streamattn_cli.sketches.method import History
from streamattn_cli.sketches.recent import RecentRows
from streamattn_cli.sketches.tiles import ALL, QueryTile

NO_SINKS = np.empty(0)
LEAST_DOUBT = np.float32(1e-6)  # of an answer that may not be exact


class HeadAttention:
    """One key head: `absorb` rows, or `step` through rows with their causal queries; `finish`, then `answer` queries.

    Rows are k (n, d) and c (n, dv + 1) = [v, weight], weight 1 (0 for a dropped row, whose v must be 0 too), in the
    precision of the parameters. `work` is one thread's scratch, `allocate(params.work_spec())`; its "counts" tallies what
    was clipped or guarded. sink_logits (query heads,) float64: the logits of tokens without a value that every query sees
    beside the others (METHODS.md (A9)). bend: of the logits of all rows that are exact; with a history none.
    Answering does not change the state, so threads may answer side by side.
    """

    def __init__(
        self,
        params: HeadParams,
        state: dict[str, np.ndarray] | None = None,
        sink_logits: np.ndarray = NO_SINKS,
        bend: Bend = STRAIGHT,
    ):
        self.params, self.sink_logits, self.bend = params, sink_logits, bend
        if state is None:
            state = allocate(params.state_spec())
            state["range"][0], state["range"][1] = np.inf, -np.inf
        self.state = state
        self.entered: int | None = None  # see `enter`
        self.history: History | None = None
        if params.history:
            inner = {name[8:]: array for name, array in state.items() if name.startswith("history.")}
            cls = registry.history_of(params.history)
            self.history = cls(params.history, params.dim, params.value_dim, params.scale, params.dtype, inner)
        self.recent = RecentRows(params, state["recent"], self.history)

    @property
    def _past(self) -> History:
        """The history, of a method that has one."""
        assert self.history is not None, "the method has no history"
        return self.history

    @property
    def rows(self) -> int:
        """Rows absorbed so far."""
        return int(self.state["counters"][0])

    @property
    def clipped(self) -> int:
        """Keys clipped so far."""
        return int(self.state["counters"][3])

    def restart(self) -> None:
        """Forget everything: another stream begins."""
        for array in self.state.values():
            array.fill(0)
        self.state["range"][0], self.state["range"][1] = np.inf, -np.inf

    def calibrate(self, k: np.ndarray, c: np.ndarray, q: np.ndarray | None) -> float | None:
        """Show the history the first rows and some queries; returns its predicted relative error, if it has one."""
        return self.history.calibrate(k, c, q) if self.history else None

    def begin(self, row: int) -> None:
        """The first row to come has this number in the stream that this is a shard of: to some histories it matters."""
        if self.history:
            self.history.begin(row)

    def enter(self) -> None:
        """Queries begin with the next row: it may lie within a group, of whose queries a history then sees the rest alone."""
        self.entered = self.rows

    def absorb(self, k: np.ndarray, c: np.ndarray, work: dict) -> None:
        """Take in the next rows, k (n, d) and c (n, dv + 1), any n."""
        p = self.params
        if not self.history and self.rows >= p.sinks and not self._reaches(len(k)):
            self._put(k, c)
            return
        for a, b in self._pieces(len(k)):
            whole = b - a == p.group and b < len(k) and self.rows >= p.sinks
            if whole and self.history and p.window <= 1:  # the next rows would retire these: they need not wait
                self._retire(self.rows, work)
                self._give(k[a:b], c[a:b], work)
                self.state["counters"][:2] = self.rows + p.group
            else:
                self._take(k[a:b], c[a:b], work)

    def skip(self, rows: int) -> int:
        """Pass over as many of the next `rows` rows as will leave no trace, and return their number: without a history
        those that the window will have left behind at the end of them."""
        return 0 if self.history or self.rows < self.params.sinks else self._leave(rows)

    def keep(self, k: np.ndarray, v: np.ndarray) -> None:
        """`absorb` without a history: the next rows as they are stored, k (n, d) and v (n, dv), all finite."""
        s, both = self.state, (k, v)
        _fill(s["sinks"][self.rows : self.rows + len(k)], both)
        idle = self._leave(len(k))
        left, at = len(k) - idle, self.rows - int(s["counters"][1])
        _fill(s["recent"][at : at + left], [part[idle:] for part in both])
        s["counters"][0] += left

    def _leave(self, rows: int) -> int:
        """Give up the recent rows that the window will have left behind at the end of the next `rows` rows, and pass over
        those of the next ones that it will have left, too; returns how many these are."""
        s, p = self.state, self.params
        base = p.base((self.rows + rows - 1) // p.group)
        idle = base - self.rows
        if idle <= 0:
            self._retire(base, {})
            return 0
        s["recent"][:] = 0
        s["counters"][:2] = base
        return idle

    def step(
        self, q: np.ndarray, k: np.ndarray, c: np.ndarray, out: np.ndarray, work: dict, doubt: np.ndarray | None = None
    ) -> None:
        """Take in the next rows and answer their causal queries q (heads, n, d) into out (heads, n, dv).

        doubt (heads, n) float32: about how large the relative error of each answer is; 0 where it is exact, 1 and more where
        it is not to be trusted, infinity where nothing was seen.
        A history that learns from queries does so once a group, so it must get whole groups (the last may be short, and the
        one that queries `enter`).
        """
        learns = self.history is not None and self.history.learns
        if learns and self.rows % self.params.group and self.rows != self.entered:
            raise ValueError(f"{type(self.history).__name__} learns from whole groups of {self.params.group} rows")
        doubt = np.empty(q.shape[:2], np.float32) if doubt is None else doubt
        for a, b in self._pieces(len(k)):
            first = self.rows
            if self.history and self.history.step and first % self.params.group == 0:
                self.history.step(self, q[:, a:], k[a:], c[a:], out[:, a:], work, doubt[:, a:])
                return
            self._take(k[a:b], c[a:b], work)
            self._answer(
                q[:, a:b], first, first + 1, 1, out[:, a:b], doubt[:, a:b], self._fallback(), work, learn=learns
            )

    def finish(self, work: dict) -> None:
        """The stream is over: only the window's rows stay exact, all others go into the history."""
        if self.history:
            first = max(self.rows - self.params.window, int(self.state["counters"][1]))
            self._retire(first, work)

    def answer(self, q: np.ndarray, start: int, out: np.ndarray, work: dict, doubt: np.ndarray | None = None) -> None:
        """Answer queries q (heads, n, d), global query rows start.., over all rows absorbed, into out (heads, n, dv); doubt
        (heads, n) float32: see `step`."""
        doubt = np.empty(q.shape[:2], np.float32) if doubt is None else doubt
        plain = not self._exact_rows() and not len(self.sink_logits)
        if self.history and self.history.answer and plain and self.state["counters"][2]:
            self.history.answer(q, start, self.state["range"], out, doubt, work)
            return
        fallback = self._fallback()
        for a, b in pieces(start, q.shape[1], self.params.group):
            self._answer(q[:, a:b], start + a, self.rows, 0, out[:, a:b], doubt[:, a:b], fallback, work)

    def merge(self, other: HeadAttention, work: dict) -> None:
        """Take in another sketch, of the rows that follow this one's; `other` stays as it is.

        Its window stays the exact one. Raises CheckpointIncompatible when the parameters differ.
        """
        if not self.params.takes_in(other.params):
            raise CheckpointIncompatible(f"{other.params} cannot be merged into {self.params}: their parameters differ")
        s, o, p = self.state, other.state, self.params
        rows, first = self.rows, int(o["counters"][1])
        if self.history and first:  # `other` has a history; nothing of ours is recent any more
            self._retire(rows, work)
            k, c = get(o["sinks"][: min(first, p.sinks)], p.stored, *_room(min(first, p.sinks), p))
            taken = min(max(p.sinks - rows, 0), len(k))
            s["sinks"][rows : rows + taken] = o["sinks"][:taken]
            c[:taken] = 0
            for a in range(0, len(k), p.group):
                self._give(k[a : a + p.group], c[a : a + p.group], work)
            self.history.merge(other.history)
            s["counters"][2:] += o["counters"][2:]
            np.minimum(s["range"][0], o["range"][0], out=s["range"][0])
            np.maximum(s["range"][1], o["range"][1], out=s["range"][1])
        if first:
            s["counters"][:2] = rows + first
        k, c = other.recent.get(0, other.rows - first, *_room(other.rows - first, p))
        for a, b in pieces(self.rows, len(k), p.group):
            self._take(k[a:b], c[a:b], work)

    def _pieces(self, n: int) -> Iterator[tuple[int, int]]:
        return pieces(self.rows, n, self.params.group)

    def _take(self, k: np.ndarray, c: np.ndarray, work: dict) -> None:
        """Append rows of one group; at a group's start, first retire what its window no longer reaches."""
        s, p = self.state, self.params
        rows = self.rows
        if rows % p.group == 0:
            if p.coded_bytes:
                self.make_room(work)
            self._retire(p.base(rows // p.group, self.recent.window), work)
        if rows < p.sinks:
            n = min(len(k), p.sinks - rows)
            put(s["sinks"][rows : rows + n], k[:n], c[:n], p.stored)
        self._put(k, c)

    def _put(self, k: np.ndarray, c: np.ndarray) -> None:
        """Append rows to the recent ones, where there is room for them."""
        s = self.state
        self.recent.put(self.rows - int(s["counters"][1]), k, c)
        s["counters"][0] += len(k)

    def _reaches(self, rows: int) -> bool:
        """Whether the next `rows` rows will make some that are recent now retire."""
        p = self.params
        return p.base((self.rows + rows - 1) // p.group) > int(self.state["counters"][1])

    def _retire(self, base: int, work: dict) -> None:
        """Move the recent rows before global row `base` into the history, and the others to the front."""
        s, p = self.state, self.params
        first = int(s["counters"][1])
        gone = base - first
        if gone <= 0:
            return
        if self.history:
            for a in range(first, base, p.group):
                self._compress(a - first, min(a + p.group, base) - first, a, work)
        self.recent.forget(gone, self.rows - base)
        s["counters"][1] = base

    def _compress(self, a: int, b: int, row: int, work: dict) -> None:
        """Give recent rows [a, b), global rows from `row` on, to the history, without those that are sinks."""
        p = self.params
        if p.coded_bytes:
            self.make_room(work)
        k, c = self.recent.get(a, b, work["tile_k"], work["tile_c"])
        c[: max(p.sinks - row, 0)] = 0
        self._give(k, c, work)

    def make_room(self, work: dict) -> None:
        """Let the history compress its rows, if they leave no room for another group of them as they are."""
        rows = self.rows - int(self.state["counters"][1])
        self.recent.make_room(self.params.group, rows, work["tile_k"], work["tile_c"])

    def _give(self, k: np.ndarray, c: np.ndarray, work: dict) -> None:
        """Give the next rows, at most a group of them, to the history."""
        s = self.state
        s["counters"][2] += dense.extend_range(c, s["range"][0], s["range"][1])
        s["counters"][3] += self._past.absorb(k, c, work)

    def _answer(
        self, q: np.ndarray, first: int, high: int, slope: int, out: np.ndarray, doubt: np.ndarray, fallback: np.ndarray,
        work: dict, *, learn: bool = False,
    ) -> None:  # fmt: skip
        """Answer queries q (heads, n, d) of one group; query i sees the rows before high + slope i, `window` its last."""
        p, n, s = self.params, q.shape[1], self.state
        at = first % p.group
        window = ALL if self.history else p.window
        for head in range(0, len(q), p.stack):
            heads = q[head : head + p.stack]
            tile = QueryTile.of(work, len(heads), p.group)
            tile.place(heads, at, p.scale, high, slope, window)
            self._exact(tile, self.bend.of(slice(head, head + len(heads))))
            if len(self.sink_logits):
                logits = self.sink_logits[head : head + len(heads)]
                dense.add_sinks(tile.exact.m, tile.exact.y, tile.bounds[1], logits, p.group)
            lost = tile.past.doubt[:] = self._lost(tile)
            if self.history and s["counters"][2]:
                work["counts"][0] += self.history.partial(tile.queries, tile.work, tile.past)
                work["counts"][1] += tile.add_history(s["range"], self.history.doubts_weights)
                if np.any(lost):  # also where the history seems to have no share at all
                    np.maximum(tile.past.doubt, LEAST_DOUBT, out=tile.past.doubt, where=tile.bounds[1] > 0)
            elif learn:
                tile.share[:] = 0
            live = slice(None) if n == p.group else np.flatnonzero(tile.bounds[1])
            if learn:
                self._past.learn(tile.queries[live], tile.share[live], n * len(heads) / len(q), tile.work)
            for i in range(len(heads)):
                rows = slice(i * p.group + at, i * p.group + at + n)
                answers = tile.exact[rows]
                work["counts"][2] += answers.finish(fallback, out[head + i])
                doubt[head + i] = answers.doubt
                doubt[head + i][answers.m == -np.inf] = np.inf

    def _lost(self, tile: QueryTile) -> np.ndarray | float:
        """The doubt (r,) of answers that know some rows and not the others: without a history the share of those that it
        has left behind; of a history that keeps rows, as of a sample of so many."""
        if self.params.local:
            return 0.0
        if not self.history:
            low, high = tile.bounds
            lost = np.maximum(low - self.params.sinks, 0)
            share: np.ndarray = lost / np.maximum(lost + high - low, 1)
            return share
        absorbed = int(self.state["counters"][2])
        if self.history.kept is None or not absorbed:
            return 0.0
        return max(float(np.sqrt(max(0.0, 1 - self.history.kept / absorbed))), self.history.rounding)

    def _fallback(self) -> np.ndarray:
        """What a query is answered that no token answers (dv,)."""
        return self.history.mean_value() if self.history else np.zeros(self.params.value_dim)

    def _exact(self, tile: QueryTile, bend: Bend) -> None:
        """Answer a tile of queries over the sinks and the recent rows, as if they lay side by side."""
        bent = ((*bend.numbers(tile.exact.m.dtype), self.params.group, tile.bounds[1] - 1),) if bend else ()
        dense.exact(*self.near(tile, self.recent.stored()), *bent)

    def near(self, tile: QueryTile, recent: tuple | np.ndarray) -> tuple:
        """The arguments of dense.exact for the sinks and such recent rows."""
        s, work, out, base = self.state, tile.work, tile.exact, int(self.state["counters"][1])
        return (
            blas.address(self.params.dtype), tile.scaled, kind(self.params.stored), s["sinks"], recent, base,
            self._recent_end(), *tile.bounds, work["tile_k"], work["tile_c"], work["logits"], work["product"], out.m,
            out.y,
        )  # fmt: skip

    def _exact_rows(self) -> int:
        """How many rows are exact."""
        base = int(self.state["counters"][1])
        return self.rows - base + min(self.params.sinks, base)

    def _recent_end(self) -> int:
        """End of the recent rows, rounded up to whole groups so that a tile's shape does not depend on the chunking."""
        base = int(self.state["counters"][1])
        return base + -(-(self.rows - base) // self.params.group) * self.params.group


def _fill(rows: np.ndarray, parts: Iterable[np.ndarray]) -> None:
    """Fill rows (n, d + dv) with the first n rows of the parts, (>= n, d) and (>= n, dv)."""
    k, v = parts
    rows[:, : k.shape[1]], rows[:, k.shape[1] :] = k[: len(rows)], v[: len(rows)]


def _room(rows: int, params: HeadParams) -> tuple[np.ndarray, np.ndarray]:
    """New arrays k (n, d) and c (n, dv + 1)."""
    return np.empty((rows, params.dim), params.dtype), np.empty((rows, params.value_dim + 1), params.dtype)


def pieces(start: int, n: int, group: int) -> Iterator[tuple[int, int]]:
    """Cut rows start..start+n at multiples of `group`; yields (a, b) relative to start."""
    a = 0
    while a < n:
        b = min(n, a + group - (start + a) % group)
        yield a, b
        a = b
