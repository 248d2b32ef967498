"""`query`: answers from a sketch that is there, and how wrong they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from streamattn_cli.checkpoint.header import SEAL_BYTES
from streamattn_cli.engine.jobs.ceremony import announce, measured
from streamattn_cli.engine.jobs.sketch import SketchFile, open_sketch_file, units_of
from streamattn_cli.engine.passes.full import Queries
from streamattn_cli.engine.passes.open_run import check_finite, check_output
from streamattn_cli.engine.passes.pump import Watch
from streamattn_cli.engine.passes.run import Run, auditor_of, lanes_of
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.planning.variants import of_heads
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.requests import QueryRequest, RunRequest
from streamattn_cli.engine.saving.saver import Saver, State
from streamattn_cli.engine.saving.sources import check_same
from streamattn_cli.engine.watch.events import Audit, Finished, Listener, Outcome
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import InputMalformed, UsageError
from streamattn_cli.rows.inputs.checks import check_layout
from streamattn_cli.rows.inputs.fingerprint import check_unchanged, file_states, identity
from streamattn_cli.rows.inputs.open import Inputs, open_inputs
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.placeholder import absent, imagined
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.recordout import waits
from streamattn_cli.rows.writers.writer import open_writer
from streamattn_cli.sketches.bend import Bend, standard_slopes


@dataclass(frozen=True)
class Asked:
    """A sketch file and what is asked of it. files: states of those that rows are read from (fingerprint.file_states)."""

    file: SketchFile
    problem: Problem
    files: dict[str, tuple[int, ...]]

    @property
    def sources(self) -> dict[str, dict]:
        """What tells the sketch file from others: the digest that it ends with."""
        with open(self.file.name, "rb") as file:
            file.seek(-SEAL_BYTES, os.SEEK_END)
            return {"sketch": {"seal": file.read().hex()}}


@contextmanager
def asked(request: QueryRequest) -> Iterator[Asked]:
    """Open the sketch file, the queries, and for an audit the keys and values that it was made of. Raises the errors of
    reading, and InputMalformed and SourceChanged where keys are other ones."""
    keys_given = _keys_given(request)
    file = open_sketch_file(request.sketch, request.memory)
    p = file.params
    spec = replace(request.inputs, kv_heads=file.heads, dim=p.dim, value_dim=p.value_dim, like=_layout_of_keys(file))
    with open_inputs(spec, need_kv=keys_given) as inputs:
        q, known = inputs.heads["q"], imagined(p.stored, file.rows, file.heads, p.dim, file.name)
        check_layout(request.inputs, q, replace(known, batch=q.batch), alone=True)
        files = file_states(heads.tensor for heads in inputs.heads.values())
        yield Asked(file, queries_problem(request.run(), file, inputs), files)


def query(request: QueryRequest, listener: Listener, interrupts: Interrupts) -> Outcome:
    """Answer the queries of `request.inputs` from the file `request.sketch`.

    With `request.audit` and the keys and values that the sketch was made of, tell how wrong the answers are. Raises
    InputMalformed and SourceChanged where they are other ones.
    """
    check_output(request)
    with ExitStack() as stack:
        found = stack.enter_context(asked(request))
        problem = found.problem
        plan = make_plan(problem)
        announce(plan, listener)
        with interrupts.at_once(waits(request.output)):
            writer = open_writer(
                request.output, problem.q.rows, len(problem.q), problem.v.dim, problem.out_dtype, problem.q.layout,
                problem.q.batch,
            )  # fmt: skip
        stack.callback(writer.abort)
        stack.callback(interrupts.on_abort(writer.abort))
        with measured(plan, listener, interrupts) as ceremony:
            rows, counts, audit, reason = answer(found.file, plan, ceremony.watch, writer)
        check_finite(counts, request.nan_policy, request.output)
        check_unchanged(found.files)
        writer.commit(told(problem, request.sketch, counts, audit, reason))
        outcome = ceremony.outcome("query", rows, counts, request.output, audit=audit, audit_reason=reason)
    listener(Finished(outcome))
    return outcome


def told(problem: Problem, sketch: str, counts: dict, audit: Audit | None, reason: str | None) -> dict:
    """What an output of answers from a sketch file says of how it was made, JSON-able."""
    audited = {"audit": audit.summary(), "audit_reason": reason} if audit else {}
    return {**problem.facts(), "sketch": os.path.basename(sketch), "counts": counts, **audited}


def _layout_of_keys(file: SketchFile) -> str | None:
    """The layout that the keys of a sketch had, which their sources tell; None where they do not agree."""
    found = {source["k"].get("layout") for source in file.sources}
    return found.pop() if len(found) == 1 else None


def answer(file: SketchFile, plan: Plan, watch: Watch, writer: Writer) -> tuple[int, dict, Audit | None, str | None]:
    """Answer the queries of a plan made by `queries_problem` into `writer`; returns their number, the counts, the audit,
    and why there is none."""
    run = answering(file.state, file.name, plan, watch, writer, finish=not file.complete)
    try:
        rows, audit, reason = run.go()
        return rows, run.counts(), audit, reason
    finally:
        run.close()


def answering(
    state: State, name: str, plan: Plan, watch: Watch, writer: Writer, doubts: Writer | None = None,
    saver: Saver | None = None, finish: bool = False,
) -> Run:  # fmt: skip
    """The run that answers them from the state of sketches, those of the file `name`. finish: the sketches take more rows."""
    lanes = lanes_of(plan)  # the keys passed long ago, and only an audit reads them again
    run = Run(plan, watch, Queries, writer, doubts, lanes, auditor_of(plan, lanes, postponed=True), saver)
    try:
        run.sketches.load(state, name)
        if finish:
            run.sketches.finish()
    except BaseException:
        run.close()
        raise
    return run


def _keys_given(request: QueryRequest) -> bool:
    """Whether there are keys and values for an audit. Raises UsageError for the one without the other."""
    given = [name for name in ("k", "v") if getattr(request.inputs, name)]
    if request.audit and len(given) < 2:
        raise UsageError(f"--audit {request.audit}: exact answers need the keys and values that {request.sketch} was made "
                         "of: give --k FILE --v FILE with it")  # fmt: skip
    if given and not request.audit:
        raise UsageError(f"--{given[0]}: only an audit reads keys and values again; give --audit N with it, or omit it")
    return bool(request.audit)


def queries_problem(request: RunRequest, file: SketchFile, inputs: Inputs) -> Problem:
    """The problem of a query: keys and values are those of the sketch."""
    p, q = file.params, inputs.heads["q"]
    if q.dim != p.dim or len(q) % file.heads:
        raise InputMalformed(
            f"{q.tensor.name}: {len(q)} query heads of dim {q.dim} found, {file.name} has {file.heads} key heads of dim "
            f"{p.dim}; expected a multiple of that many heads of the same dim"
        )
    if file.heads % q.batch:
        raise InputMalformed(f"{q.tensor.name}: {q.batch} batches do not fit the {file.heads} key heads of {file.name}")
    k, v = (inputs.k or absent(file.heads, p.dim, p.stored, q.batch)), inputs.v
    if v is None:
        v = absent(file.heads, p.value_dim, p.stored, q.batch)
    else:
        _check_keys(file, k, v)
    v = replace(v, units=units_of(file.facts))
    sinks, bend, group = tuple(file.facts.get("sink_logits", ())), Bend.of_facts(file.facts), len(q) // file.heads
    slopes = standard_slopes(len(q) // q.batch) if bend.standard else bend.slopes
    slopes = slopes and of_heads(slopes, q, group, None, file.name)
    return Problem(
        request, q, k, v, causal=False, scale=p.scale, method=file.facts["method"], precision=p.dtype, params=p,
        notes=inputs.notes,
        local=p.window if p.local else None, sink_logits=sinks and of_heads(sinks, q, group, None, file.name),
        bend=Bend(bend.cap, slopes),
    )  # fmt: skip


def _check_keys(file: SketchFile, k: Heads, v: Heads) -> None:
    """Refuse keys and values that are not those of the sketch. Raises InputMalformed and SourceChanged."""
    here, there = (len(k), k.dim, v.dim, k.rows), (file.heads, file.params.dim, file.params.value_dim, file.rows)
    if any(found not in (expected, None) for found, expected in zip(here, there, strict=True)):
        shown = [
            f"{heads} key heads of dim {dim} and value dim {wide}, {rows} rows"
            for heads, dim, wide, rows in (here, there)
        ]
        raise InputMalformed(
            f"{k.tensor.name}: {shown[0]} found, {file.name} was made of {shown[1]}; give the keys and values that it was "
            "made of (part of a file: --rows A:B)"
        )
    if len(file.sources) != 1 or not (k.tensor.seekable and v.tensor.seekable):
        return
    pairs = [(file.sources[0][part], identity(heads.tensor)) for part, heads in (("k", k), ("v", v))]
    if all(one.get("kind") == "file" and "range" not in one for pair in pairs for one in pair):
        old, new = ({part: {end: one[end] for end in ("first", "last")} for part, one in zip("kv", side, strict=True)}
                    for side in zip(*pairs, strict=True))  # fmt: skip
        check_same(file.name, [old], [new], "audit with the keys and values that it was made of")
