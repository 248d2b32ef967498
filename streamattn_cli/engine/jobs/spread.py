"""`attend --engine` and `query --engine`: the pieces of all sheets side by side, by threads, processes or a Dask cluster.

Workers write the answers into their place of the output, and only figures come back. A piece whose worker is lost is answered
again, into the same place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

from streamattn_cli.engine.jobs.ceremony import announce, measured
from streamattn_cli.engine.jobs.executors import Engine, find_engine
from streamattn_cli.engine.jobs.job_checkpoint import JobCheckpoint
from streamattn_cli.engine.jobs.piece_run import Job, PieceTask, answer_piece, opened
from streamattn_cli.engine.jobs.pieces import PIECES, Piece, cut, query_ranges
from streamattn_cli.engine.jobs.shares import shares, tried
from streamattn_cli.engine.jobs.shares import tasks as trial_tasks
from streamattn_cli.engine.jobs.sheet import Outputs, Sheet
from streamattn_cli.engine.jobs.sheets import Joint, joint_file, sheets_of
from streamattn_cli.engine.jobs.summary import left_out, together
from streamattn_cli.engine.jobs.tasks import check_room, divided, in_order
from streamattn_cli.engine.passes.open_run import check_output
from streamattn_cli.engine.passes.warm import warm
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.request.requests import Answering, AttendRequest, QueryRequest
from streamattn_cli.engine.saving.resume import checkpoint_there
from streamattn_cli.engine.watch.events import Finished, Listener, Note, Outcome, Progress
from streamattn_cli.engine.watch.meter import Meter
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import Interrupted, StreamattnError, UsageError
from streamattn_cli.options import spelling
from streamattn_cli.rows.inputs.layers import Layer
from streamattn_cli.rows.targets import refuse_existing
from streamattn_cli.rows.tensors.heads import refuse_pipes
from streamattn_cli.rows.writers.writer import check_target
from streamattn_cli.versions import OURS

Results = dict["Layer | None", "Outcome | StreamattnError | None"]

ALONE = ("top_k", "sketches", "eps")  # options of runs that are not cut into pieces


def attend_spread(request: AttendRequest, listener: Listener, interrupts: Interrupts) -> Outcome:
    """Run a request on an engine, for every layer that it asks for. Raises the errors of errors.py: outputs of layers that are
    complete stay."""
    began = time.monotonic()
    engine = find_engine(request.engine or "threads")
    sheets, results = _sheets(request)
    if request.share == "adaptive":
        _give_shares(request, sheets, engine, listener, interrupts)
    return _run(request, engine, sheets, results, listener, interrupts, began)


def query_spread(request: QueryRequest, listener: Listener, interrupts: Interrupts) -> Outcome:
    """Answer queries from a sketch file on an engine, some rows of them in each piece. Raises what `query` does."""
    began = time.monotonic()
    engine = find_engine(request.engine or "threads")
    sheet = _sheet(None, request, PIECES)
    return _run(request, engine, [sheet], {None: None}, listener, interrupts, began)


def _run(
    request: Answering, engine: Engine, sheets: list[Sheet], results: Results, listener: Listener, interrupts: Interrupts,
    began: float,
) -> Outcome:  # fmt: skip
    """All pieces of the sheets, into their outputs, as one outcome."""
    with ExitStack() as stack:
        attended = request if isinstance(request, AttendRequest) else None
        saved = None
        if attended and attended.checkpoint:
            saved = stack.enter_context(JobCheckpoint(attended, sheets))
        plan, workers, share = _planned(sheets, engine)
        announce(plan, listener, _resumed(sheets), **_counts(sheets, workers, engine))
        joint = _joint(attended, sheets, len(results), saved) if attended else None
        if joint:
            stack.callback(joint.abort)
        first = next(sheets[0].plans(share))
        with (
            measured(plan, listener, interrupts, like=first) as ceremony,
            engine.open(workers, interrupts) as workforce,
        ):
            check_room(workforce, plan)
            do = answer_piece if engine.apart else partial(answer_piece, stop=workforce.stop)
            outputs = Outputs(_job(request, share, engine), joint, stack, interrupts, saved.tag if saved else None)
            ongoing = _Ongoing(
                sheets, results, outputs, saved, lambda one: one.end(plan, ceremony.meter, joint, engine.apart)
            )
            places = [(sheet, at) for sheet in sheets for at in sheet.left]
            ongoing.end_those_without_pieces()
            progress = _Told(sheets, plan, ceremony.meter, began)
            found = in_order(workforce, do, ongoing.tasks(), interrupts, bool(attended and attended.keep_going))
            with _saving(saved, joint), closing(found):  # while there are workers to be told
                for (sheet, at), answered in zip(places, found, strict=True):
                    if isinstance(answered, StreamattnError):
                        sheet.failed.append(answered)
                    else:
                        sheet.done[at] = answered
                        listener(progress(sheet, at))
                    ongoing.reached(sheet, progress.rows)
            layers, ended = _known(results)
            one = ended[0]
            outcome = one if isinstance(one, Outcome) and not layers else together(request.output, layers, ended)
            if joint:
                joint.commit()
                for note in left_out(request.output, layers, ended):
                    listener(note)
            if saved:
                saved.save(None, Phase.DONE)
        outcome = replace(outcome, seconds=time.monotonic() - began)
    listener(Finished(outcome))
    return outcome


@dataclass(frozen=True)
class _Ongoing:
    """The sheets of a job while their pieces are answered. end: what makes the result of a sheet that is complete."""

    sheets: list[Sheet]
    results: Results
    outputs: Outputs
    saved: JobCheckpoint | None
    end: Callable[[Sheet], Outcome | StreamattnError]

    def end_those_without_pieces(self) -> None:
        """Whatever an earlier run has answered to the end."""
        for sheet in self.sheets:
            if not sheet.left:
                if not sheet.finished:
                    sheet.open(self.outputs)
                self._end(sheet)

    def tasks(self) -> Iterator[PieceTask | None]:
        """The pieces that are left; the outputs of a sheet are made when it is its turn."""
        for sheet in self.sheets:
            if sheet.left:
                job = sheet.open(self.outputs)
                if self.saved:
                    self.saved.save(self.outputs.joint)  # what is saved of pieces counts with these outputs alone
                yield from sheet.tasks(job, self.saved.of_piece if self.saved else None)

    def reached(self, sheet: Sheet, rows: float) -> None:
        """A piece of a sheet has been answered, or failed; rows: that are answered in all."""
        if len(sheet.done) + len(sheet.failed) == len(sheet.pieces):
            self._end(sheet)
        elif self.saved:
            self.saved.reached(rows, self.outputs.joint)

    def _end(self, sheet: Sheet) -> None:
        if self.saved and not sheet.finished:
            self.saved.save(self.outputs.joint)
        self.results[sheet.layer] = self.end(sheet)


def _joint(request: AttendRequest, sheets: list[Sheet], asked: int, saved: JobCheckpoint | None) -> Joint | None:
    """The file of all layers, if there is to be one and it is not there already."""
    layers = [sheet.layer for sheet in sheets if sheet.layer]
    if not layers or sheets[0].finished:
        return None
    part = next((sheet.parts["out"] for sheet in sheets if "out" in sheet.parts), None)
    return joint_file(request, layers, [_whole(sheet) for sheet in sheets], asked, part, saved.tag if saved else None)


@contextmanager
def _saving(saved: JobCheckpoint | None, joint: Joint | None) -> Iterator[None]:
    """What is done is saved once more when a signal stops the job."""
    try:
        yield
    except Interrupted as stop:
        if saved:
            saved.save(joint)
            stop.saved(f"the checkpoint {saved.path}")
        raise


def _resumed(sheets: list[Sheet]) -> list[str]:
    """A note on what an earlier run has done."""
    done, all_ = (sum(map(len, each)) for each in ([s.done for s in sheets], [s.pieces for s in sheets]))
    return [f"resuming a job: {done} of {all_} pieces are answered"] if done else []


def plan_spread(request: AttendRequest) -> Plan:
    """The plan of all workers together, from headers alone."""
    engine, sheets = find_engine(request.engine or "threads"), _sheets(request)[0]
    if request.share == "adaptive":
        _give_shares(request, sheets, engine, lambda event: None, Interrupts())
    return _planned(sheets, engine)[0]


def _job(request: Answering, share: int | None, engine: Engine) -> Job:
    """What all pieces of a run share."""
    told = replace(request, memory=share, threads=1)
    return Job(told, "", {}, None, None, OURS, engine.word)


def _give_shares(
    request: AttendRequest, sheets: list[Sheet], engine: Engine, listener: Listener, interrupts: Interrupts
) -> None:
    """Try every key head, and give each its resident rows."""
    trials = [tried(sheet.attended, sheet.problem) for sheet in sheets]
    for sheet, trial in zip(sheets, trials, strict=True):
        sheet.give([trial.sizes[-1]] * len(sheet.problem.k))  # what memory must suffice for meanwhile
    plan, workers, share = _planned(sheets, engine)
    listener(Note(f"--share adaptive: {sum(map(len, (s.pieces for s in sheets)))} key heads answer their first rows"))
    warm(next(sheets[0].plans(share)), listener)
    job = _job(request, share, engine)
    tasks = [task for sheet, trial in zip(sheets, trials, strict=True) for task in trial_tasks(trial, sheet.of(job))]
    with engine.open(workers, interrupts) as workforce:
        check_room(workforce, plan)
        do = answer_piece if engine.apart else partial(answer_piece, stop=workforce.stop)
        audits = [answered.audit for answered in in_order(workforce, do, tasks, interrupts)]
    for sheet, rows in zip(sheets, shares(trials, audits), strict=True):
        told = f"{sheet.name + ': ' if sheet.name else ''}key heads have {', '.join(map(str, rows))} resident rows"
        sheet.give(rows, told)


def _sheets(request: AttendRequest) -> tuple[list[Sheet], Results]:
    """Every sheet, opened, cut, and closed again: what cannot run is refused before anything does. And what will be known of
    each, of those that cannot run already."""
    if request.keep_going and request.share == "adaptive":
        raise UsageError(
            "--keep-going: --share adaptive divides memory over all layers, and none may fail; omit one of them"
        )
    for name in ALONE:
        if getattr(request, name):
            raise UsageError(f"--engine: {spelling(name)} is for runs that are not cut into pieces; omit one of them")
    requests = sheets_of(request) if request.inputs.layer else [(None, request)]
    refuse_existing(
        [each.output for _, each in requests], request.force or checkpoint_there(request.checkpoint, request)
    )
    most = ceil(PIECES / len(requests))
    sheets: list[Sheet] = []
    results: Results = {layer: None for layer, _ in requests}
    for layer, each in requests:
        try:
            sheets.append(_sheet(layer, each, most))
        except StreamattnError as error:
            if not request.keep_going:
                raise
            results[layer] = error
    if not sheets:
        together(request.output, *_known(results))  # raises the worst
    return sheets, results


def _known(results: Results) -> tuple[list[Layer], list[Outcome | StreamattnError]]:
    """The layers, and what has become of each sheet."""
    return [layer for layer in results if layer], [result for result in results.values() if result]


def _sheet(layer: Layer | None, request: Answering, most: int) -> Sheet:
    if request.output == "-" or check_target(request.output) == "special":
        raise UsageError(f"-o {request.output}: --engine writes to files; give -o FILE.npy or FILE.h5")
    check_output(request)
    with opened(request) as (problem, sources, files, _):
        refuse_pipes((problem.q, problem.k, problem.v), "--engine cuts rows into pieces (omit it)")
        if isinstance(request, QueryRequest):
            pieces = [Piece(queries=each) for each in query_ranges(problem, most)]
        else:
            pieces = cut(problem, most, request.share == "adaptive")
        return Sheet(layer, request, problem, pieces, sources, files)


def _plans(sheets: list[Sheet], memory: int | None) -> Iterator[Plan]:
    for sheet in sheets:
        yield from sheet.plans(memory)


def _planned(sheets: list[Sheet], engine: Engine) -> tuple[Plan, int, int | None]:
    """The plan of all workers together (on a cluster, of one of them), how many there are, and the budget of each."""

    def one(share: int | None) -> Plan:
        return max(_plans(sheets, share), key=lambda plan: plan.projected)

    whole = one(sheets[0].request.memory)
    asked = replace(whole, problem=replace(whole.problem, request=sheets[0].request.run()))  # --threads as typed
    found, workers, share = divided(asked, engine, sum(len(s.pieces) for s in sheets), lambda _workers: 0, one)
    parts = {name: size * (1 if engine.remote else workers) for name, size in found.parts.items()}
    problem = replace(sheets[0].problem, notes=tuple(dict.fromkeys(n for s in sheets for n in s.problem.notes)))
    return replace(found, problem=problem, threads=workers, allowed=whole.allowed, parts=parts), workers, share


def _whole(sheet: Sheet) -> Plan:
    """Of a sheet, for the shape of its output alone."""
    return Plan(sheet.problem, threads=1)


def _counts(sheets: list[Sheet], workers: int, engine: Engine) -> dict:
    pieces = sum(len(sheet.pieces) for sheet in sheets)
    return {"sheets": len(sheets), "pieces": pieces, "workers": workers, "engine": engine.word}


class _Told:
    """Makes the progress of a job: rows of all sheets, of which a piece reads a share."""

    def __init__(self, sheets: list[Sheet], plan: Plan, meter: Meter, began: float):
        self._total = sum(sheet.rows for sheet in sheets)
        self._plan, self._meter, self._began = plan, meter, began
        self._before = sum(sheet.rows_of(at) for sheet in sheets for at in sheet.done)
        self.rows, self._bytes, self._sheets = self._before, 0, sheets

    def __call__(self, sheet: Sheet, at: int) -> Progress:
        self.rows += sheet.rows_of(at)
        self._bytes += sheet.done[at].bytes_read
        return Progress(
            phase=Phase.PIECES, rows=round(self.rows), total=self._total, bytes=self._bytes,
            seconds=time.monotonic() - self._began, sketch_bytes=self._plan.sketch_bytes,
            memory_now=self._meter.now(), memory_peak=self._meter.peak(), memory_allowed=self._plan.allowed,
            rows_before=round(self._before), sheets=len(self._sheets) if sheet.layer else 0,
            sheets_done=sum(not one.left for one in self._sheets) if sheet.layer else 0,
        )  # fmt: skip
