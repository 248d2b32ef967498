"""How wrong is it? Sampled query rows are answered exactly as well, and the two answers compared."""

from __future__ import annotations

import numpy as np

from streamattn_cli.engine.estimate import Design, by_position, draw_rows, estimate, estimate_bytes, worst_rows
from streamattn_cli.engine.events import Audit
from streamattn_cli.engine.lanes import Lane
from streamattn_cli.engine.request import Problem
from streamattn_cli.engine.saver import stack_heads, unstack_heads
from streamattn_cli.rows.tensor import STORAGE
from streamattn_cli.sketches.exact import ExactQueries, ValueMeans


class Auditor:
    """`rows` sampled query rows, their exact answers (gathered while keys pass) and what the method answered.

    With a seekable q the sample is drawn and read beforehand; otherwise (`reservoir`) it is kept from the queries as
    they pass, and `prepare` must be called before the keys are shown.
    """

    def __init__(self, problem: Problem, lanes: list[Lane], rows: int, reservoir: bool):
        self.problem, self.lanes = problem, lanes
        self.reservoir = reservoir
        shape = (len(problem.q), rows, problem.q.dim)
        self.q = np.zeros(shape, problem.precision)
        self.approx = np.full((rows, len(problem.q), problem.v.dim), np.nan)
        self.filled = self.offered = self.heard = 0
        if reservoir:
            self.rows = np.zeros(rows, np.int64)
            self.keys = np.full(rows, np.iinfo(np.uint64).max, np.uint64)
        else:
            self.drawn = draw_rows(problem.q.rows, rows, problem.request.seed)
            self.rows = self.drawn.rows
            self._read()
            self.prepare()

    @staticmethod
    def projected_bytes(problem: Problem, rows: int) -> int:
        """Bytes of an Auditor while keys pass."""
        p, d, dv = problem.precision, problem.q.dim, problem.v.dim
        heads, lanes = len(problem.q), len(problem.k)
        exact = ExactQueries.projected_bytes(problem.group, rows, d, dv, p, history=True) * lanes
        means = ValueMeans.projected_bytes(rows, dv) * lanes
        row = problem.q.tensor.outer * problem.q.tensor.width * STORAGE[problem.q.tensor.dtype].itemsize
        return exact + means + rows * heads * (d * np.dtype(p).itemsize + dv * 8) + row

    @staticmethod
    def comparing_bytes(problem: Problem, rows: int) -> int:
        """Bytes that `estimate` takes beside them: five arrays like the answers, and what is made of them."""
        heads = len(problem.q)
        return rows * 8 * (5 * heads * problem.v.dim + 4 * (heads + 2)) + estimate_bytes(rows, heads + 2)

    def prepare(self) -> None:
        """The sample is complete: make ready to see keys."""
        if self.reservoir:
            kept = np.argsort(self.rows[: self.filled])
            self.rows, self.q, self.approx = self.rows[kept], np.ascontiguousarray(self.q[:, kept]), self.approx[kept]
        positions = self.rows if self.problem.causal else None
        p = self.problem
        history = None
        if p.params and (ends := p.params.exact_from(self.rows, p.k.rows, p.causal)) is not None:
            history = (p.params.sinks, ends)
        self.truth = [
            ExactQueries(self.q[lane.query_heads], positions, p.v.dim, p.scale, history) for lane in self.lanes
        ]
        self.means = [ValueMeans(positions, len(self.rows), p.v.dim) for _ in self.lanes]

    def save(self) -> dict:
        """Everything gathered so far, as named arrays (or lists of one array per lane)."""
        if self.reservoir:
            held = {"rows": self.rows, "keys": self.keys, "q": self.q, "filled": np.array([self.filled])}
            return {"audit.approx": self.approx} | {f"audit.{name}": array for name, array in held.items()}
        truth, means = [t.state for t in self.truth], [m.state for m in self.means]
        return {"audit.approx": self.approx} | stack_heads(truth, "audit.truth") | stack_heads(means, "audit.means")

    def load(self, state: dict, name: str) -> None:
        """Take back what `save` gave; `name` is the checkpoint's, for messages."""
        self.approx[:] = state["audit.approx"]
        if self.reservoir:
            self.rows[:], self.keys[:], self.q[:] = state["audit.rows"], state["audit.keys"], state["audit.q"]
            self.filled = int(state["audit.filled"][0])
        else:
            unstack_heads(state, [t.state for t in self.truth], "audit.truth", name)
            unstack_heads(state, [m.state for m in self.means], "audit.means", name)

    def see(self, lane: Lane, k: np.ndarray, c: np.ndarray, work: dict) -> None:
        """Show the next keys (n, d) and values (n, dv + 1) of a lane."""
        self.truth[lane.index].absorb(k, c, work)
        self.means[lane.index].absorb(c)

    def hear(self, start: int, answers: np.ndarray) -> None:
        """Note what the method answered for sampled rows among rows start.. (n, heads, dv)."""
        a, b = np.searchsorted(self.rows, [start, start + len(answers)])
        self.approx[a:b] = answers[self.rows[a:b] - start]
        self.heard = start + len(answers)

    def offer(self, start: int, block: np.ndarray, answers: np.ndarray) -> None:
        """Reservoir: keep those rows of a block of queries whose hash is among the smallest so far."""
        self.offered = start + len(answers)
        keys = _hash(np.arange(start, start + len(answers), dtype=np.uint64), self.problem.request.seed)
        for i in np.flatnonzero(keys < self.keys.max()):
            slot = int(np.argmax(self.keys))
            if keys[i] < self.keys[slot]:
                self.keys[slot], self.rows[slot] = keys[i], start + i
                self.approx[slot] = answers[i]
                self._widen(block, int(i), start + int(i), slot)
                self.filled = min(self.filled + 1, len(self.rows))

    def estimate(self, work: dict) -> tuple[Audit | None, str | None]:
        """All keys have been seen: the audit, or the reason why there is none."""
        exact, trivial, shares = self.answers(work)
        return compare_answers(exact, trivial, self.approx, self.design(), shares)

    def answers(self, work: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """All keys have been seen: the exact and the trivial answers, both (rows, heads, dv) float64, and which share
        of the exact attention falls on the history (rows, heads); None if nobody knows where that ends.

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
            exact[:, lane.query_heads] = out.transpose(1, 0, 2)
            trivial[:, lane.query_heads] = means.outputs()[:, None]
            if shares is not None:
                shares[:, lane.query_heads] = truth.shares().T
            for array, before in gathered:
                array[...] = before
        return exact, trivial, shares

    def design(self) -> Design:
        """How the sampled rows were drawn."""
        if not self.reservoir:
            return self.drawn
        total = self.problem.q.rows or max(self.offered, int(self.rows[-1]) + 1)
        return Design(self.rows, np.array([0, total]))

    def _read(self) -> None:
        tensor = self.problem.q.tensor
        row = np.empty((tensor.outer, 1, tensor.width), STORAGE[tensor.dtype].holder)
        for slot, at in enumerate(self.rows):
            tensor.read_into(row, int(at))
            self._widen(row, 0, int(at), slot)
        self.filled = len(self.rows)

    def _widen(self, block: np.ndarray, i: int, row: int, slot: int) -> None:
        mask = np.empty((self.problem.group, 1), np.uint8)
        wide = np.empty((self.problem.group, 1, self.problem.q.dim), self.problem.precision)
        for lane in self.lanes:
            if lane.q.widen(block, i, i + 1, row, wide, mask):
                wide[:] = 0
            self.q[lane.query_heads, slot] = wide[:, 0]


def compare_answers(
    exact: np.ndarray, trivial: np.ndarray, approx: np.ndarray, design: Design, shares: np.ndarray | None = None
) -> tuple[Audit | None, str | None]:
    """The audit of answers (rows, heads, dv), NaN where a query was dropped; or the reason why there is none.

    shares (rows, heads): of the exact attention, what falls on the history.
    """
    good = np.isfinite(approx).all(axis=(1, 2))
    if not good.any():
        return None, "every sampled query was dropped"
    design = design.only(good)
    size = (exact[good] ** 2).sum(axis=2)
    wrong, nothing = (((other[good] - exact[good]) ** 2).sum(axis=2) for other in (approx, trivial))
    together = size.sum(axis=1)
    method, zero, *heads = estimate(
        np.column_stack([wrong.sum(axis=1), nothing.sum(axis=1), wrong]), np.column_stack([together, together, size]),
        design,
    )  # fmt: skip
    edges, pieces = by_position(wrong, size, design)
    worst = worst_rows(wrong, size, design.rows)
    mass = () if shares is None else tuple(map(float, shares[good].mean(axis=0)))
    return Audit(
        int(good.sum()), method, zero, tuple(heads), tuple(edges), tuple(map(tuple, pieces)), worst, mass
    ), None


def _hash(x: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 of row numbers (uint64), keyed by the seed."""
    x = x + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
