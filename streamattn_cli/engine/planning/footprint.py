"""The bytes that a run holds, by purpose, computed from shapes: what stays, and what each of its phases adds to that.

A phase gives back what it took before the next begins, so the bound is what stays and the largest of them.
"""

from __future__ import annotations

from streamattn_cli.engine.audit.audit import Auditor
from streamattn_cli.engine.audit.repair import BATCH_BYTES
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.planning.sketch_memory import sketch_parts, top_k_parts
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.workers.lanes import lane_work_spec
from streamattn_cli.rows.tensors.readahead import distinct, readahead_bytes
from streamattn_cli.rows.tensors.tensor import row_bytes
from streamattn_cli.sketches.exact import ExactQueries
from streamattn_cli.sketches.headparams import HeadParams, spec_bytes, widest
from streamattn_cli.sketches.registry import history_of
from streamattn_cli.sketches.tiles import TILE

FIRST_ROWS = 1024  # shown to the method before the pass begins
IN_WORK = 2  # blocks that are worked on at the same time
SLOTS = IN_WORK + 1  # and one that is read
OUTPUTS = IN_WORK + 1  # blocks of answers: while one is written, the next are filled
SLACK = 2 << 20  # interpreter objects, allocator slack (measured: 0.3 to 1.5 MiB)
THREAD = 3 << 19  # what BLAS keeps for every further thread, and its stack (measured: up to 2 MiB; SLACK helps out)


def project(plan: Plan) -> dict[str, int]:
    """Bytes by purpose for the sizes of a plan, at the moment when they are most."""
    problem = plan.problem
    phases = [_first_rows(plan), _reading(plan), _answering(plan), _comparing(plan)]
    parts = _lasting(plan)
    if problem.sketches:
        found = sketch_parts(problem, phases[1]["read_buffers"])
        parts |= found | {"sketch": found["sketch"] + parts["sketch"]}
        phases = [phases[0] | phases[1] | phases[3]]  # these runs have other phases, which nobody has measured
    if problem.sequences:  # they are looked at while others pass
        parts |= phases.pop(0)
    return parts | max(phases, key=lambda phase: sum(phase.values())) | top_k_parts(problem) | {"slack": _slack(plan)}


def _slack(plan: Plan) -> int:
    """What nobody asked for. Where keys and queries pass together there is no more work at a time than key heads."""
    together = plan.problem.causal or plan.problem.method == "exact"
    busy = min(plan.threads, len(plan.problem.k)) if together else plan.threads
    return SLACK + (busy - 1) * THREAD


def work_spec(problem: Problem) -> dict:
    """Scratch arrays of one thread for this problem."""
    spec = lane_work_spec(problem) | ExactQueries.work_spec(problem.v.dim)
    spec |= problem.sketches.params.work_spec() if problem.sketches else {}
    for params in problem.kinds:
        spec |= widest(spec, params.work_spec())
    return spec


