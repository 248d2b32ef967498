"""What a worker does for `attend` and `query` on an engine: it answers one piece of a sheet, into its place of the output."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from streamattn_cli.checkpoint.commit import CheckpointWriter
from streamattn_cli.checkpoint.container import read
from streamattn_cli.checkpoint.header import canonical_json
from streamattn_cli.engine.jobs.attend import saving
from streamattn_cli.engine.jobs.executors import Stop
from streamattn_cli.engine.jobs.pieces import Piece, narrow
from streamattn_cli.engine.jobs.query import answering, asked
from streamattn_cli.engine.jobs.tasks import SEEN, in_worker, portable
from streamattn_cli.engine.passes.open_run import check_finite, make_run
from streamattn_cli.engine.passes.pump import Watch
from streamattn_cli.engine.passes.run import Run, SketchRun
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.requests import Answering, AttendRequest, QueryRequest
from streamattn_cli.engine.saving.resume import Saved, sources_of
from streamattn_cli.engine.saving.saver import Saver, describe
from streamattn_cli.engine.saving.sources import check_same
from streamattn_cli.engine.watch.events import Audit
from streamattn_cli.engine.watch.meter import available_memory, trim
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import OutputFailed
from streamattn_cli.rows.inputs.fingerprint import file_states
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.writers.base import Nowhere, Writer
from streamattn_cli.rows.writers.shared import PieceWriter, Place


@dataclass(frozen=True)
class Job:
    """What is the same for all pieces of a sheet. Small, and holds no rows.

    out: where the answers go, None where only the audit is wanted; doubts: of --doubt. sources: what the input must be, also
    where the worker sees it.
    """

    request: Answering
    sheet: str
    sources: dict[str, dict]
    out: Place | None
    doubts: Place | None
    version: str
    engine: str


@dataclass(frozen=True)
class Saving:
    """Where a piece is saved while it is answered, and how often; digest: of the job that it belongs to."""

    path: str
    every: str
    digest: str


@dataclass(frozen=True)
class PieceTask:
    """One piece of a sheet. resident_rows: of its key heads, where they have a number of their own. sketch: the file of their
    sketches, which a piece of keys writes and pieces of queries read."""

    job: Job
    piece: Piece
    resident_rows: int | None = None
    saving: Saving | None = None
    sketch: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return ", ".join(filter(None, (self.job.sheet, self.piece.name))) or "all rows"

    @property
    def version(self) -> str:
        """Of the package that sends it."""
        return self.job.version

    @property
    def engine(self) -> str:
        """The word of --engine."""
        return self.job.engine


@dataclass(frozen=True)
class Answered:
    """What a worker returns: everything but the answers, which are in their place."""

    rows: int
    counts: dict[str, int]
    audit: Audit | None
    audit_reason: str | None
    bytes_read: int
    wait_seconds: float
    seconds: float


def answer_piece(task: PieceTask, stop: Stop | None = None) -> Answered:
    """Answer a piece; runs in a worker. Errors name the worker."""
    return in_worker(task, _answer, stop)


class Whole(NamedTuple):
    """All of a sheet, opened: its problem, identities of what it is made of, states of the files that rows are read from, and
    what makes the run of a plan that writes answers and doubts."""

    problem: Problem
    sources: dict[str, dict]
    files: dict[str, tuple[int, ...]]
    made: Callable[[Plan, Watch, Writer, Writer | None, Saver | None], Run]


@contextmanager
def opened(request: Answering) -> Iterator[Whole]:
    """All that a command would answer by itself."""
    if isinstance(request, QueryRequest):
        with asked(request) as found:
            sources = sources_of(found.problem) | found.sources
            made = partial(answering, found.file.state, found.file.name, finish=not found.file.complete)
            yield Whole(found.problem, sources, found.files, made)
        return
    with open_inputs(request.inputs, apart=True) as inputs:
        problem = resolve(request, inputs)
        yield Whole(
            problem,
            sources_of(problem, request.fingerprint),
            file_states((heads.tensor for heads in inputs.parts), request.query_model),
            make_run,
        )


def _answer(task: PieceTask, interrupts: Interrupts) -> Answered:
    job, began = task.job, time.monotonic()
    trim()  # what the pieces before have left
    request = job.request
    if task.resident_rows is not None and isinstance(request, AttendRequest):
        request = replace(request, resident_rows=task.resident_rows, memory_per_layer=None)
    with opened(request) as (whole, sources, _, made):
        here = {part: portable(one) for part, one in sources.items()}
        check_same(whole.k.tensor.name, [job.sources], [here], SEEN)
        plan = make_plan(narrow(whole, task.piece))
        watch = Watch(lambda event: None, interrupts)
        if task.piece.keys:
            return _absorb(task, plan, watch, began)
        writers = [_writer(place, request.output, task.piece, whole) for place in (job.out, job.doubts)]
        with ExitStack() as stack:
            for writer in filter(None, writers):
                stack.callback(writer.abort)
            saver, saved = _saver(task, whole, writers, stack)
            given = plan, watch, writers[0] or Nowhere(), writers[1], saver
            run = _answering_keys(task.sketch, *given) if task.sketch else made(*given)
            stack.callback(run.close)
            if saved:
                run.resume(saved)
            rows, audit, reason = saving(run, saver)
            counts = run.counts()
            check_finite(counts, request.nan_policy, request.output, whole.v)
            for writer in filter(None, writers):
                writer.commit({})
    seconds = time.monotonic() - began
    return Answered(rows, counts, audit, reason, watch.bytes_read, watch.wait_seconds, seconds)


def _absorb(task: PieceTask, plan: Plan, watch: Watch, began: float) -> Answered:
    """The keys of a piece into its sketches, and these into their file."""
    every = task.saving.every if task.saving else ""
    with CheckpointWriter(task.sketch) as checkpoint:
        facts = _facts(task, plan.problem)
        saved = _saved(task.sketch, facts, plan.problem)
        run = SketchRun(plan, watch, Saver(checkpoint, facts, {}, every) if task.saving else None)
        try:
            if saved:
                run.resume(saved)
            else:
                run.sketches.show_first_rows()
            if not saved or saved.phase == Phase.KEYS:
                run.absorb(start=saved.done if saved else 0)
                run.sketches.finish()
                checkpoint.commit(run.save(), describe(facts, Phase.QUERIES, 0, {}, None))
        finally:
            run.close()
    seconds = time.monotonic() - began
    return Answered(run.rows, run.counts(), None, None, watch.bytes_read, watch.wait_seconds, seconds)


def _answering_keys(sketch: str, plan: Plan, watch: Watch, *given: Any) -> Run:
    """The run that answers queries from the sketches that a piece of keys has made."""
    state, _ = read(sketch, plan.allowed)
    run = answering(dict(state), sketch, plan, watch, *given)
    run.driver.workers.works[0]["lane.dropped"][0] = state["tally"][0]  # answers that saw no key may be due to these
    return run


def _facts(task: PieceTask, problem: Problem) -> dict:
    """What tells a saved piece from others."""
    digest = task.saving.digest if task.saving else ""
    return {"method": problem.method, "seed": problem.request.seed, "job": digest, "piece": task.name}


def _saved(path: str, facts: dict, problem: Problem) -> Saved | None:
    """What was saved of a piece: by a worker that was lost, or before the job was resumed."""
    if not os.path.exists(path):
        return None
    state, meta = read(path, problem.request.memory or available_memory())
    if meta["params"] != canonical_json(facts):
        return None
    return Saved(path, dict(state), Phase(meta["phase"]), int(meta["rows"]), None, None, meta)


def _saver(
    task: PieceTask, whole: Problem, writers: list[PieceWriter | None], stack: ExitStack
) -> tuple[Saver | None, Saved | None]:
    """What saves a piece, and what was saved of it."""
    told = task.saving
    if told is None:
        return None, None
    try:
        checkpoint = stack.enter_context(CheckpointWriter(told.path))
    except OutputFailed:  # a worker that is taken for lost still holds it: what both write is the same
        return None, None
    facts = _facts(task, whole)
    saved = _saved(told.path, facts, whole)
    if saved:
        for writer in filter(None, writers):
            writer.resume(json.loads(saved.meta["output"])["rows"])
    return Saver(checkpoint, facts, {}, told.every, *writers), saved


def _writer(place: Place | None, output: str, piece: Piece, whole: Problem) -> PieceWriter | None:
    if place is None:
        return None
    first, stop = piece.rows(whole)
    return PieceWriter(place, output, first, stop - first, piece.query_heads(whole))
