"""Several methods at equal resident bytes on one input, against one exact truth on the same sampled rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from streamattn_cli.engine.audit.audit import Auditing, compare_answers
from streamattn_cli.engine.audit.estimate import Design, draw_rows
from streamattn_cli.engine.audit.exactrows import exact_rows, read_queries
from streamattn_cli.engine.jobs.candidates import Candidate, requests
from streamattn_cli.engine.passes.driver import Driver
from streamattn_cli.engine.passes.open_run import pass_of
from streamattn_cli.engine.passes.pump import Watch
from streamattn_cli.engine.passes.run import Run, lanes_of
from streamattn_cli.engine.passes.warm import give_back, warm
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.settings import AttendRequest
from streamattn_cli.engine.watch.events import Audit, ErrorEstimate, Finished, Listener, Note, Started
from streamattn_cli.engine.watch.meter import Meter
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.engine.workers.lanes import Answers
from streamattn_cli.errors import CannotMeet, InputMalformed, MemoryBudget, UsageError
from streamattn_cli.rows.inputs.fingerprint import check_unchanged, file_states
from streamattn_cli.rows.inputs.open import Inputs, open_inputs
from streamattn_cli.rows.writers.base import Nowhere

ALIKE = 1.03  # costs that differ by less count as equal: budgets are met to a few rows, and times vary


@dataclass(frozen=True)
class Trial:
    """One method with one setting: what it cost and how wrong it was, or why it was refused.

    resident_bytes: the state of all key heads, everything counted. peak: bytes the whole run added to the process,
    read buffers included. front: whether no other trial is better in error and in `memory`, or in error and in `time`.
    """

    label: str
    method: str
    budget: int  # --resident-rows
    settings: dict
    params: dict = field(default_factory=dict)
    resident_bytes: int = 0
    rows: int = 0
    seconds: float = 0.0
    projected: int = 0
    peak: int = 0
    audit: Audit | None = None
    refused: str | None = None
    front: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """All trials on one input. `to_dict` is the stable JSON interface."""

    input: str
    facts: dict  # mode, scale, shapes, seed, precision, threads
    audited: int
    truth_seconds: float
    trivial: ErrorEstimate
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    command_line: str | None = None  # see events.Outcome
    finished: str | None = None

    def to_dict(self) -> dict:
        """JSON-able form, keys in a fixed order."""
        return {"type": "comparison", "command": "compare", **asdict(self)}


class _Listening(Auditing):
    """For whom the truth is known already: it only hears what the method answers."""

    def __init__(self, truth: Truth):
        self.truth = truth
        self.approx = np.full_like(truth.exact, np.nan)

    def hear(self, start: int, answers: Answers, q: np.ndarray | None = None) -> None:
        """See Auditing."""
        rows = self.truth.design.rows
        a, b = np.searchsorted(rows, [start, start + len(answers.rows)])
        self.approx[a:b] = answers.rows[rows[a:b] - start]

    def estimate(self, second: object, work: dict, repaired: bool = False) -> tuple[Audit | None, str | None]:
        """See Auditing."""
        return compare_answers(self.truth.exact, self.truth.trivial, self.approx, self.truth.design)


@dataclass(frozen=True)
class Truth:
    """Exact and trivial answers (rows, heads, dv) to the sampled rows of `design`."""

    design: Design
    exact: np.ndarray
    trivial: np.ndarray
    seconds: float


def compare(
    request: AttendRequest,
    candidates: list[Candidate],
    budgets: list[int],
    by_bytes: bool,
    listener: Listener,
    interrupts: Interrupts,
) -> Comparison:
    """Run every candidate within every budget of resident rows (by_bytes: bytes of all key heads together).

    `request.audit` rows are sampled. Raises the errors of errors.py; what one method cannot do is in its trial.
    """
    with open_inputs(request.inputs, apart=True) as inputs:
        comparison = compare_on(inputs, request, candidates, budgets, by_bytes, listener, interrupts)
    listener(Finished(comparison))
    return comparison


def compare_on(
    inputs: Inputs,
    request: AttendRequest,
    candidates: list[Candidate],
    budgets: list[int],
    by_bytes: bool,
    listener: Listener,
    interrupts: Interrupts,
) -> Comparison:
    """`compare` of inputs that are open."""
    files = file_states(heads.tensor for heads in inputs.parts)
    problem = _exact_problem(request, inputs)
    for note in problem.notes:
        listener(Note(note))
    plan = make_plan(problem)
    truth = _truth(plan, min(request.audit, problem.q.count), listener, interrupts)
    trials, trivial = [], None
    for label, budget, settings in requests(request, candidates, budgets, by_bytes, problem):
        trial, zero = _trial(label, budget, settings, inputs, truth, listener, interrupts)
        trials.append(trial)
        trivial = trivial or zero
    check_unchanged(files)
    if trivial is None:
        raise CannotMeet(f"{problem.k.tensor.name}: no method could run; the first: {trials[0].refused}")
    facts = {name: value for name, value in problem.facts().items() if name not in ("method", "params")}
    return Comparison(
        problem.k.tensor.name,
        facts | {"threads": plan.threads},
        len(truth.design.rows),
        truth.seconds,
        trivial,
        _fronts(trials),
        problem.notes,
    )


def audit_answers(answers: np.ndarray, request: AttendRequest, inputs: Inputs) -> Audit:
    """How wrong are answers (rows, heads, dv) of anybody to all queries of the inputs? `request.audit` rows are sampled.

    Raises what `compare` does, and InputMalformed for answers of another shape.
    """
    plan = make_plan(_exact_problem(request, inputs))
    q, v = plan.problem.q, plan.problem.v
    if answers.shape != (q.rows, len(q), v.dim):
        raise InputMalformed(
            f"answers: shape {answers.shape} found, expected {(q.rows, len(q), v.dim)}: rows, query heads, items"
        )
    nobody, never = (lambda event: None), Interrupts()
    truth = _truth(plan, min(request.audit, q.count), nobody, never)
    found, reason = compare_answers(truth.exact, truth.trivial, answers[truth.design.rows].astype("f8"), truth.design)
    if found is None:
        raise CannotMeet(f"answers: {reason}")
    return found


def _exact_problem(request: AttendRequest, inputs: Inputs) -> Problem:
    for heads in inputs.parts:
        if not heads.tensor.seekable:
            raise CannotMeet(
                f"{heads.tensor.name}: compare reads its input once per method, and a pipe passes once; write "
                "the rows to a file first"
            )
    if request.audit < 1:
        raise UsageError(f"--audit {request.audit}: compare needs rows to measure errors on, 1 or more")
    return resolve(replace(request, method="exact", audit=0), inputs)


def _truth(plan: Plan, rows: int, listener: Listener, interrupts: Interrupts) -> Truth:
    """The truth of `rows` sampled rows: a pass over the keys that only they see."""
    warm(plan, listener)
    problem, lanes = plan.problem, lanes_of(plan)
    driver = Driver(plan, Watch(listener, interrupts), lanes)
    try:
        began = time.monotonic()
        design = draw_rows(problem.q.count, rows, problem.request.seed)
        held = exact_rows(problem, lanes, design.rows, read_queries(problem, lanes, design.rows))
        driver.keys(held.see, Phase.TRUTH, problem.keys_of(int(design.rows[-1])))
        exact, trivial, _ = held.answers(driver.workers.works[0])
        return Truth(design, exact, trivial, time.monotonic() - began)
    finally:
        driver.close()


def _trial(
    label: str,
    budget: int,
    settings: AttendRequest | str,
    inputs: Inputs,
    truth: Truth,
    listener: Listener,
    interrupts: Interrupts,
) -> tuple[Trial, ErrorEstimate | None]:
    """One trial, and the error of the trivial answer."""
    method = label.partition(":")[0]
    if isinstance(settings, str):
        return Trial(label, method, budget, {}, refused=settings), None
    try:
        plan = make_plan(resolve(settings, inputs))
        listener(Started(plan.to_dict()))
        warm(plan, lambda event: None)
        give_back()
        with Meter() as meter:
            began = time.monotonic()
            watch = Watch(listener, interrupts, meter, plan.allowed, plan.sketch_bytes)
            run = Run(plan, watch, pass_of(plan), Nowhere(), auditor=_Listening(truth))
            try:
                rows, audit, reason = run.go()
            finally:
                run.close()
            seconds = time.monotonic() - began
    except (UsageError, CannotMeet, MemoryBudget) as error:
        return Trial(label, method, budget, {}, refused=str(error)), None
    facts = plan.problem.facts()
    trial = Trial(
        label,
        method,
        budget,
        _changed(settings),
        facts["params"],
        plan.sketch_bytes,
        rows,
        seconds,
        plan.projected,
        meter.peak(),
        audit,
        reason,
    )
    return trial, audit.trivial if audit else None


def _changed(request: AttendRequest) -> dict:
    """What of a request decides its method, as options of `attend`."""
    plain = AttendRequest(request.inputs)
    names = (
        "method", "resident_rows", "effort", "bits", "score", "sinks", "window", "buffer", "atoms", "degree", "polynomial",
        "beta",
    )  # fmt: skip
    values = {name: getattr(request, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(plain, name)}


def _fronts(trials: list[Trial]) -> tuple[Trial, ...]:
    """The trials with their places on the two Pareto fronts: error against resident bytes, and against seconds."""
    ran = [(t, t.audit.method.error) for t in trials if t.audit]
    fronts: dict[str, Callable[[Trial], float]] = {"memory": lambda t: t.resident_bytes, "time": lambda t: t.seconds}

    def best(error: float, own: float, cost: Callable[[Trial], float]) -> bool:
        return not any(
            (theirs < error and cost(t) <= own * ALIKE) or (theirs == error and cost(t) < own / ALIKE)
            for t, theirs in ran
        )

    def of(trial: Trial) -> tuple[str, ...]:
        audit = trial.audit
        return tuple(n for n, cost in fronts.items() if audit and best(audit.method.error, cost(trial), cost))

    return tuple(replace(trial, front=of(trial)) for trial in trials)