def repair_batch(plan: Plan) -> int:
    """Rows that --repair answers in one pass over the keys."""
    room = min(BATCH_BYTES, max(plan.allowed // 8, 1 << 20)) if plan.allowed else BATCH_BYTES
    return max(1, min(plan.repair_rows, room // exact_row_bytes(plan.problem)))


def exact_row_bytes(problem: Problem) -> int:
    """What `exact` holds of one row of queries, and of its answers while they grow."""
    p = problem.precision
    return len(problem.q) * (_item(p) * (2 * problem.q.dim + 1) + 8 * (problem.v.dim + 1) + 1)


def _lasting(plan: Plan) -> dict[str, int]:
    """What is held from the beginning to the end."""
    problem = plan.problem
    tensors = distinct([problem.q.tensor, problem.k.tensor, problem.v.tensor])
    held = sum(max(t.held_bytes, 0 if t.seekable else FIRST_ROWS * row_bytes(t)) for t in tensors)
    parts = {"held_by_inputs": held, "work": spec_bytes(work_spec(problem)) * plan.threads}
    if problem.method != "exact":
        parts["output"] = OUTPUTS * plan.query_block_rows * _output_row(problem)
    if problem.sketches:
        parts["output"] *= problem.sketches.heaps or problem.request.audit > 0  # elsewhere no row is produced
    if problem.params or problem.sketches:
        parts["sketch"] = problem.sketch_bytes
    if problem.method == "exact":
        parts |= {"queries": _held_queries(plan) * exact_row_bytes(problem)}
    if plan.audit_rows:
        parts["audit"] = Auditor.projected_bytes(problem, plan.audit_rows)
    if plan.repair_rows:
        heads, tile = len(problem.q), TILE * (problem.k.dim + problem.v.dim + 1) * _item(problem.precision)
        parts["repair"] = 16 * 4 * plan.repair_rows * heads + 2 * repair_batch(plan) * exact_row_bytes(problem)
        parts["repair"] += heads * tile + 16 * plan.query_block_rows * heads
    return parts


def _first_rows(plan: Plan) -> dict[str, int]:
    """While the history looks at the first rows of all heads, one head after the other."""
    problem = plan.problem
    p = problem.params
    if not p or not p.history:
        return {}
    kind = history_of(p.history)
    if kind.learns and problem.causal and not problem.request.query_model and not problem.later:
        return {}
    stored = FIRST_ROWS * sum(map(row_bytes, distinct([problem.q.tensor, problem.k.tensor, problem.v.tensor])))
    looking = kind.calibration_bytes(FIRST_ROWS, p.dim, p.value_dim, problem.group)
    if looking is not None:
        return {"first_rows": stored + looking}
    queries = problem.group * p.dim
    row = 2 * _item(problem.precision) * (p.dim + p.value_dim + 1 + queries)  # of one head, and of the next
    row += 3 * 8 * queries if kind.learns else 0
    row += len(problem.q) * p.dim * 8 if problem.request.query_model else 0
    shown = FIRST_ROWS + IN_WORK * plan.block_rows if problem.sequences else FIRST_ROWS
    return {"first_rows": stored * shown // FIRST_ROWS + FIRST_ROWS * row}


def _reading(plan: Plan) -> dict[str, int]:
    """While keys pass (with queries where attention is causal), and every thread compresses; or queries alone."""
    problem = plan.problem
    q, *kv = (problem.q.tensor, problem.k.tensor, problem.v.tensor)
    together = [q, *kv] if (problem.causal and problem.method != "exact") or plan.whole_sequences else kv
    if problem.sketches and not problem.sketches.joined(*kv):
        together = [max(together, key=row_bytes)]
    keys = readahead_bytes(together, plan.block_rows, SLOTS)
    queries = readahead_bytes([q], plan.query_block_rows, SLOTS)
    compression = _compression(problem, plan.threads)
    if queries > keys + compression or problem.sketches:
        return {"read_buffers": max(queries, keys)}
    return {"read_buffers": keys, "compression": compression}


def _compression(problem: Problem, threads: int) -> int:
    """What the histories of all threads hold for a while."""
    return max((_compressing(problem, params, threads) for params in problem.kinds), default=0)


def _compressing(problem: Problem, p: HeadParams, threads: int) -> int:
    """The same of sequences with these parameters."""
    if not p.history:
        return 0
    history, kind = p.history, history_of(p.history)
    few = None if problem.longest is None else kind.reduced(history, problem.rows_before + problem.longest)
    if few is not None:  # it never gets full
        if not kind.learns:
            return 0
        history = few
    queries = p.group * p.stack if problem.causal else 0
    one = kind.transient_bytes(history, p.dim, p.value_dim, p.group, queries)
    return min(threads, len(problem.k)) * one


def merging_bytes(problem: Problem) -> int:
    """What is held while the sketch of one head is merged into another."""
    p = problem.head
    merging = history_of(p.history).merging_bytes(p.history, p.dim, p.value_dim) if p.history else 0
    return _compression(problem, 1) + merging


def _answering(plan: Plan) -> dict[str, int]:
    """When `exact` has seen all keys and writes the answers to the queries that it holds."""
    if plan.problem.method != "exact":
        return {}
    return {"output": _held_queries(plan) * _output_row(plan.problem, copied=True)}


def _held_queries(plan: Plan) -> int:
    rows = plan.problem.q.rows
    return plan.query_rows if rows is None else min(plan.query_rows, rows)


def _comparing(plan: Plan) -> dict[str, int]:
    """When all rows have passed and the audit compares."""
    return {"comparison": Auditor.comparing_bytes(plan.problem, plan.audit_rows)} if plan.audit_rows else {}


def _output_row(problem: Problem, copied: bool = False) -> int:
    """Bytes of one row of answers, and of its copy where the writer has to make one."""
    copied |= problem.out_dtype != problem.precision or problem.q.layout in ("HTD", "BHTD", "BTHD")
    item = _item(problem.precision) + (_item(problem.out_dtype) if copied else 0)
    return len(problem.q) * (problem.v.dim * item + 4)  # and its doubt


def _item(dtype: str) -> int:
    return int(dtype[1])
