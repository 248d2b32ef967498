"""The main job: q, k and v in, attention outputs out, in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from streamattn_cli.checkpoint.commit import CheckpointWriter
from streamattn_cli.engine.jobs.ceremony import announce, measured
from streamattn_cli.engine.jobs.streams import with_sheets
from streamattn_cli.engine.passes.open_run import check_finite, check_output, make_run, open_doubt, open_sparse
from streamattn_cli.engine.passes.run import Run
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.saving.resume import (
    Saved,
    answered_rows,
    check_saveable,
    continued,
    facts_of,
    find_saved,
    part_tag,
    sources_of,
)
from streamattn_cli.engine.saving.saver import Saver, describe
from streamattn_cli.engine.watch.events import Audit, Finished, Listener, Outcome
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import Interrupted
from streamattn_cli.rows.inputs.fingerprint import check_unchanged, file_states
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.recordout import waits
from streamattn_cli.rows.writers.writer import open_writer
from streamattn_cli.versions import versions


def plan_attend(request: AttendRequest) -> Plan:
    """The plan of a run, from headers alone (of a pipe: its first record's). Refuses what `attend` would refuse."""
    check_output(request)
    with open_inputs(request.inputs, apart=not (request.top_k or request.sketches)) as inputs:
        return make_plan(resolve(request, inputs))


def attend(
    request: AttendRequest, listener: Listener, interrupts: Interrupts, open_output: Callable[..., Writer] = open_writer
) -> Outcome:
    """Run a request to its end. Raises the errors of errors.py; then nothing is left under the output's name.

    open_output: called as writer.open_writer is.
    """
    check_output(request)
    with ExitStack() as stack:
        with interrupts.at_once():
            inputs = stack.enter_context(open_inputs(request.inputs, apart=not (request.top_k or request.sketches)))
            files = file_states((heads.tensor for heads in inputs.parts), request.query_model)
            plan = make_plan(resolve(request, inputs))
        problem = plan.problem
        facts = facts_of(problem, plan.audit_rows)
        sources = sources_of(problem, request.fingerprint) if request.checkpoint else {}
        checkpoint = stack.enter_context(CheckpointWriter(request.checkpoint)) if request.checkpoint else None
        saved = find_saved(request, facts, sources)
        if saved:
            plan = replace(plan, problem=continued(problem, saved, request.skip_rows))
        announce(plan, listener, _resumed(saved, problem, request.output) if saved else ())
        if saved and saved.phase == Phase.DONE:
            _complete(checkpoint, saved, facts, sources)
            return _already_done(plan, request.output, saved, listener)
        tag = part_tag(checkpoint) if checkpoint else None
        writer, doubts = _open_outputs(problem, request.output, saved, tag, stack, interrupts, open_output)
        for output in (writer, doubts) if checkpoint else ():
            check_saveable(output)
        with measured(plan, listener, interrupts) as ceremony:
            every = request.checkpoint_every
            saver = Saver(checkpoint, facts, sources, every, writer, doubts) if checkpoint else None
            ceremony.watch.saved_by(saver)
            run = make_run(plan, ceremony.watch, writer, doubts, saver)
            try:
                if saved:
                    run.resume(saved)
                rows, audit, reason = saving(run, saver)
            finally:
                run.close()
            check_unchanged(files)
            check_finite(run.counts(), request.nan_policy, request.output, problem.v)
        written = written_of(problem)
        if request.top_k:
            written["top_k"] = writer.finish()
        counts = run.counts()
        told = {**written, "counts": counts, "audit": audit.summary() if audit else None, "audit_reason": reason}
        if doubts:
            doubts.commit(told)
        writer.commit(told)
        if checkpoint:
            checkpoint.commit(run.save(), describe(facts, Phase.DONE, rows, sources, None))
        counts |= {"checkpoints": saver.commits} if saver else {}
        outcome = ceremony.outcome(
            "attend", rows, counts, request.output, facts=written | {"threads": plan.threads}, audit=audit,
            audit_reason=reason, rows_before=run.answered, series=ceremony.watch.series.to_dict(),
        )  # fmt: skip
        outcome = with_sheets(outcome, problem)
    listener(Finished(outcome))
    return outcome


def written_of(problem: Problem) -> dict:
    """What an output says of how it was made, JSON-able."""
    return {**problem.facts(), "versions": versions("numpy", "numba")}


def _complete(checkpoint: CheckpointWriter | None, saved: Saved, facts: dict, sources: dict) -> None:
    """The last step of a run that ended before it."""
    if checkpoint and saved.meta["phase"] != Phase.DONE:
        checkpoint.commit(saved.state, describe(facts, Phase.DONE, saved.done, sources, None))


def _resumed(saved: Saved, problem: Problem, output: str) -> list[str]:
    """What to know of a run that is resumed."""
    notes = [f"resuming after row {saved.done} ({saved.phase})"]
    rows = answered_rows(problem, saved.phase, saved.done)
    if rows and not saved.part and not problem.request.top_k:
        where = "standard output" if output == "-" else output
        notes.append(f"{where} begins with row {rows}; those before it were written earlier")
    return notes


def _open_outputs(
    problem: Problem,
    output: str,
    saved: Saved | None,
    tag: str | None,
    stack: ExitStack,
    interrupts: Interrupts,
    open_output: Callable[..., Writer],
) -> tuple[Writer, Writer | None]:
    """The writers of the answers and of --doubt; whatever ends the run early leaves neither behind."""

    def guarded(writer: Writer) -> Writer:
        stack.callback(writer.abort)
        stack.callback(interrupts.on_abort(writer.abort))
        return writer

    top_k, q = problem.request.top_k, problem.q
    with interrupts.at_once(waits(output)):
        writer = guarded(open_sparse(problem, output, top_k, tag) if top_k else open_output(
            output, q.rows, len(q), problem.v.dim, problem.out_dtype, q.layout, q.batch,
            going_on=saved.part if saved else None, tag=tag, sequences=q.sequences,
        ))  # fmt: skip
    complete = saved and not saved.doubt  # or not asked for
    doubts = None if complete else open_doubt(problem, saved.doubt if saved else None, tag)
    return writer, guarded(doubts) if doubts else None


def saving(run: Run, saver: Saver | None) -> tuple[int, Audit | None, str | None]:
    """The whole run, saved as it goes on: also when a signal stops it, and when all rows are answered."""
    if saver is None:
        return run.go()
    try:
        result = run.go()
    except Interrupted as stop:
        saver.save(run)
        stop.saved(f"the checkpoint {saver.writer.path}")
        raise
    saver.save(run, ended=True)
    return result


def _already_done(plan: Plan, output: str, saved: Saved, listener: Listener) -> Outcome:
    """The outcome of a run that had come to its end before: nothing is done again."""
    outcome = Outcome(
        command="attend",
        facts=plan.problem.facts(),
        rows=saved.done,
        seconds=0.0,
        wait_seconds=0.0,
        bytes_read=0,
        memory={"allowed": plan.allowed, "projected": plan.projected},
        audit_reason="this run was complete already",
        rows_before=saved.done,
        output=output,
    )
    listener(Finished(outcome))
    return outcome
