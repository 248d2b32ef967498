"""Sketches as files: made from keys and values, added to, merged, and queried later."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np

from streamattn_cli.checkpoint.commit import CheckpointWriter, save
from streamattn_cli.checkpoint.container import read, read_header
from streamattn_cli.engine.run import Run
from streamattn_cli.engine.events import Finished, Listener, Note, Outcome, Started
from streamattn_cli.engine.meter import Meter
from streamattn_cli.engine.plan import Plan, make_plan
from streamattn_cli.engine.pump import Watch
from streamattn_cli.engine.request import AttendRequest, Problem, resolve
from streamattn_cli.engine.resume import find_saved, make_saver
from streamattn_cli.engine.saver import check_schema, describe, stack_heads
from streamattn_cli.engine.signals import Interrupts
from streamattn_cli.engine.warm import warm
from streamattn_cli.errors import CannotMeet, CheckpointIncompatible, InputMalformed, Interrupted, UsageError
from streamattn_cli.rows.absent import absent
from streamattn_cli.rows.identity import identity
from streamattn_cli.rows.open import Inputs, open_inputs
from streamattn_cli.rows.writers import open_writer
from streamattn_cli.sketches.head import HeadAttention, HeadParams, allocate

OPEN = "sketch"  # phase of a sketch whose last rows still wait: more may be appended


@dataclass(frozen=True)
class SketchFile:
    """A checkpoint that can be queried: parameters of a head, the number of heads, state, and what it was made from."""

    name: str
    params: HeadParams
    heads: int
    state: dict[str, np.ndarray]
    phase: str
    rows: int
    facts: dict
    sources: list[dict]

    @property
    def complete(self) -> bool:
        """Whether `finish` has been applied: such a sketch takes no more rows."""
        return self.phase != OPEN


def open_sketch_file(name: str) -> SketchFile:
    """Read a sketch (of `sketch`, `merge`, or of a full-attention `attend --checkpoint` whose keys were all absorbed).

    Raises the errors of reading (3, 7, 8), and CheckpointIncompatible where it cannot answer queries.
    """
    state, meta = read(name)
    check_schema(name, meta)
    facts = json.loads(meta["params"])
    if facts.get("head") is None:
        raise CheckpointIncompatible(f"{name}: made by --method {meta['method']}, which keeps no sketch to query")
    if facts["mode"] == "causal":
        raise CheckpointIncompatible(f"{name}: a causal run, whose state answers only its own next rows; go on with "
                                     "attend --resume")  # fmt: skip
    if meta["phase"] == "keys":
        raise CheckpointIncompatible(f"{name}: its keys were not absorbed to the end ({meta['rows']} rows); go on with "
                                     "--resume first")  # fmt: skip
    try:
        params = HeadParams.from_dict(facts["head"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointIncompatible(f"{name}: parameters that this version does not know ({error}); use the version of "
                                     f"streamattn that wrote it ({meta.get('created_by')})") from error  # fmt: skip
    counters = state["head.counters"]
    rows = int(counters[0][0])
    sources = json.loads(meta["source"])
    sources = sources.get("absorbed", [sources])
    return SketchFile(name, params, len(counters), state, meta["phase"], rows, facts, sources)


def sketch(
    request: AttendRequest, listener: Listener, interrupts: Interrupts, append: str | None = None
) -> Outcome:
    """Absorb keys and values into the sketch file `request.checkpoint`, after those of `append` if it is given."""
    with ExitStack() as stack:
        spec = request.inputs
        wants_queries = spec.q is not None
        inputs = stack.enter_context(open_inputs(spec, need_q=wants_queries))
        before = open_sketch_file(append) if append else None
        problem = _keys_problem(request, inputs, before)
        plan = make_plan(problem)
        listener(Started(plan.to_dict()))
        for note in problem.notes:
            listener(Note(note))
        facts, source = _sketch_facts(problem), _source(problem, before)
        saved = None if append else find_saved(request, facts, {})
        writer = stack.enter_context(CheckpointWriter(request.checkpoint))
        warm(plan, listener)
        began = time.monotonic()
        with Meter() as meter:
            watch = Watch(listener, interrupts, meter, plan.allowed, plan.sketch_bytes)
            run = Run(plan, watch, None)
            saver = make_saver(writer, run, None, facts, source, request.checkpoint_every)
            try:
                rows = _absorb(run, before, saved, saver)
            finally:
                run.close()
            writer.commit(run.save_sketch(), describe(facts, OPEN, rows, source, None))
        outcome = _outcome("sketch", plan, run, watch, meter, rows, began, request.checkpoint)
    listener(Finished(outcome))
    return outcome


def query(request: AttendRequest, listener: Listener, interrupts: Interrupts) -> Outcome:
    """Answer the queries of `request.inputs` from the sketch file `request.checkpoint`."""
    with ExitStack() as stack:
        file = open_sketch_file(request.checkpoint)
        spec = replace(request.inputs, kv_heads=file.heads, dim=file.params.dim)
        inputs = stack.enter_context(open_inputs(spec, need_kv=False))
        problem = _queries_problem(request, file, inputs)
        plan = make_plan(problem)
        listener(Started(plan.to_dict()))
        for note in problem.notes:
            listener(Note(note))
        writer = open_writer(
            request.output, problem.q.rows, len(problem.q), problem.v.dim, problem.out_dtype, problem.q.layout,
            problem.q.batch,
        )  # fmt: skip
        stack.callback(writer.abort)
        stack.callback(interrupts.on_abort(writer.abort))
        warm(plan, listener)
        began = time.monotonic()
        with Meter() as meter:
            watch = Watch(listener, interrupts, meter, plan.allowed, plan.sketch_bytes)
            run = Run(plan, watch, writer)
            try:
                run.load_sketch(file.state, file.name)
                if not file.complete:
                    run.finish()
                rows = run.answer_queries()
            finally:
                run.close()
        writer.commit({**problem.facts(), "sketch": os.path.basename(file.name), "counts": run.counts()})
        outcome = _outcome("query", plan, run, watch, meter, rows, began, request.output)
    listener(Finished(outcome))
    return outcome


def merge(names: list[str], target: str) -> dict:
    """Merge sketch files of disjoint rows, in the order given, into `target`; returns what it holds.

    Raises CheckpointIncompatible for other parameters and for rows that two of them share.
    """
    if len(names) < 2:
        raise UsageError("merge: give at least two sketches")
    if os.path.exists(target):
        read_header(target)  # raises where it is something else, which must not be replaced
    files = [open_sketch_file(name) for name in names]
    _check_alike(files)
    _check_disjoint(files)
    shards = [_heads(file) for file in files]
    work = allocate(files[0].params.work_spec())
    while len(shards) > 1:  # a fixed tree: neighbours first, so that the bytes depend only on the list
        shards = [_merged(shards[i : i + 2], work) for i in range(0, len(shards), 2)]
    rows = sum(file.rows for file in files)
    sources = {"absorbed": [source for file in files for source in file.sources]}
    state = stack_heads([head.state for head in shards[0]], "head")
    save(target, state, describe(files[0].facts, OPEN, rows, sources, None))
    return {"type": "merged", "rows": rows, "sketches": len(files), "heads": files[0].heads, "output": target}


def _absorb(run: Run, before: SketchFile | None, saved, saver) -> int:
    """The pass over the keys; returns all rows that the sketch holds then."""
    if before:
        run.load_sketch(before.state, before.name)
        run.phase = "keys"
    if saved:
        run.phase, run.done = "keys", saved.done
        run.load_sketch(saved.state, saved.name)
    run.passed = saver.passed if not before else None  # a file that is appended to keeps what it had until the end
    try:
        if not run.phase:
            run.first_rows()
        run.absorb_keys()
    except Interrupted as stop:
        if not before:
            saver.save()
            stop.consequence = f"the sketch {saver.writer.path} was saved; go on with --resume"
        raise
    return run.sketches[0].rows


def _keys_problem(request: AttendRequest, inputs: Inputs, before: SketchFile | None) -> Problem:
    """The problem of a sketch: full attention whose queries are unknown, or known only as a sample."""
    q = inputs.q or absent(len(inputs.k), inputs.k.dim, inputs.k.tensor.dtype)
    problem = resolve(replace(request, causal=False), replace(inputs, q=q))
    if problem.params is None:
        raise CannotMeet("--method exact keeps no sketch; use attend, or --method nystrom or poly")
    notes = problem.notes
    if inputs.q is None and getattr(problem.params.history, "active", None):
        notes += ("no queries are known (--q FILE): nystrom takes any direction to be as likely as another",)
    if before is None:
        return replace(problem, notes=notes)
    if before.complete:
        raise CheckpointIncompatible(f"{before.name}: its last rows have been compressed ({before.phase}), so that none can "
                                     "follow them; merge it with a sketch of the new rows instead")  # fmt: skip
    here = (len(inputs.k), inputs.k.dim, inputs.v.dim)
    there = (before.heads, before.params.dim, before.params.value_dim)
    if here != there:
        raise InputMalformed(
            f"{inputs.k.tensor.name}: {here[0]} key heads of dim {here[1]} and value dim {here[2]} found, "
            f"{before.name} has {there[0]} of {there[1]} and {there[2]}"
        )
    return replace(problem, params=before.params, scale=before.params.scale, method=before.facts["method"], notes=notes)


def _queries_problem(request: AttendRequest, file: SketchFile, inputs: Inputs) -> Problem:
    """The problem of a query: keys and values are those of the sketch."""
    p, q = file.params, inputs.q
    if q.dim != p.dim or len(q) % file.heads:
        raise InputMalformed(
            f"{q.tensor.name}: {len(q)} query heads of dim {q.dim} found, {file.name} has {file.heads} key heads of dim "
            f"{p.dim}; expected a multiple of that many heads of the same dim"
        )
    k, v = absent(file.heads, p.dim, p.stored), absent(file.heads, p.value_dim, p.stored)
    return Problem(replace(request, audit=0), q, k, v, False, p.scale, file.facts["method"], p.dtype, p, inputs.notes)


def _sketch_facts(problem: Problem) -> dict:
    facts = problem.facts()
    shapes = {name: facts["shapes"][name] for name in ("kv_heads", "dim", "value_dim")}
    kept = {name: facts[name] for name in ("method", "mode", "scale", "seed", "precision")}
    return kept | {"shapes": shapes, "head": problem.params.to_dict(), "nan_policy": problem.request.nan_policy}


def _source(problem: Problem, before: SketchFile | None) -> dict:
    new = {part: identity(getattr(problem, part).tensor, problem.request.fingerprint) for part in "kv"}
    return {"absorbed": [*(before.sources if before else []), new]}


def _outcome(command, plan: Plan, run: Run, watch: Watch, meter: Meter, rows: int, began: float, output) -> Outcome:
    return Outcome(
        command=command,
        facts={**plan.problem.facts(), "threads": plan.threads, "versions": {"streamattn-cli": version("streamattn-cli")}},
        rows=rows,
        seconds=time.monotonic() - began,
        wait_seconds=watch.wait_seconds,
        bytes_read=watch.bytes_read,
        memory={
            "allowed": plan.allowed, "reserved": meter.baseline, "projected": plan.projected, "peak": meter.peak(),
        },
        counts=run.counts(),
        audit_reason=None if command == "sketch" else "the keys are not at hand; audit with attend",
        output=output,
        notes=plan.problem.notes,
    )  # fmt: skip


def _heads(file: SketchFile) -> list[HeadAttention]:
    prefix = "head."
    arrays = {name[len(prefix) :]: array for name, array in file.state.items() if name.startswith(prefix)}
    return [HeadAttention(file.params, {n: np.ascontiguousarray(a[i]) for n, a in arrays.items()}) for i in range(file.heads)]


def _merged(pair: list[list[HeadAttention]], work: dict) -> list[HeadAttention]:
    if len(pair) == 2:
        for mine, other in zip(*pair, strict=True):
            mine.merge(other, work)
    return pair[0]


def _check_alike(files: list[SketchFile]) -> None:
    first = files[0]
    for other in files[1:]:
        if (other.params, other.heads) != (first.params, first.heads):
            theirs, ours = other.params.to_dict() | {"heads": other.heads}, first.params.to_dict() | {"heads": first.heads}
            changed = [f"{key} {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key]]
            raise CheckpointIncompatible(f"{first.name} and {other.name} differ in {'; '.join(changed)}: only sketches of "
                                         "the same parameters merge")  # fmt: skip


def _check_disjoint(files: list[SketchFile]) -> None:
    """No row may be counted twice: sources with the same content must not overlap in their row ranges."""
    seen: list[tuple[str, Mapping]] = []
    for file in files:
        for source in file.sources:
            for name, other in seen:
                if _overlap(source.get("k", {}), other.get("k", {})):
                    raise CheckpointIncompatible(f"{name} and {file.name} hold the same rows of the same keys: merging them "
                                                 "would count these twice")  # fmt: skip
            seen.append((file.name, source))


def _overlap(a: Mapping, b: Mapping) -> bool:
    if a.get("kind") != "file" or b.get("kind") != "file":
        return False
    if any(a.get(key) != b.get(key) for key in ("size", "first", "last", "rows", "modified_ns")):
        return False
    (a0, a1), (b0, b1) = (_range(source) for source in (a, b))
    return a0 < b1 and b0 < a1


def _range(source: Mapping) -> tuple[int, int]:
    if "range" in source:
        first, last = source["range"].split(":")
        return int(first), int(last)
    return 0, int(source["rows"])

