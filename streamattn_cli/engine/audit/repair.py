"""`--repair`: the most doubtful answers, made exactly after the pass and written in the place of those before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from streamattn_cli.engine.audit.audit import MOST_DOUBT
from streamattn_cli.engine.audit.exactrows import exact_rows, wide_queries
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.workers.lanes import Answers, Lane
from streamattn_cli.errors import UsageError
from streamattn_cli.kernels import norms
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.tensors.heads import refuse_pipes

BATCH_BYTES = 32 << 20  # of queries and their growing answers, in one pass over the keys


class Repairs:
    """The answers (up to `count`) with the largest expected squared error: squared norm times squared doubt.

    An answer is that to one row by one of `heads` query heads, and has the number row * heads + head. Numbers and scores
    alone are kept; the queries are read again.
    """

    def __init__(self, count: int, heads: int):
        self.heads = heads
        self.numbers = np.full(count, -1, np.int64)
        self.scores = np.zeros(count)

    @property
    def state(self) -> dict[str, np.ndarray]:
        """What is held, as named arrays."""
        return {"numbers": self.numbers, "scores": self.scores}

    def observe(self, start: int, answers: Answers, _q: np.ndarray | None = None) -> None:
        """Answers to rows start.., as the method gave them. Equal scores: the earlier answer."""
        found = np.empty(answers.doubt.shape)
        norms.squares(answers.rows, found)
        with np.errstate(over="ignore", invalid="ignore"):
            found *= np.minimum(answers.doubt, MOST_DOUBT).astype(np.float64) ** 2
        scores = np.nan_to_num(found, nan=0.0, posinf=1e300).reshape(-1)
        new = np.flatnonzero(scores > self.scores.min())
        if len(new):
            numbers = np.concatenate([self.numbers, start * self.heads + new])
            scores, count = np.concatenate([self.scores, scores[new]]), len(self.scores)
            least = np.partition(scores, -count)[-count]
            more, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
            kept = np.sort(np.concatenate([more, equal[: count - len(more)]]))
            self.numbers[:], self.scores[:] = numbers[kept], scores[kept]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """The numbers of the answers to repair, sorted, at most `size` at a time."""
        numbers = self.numbers[self.scores > 0]
        for first in range(0, len(numbers), size):
            yield numbers[first : first + size]


class ExactAnswers:
    """Some answers, of any rows and query heads, made exactly while keys pass: rows, heads (n,) say whose they are."""

    def __init__(self, problem: Problem, lanes: list[Lane], numbers: np.ndarray):
        """numbers (n,) int64, sorted: see Repairs."""
        self.rows, self.heads = np.divmod(numbers, len(problem.q))
        self._shape = len(numbers), problem.v.dim
        self._precision = problem.precision
        q = _queries(problem, lanes, self.rows, self.heads)
        self._of = {}  # of a query head: what answers it, as if there were no other
        for head in map(int, np.unique(self.heads)):
            alone, mine = problem.of_query_head(head), self.heads == head
            lane = Lane(alone, 0)
            self._of[head] = lane, exact_rows(alone, [lane], self.rows[mine], q[None, mine], means=False)

    def see(self, lane: Lane, k: np.ndarray, c: np.ndarray, row: int, work: dict) -> None:
        """See Auditing.see."""
        for head in range(lane.query_heads.start, lane.query_heads.stop):
            if head in self._of:
                alone, held = self._of[head]
                held.see(alone, k, c, row, work)

    def finish(self, work: dict) -> np.ndarray:
        """All keys have been seen: the answers (n, dv)."""
        found = np.empty(self._shape, self._precision)
        for head, (_, held) in self._of.items():
            found[self.heads == head] = held.finish(work)[:, 0]
        return found


def _queries(problem: Problem, lanes: list[Lane], rows: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """The queries (n, d) of these rows and heads (n,), by rows."""
    tensor, at = problem.q.tensor, -1
    found = np.zeros((len(rows), problem.q.dim), problem.precision)
    block = np.empty((tensor.outer, 1, tensor.width), DTYPES[tensor.dtype].holder)
    for i, (row, head) in enumerate(zip(map(int, rows), heads, strict=True)):
        if row != at:
            tensor.read_into(block, row)
            wide, at = wide_queries(problem, lanes, block, 0, row), row
        found[i] = wide[head]
    return found


def repair_count(problem: Problem) -> int:
    """As many answers as how many rows have --repair asks for.

    Raises UsageError and CannotMeet where they could not be written again.
    """
    request = problem.request
    word = request.repair
    if word is None:
        return 0
    try:
        share = float(word[:-1]) / 100 if word.endswith("%") else None
        count = int(word) if share is None else 0
    except ValueError:
        share, count = -1.0, 0
    if count < 0 or (share is not None and not 0 <= share <= 1):
        raise UsageError(f"--repair {word}: write a number of rows, or a share of them such as 5%")
    if problem.method == "exact":
        raise UsageError("--repair: exact attention has nothing to repair; omit it")
    if request.top_k or problem.sketches:
        raise UsageError("--repair: rows of --top-k and --sketches are not written one by one; omit it")
    refuse_pipes((problem.q, problem.k, problem.v), "--repair reads its rows again")
    rows = problem.q.count
    return min(rows, count if share is None else int(np.ceil(share * rows)))
