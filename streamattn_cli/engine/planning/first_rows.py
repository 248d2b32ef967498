"""The first rows of an input as a method sees them: to choose its settings by, and to predict its error."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.workers.lanes import Lane, lane_work_spec
from streamattn_cli.sketches.headparams import allocate

FIRST = 1024


Peeked = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def peek_first(problem: Problem, values: bool) -> Peeked:
    """The first rows of q, k and, with `values`, v as they are stored; of pipes, once they have come."""
    k, q = (h.tensor.peek(FIRST) for h in (problem.k, problem.q))
    return q, k, problem.v.tensor.peek(FIRST) if values else None


def first_rows(problem: Problem, peeked: Peeked) -> Iterator[tuple[Lane, np.ndarray, np.ndarray, np.ndarray]]:
    """For every key head: its lane, keys (n, d), values with weights (n, dv + 1) and queries (r, d).

    Without `values` (they may come long after the keys) the keys stand in for them: an error of the weights then shows
    as an error of the mean key.
    """
    work = allocate(lane_work_spec(problem))
    q, k, v = peeked
    n = k.shape[1] if v is None else min(k.shape[1], v.shape[1])
    for index in range(len(problem.k)):
        lane = Lane(problem, index)
        keys = np.empty((n, problem.k.dim), problem.precision)
        c = np.ones((n, (problem.k.dim if v is None else problem.v.dim) + 1), problem.precision)
        queries = np.empty((problem.group, q.shape[1], problem.q.dim), problem.precision)
        for a, b in lane.steps(0, n):
            if v is None:
                keys[a:b] = c[a:b, :-1] = lane.alone("k", k, a, b, a, work)
            else:
                keys[a:b], c[a:b] = lane.keys(k, v, a, b, a, work)
        for a, b in lane.steps(0, q.shape[1]):
            queries[:, a:b] = lane.queries(q, a, b, a, work)
        yield lane, keys, c, queries.reshape(-1, problem.q.dim)
