"""Some query rows answered exactly, by all heads, while keys pass."""

from __future__ import annotations

import numpy as np

from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.saving.saver import stack_heads, unstack_heads
from streamattn_cli.engine.workers.lanes import Lane
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.sketches.exact import ExactQueries, ValueMeans
from streamattn_cli.sketches.tiles import TILE

TRUTH = "f8"  # precision of what answers are compared with: rounding of float32 is a part of their error


class ExactRows:
    """Queries of `rows` (n,) int64, sorted, q (heads, n, d): their exact and their trivial answers, in the precision of q.

    shares: whether to tell which share of their attention falls on the history; means: the trivial answers, too.
    """

    def __init__(
        self,
        problem: Problem,
        lanes: list[Lane],
        rows: np.ndarray,
        q: np.ndarray,
        means: bool = True,
        keys: int | None = None,
        first: int | None = None,
    ):
        """keys: how many rows the lanes will be shown, unless it is all keys of the problem. first: the row of them that query
        row 0 sees last, unless it is that of the problem."""
        self.problem, self.lanes, self.rows = problem, lanes, rows
        beside = (problem.first_query if first is None else first) + rows  # of the keys
        positions = beside if problem.causal else None
        if (problem.local or problem.bend.slopes) and not problem.causal:  # every query stands beside the last key
            positions = np.full(len(rows), (keys or problem.k.count) - 1)
        history, p = None, problem
        params = p.kinds[p.kind_of(keys) if keys else -1] if p.params else None
        if means and params and (ends := params.exact_from(beside, keys or p.k.rows, p.causal)) is not None:
            history = (params.sinks, ends)
        self.truth = [
            ExactQueries(
                q[lane.query_heads], positions, p.v.dim, p.scale, history, p.local, **p.logits_of(lane.query_heads)
            )
            for lane in lanes
        ]
        self.means = [ValueMeans(positions, len(rows), p.v.dim) for _ in lanes] if means else []
        self._at = {lane.index: i for i, lane in enumerate(lanes)}

    @staticmethod
    def projected_bytes(problem: Problem, rows: int, means: bool = True) -> int:
        """Bytes of an object and of its queries."""
        p, d, dv, lanes = TRUTH if means else problem.precision, problem.q.dim, problem.v.dim, len(problem.k)
        exact = ExactQueries.projected_bytes(problem.group, rows, d, dv, p, history=means) * lanes
        queries = rows * len(problem.q) * d * np.dtype(p).itemsize
        done = rows * len(problem.q) * 8 * (2 * dv + 1) + queries if problem.sequences else 0
        packed = (
            TILE * (d + dv + 1) * np.dtype(p).itemsize
        )  # by BLAS, which has done less of it in this precision before
        return exact + queries + done + packed + (ValueMeans.projected_bytes(rows, dv) * lanes if means else 0)

    def see(self, lane: Lane, k: np.ndarray, c: np.ndarray, row: int, work: dict) -> None:
        """Show the next keys (n, d) and values (n, dv + 1) of a lane, from this row of the stream on."""
        self.truth[self._at[lane.index]].absorb(k, c, work)
        if self.means:
            self.means[self._at[lane.index]].absorb(c)

    def save(self) -> dict:
        """What has been gathered so far, as lists of one array per lane."""
        truth, means = [t.state for t in self.truth], [m.state for m in self.means]
        return stack_heads(truth, "audit.truth") | stack_heads(means, "audit.means")

    def load(self, state: dict, name: str) -> None:
        """Take back what `save` gave; `name` is the checkpoint's, for messages."""
        unstack_heads(state, [t.state for t in self.truth], "audit.truth", name)
        unstack_heads(state, [m.state for m in self.means], "audit.means", name)

    def complete(self, heard: int) -> int:
        """How many of the rows have seen all their keys when the answers to `heard` rows are known. Only causal attention has
        any before the end: row t is complete when the tile of keys that holds t has passed."""
        first = self.problem.first_query
        return int(np.searchsorted(self.rows, (first + heard) // TILE * TILE - first))  # lanes may be beyond that

    def exactly(self, lane: Lane, rows: slice) -> np.ndarray:
        """The exact answers (heads, rows, dv) of a lane to rows that are complete."""
        answers = np.empty((self.problem.group, rows.stop - rows.start, self.problem.v.dim))
        self.truth[self._at[lane.index]].outputs(answers, rows)
        lane.restore(answers)
        return answers

    def finish(self, work: dict) -> np.ndarray:
        """All keys have been seen, and nothing more is to be gathered: the exact answers (n, heads, dv)."""
        exact = np.empty((len(self.problem.q), len(self.rows), self.problem.v.dim), self.problem.precision)
        for lane, truth in zip(self.lanes, self.truth, strict=True):
            truth.finish(work)
            truth.outputs(exact[lane.query_heads])
            lane.restore(exact[lane.query_heads])
        return exact.transpose(1, 0, 2)

    def answers(self, work: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """All keys have been seen: the exact and the trivial answers, both (n, heads, dv) float64, and which share of the
        exact attention falls on the history (n, heads), None if nobody knows where that ends. Exact answers are NaN where
        logits are beyond the range of floats.

        What has been gathered stays as it is: a checkpoint that is written afterwards asks once more when it is resumed.
        """
        exact = np.empty((len(self.rows), len(self.problem.q), self.problem.v.dim))
        trivial = np.empty_like(exact)
        shares = np.empty(exact.shape[:2]) if self.truth[0].history else None
        for lane, truth, means in zip(self.lanes, self.truth, self.means, strict=True):
            gathered = [(array, array.copy()) for part in (truth, means) for array in part.state.values()]
            truth.finish(work)
            means.finish()
            truth.outputs(out := np.empty((self.problem.group, *exact.shape[::2])))
            # tokens were seen and none has a weight: their logits are beyond the range of floats
            out[(truth.y[:, :, -1] == 0) & (means.sums[:, -1] > 0)] = np.nan
            mean = means.outputs()
            lane.restore(out)
            lane.restore(mean)
            exact[:, lane.query_heads] = out.transpose(1, 0, 2)
            trivial[:, lane.query_heads] = mean[:, None]
            if shares is not None:
                shares[:, lane.query_heads] = truth.shares().T
            for array, before in gathered:
                array[...] = before
        return exact, trivial, shares


class ExactSequences:
    """The same where there are several sequences: a lane holds what it gathers for the rows of one sequence at a time.

    Each of these is an ExactRows of its own, of rows within the sequence.
    """

    def __init__(self, problem: Problem, lanes: list[Lane], rows: np.ndarray, q: np.ndarray, means: bool = True):
        self.problem, self.lanes, self.rows, self.q, self._means = problem, lanes, rows, q, means
        edges = problem.q.several.edges
        self._cuts = np.searchsorted(rows, edges)  # sequence s has rows [cuts[s], cuts[s + 1]) of them
        n, heads, dv = len(rows), len(problem.q), problem.v.dim
        self._shares = bool(means and problem.params)
        self.done = {"exact": np.zeros((n, heads, dv)), "trivial": np.zeros((n, heads, dv) if means else (0, 0, 0))}
        self.done["shares"] = np.zeros((n, heads) if self._shares else (0, 0))
        self._now: list[tuple[int, ExactRows | None]] = [(-1, None) for _ in lanes]

    def see(self, lane: Lane, k: np.ndarray, c: np.ndarray, row: int, work: dict) -> None:
        """See ExactRows.see; the rows are of one sequence."""
        number, local = self.problem.k.several.local(row)
        if self._now[lane.index][0] != number:
            self._now[lane.index] = number, self._of(lane, number)
        held = self._now[lane.index][1]
        if held is None:
            return
        held.see(lane, k, c, local, work)
        if row + len(k) == self.problem.k.several.edges[number + 1]:
            self._keep(lane, number, held, work)
            self._now[lane.index] = number, None

    def _of(self, lane: Lane, number: int) -> ExactRows | None:
        """What gathers for a lane's rows of a sequence; None where there are none."""
        a, b = self._cuts[number : number + 2]
        if a == b:
            return None
        p, first = self.problem, int(self.problem.q.several.edges[number])
        keys = int(np.diff(p.k.several.edges[number : number + 2])[0])
        q = np.zeros((len(p.q), b - a, p.q.dim), self.q.dtype)
        q[lane.query_heads] = self.q[lane.query_heads, a:b]
        return ExactRows(p, [lane], self.rows[a:b] - first, q, self._means, keys, p.first_of(number))

    def _keep(self, lane: Lane, number: int, held: ExactRows, work: dict) -> None:
        rows, heads = slice(*self._cuts[number : number + 2]), lane.query_heads
        if not self._means:
            self.done["exact"][rows, heads] = held.finish(work)[:, heads]
            return
        exact, trivial, shares = held.answers(work)
        self.done["exact"][rows, heads], self.done["trivial"][rows, heads] = exact[:, heads], trivial[:, heads]
        if self._shares:
            assert shares is not None, "a history ends somewhere"
            self.done["shares"][rows, heads] = shares[:, heads]

    def save(self) -> dict:
        """See ExactRows.save: all lanes are at the same row."""
        held = [now for _, now in self._now if now]
        at = {"audit.sequence": np.array([self._now[0][0] if held else -1], np.int64)}
        state = stack_heads([h.truth[0].state for h in held], "audit.truth")
        state |= stack_heads([h.means[0].state for h in held if h.means], "audit.means")
        return at | state | {f"audit.done.{name}": array for name, array in self.done.items() if array.size}

    def load(self, state: dict, name: str) -> None:
        """See ExactRows.load."""
        number = int(state["audit.sequence"][0])
        for key, array in self.done.items():
            if array.size:
                array[...] = state[f"audit.done.{key}"]
        if number < 0:
            return
        held = [self._of(lane, number) for lane in self.lanes]
        self._now = [(number, one) for one in held]
        there = [one for one in held if one]
        unstack_heads(state, [h.truth[0].state for h in there], "audit.truth", name)
        unstack_heads(state, [h.means[0].state for h in there if h.means], "audit.means", name)

    def complete(self, heard: int) -> int:
        """See ExactRows.complete."""
        edges = self.problem.q.several.edges
        return int(self._cuts[np.searchsorted(edges, heard, side="right") - 1])

    def exactly(self, lane: Lane, rows: slice) -> np.ndarray:
        """See ExactRows.exactly."""
        return self.done["exact"][rows, lane.query_heads].transpose(1, 0, 2)

    def finish(self, work: dict) -> np.ndarray:
        """See ExactRows.finish."""
        self._keep_all(work)
        return self.done["exact"]

    def _keep_all(self, work: dict) -> None:
        """No lane will be shown more rows of the sequence that it is in."""
        for lane, (number, held) in zip(self.lanes, self._now, strict=True):
            if held:
                self._keep(lane, number, held, work)

    def answers(self, work: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """See ExactRows.answers."""
        self._keep_all(work)
        return self.done["exact"], self.done["trivial"], self.done["shares"] if self._shares else None


def exact_rows(
    problem: Problem, lanes: list[Lane], rows: np.ndarray, q: np.ndarray, means: bool = True
) -> ExactRows | ExactSequences:
    """What answers these rows exactly: see ExactRows."""
    return (ExactSequences if problem.sequences else ExactRows)(problem, lanes, rows, q, means)


def read_queries(problem: Problem, lanes: list[Lane], rows: np.ndarray) -> np.ndarray:
    """The queries of `rows` (n,) int64 as (heads, n, d) float64, zero where they are dropped; q must be seekable."""
    tensor = problem.q.tensor
    found = np.zeros((len(problem.q), len(rows), problem.q.dim), TRUTH)
    row = np.empty((tensor.outer, 1, tensor.width), DTYPES[tensor.dtype].holder)
    for slot, at in enumerate(rows):
        tensor.read_into(row, int(at))
        found[:, slot] = wide_queries(problem, lanes, row, 0, int(at))
    return found


def wide_queries(problem: Problem, lanes: list[Lane], block: np.ndarray, i: int, row: int) -> np.ndarray:
    """Row i of a block of q, global row `row`, as (heads, d); zero where it is dropped."""
    found = np.zeros((len(problem.q), problem.q.dim), problem.precision)
    mask = np.empty((problem.group, 1), np.uint8)
    wide = np.empty((problem.group, 1, problem.q.dim), problem.precision)
    for lane in lanes:
        if not lane.q.widen(block, i, i + 1, row, wide, mask):
            found[lane.query_heads] = wide[:, 0]
    return found
