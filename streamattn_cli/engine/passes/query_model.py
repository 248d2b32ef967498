"""Queries of a file of their own that stand for all queries to come: `--query-model FILE`."""

from __future__ import annotations

import numpy as np

from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.workers.lanes import Part
from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.sample import spread_rows


def model_queries(problem: Problem, count: int) -> list[np.ndarray]:
    """Up to `count` rows of the model's queries for every key head: (rows * query heads of its group, dim) each.

    Raises the errors of opening the file, and InputMalformed where its heads do not fit the keys.
    """
    p, name = problem, problem.request.query_model
    spec = InputSpec(q=name, kv_heads=len(p.k), dim=p.k.dim)
    with open_inputs(spec, need_kv=False) as inputs:
        q = inputs.q
        assert q is not None, "opened with queries"
        if q.dim != p.k.dim or len(q) % len(p.k):
            raise InputMalformed(
                f"{name}: {len(q)} query heads of dim {q.dim} found, the input has {len(p.k)} key heads of dim {p.k.dim}; "
                "expected a multiple of that many heads of the same dim"
            )
        block, _ = spread_rows(q.tensor, count)
        group, rows = len(q) // len(p.k), block.shape[1]
        found = []
        for head in range(len(p.k)):
            wide = np.empty((group, rows, q.dim), p.precision)
            Part("q", q, head * group, group, drop=False).widen(
                block, 0, rows, 0, wide, np.empty((group, rows), np.uint8)
            )
            found.append(wide.reshape(-1, q.dim))
    return found
