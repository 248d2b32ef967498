"""Compile and load every kernel that a run will use before its memory is measured: a miniature of the run itself."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any, cast

import numpy as np

from streamattn_cli.engine.audit.audit import LEAST_BY_SIZE
from streamattn_cli.engine.passes.open_run import make_run
from streamattn_cli.engine.passes.pump import Watch
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.watch.events import Listener, Note
from streamattn_cli.engine.watch.meter import trim
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.engine.workers.pool import default_threads
from streamattn_cli.kernels import atoms, blas, compress, dense, jit, nystrom
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.memory import MemoryTensor
from streamattn_cli.rows.writers.base import Nowhere
from streamattn_cli.rows.writers.topk import BestRows
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams, allocate
from streamattn_cli.sketches.histories.nystrom import NystromHistory, insert_size
from streamattn_cli.sketches.histories.nystromparams import NystromParams
from streamattn_cli.sketches.histories.querymodel import QueryModel
from streamattn_cli.sketches.rope import rotation
from streamattn_cli.sketches.tiles import QueryTile

COMPILING = "compiling kernels for this machine (the next run of this version finds them; streamattn warm compiles all)"
FIRST_QUERY = 300
ROWS = 600  # more than a tile, more than two groups, and not a multiple of either


def warm(plan: Plan, listener: Listener) -> None:
    """Run the plan's methods on a few made-up rows of the same dtypes."""
    with jit.compilation(lambda: listener(Note(COMPILING))) as count:  # which imports Numba
        if mine := not gc.get_freeze_count():  # a host program may have frozen its own
            gc.freeze()  # what there is by now is nothing that the small run will leave: `give_back` need not look through it
        try:
            for params in [*(one for _, one in plan.problem.shorter), plan.problem.params]:
                _run_small(replace(plan, problem=replace(plan.problem, params=params, shorter=())))
        finally:
            if mine:
                gc.unfreeze()
    if count.kernels:
        listener(Note(count.told))


def _run_small(plan: Plan) -> None:
    problem = plan.problem
    if not _compiled():
        _on_two_processors(problem)
    small: dict[str, Any] = {part: _made_up(getattr(problem, part)) for part in ("k", "v")}
    if problem.later:
        small["first_query"] = FIRST_QUERY
    heads = 1 if problem.params else min(len(problem.q), 2)  # by which numbers `exact` lays out its answers
    small["q"] = _made_up(problem.q, rows=ROWS - small.get("first_query", 0), heads=heads)
    params = problem.params
    if params:
        method = registry.of(type(params.history)) if params.history else registry.find("window")
        params = method.miniature(params)
    request = replace(problem.request, audit=min(problem.request.audit, LEAST_BY_SIZE), max_error=float("inf"))
    if params and not params.history:  # finite rows of a window are kept without being widened
        request, small["v"] = replace(request, nan_policy="drop"), _made_up(problem.v, np.inf)
    if problem.sketches:
        small["sketches"] = problem.sketches.tolerant()
    problem = replace(problem, request=request, params=params, **small)
    plan = replace(
        plan, problem=problem, threads=1, block_rows=ROWS, query_block_rows=ROWS, query_rows=512 if plan.query_rows else 0,
        audit_rows=min(plan.audit_rows, LEAST_BY_SIZE), repair_rows=min(plan.repair_rows, 8),
    )  # fmt: skip
    best = BestRows(4, len(problem.q), problem.v.dim, False) if problem.request.top_k else None
    run = make_run(plan, Watch(lambda event: None, Interrupts()), Nowhere(best))
    run.go()
    run.close()
    del run  # or its arrays would be free only after the measuring has begun, and used again unseen
    give_back()


def compile_compression() -> None:
    """Compile what `nystrom` compresses with."""
    x, w, square = np.zeros((8, 4), "f4"), np.ones((8, 3), "f4"), np.eye(4, dtype="f4")
    scratch, alive = np.zeros(insert_size(8, 4, 3, 2), "f4"), np.zeros(8, bool)
    turning = (*rotation("", 4), 0), 0.0, np.uint32(0)
    compress.compress(blas.address("f4"), x, w, square, square[0], 1.0, 0.8, 6, *turning, scratch, alive)


def compile_others(given: HeadParams) -> None:
    """Compile other kernels that are a part of `nystrom`: those of `window`, the model of the queries, and the atoms."""
    history = replace(cast(NystromParams, given.history), atoms=16, active=4)
    params = HeadParams(8, 8, 1.0, given.dtype, sinks=1, window=9, group=8, storage=given.storage)
    rows, c, work = np.zeros((1, 40, 8), given.dtype), np.ones((40, 9), given.dtype), allocate(params.work_spec())
    HeadAttention(params).step(rows, rows[0], c, np.empty_like(rows), work)
    held = cast(NystromHistory, HeadAttention(replace(params, history=history)).history)
    tile, coded = QueryTile.of(work, 1, 8), (np.zeros((16, 28), "u1"), held.state["centre"], held.mean)
    tile.place(rows[:, :8], 0, 1.0, 1, 1, 8)
    dense.exact(*HeadAttention(params).near(tile, coded))
    held.queries.learn(rows[0, :8], c[:8, 0].copy(), 1.0, np.empty(QueryModel.scratch_size(8, 8), "f4"))
    held.queries.factor(np.empty((8, 8), "f4"), np.empty(8, "f4"))
    k, c, w, alive = rows[0, :8], c[:8], np.ones((8, 9), "f4"), np.zeros(8, bool)
    new, x = np.zeros((8, 8), "f4"), np.zeros((8, 8), "f4")
    nystrom.live(k, c)
    atoms.gather(held.bank, held.state["centre"], w[0, :8], 0, 8, k, c, x, w, new, alive)
    atoms.store(new, w, alive, 0, 0, 0, np.uint64(0), held.bank, c[0, :8].astype("f4"))


def _on_two_processors(problem: Problem) -> None:
    """Compile the parts of `nystrom` in two processes at once: each finds in the cache what the other has done."""
    p = problem.params
    if not (p and isinstance(p.history, NystromParams) and sys.executable and default_threads() > 1):
        return
    program, nowhere = f"from {__name__} import compile_compression as go; go()", subprocess.DEVNULL
    # -P: what lies in the user's folder is not for us to import
    other = subprocess.Popen([sys.executable, "-P", "-c", program], stdin=nowhere, stdout=nowhere, stderr=nowhere)
    compile_others(p)
    other.wait()


def give_back() -> None:
    """Return freed memory to the system, so that what a run takes afterwards is seen as taken."""
    gc.collect()
    trim()


def _made_up(given: Heads, last: float = 0.0, rows: int = ROWS, heads: int = 1) -> Heads:
    """One head, or the same one again, of small numbers and a row of `last`, in the storage dtype of `given`."""
    values = np.random.default_rng(0).standard_normal((rows, given.dim)).astype("f4") * np.float32(0.1)
    values[-1] = last
    return Heads(MemoryTensor.of(values, given.tensor.dtype), (0,) * heads, (0,) * heads, given.dim)


def _compiled() -> bool:
    """Whether kernels of this version have been compiled here before, or those of another process would not be found."""
    folder = jit.folder()
    try:
        os.makedirs(folder, exist_ok=True)
        return bool(os.listdir(folder)) or not os.access(folder, os.W_OK)
    except OSError:
        return True
