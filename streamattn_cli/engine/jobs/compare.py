"""Several methods at equal resident bytes on one input, against one exact truth on the same sampled rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from streamattn_cli.engine.audit.audit import compare_answers
from streamattn_cli.engine.audit.estimate import Design, draw_rows
from streamattn_cli.engine.audit.exactrows import exact_rows, read_queries
from streamattn_cli.engine.audit.together import of_layers
from streamattn_cli.engine.jobs.candidates import parse_candidates, requests
from streamattn_cli.engine.jobs.ceremony import measured
from streamattn_cli.engine.jobs.executors import Engine, Opened, find_engine
from streamattn_cli.engine.jobs.sheets import by_layer
from streamattn_cli.engine.jobs.tasks import check_room, identities, in_order
from streamattn_cli.engine.jobs.trial import (
    Trial,
    TrialTask,
    Tried,
    attempt,
    for_worker,
    planned,
    refused,
    try_in_worker,
)
from streamattn_cli.engine.passes.driver import Driver
from streamattn_cli.engine.passes.run import lanes_of
from streamattn_cli.engine.passes.warm import warm
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.planning.resolve import budgets_in_rows, resolve
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.requests import CompareRequest, RunRequest
from streamattn_cli.engine.watch.events import Audit, ErrorEstimate, Finished, Listener, Note, Progress
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import CannotMeet, InputMalformed, UsageError
from streamattn_cli.rows.inputs.fingerprint import check_unchanged, file_states
from streamattn_cli.rows.inputs.layers import Layer
from streamattn_cli.rows.inputs.open import Inputs, open_inputs
from streamattn_cli.rows.tensors.heads import refuse_pipes
from streamattn_cli.versions import OURS, versions

SAME_COST = 1.03  # costs that differ by less count as equal: budgets are met to a few rows, and times vary


Wanted = tuple[str, int, "RunRequest | str"]  # label, resident rows, and the request or why there is none


@dataclass(frozen=True)
class LayerTrials:
    """All trials on one layer."""

    number: int
    group: str
    truth_seconds: float
    trivial: ErrorEstimate
    trials: tuple[Trial, ...]


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
    layers: tuple[LayerTrials, ...] = ()  # of --layer; then `trials` are those of all of them together
    command_line: str | None = None  # see events.Outcome
    finished: str | None = None

    def to_dict(self) -> dict:
        """JSON-able form, keys in a fixed order."""
        found = asdict(self)
        for trial in (*found["trials"], *(trial for layer in found["layers"] for trial in layer["trials"])):
            if trial["audit"]:
                del trial["audit"]["sequences"]  # trials do not tell them apart
        return {"type": "comparison", "command": "compare", **found}


@dataclass(frozen=True)
class Truth:
    """Exact and trivial answers (rows, heads, dv) to the sampled rows of `design`."""

    design: Design
    exact: np.ndarray
    trivial: np.ndarray
    seconds: float


def compare(request: CompareRequest, listener: Listener, interrupts: Interrupts) -> Comparison:
    """Run every method within every budget, for every layer that the request asks for, on its engine if it names one.

    `request.audit` rows are sampled. Raises the errors of errors.py; what one method cannot do is in its trial.
    """
    sheets = by_layer(request) if request.inputs.layer else [(None, request)]
    engine = find_engine(request.engine) if request.engine else None
    found = []
    with ExitStack() as stack:
        many = None
        if engine:
            many = partial(
                _on_engine, engine, stack.enter_context(engine.open(engine.workers(request.threads), interrupts))
            )
        for at, (layer, each) in enumerate(sheets):
            if layer:
                listener(Note(f"layer {layer.number} ({layer.group}), {at + 1} of {len(sheets)}"))
            with open_inputs(each.inputs, apart=True) as inputs:
                found.append(compare_on(inputs, each, listener, interrupts, many))
    layers = [layer for layer, _ in sheets if layer]
    comparison = _of_layers(layers, found) if layers else found[0]
    listener(Finished(comparison))
    return comparison


def compare_on(
    inputs: Inputs,
    request: CompareRequest,
    listener: Listener,
    interrupts: Interrupts,
    many: Callable[..., Iterator[Tried]] | None = None,
) -> Comparison:
    """`compare` of inputs that are open. many: what makes all trials elsewhere, as `_on_engine`."""
    files = file_states(heads.tensor for heads in inputs.parts)
    problem = _exact_problem(request.run(), inputs)
    keys = problem.k.sequences.longest if problem.k.sequences else problem.k.count
    budgets, shares = budgets_in_rows(request.budgets, keys)
    notes = (*problem.notes, *shares)
    for note in notes:
        listener(Note(note))
    plan = make_plan(problem)
    truth = _truth(plan, min(request.audit, problem.q.count), listener, interrupts)
    wanted = list(requests(request, budgets, parse_candidates(request.methods), problem))

    def one_by_one() -> Iterator[Tried]:
        for label, budget, settings in wanted:
            if isinstance(settings, str):
                yield refused(label, budget, settings), None
            else:
                yield attempt(label, budget, settings, inputs, truth.design, listener, interrupts)

    tried = many(wanted, inputs, truth.design, problem, listener, interrupts) if many else one_by_one()
    trials = [_judged(trial, approx, truth) for trial, approx in tried]
    check_unchanged(files)
    trivial = next((trial.audit.trivial for trial in trials if trial.audit), None)
    if trivial is None:
        raise CannotMeet(f"{problem.k.tensor.name}: no method could run; the first: {trials[0].refused}")
    facts = {name: value for name, value in problem.facts().items() if name not in ("method", "params")}
    facts["versions"] = versions()
    facts["threads"], audited = plan.threads, len(truth.design.rows)
    return Comparison(problem.k.tensor.name, facts, audited, truth.seconds, trivial, _fronts(trials), notes)


def _on_engine(
    engine: Engine,
    opened: Opened,
    wanted: list[Wanted],
    inputs: Inputs,
    design: Design,
    problem: Problem,
    listener: Listener,
    interrupts: Interrupts,
) -> Iterator[Tried]:
    """All trials side by side, in their order: as many at a time as there is memory for, each in one thread, so that how many
    there are changes nothing."""
    sources, program = identities(problem), OURS
    tasks = [TrialTask(label, budget, for_worker(each), design, sources, program, engine.word)
             for label, budget, each in wanted]  # fmt: skip
    plans = [plan for task in tasks if (plan := planned(task.settings, inputs))]
    width = opened.width - 1
    for plan in plans:
        check_room(opened, plan)
        if not engine.remote and plan.allowed is not None:
            width = max(1, min(width, plan.allowed // plan.projected))
    for plan in {plan.problem.method: plan for plan in plans}.values():
        warm(plan, listener)
    do = try_in_worker if engine.apart else partial(try_in_worker, stop=opened.stop)
    began, rows = time.monotonic(), problem.q.count
    for done, tried in enumerate(in_order(opened._replace(width=width), do, tasks, interrupts), 1):
        listener(Progress(Phase.PIECES, done * rows, len(tasks) * rows, 0, time.monotonic() - began))
        yield tried


def audit_answers(answers: np.ndarray, request: RunRequest, inputs: Inputs) -> Audit:
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


def _exact_problem(request: RunRequest, inputs: Inputs) -> Problem:
    refuse_pipes(inputs.parts, "compare reads its input once per method")
    if request.audit < 1:
        raise UsageError(f"--audit {request.audit}: compare needs rows to measure errors on, 1 or more")
    return resolve(replace(request, method="exact", audit=0), inputs)


def _truth(plan: Plan, rows: int, listener: Listener, interrupts: Interrupts) -> Truth:
    """The truth of `rows` sampled rows: a pass over the keys that only they see."""
    problem, lanes = plan.problem, lanes_of(plan)
    with measured(plan, listener, interrupts) as ceremony, closing(Driver(plan, ceremony.watch, lanes)) as driver:
        design = draw_rows(problem.q.count, rows, problem.request.seed)
        held = exact_rows(problem, lanes, design.rows, read_queries(problem, lanes, design.rows))
        driver.keys(held.see, Phase.TRUTH, problem.keys_of(int(design.rows[-1])))
        exact, trivial, _ = held.answers(driver.workers.works[0])
        return Truth(design, exact, trivial, ceremony.seconds)


def _judged(trial: Trial, approx: np.ndarray | None, truth: Truth) -> Trial:
    """A trial with its error, where it ran."""
    if approx is None:
        return trial
    audit, reason = compare_answers(truth.exact, truth.trivial, approx, truth.design)
    return replace(trial, audit=audit, refused=reason)


def _of_layers(layers: list[Layer], found: list[Comparison]) -> Comparison:
    """The comparisons of several layers as one: errors over all of them, and memory and time together."""
    trials = [_together(each, layers) for each in zip(*(one.trials for one in found), strict=True)]
    trivial = next((trial.audit.trivial for trial in trials if trial.audit), None)
    if trivial is None:
        raise CannotMeet(f"no method could run on all layers; the first: {trials[0].refused}")
    parts = [
        LayerTrials(layer.number, layer.group, one.truth_seconds, one.trivial, one.trials)
        for layer, one in zip(layers, found, strict=True)
    ]
    return replace(
        found[0],
        audited=sum(one.audited for one in found),
        truth_seconds=sum(one.truth_seconds for one in found),
        trivial=trivial,
        trials=_fronts(trials),
        notes=tuple(dict.fromkeys(note for one in found for note in one.notes)),
        layers=tuple(parts),
    )


def _together(trials: tuple[Trial, ...], layers: list[Layer]) -> Trial:
    """The trials of one method and setting on several layers as one."""
    for trial, layer in zip(trials, layers, strict=True):
        if trial.audit is None:
            return refused(trial.label, trial.budget, f"layer {layer.number}: {trial.refused}")
    peaks = [trial.peak for trial in trials if trial.peak is not None]
    return replace(
        trials[0],
        resident_bytes=sum(trial.resident_bytes for trial in trials),
        rows=sum(trial.rows for trial in trials),
        seconds=sum(trial.seconds for trial in trials),
        projected=max(trial.projected for trial in trials),
        peak=max(peaks) if len(peaks) == len(trials) else None,
        audit=of_layers([trial.audit for trial in trials if trial.audit]),
    )


def _fronts(trials: list[Trial]) -> tuple[Trial, ...]:
    """The trials with their places on the two Pareto fronts: error against resident bytes, and against seconds."""
    ran = [(t, t.audit.method.error) for t in trials if t.audit]
    fronts: dict[str, Callable[[Trial], float]] = {"memory": lambda t: t.resident_bytes, "time": lambda t: t.seconds}

    def best(error: float, own: float, cost: Callable[[Trial], float]) -> bool:
        return not any(
            (theirs < error and cost(t) <= own * SAME_COST) or (theirs == error and cost(t) < own / SAME_COST)
            for t, theirs in ran
        )

    def of(trial: Trial) -> tuple[str, ...]:
        audit = trial.audit
        return tuple(n for n, cost in fronts.items() if audit and best(audit.method.error, cost(trial), cost))

    return tuple(replace(trial, front=of(trial)) for trial in trials)
