"""What a run will need, computed from shapes before a row is read: block size, passes, and a bound on its memory.

Allowed: the user's budget (or what the machine has left). Reserved: the process before the run (interpreter, compiled
kernels), which no setting changes. Projected: the bound made here on what the run adds to that. Measured: the peak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from streamattn_cli.engine.audit.audit import size_share
from streamattn_cli.engine.audit.repair import repair_count
from streamattn_cli.engine.planning.footprint import exact_row_bytes, project, repair_batch
from streamattn_cli.engine.planning.parameters import head_params
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.planning.sketches import with_sketches
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.watch.meter import available_memory
from streamattn_cli.engine.workers.lanes import STEP
from streamattn_cli.engine.workers.pool import default_threads
from streamattn_cli.errors import InputMalformed, MemoryBudget, UsageError
from streamattn_cli.rows.tensors.readahead import distinct
from streamattn_cli.rows.tensors.tensor import row_bytes
from streamattn_cli.sketches.registry import history_of
from streamattn_cli.units import format_bytes

SLOT_BYTES = 4 << 20
MAX_BLOCK_ROWS = 1 << 16
EXACT_BYTES = 64 << 20  # queries held at a time by `exact`, unless the budget is smaller


def make_plan(problem: Problem) -> Plan:
    """Choose block sizes and project memory. Raises MemoryBudget (6) when nothing fits the budget."""
    problem = with_sketches(problem)
    request = problem.request
    for option, value in (("--threads", request.threads), ("--block-rows", request.block_rows)):
        if value is not None and value < 1:
            raise UsageError(f"{option} {value}: must be at least 1")
    threads = request.threads or default_threads()
    audit_rows, reason = _audit(problem)
    query_rows = _rounded(EXACT_BYTES // exact_row_bytes(problem)) if problem.method == "exact" else 0
    plan = Plan(
        problem,
        threads,
        query_rows=query_rows,
        audit_rows=audit_rows,
        audit_reason=reason,
        repair_rows=repair_count(problem),
        allowed=request.memory or available_memory(),
    )
    plan = _sized(plan, _whole_groups(problem, request.block_rows or _default_block_rows(problem)))
    while not _fits(plan):
        smaller = _smaller(plan)
        if smaller is None:
            raise MemoryBudget(_refusal(plan))
        plan = smaller
    return replace(plan, passes=_passes(plan))


def _sized(plan: Plan, block_rows: int) -> Plan:
    queries = plan.problem.q.rows
    fewer = block_rows if plan.problem.causal or queries is None else min(block_rows, _rounded(queries + STEP - 1))
    fewer = fewer if plan.problem.q.tensor.width else 0  # a sketch is made without queries
    plan = replace(plan, block_rows=block_rows, query_block_rows=fewer)
    return replace(plan, parts=project(plan))


def _fits(plan: Plan) -> bool:
    return plan.allowed is None or plan.projected <= plan.allowed


def _smaller(plan: Plan) -> Plan | None:
    """The next smaller plan that gives the same result: fewer queries at a time, shorter blocks."""
    if plan.query_rows > STEP:
        return _sized(replace(plan, query_rows=_rounded(plan.query_rows // 2)), plan.block_rows)
    if plan.block_rows > max(32, _whole_groups(plan.problem, 1)) and plan.problem.request.block_rows is None:
        return _sized(plan, plan.block_rows // 2)
    return None


def _refusal(plan: Plan) -> str:
    problem, request = plan.problem, plan.problem.request
    found = (
        f"{problem.k.tensor.name}: this run needs {format_bytes(plan.projected)} above the program itself, and "
        f"{format_bytes(plan.allowed or 0)} are {'allowed by --memory' if request.memory else 'free here (machine, ulimit -v)'}. "
    )
    largest = None
    if request.block_rows:
        best = _bisect(lambda rows: _fits(_sized(plan, rows)), 1, request.block_rows - 1)
        largest = None if best is None else f"--block-rows {best}"
    elif problem.method == "poly":
        largest = _largest(plan, "degree", 1, request.degree - 1, "--degree {}")
    elif problem.method == "window" and request.window is not None:
        largest = _largest(plan, "window", 1, problem.head.window - 1, "--window {}")
    elif problem.params:
        largest = _largest(plan, "resident_rows", 64, request.budget - 1, "--resident-rows {}")
    if largest:
        return found + f"The largest setting that fits is {largest}."
    enough = -(-plan.projected // 2**20)  # rounded up: the setting that is named must work
    return found + f"Give --memory {enough}MiB or more, or fewer heads (--select)."


def _largest(plan: Plan, name: str, low: int, high: int, words: str) -> str | None:
    """The largest value of a request's field in [low, high] whose plan fits, in words; None if none does."""

    def fits(value: int) -> bool:
        problem = plan.problem
        request = replace(problem.request, **dict[str, Any]({name: value}))
        try:
            plain = replace(problem.head, window=0, history=None, group=256)
            params = head_params(request, problem.method, plain, problem.causal, problem.longest)
        except UsageError:
            return False
        return _fits(
            _sized(replace(plan, problem=replace(problem, request=request, params=params, shorter=())), plan.block_rows)
        )

    best = _bisect(fits, low, high)
    return None if best is None else words.format(best)


