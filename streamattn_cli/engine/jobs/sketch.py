"""Sketches as files: made from keys and values, added to, merged, and queried later."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace

from streamattn_cli.checkpoint.commit import CheckpointWriter
from streamattn_cli.checkpoint.container import read
from streamattn_cli.engine.jobs.ceremony import announce, measured
from streamattn_cli.engine.passes.open_run import files_of_request
from streamattn_cli.engine.passes.run import SketchRun
from streamattn_cli.engine.planning.footprint import FIRST_ROWS
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.problem import Problem, larger_than_data
from streamattn_cli.engine.request.requests import RunRequest, SketchRequest
from streamattn_cli.engine.saving.resume import Saved, checkpoint_there, continued, read_saved
from streamattn_cli.engine.saving.saver import Saver, State, check_schema, describe
from streamattn_cli.engine.saving.sources import absorbed, check_disjoint, check_same, key_sources
from streamattn_cli.engine.watch.events import Finished, Listener, Outcome
from streamattn_cli.engine.watch.meter import available_memory
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import (
    CannotMeet,
    CheckpointIncompatible,
    InputMalformed,
    Interrupted,
    UsageError,
)
from streamattn_cli.rows.inputs.fingerprint import check_unchanged, file_states, refuse_inputs
from streamattn_cli.rows.inputs.open import Inputs
from streamattn_cli.rows.inputs.several_files import open_stream, wants_queries, with_own_queries
from streamattn_cli.rows.tensors.placeholder import absent
from streamattn_cli.rows.tensors.ranges import first_row
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.bend import Bend
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.sketches.registry import history_of


@dataclass(frozen=True)
class SketchFile:
    """A checkpoint that can be queried: parameters of a head, the number of heads, state, and what it was made from."""

    name: str
    params: HeadParams
    heads: int
    state: State
    phase: str
    rows: int
    facts: dict
    sources: list[dict]

    @property
    def complete(self) -> bool:
        """Whether `finish` has been applied: such a sketch takes no more rows."""
        return self.phase != Phase.SKETCH


def open_sketch_file(name: str, memory: int | None = None) -> SketchFile:
    """Read a sketch (of `sketch`, `merge`, or of a full-attention `attend --checkpoint` whose keys were all absorbed).

    `memory`: bytes that it may take, None for what the machine has. Raises the errors of reading (3, 6, 7, 8), and
    CheckpointIncompatible where it cannot answer queries.
    """
    state, meta = read(name, memory or available_memory())
    check_schema(name, meta)
    facts = json.loads(meta["params"])
    if "sketches" in facts:
        raise CheckpointIncompatible(f"{name}: a run with --sketches {facts['sketches']['kind']}, which answers no "
                                     "other queries than its own; continue with attend --resume")  # fmt: skip
    if "job" in facts:
        raise CheckpointIncompatible(
            f"{name}: of a job in pieces, which has no sketch to query; continue with attend --resume"
        )
    if facts.get("head") is None:
        raise CheckpointIncompatible(f"{name}: made by --method {meta['method']}, which keeps no sketch to query")
    if facts["mode"] == "causal":
        raise CheckpointIncompatible(f"{name}: a causal run, whose state answers only its own next rows; continue with "
                                     "attend --resume")  # fmt: skip
    if "sequences" in facts:
        raise CheckpointIncompatible(f"{name}: a run of several sequences, whose state is that of one of them; continue with "
                                     "attend --resume")  # fmt: skip
    if meta["phase"] == Phase.KEYS:
        raise CheckpointIncompatible(f"{name}: its keys were not absorbed to the end ({meta['rows']} rows); finish it with "
                                     "--resume first")  # fmt: skip
    try:
        params = HeadParams.from_dict(facts["head"])
    except UsageError as error:
        raise CheckpointIncompatible(f"{name}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointIncompatible(f"{name}: parameters that this version does not know ({error}); use the version of "
                                     f"streamattn that wrote it ({meta.get('created_by')})") from error  # fmt: skip
    counters = state["head.counters"]
    rows = int(counters[0][0])
    return SketchFile(name, params, len(counters), dict(state), meta["phase"], rows, facts, absorbed(meta))


def sketch(request: SketchRequest, listener: Listener, interrupts: Interrupts) -> Outcome:
    """Absorb keys and values into the sketch file `request.output`, after those that it holds if they are to be appended."""
    append = request.output if request.append else None
    if not append:
        refuse_inputs([request.output], files_of_request(request))
    with ExitStack() as stack:
        inputs = stack.enter_context(open_stream(request.inputs, need_q=wants_queries(request.inputs)))
        files = file_states((heads.tensor for heads in inputs.heads.values()), request.query_model)
        before = open_sketch_file(append, request.memory) if append else None
        problem = keys_problem(request.run(), inputs, before)
        facts, sources = sketch_facts(problem), key_sources(problem, request.fingerprint)
        if before:
            check_disjoint([(before.name, before.sources), (problem.k.tensor.name, sources)])
            sources = [*before.sources, *sources]
        writer = stack.enter_context(CheckpointWriter(request.output))
        saved = None if append else _saved(request, facts, sources)
        if saved:
            problem = continued(problem, saved, request.skip_rows)
        plan = make_plan(problem)
        announce(plan, listener, [f"resuming after row {saved.done}"] if saved else [])
        with measured(plan, listener, interrupts) as ceremony:
            own = Saver(writer, facts, {"absorbed": sources}, request.checkpoint_every)
            saver = None if before else own  # a sketch that is added to keeps what it had until the end
            ceremony.watch.saved_by(saver)
            run = SketchRun(plan, ceremony.watch, saver)
            try:
                rows = _absorb(run, before, saved, saver)
            finally:
                run.close()
            check_unchanged(files)
            writer.commit(run.sketches.save(), describe(facts, Phase.SKETCH, rows, {"absorbed": sources}, None))
        rows_before = before.rows if before else saved.done if saved else 0
        outcome = ceremony.outcome("sketch", rows, run.counts(), request.output, rows_before=rows_before)
    listener(Finished(outcome))
    return outcome


def check_sketch_name(name: str) -> None:
    """Refuse (UsageError) to give a sketch the name of another kind of file."""
    if name.endswith((".npy", ".h5", ".hdf5", ".safetensors")):
        raise UsageError(
            f"{name}: a sketch is called FILE.sattn; answers are written by attend, and by query from a sketch"
        )


def learning_from_input(request: SketchRequest) -> SketchRequest:
    """The request with the queries that its input holds beside k and v, if its method learns from queries."""
    method = registry.find(request.method or "nystrom") if request.method != "auto" else None
    learns = method is None or (method.history is not None and method.history.learns)
    if not learns or request.query_model:
        return request
    return replace(request, inputs=with_own_queries(request.inputs))


def _saved(request: SketchRequest, facts: dict, sources: list[dict]) -> Saved | None:
    """The unfinished sketch to resume, None to begin. Raises SourceChanged where the input is another one."""
    if not checkpoint_there(request.output, request):
        return None
    saved = read_saved(request.output, request.memory, facts, {})
    check_same(saved.name, absorbed(saved.meta), sources, "resume with the original input, or make another sketch")
    return saved


def _absorb(run: SketchRun, before: SketchFile | None, saved: Saved | None, saver: Saver | None) -> int:
    """The pass over the keys; returns all rows that the sketch holds then."""
    start = 0
    if before:
        run.sketches.load(before.state, before.name)
    elif saved and saved.phase == Phase.SKETCH:
        run.sketches.load(saved.state, saved.name)
        return saved.done
    elif saved:
        run.resume(saved)
        start = saved.done
    try:
        if not (before or saved):
            run.begin(first_row(run.problem.k.tensor))  # of --rows
        run.absorb(start=start)
    except Interrupted as stop:
        if saver:
            saver.save(run)
            stop.saved(f"the sketch {saver.writer.path}")
        raise
    return run.rows


def keys_problem(request: RunRequest, inputs: Inputs, before: SketchFile | None) -> Problem:
    """The problem of a sketch: full attention whose queries are unknown, or known only as a sample."""
    if request.method == "auto":  # which takes exact attention only where no budget was given
        request = replace(request, resident_rows=request.budget)
    k, v = inputs.heads["k"], inputs.heads["v"]
    q = inputs.q or absent(len(k), k.dim, k.tensor.dtype, k.batch)
    problem = resolve(replace(request, causal=False), replace(inputs, q=q), growing=True)
    if problem.params is None:
        raise CannotMeet("--method exact keeps no sketch; use attend, or --method nystrom or poly")
    notes = problem.notes
    blind = registry.find(problem.method).blind
    if inputs.q is None and blind:
        notes += (blind,)
    if inputs.q is not None and before is None and problem.params.history and history_of(problem.params.history).learns:
        notes += (f"{problem.method} learns from the queries of {inputs.q.tensor.name} (--blind: from none)",)
    if problem.method == "poly" and before is None and (k.rows or FIRST_ROWS) < FIRST_ROWS:
        notes += (f"poly chooses its bounds by these {k.rows} rows alone: longer keys that follow will be shortened",)
    if before is None:
        more = larger_than_data(problem)
        return replace(problem, notes=notes + ((more,) if more else ()))
    if before.complete:
        raise CheckpointIncompatible(f"{before.name}: its last rows have been compressed ({before.phase}), so that none can "
                                     "follow them; merge it with a sketch of the new rows instead")  # fmt: skip
    here = (len(k), k.dim, v.dim)
    there = (before.heads, before.params.dim, before.params.value_dim)
    if here != there:
        raise InputMalformed(
            f"{k.tensor.name}: {here[0]} key heads of dim {here[1]} and value dim {here[2]} found, "
            f"{before.name} has {there[0]} of {there[1]} and {there[2]}"
        )
    return replace(
        problem, v=replace(problem.v, units=units_of(before.facts)), params=before.params,
        scale=before.params.scale, method=before.facts["method"],
        precision=before.params.dtype, notes=notes, rows_before=before.rows,
        local=before.params.window if before.params.local else None,
        sink_logits=tuple(before.facts.get("sink_logits", ())), bend=Bend.of_facts(before.facts),
    )  # fmt: skip


def units_of(facts: dict) -> tuple[float, ...] | None:
    """What the values of a sketch are counted in."""
    return tuple(facts["value_units"]) if "value_units" in facts else None


def sketch_facts(problem: Problem) -> dict:
    """What must be the same for a sketch to be resumed, and what it is queried and merged by."""
    facts = problem.facts()
    shapes = {name: facts["shapes"][name] for name in ("kv_heads", "dim", "value_dim")}
    kept = {name: facts[name] for name in ("method", "mode", "scale", "seed", "precision")}
    if problem.sink_logits:
        kept["sink_logits"] = list(problem.sink_logits)
    kept |= problem.bend.facts()
    if problem.v.units:
        kept["value_units"] = list(problem.v.units)
    return kept | {"shapes": shapes, "head": problem.head.to_dict(), "nan_policy": problem.request.nan_policy}
