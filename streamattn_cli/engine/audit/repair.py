"""`--repair`: the most doubtful rows, answered exactly after the pass and written in the place of their answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from streamattn_cli.engine.audit.audit import DOUBT, facts_of_rows
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.workers.lanes import Answers
from streamattn_cli.errors import CannotMeet, UsageError

BATCH_BYTES = 32 << 20  # of queries and their growing answers, in one pass over the keys


class Repairs:
    """The rows (up to `count`) whose answers have the largest expected squared error: squared norm times squared doubt.

    A heap of row numbers and scores alone; the queries are read again.
    """

    def __init__(self, count: int):
        self.rows = np.full(count, -1, np.int64)
        self.scores = np.zeros(count)

    @property
    def state(self) -> dict[str, np.ndarray]:
        """What is held, as named arrays."""
        return {"rows": self.rows, "scores": self.scores}

    def hear(self, start: int, answers: Answers, _q: np.ndarray | None = None) -> None:
        """Answers to rows start.., as the method gave them. Equal scores: the earlier row."""
        scores = facts_of_rows(answers.rows, answers.doubt)[:, DOUBT]
        new = np.flatnonzero(scores > self.scores.min())
        if len(new):
            rows, scores = np.concatenate([self.rows, start + new]), np.concatenate([self.scores, scores[new]])
            order = np.lexsort((rows, -scores))[: len(self.rows)]
            self.rows[:], self.scores[:] = rows[order], scores[order]

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """The rows to repair, sorted, at most `size` at a time."""
        rows = np.sort(self.rows[self.scores > 0])
        for first in range(0, len(rows), size):
            yield rows[first : first + size]


def repair_count(problem: Problem) -> int:
    """How many rows --repair asks for. Raises UsageError and CannotMeet where they could not be written again."""
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
    for heads in (problem.q, problem.k, problem.v):
        if not heads.tensor.seekable:
            raise CannotMeet(f"{heads.tensor.name}: --repair reads its rows again, and a pipe passes once; use a file")
    rows = problem.q.count
    return min(rows, count if share is None else int(np.ceil(share * rows)))