def _bisect(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    if low > high or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _audit(problem: Problem) -> tuple[int, str | None]:
    """How many rows to audit, and why none."""
    wanted = problem.request.audit
    if wanted < 0:
        raise UsageError(f"--audit {wanted}: must be 0 or more")
    if problem.q.rows == 0 or problem.k.rows == 0:
        raise InputMalformed(f"{problem.k.tensor.name}: no rows")
    if wanted == 0 and problem.k.tensor.width == 0:
        return 0, "not asked for (--audit N --k FILE --v FILE)"
    if wanted == 0:
        return 0, "not asked for (--audit N)"
    if problem.method == "exact" and not problem.q.tensor.seekable:
        return 0, "exact attention has no error but rounding, and the queries cannot be read again"
    if problem.sketches and not (problem.k.tensor.seekable and problem.v.tensor.seekable):
        return 0, "keys and values that come apart cannot be read again together"
    if problem.sketches and not (problem.q.tensor.seekable or problem.sketches.heaps):
        return 0, "rows were never produced, and the queries cannot be read again"
    if problem.causal and not (problem.q.tensor.seekable and problem.k.tensor.seekable):
        return 0, "the rows of a causal pipe pass once, and their exact answers need the rows before them again"
    if not problem.q.tensor.seekable and not (problem.k.tensor.seekable and problem.v.tensor.seekable):
        return 0, "neither queries nor keys can be read again"
    return wanted if problem.q.rows is None else min(wanted, problem.q.rows), None


def _passes(plan: Plan) -> tuple[str, ...]:
    problem = plan.problem
    if problem.sketches:
        return problem.sketches.passes(bool(plan.audit_rows))
    if problem.method == "exact":
        times = -(-problem.q.count // plan.query_rows)
        passes = [
            f"{times} times: hold up to {plan.query_rows} queries, read all keys and values they see, write answers"
        ]
    elif problem.causal:
        passes = ["read q, k, v together, answer every row, write"]
    else:
        passes = ["read keys and values into the sketch", "read queries, answer, write"]
    later = problem.method == "exact" or not problem.q.tensor.seekable
    if plan.audit_rows and (size_share(problem, plan.audit_rows) or later):
        passes.append("read keys and values again for the audit")
    if plan.repair_rows:
        times = -(-plan.repair_rows // repair_batch(plan))
        passes.append(f"{times} times: read keys and values again, make doubtful answers exactly, write them")
    return tuple(passes)


def _default_block_rows(problem: Problem) -> int:
    """About SLOT_BYTES of rows, a multiple of STEP, and no more than there are."""
    widest = sum(row_bytes(t) for t in distinct([problem.q.tensor, problem.k.tensor, problem.v.tensor]))
    slot = (
        SLOT_BYTES // 2 if problem.sequences else SLOT_BYTES
    )  # buffers as large for ten short sequences as for thousands
    rows = min(MAX_BLOCK_ROWS, max(STEP, slot // max(widest, 1)))
    known = [h.rows for h in (problem.q, problem.k) if h.rows is not None]
    return _rounded(min(rows, max(known)) if len(known) == 2 else rows)


def _rounded(rows: int) -> int:
    return max(STEP, rows // STEP * STEP)


def _whole_groups(problem: Problem, rows: int) -> int:
    """`rows`, rounded up to whole groups for a method that learns from a group's queries at once."""
    if problem.params is None or not problem.params.history or not history_of(problem.params.history).learns:
        return rows
    return -(-rows // problem.params.group) * problem.params.group
