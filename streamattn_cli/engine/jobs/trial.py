"""A trial of `compare`: one method with one setting, here or in a worker, and what it answers to the sampled rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from streamattn_cli.engine.audit.audit import Auditing
from streamattn_cli.engine.audit.estimate import Design
from streamattn_cli.engine.jobs.candidates import KINDS
from streamattn_cli.engine.jobs.ceremony import measured
from streamattn_cli.engine.jobs.executors import Stop
from streamattn_cli.engine.jobs.tasks import SEEN, identities, in_worker
from streamattn_cli.engine.passes.open_run import pass_of
from streamattn_cli.engine.passes.run import Run
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.requests import RunRequest
from streamattn_cli.engine.saving.sources import check_same
from streamattn_cli.engine.watch.events import Audit, Listener, Started
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.engine.workers.lanes import Answers
from streamattn_cli.errors import CannotMeet, MemoryBudget, UsageError
from streamattn_cli.rows.inputs.open import Inputs, open_inputs
from streamattn_cli.rows.inputs.several_files import absolute
from streamattn_cli.rows.writers.base import Nowhere

REFUSED = (UsageError, CannotMeet, MemoryBudget)  # what one method cannot do
Tried = tuple["Trial", np.ndarray | None]  # and the answers to the sampled rows (n, heads, dv), if it ran


@dataclass(frozen=True)
class Trial:
    """One method with one setting: what it cost and how wrong it was, or why it was refused.

    resident_bytes: the state of all key heads, everything counted. peak: bytes the whole run added to the process, read buffers
    included, None where others ran in it meanwhile. front: whether no other trial is better in error and in `memory`, or in
    error and in `time`.
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
    peak: int | None = 0
    audit: Audit | None = None
    refused: str | None = None
    front: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialTask:
    """A trial for a worker. settings: its request, or why there is none; sources: what the input must be, also there."""

    label: str
    budget: int
    settings: RunRequest | str
    design: Design
    sources: dict[str, dict]
    version: str
    engine: str

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.label} at {self.budget} rows"


class _Listening(Auditing):
    """For whom the truth is known elsewhere: it only hears what the method answers."""

    def __init__(self, design: Design, heads: int, value_dim: int):
        self.rows = design.rows
        self.approx = np.full((len(design.rows), heads, value_dim), np.nan)

    def observe(self, start: int, answers: Answers, q: np.ndarray | None = None) -> None:
        """See Auditing."""
        a, b = np.searchsorted(self.rows, [start, start + len(answers.rows)])
        self.approx[a:b] = answers.rows[self.rows[a:b] - start]

    def estimate(self, second: object, work: dict, repaired: bool = False) -> tuple[Audit | None, str | None]:
        """See Auditing."""
        return None, None


def try_in_worker(task: TrialTask, stop: Stop | None = None) -> Tried:
    """Make a trial; runs in a worker. Errors name the worker."""
    return in_worker(task, _try, stop)


def _try(task: TrialTask, interrupts: Interrupts) -> Tried:
    if isinstance(task.settings, str):
        return refused(task.label, task.budget, task.settings), None
    with open_inputs(task.settings.inputs, apart=True) as inputs:
        alone = task.engine != "threads"
        here = identities(resolve(replace(task.settings, method="window"), inputs))
        check_same(inputs.parts[1].tensor.name, [task.sources], [here], SEEN)
        return attempt(
            task.label, task.budget, task.settings, inputs, task.design, lambda event: None, interrupts, alone
        )


def for_worker(settings: RunRequest | str) -> RunRequest | str:
    """The request of a trial as a worker gets it."""
    if isinstance(settings, str):
        return settings
    return replace(settings, inputs=absolute(settings.inputs), threads=1)


def planned(settings: RunRequest | str, inputs: Inputs) -> Plan | None:
    """The plan of a trial, None where it cannot run."""
    if isinstance(settings, str):
        return None
    try:
        return make_plan(resolve(settings, inputs))
    except REFUSED:
        return None


def refused(label: str, budget: int, why: str) -> Trial:
    """A trial that does not run."""
    return Trial(label, label.partition(":")[0], budget, {}, refused=why)


def attempt(
    label: str,
    budget: int,
    settings: RunRequest,
    inputs: Inputs,
    design: Design,
    listener: Listener,
    interrupts: Interrupts,
    alone: bool = True,
) -> Tried:
    """One trial. alone: nothing else runs in this process meanwhile, so that its memory can be measured."""
    try:
        plan = make_plan(resolve(settings, inputs))
        listener(Started(plan.to_dict()))
        heard = _Listening(design, len(plan.problem.q), plan.problem.v.dim)
        with measured(plan, listener, interrupts, again=True) as ceremony:
            run = Run(plan, ceremony.watch, pass_of(plan), Nowhere(), auditor=heard)
            try:
                rows = run.go()[0]
            finally:
                run.close()
            seconds = ceremony.seconds
    except REFUSED as error:
        return refused(label, budget, str(error)), None
    trial = Trial(
        label,
        label.partition(":")[0],
        budget,
        _changed(settings),
        params=plan.problem.facts()["params"],
        resident_bytes=plan.sketch_bytes,
        rows=rows,
        seconds=seconds,
        projected=plan.projected,
        peak=ceremony.meter.peak() if alone else None,
    )
    return trial, heard.approx


def _changed(request: RunRequest) -> dict:
    """What of a request decides its method, as options of `attend`."""
    plain = RunRequest(request.inputs)
    values = {name: getattr(request, name) for name in ("method", "resident_rows", *KINDS)}
    return {name: value for name, value in values.items() if value != getattr(plain, name)}
