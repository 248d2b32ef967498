"""Some query rows answered exactly, by all heads, while keys pass."""

from __future__ import annotations

import numpy as np

from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.saving.saver import stack_heads, unstack_heads
from streamattn_cli.engine.workers.lanes import Lane
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.sketches.exact import ExactQueries, ValueMeans


class ExactRows:
    """Queries of `rows` (n,) int64, sorted, q (heads, n, d): their exact and their trivial answers.

    shares: whether to tell which share of their attention falls on the history; means: the trivial answers, too.
    """

    def __init__(self, problem: Problem, lanes: list[Lane], rows: np.ndarray, q: np.ndarray, means: bool = True):
        self.problem, self.lanes, self.rows = problem, lanes, rows
        positions = rows if problem.causal else None
        history, p = None, problem
        if means and p.params and (ends := p.params.exact_from(rows, p.k.rows, p.causal)) is not None:
            history = (p.params.sinks, ends)
        self.truth = [ExactQueries(q[lane.query_heads], positions, p.v.dim, p.scale, history) for lane in lanes]
        self.means = [ValueMeans(positions, len(rows), p.v.dim) for _ in lanes] if means else []

    @staticmethod
    def projected_bytes(problem: Problem, rows: int, means: bool = True) -> int:
        """Bytes of an object and of its queries."""
        p, d, dv, lanes = problem.precision, problem.q.dim, problem.v.dim, len(problem.k)
        exact = ExactQueries.projected_bytes(problem.group, rows, d, dv, p, history=means) * lanes
        queries = rows * len(problem.q) * d * np.dtype(p).itemsize
        return exact + queries + (ValueMeans.projected_bytes(rows, dv) * lanes if means else 0)

    def see(self, lane: Lane, k: np.ndarray, c: np.ndarray, work: dict) -> None:
        """Show the next keys (n, d) and values (n, dv + 1) of a lane."""
        self.truth[lane.index].absorb(k, c, work)
        if self.means:
            self.means[lane.index].absorb(c)

    def save(self) -> dict:
        """What has been gathered so far, as lists of one array per lane."""
        truth, means = [t.state for t in self.truth], [m.state for m in self.means]
        return stack_heads(truth, "audit.truth") | stack_heads(means, "audit.means")

    def load(self, state: dict, name: str) -> None:
        """Take back what `save` gave; `name` is the checkpoint's, for messages."""
        unstack_heads(state, [t.state for t in self.truth], "audit.truth", name)
        unstack_heads(state, [m.state for m in self.means], "audit.means", name)

    def finish(self, work: dict) -> np.ndarray:
        """All keys have been seen, and nothing more is to be gathered: the exact answers (n, heads, dv)."""
        exact = np.empty((len(self.problem.q), len(self.rows), self.problem.v.dim), self.problem.precision)
        for lane, truth in zip(self.lanes, self.truth, strict=True):
            truth.finish(work)
            truth.outputs(exact[lane.query_heads])
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
            exact[:, lane.query_heads] = out.transpose(1, 0, 2)
            trivial[:, lane.query_heads] = means.outputs()[:, None]
            if shares is not None:
                shares[:, lane.query_heads] = truth.shares().T
            for array, before in gathered:
                array[...] = before
        return exact, trivial, shares


def read_queries(problem: Problem, lanes: list[Lane], rows: np.ndarray) -> np.ndarray:
    """The queries of `rows` (n,) int64 as (heads, n, d), zero where they are dropped; q must be seekable."""
    tensor = problem.q.tensor
    found = np.zeros((len(problem.q), len(rows), problem.q.dim), problem.precision)
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
