"""A lane is one key head with its query heads: where its numbers are in a block, and how they become floats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.errors import NonFinite
from streamattn_cli.kernels import widen as kernel
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.sequences import Sequences
from streamattn_cli.sketches.coding.rowstore import kind
from streamattn_cli.sketches.head import pieces

STEP = 512  # rows are widened and consumed a multiple of this at a time, aligned to the global row,
STEP_BYTES = 1 << 19  # of floats in all: they stay in the cache


def lane_work_spec(problem: Problem) -> dict:
    """Scratch arrays of one thread for widened rows and answers."""
    d, w, p = problem.k.dim, problem.v.dim + 1, problem.precision
    step = lane_step(problem)
    return {
        "lane.k": ((1, step, d), p),
        "lane.c": ((1, step, w), p),
        "lane.q": ((problem.group, step, d), p),
        "lane.out": ((problem.group, step, w - 1), p),
        "lane.doubt": ((problem.group, step), "f4"),
        "lane.mask": ((problem.group + 2, step), "u1"),
        "lane.dropped": ((2,), "i8"),  # rows of k, v and rows of q that were not finite
        "lane.answers": ((3,), "i8"),  # those not to be trusted, not finite as written, and (exact) of no token
    }


def lane_step(problem: Problem) -> int:
    """Rows of one step: as many as fit the cache, 512 to 4096."""
    row = (problem.k.dim + problem.v.dim + 1) * (1 + problem.group) * int(problem.precision[1])
    return STEP * min(8, max(1, STEP_BYTES // (STEP * row)))


@dataclass(frozen=True)
class Answers:
    """Answers to a block of queries, rows (n, heads, dv), and how far they may be off, doubt (n, heads) float32: see
    HeadAttention.step."""

    rows: np.ndarray
    doubt: np.ndarray


@dataclass(frozen=True)
class Part:
    """The heads of q, k or v that belong to a lane."""

    name: str
    heads: Heads
    first: int
    count: int
    drop: bool

    def widen(self, source: np.ndarray, a: int, b: int, row: int, out: np.ndarray, mask: np.ndarray) -> int:
        """Widen rows [a, b) of a block array (O, n, I) into out (count, >= b - a, >= dim); return the bad items.

        Row `a` is global row `row`. With drop, mask (count, >= b - a) becomes 1 where a row is finite; otherwise a
        value that is not raises NonFinite.
        """
        h = self.heads
        bad, head, at = kernel.widen(source, self._kind, *self._places, h.dim, a, b - a, self._factor, out, mask)
        if self._wide_units is not None:
            out[:, : b - a, : h.dim] /= self._wide_units
        if bad and not self.drop:
            raise NonFinite(
                f"{h.name_of(row + at)}: a value that is not finite in {self.name}, row {h.local(row + at)}, head "
                f"{h.before + self.first + head}; "
                "correct the input, or omit such rows with --nan-policy drop"
            )
        return int(bad)

    def bad(self, source: np.ndarray, a: int, b: int) -> bool:
        """Whether rows [a, b) of a block array hold anything that `widen` would look at twice."""
        found: bool = kernel.any_bad(source, self._kind, *self._runs, a, b - a)
        return found

    def stored(self, source: np.ndarray) -> np.ndarray:
        """The rows of a block array (O, n, I) of the first of these heads, as they are stored: (n, dim)."""
        column = self.heads.column[self.first]
        return source[self.heads.outer[self.first], :, column : column + self.heads.dim]

    @cached_property
    def _kind(self) -> int:
        return kind(self.heads.tensor.dtype)

    @cached_property
    def _factor(self) -> np.ndarray:
        h, chosen = self.heads, slice(self.first, self.first + self.count)
        factors = np.array((h.factors or ())[chosen], np.float32)
        if h.units is None or self._wide_units is not None:
            return factors
        return (factors if len(factors) else 1) / np.array(h.units[chosen], np.float32)

    @cached_property
    def _wide_units(self) -> np.ndarray | None:
        """What float64 rows are divided by, (count, 1, 1); None: by nothing, or by `_factor` with the rest."""
        h = self.heads
        if h.units is None or h.tensor.dtype != "f8":
            return None
        return np.array(h.units[self.first : self.first + self.count]).reshape(-1, 1, 1)

    @cached_property
    def _places(self) -> np.ndarray:
        """Segment and first item of every head (2, count)."""
        chosen = slice(self.first, self.first + self.count)
        return np.array([self.heads.outer[chosen], self.heads.column[chosen]], np.int64)

    @cached_property
    def _runs(self) -> np.ndarray:
        """Segment, first item and width of the items of these heads (3, runs); heads side by side are one run."""
        h, runs = self.heads, list[list[int]]()
        for head in range(self.first, self.first + self.count):
            if runs and runs[-1][0] == h.outer[head] and sum(runs[-1][1:]) == h.column[head]:
                runs[-1][2] += h.dim
            else:
                runs.append([h.outer[head], h.column[head], h.dim])
        return np.array(runs, np.int64).T.copy()


class Lane:
    """One key head: widens its rows of k, v and q, step by step."""

    def __init__(self, problem: Problem, index: int):
        drop = problem.request.nan_policy == "drop"
        self.index = index
        self.query_heads = slice(index * problem.group, (index + 1) * problem.group)
        self.k = Part("k", problem.k, index, 1, drop)
        self.v = Part("v", problem.v, index, 1, drop)
        self.q = Part("q", problem.q, index * problem.group, problem.group, drop)
        self.value_dim = problem.v.dim
        self.unit = problem.v.units[index] if problem.v.units else None  # that values are counted in
        top = np.finfo(problem.out_dtype)
        self.limit = float(top.max) * (1 + float(top.eps) / 4)  # from there on numbers are rounded to infinity
        self.step = lane_step(problem)

    def steps(self, start: int, rows: int, sequences: Sequences | None = None) -> Iterator[tuple[int, int]]:
        """Cut a block at multiples of `step` of the global row, or of that in each sequence; yields (a, b) within the block."""
        if sequences is None:
            yield from pieces(start, rows, self.step)
            return
        for _, first, last, row in sequences.pieces(start, start + rows):
            yield from ((first - start + a, first - start + b) for a, b in pieces(row, last - first, self.step))

    def keys(self, k: np.ndarray, v: np.ndarray, a: int, b: int, row: int, work: dict) -> tuple[np.ndarray, np.ndarray]:
        """Rows [a, b) of the blocks k and v as k (n, d) and c (n, dv + 1) = [v, weight]."""
        n, mask = b - a, work["lane.mask"]
        wide_k, wide_c = work["lane.k"], work["lane.c"]
        bad = self.k.widen(k, a, b, row, wide_k, mask[:1]) + self.v.widen(v, a, b, row, wide_c, mask[1:2])
        wide_c[0, :n, self.value_dim] = 1
        if bad:
            lost = (mask[:2, :n] == 0).any(axis=0)
            wide_k[0, :n][lost] = 0
            wide_c[0, :n][lost] = 0
            work["lane.dropped"][0] += lost.sum()
        return wide_k[0, :n], wide_c[0, :n]

    def pass_over(self, k: np.ndarray, v: np.ndarray, rows: int, row: int, work: dict) -> None:
        """Look at the first rows of the blocks k and v, which no sketch needs, only for what is not finite."""
        for a, b in self.steps(row, rows):
            if self.k.bad(k, a, b) or self.v.bad(v, a, b):
                self.keys(k, v, a, b, row + a, work)

    def alone(self, part: str, block: np.ndarray, a: int, b: int, row: int, work: dict) -> np.ndarray:
        """Rows [a, b) of the block of k or v, where the two come apart, as (n, dim)."""
        name, dim = ("lane.k", self.k.heads.dim) if part == "k" else ("lane.c", self.value_dim)
        getattr(self, part).widen(block, a, b, row, work[name], work["lane.mask"][:1])
        rows: np.ndarray = work[name][0, : b - a, :dim]
        return rows

    def queries(self, q: np.ndarray, a: int, b: int, row: int, work: dict) -> np.ndarray:
        """Rows [a, b) of the block q as (heads, n, d); those of dropped queries are 0."""
        n, mask = b - a, work["lane.mask"][2:]
        wide = _heads(work["lane.q"], n)
        if self.q.widen(q, a, b, row, wide, mask):
            wide[mask[:, :n] == 0] = 0
        return wide

    def answers(self, n: int, work: dict) -> tuple[np.ndarray, np.ndarray]:
        """Room for the answers to n queries of every head, (heads, n, dv), and for their doubt, (heads, n)."""
        return _heads(work["lane.out"], n), work["lane.doubt"].reshape(-1)[: len(work["lane.doubt"]) * n].reshape(-1, n)

    def put(self, answers: np.ndarray, doubt: np.ndarray, block: Answers, a: int, b: int, work: dict) -> None:
        """Copy answers (heads, n, dv) and their doubt to rows [a, b) of a block; rows of dropped queries become NaN."""
        self.restore(answers)
        block.rows[a:b, self.query_heads] = answers.transpose(1, 0, 2)
        block.doubt[a:b, self.query_heads] = doubt.T
        if self.q.drop:
            lost = self.lost(b - a, work).T
            block.rows[a:b, self.query_heads][lost] = np.nan
            block.doubt[a:b, self.query_heads][lost] = np.inf
        work["lane.answers"][:2] += np.count_nonzero(doubt >= 1), self.not_finite(answers)

    def restore(self, answers: np.ndarray) -> None:
        """Make answers in units of the values plain numbers, in place."""
        if self.unit:
            with np.errstate(over="ignore"):  # they are counted
                answers *= answers.dtype.type(self.unit)

    def not_finite(self, answers: np.ndarray) -> int:
        """How many answers (heads, n, dv) are not finite in the dtype of the output."""
        if not answers.size or max(float(answers.max()), -float(answers.min())) < self.limit:
            return 0
        return int(np.count_nonzero(~(np.abs(answers) < self.limit).all(axis=2)))

    def lost(self, n: int, work: dict) -> np.ndarray:
        """Which of the n queries that `queries` gave last are dropped, (heads, n) bool; counts their rows."""
        lost: np.ndarray = work["lane.mask"][2:, :n] == 0
        work["lane.dropped"][1] += lost.any(axis=0).sum()
        return lost


def _heads(scratch: np.ndarray, n: int) -> np.ndarray:
    """The memory of a scratch array (heads, most, d) as a contiguous one (heads, n, d)."""
    heads, _, d = scratch.shape
    return scratch.reshape(-1)[: heads * n * d].reshape(heads, n, d)
