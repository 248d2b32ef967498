"""`attend --layer`: the layers of a dump one after the other, each a run of its own, reported as one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from streamattn_cli.engine.jobs.attend import attend, plan_attend
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.request.settings import AttendRequest
from streamattn_cli.engine.watch.events import Audit, ErrorEstimate, Finished, LayerResult, Listener, Note, Outcome
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import UsageError
from streamattn_cli.rows.inputs.layers import PLACE, Layer, layers_of, wanted
from streamattn_cli.rows.targets import refuse_existing, split_target
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.outshape import OutShape
from streamattn_cli.rows.writers.writer import out_shape


def attend_layers(request: AttendRequest, listener: Listener, interrupts: Interrupts) -> Outcome:
    """Run a request for every layer that it asks for. Raises the errors of errors.py: layers with files of their own that
    are complete stay."""
    layers = layers_of(request.inputs)
    requests = [_of_layer(request, layer, len(layers)) for layer in layers]
    refuse_existing([each.output for each in requests], request.force or request.resume)
    plans = [plan_attend(each) for each in requests]  # what cannot run is refused before anything does
    joint = _joint(request, layers, plans)
    outcomes = []
    try:
        for at, (layer, each) in enumerate(zip(layers, requests, strict=True)):
            listener(Note(f"layer {layer.number} ({layer.group}), {at + 1} of {len(layers)}"))
            more = {"open_output": _into(joint, layer)} if joint else {}
            outcomes.append(attend(each, _quietly(listener), interrupts, **more))
        if joint:
            joint.commit()
    finally:
        if joint:
            joint.abort()
    outcome = _together(request, layers, outcomes)
    listener(Finished(outcome))
    return outcome


def plan_layers(request: AttendRequest) -> Plan:
    """Of the plans of all layers the one that needs most memory."""
    layers = layers_of(request.inputs)
    return max(
        (plan_attend(_of_layer(request, layer, len(layers))) for layer in layers), key=lambda plan: plan.projected
    )


def _quietly(listener: Listener) -> Listener:
    """Of a layer everything but its end is told."""
    return lambda event: None if isinstance(event, Finished) else listener(event)


def _of_layer(request: AttendRequest, layer: Layer, count: int) -> AttendRequest:
    """The request for one layer, {layer} in the names of its files replaced."""
    names = {name: getattr(request, name) for name in ("output", "doubt", "checkpoint")}
    for name, word in names.items():
        single = word in (None, "-") or (name == "output" and _is_joint(word))
        if count > 1 and not single and PLACE not in word:
            option = "-o" if name == "output" else f"--{name}"
            hint = " or -o FILE.h5, which gets a group for each" if name == "output" else ""
            raise UsageError(f"{option} {word}: {count} layers need a file each: put {PLACE} into its name{hint}")
    if count > 1 and request.checkpoint and _is_joint(request.output):
        raise UsageError(f"--checkpoint: layers that are resumed need an output each: -o out-{PLACE}.npy")
    if count > 1 and request.top_k and PLACE not in request.output:
        raise UsageError(f"--top-k: {count} layers need a file each: -o top-{PLACE}.h5")
    filled = {name: word and word.replace(PLACE, str(layer.number)) for name, word in names.items()}
    return replace(request, inputs=layer.spec, local=_local(request.local, layer), **filled)


def _local(word: str | None, layer: Layer) -> str | None:
    """The word of --local for one layer, which W:LAYERS names or not."""
    if word is None or ":" not in word:
        return word
    window, _, numbers = word.partition(":")
    return window if wanted(numbers, layer.number, f"--local {word}") else "none"


def _is_joint(output: str) -> bool:
    """Whether all layers go to one file."""
    file, dataset = split_target(output)
    return dataset is None and PLACE not in output and os.path.splitext(file)[1].lower() in (".h5", ".hdf5")


def _dataset(layer: Layer) -> str:
    """Where the outputs of a layer are in a file of all."""
    return "/" + layer.group.replace(".", "/") + "/out"


def _joint(request: AttendRequest, layers: list[Layer], plans: list[Plan]):
    if not _is_joint(request.output) or len(layers) == 1:
        return None
    from streamattn_cli.rows.writers.hdf5out import JointFile

    shapes = {_dataset(layer): (_shape(plan), plan.problem.q.rows) for layer, plan in zip(layers, plans, strict=True)}
    return JointFile(request.output, shapes)


def _shape(plan: Plan) -> OutShape:
    p = plan.problem
    return out_shape(len(p.q), p.v.dim, p.out_dtype, p.q.layout, p.q.batch, p.q.sequences)


def _into(joint, layer: Layer) -> Callable[..., Writer]:
    def opened(target: str, rows: int, heads: int, dim: int, dtype: str, layout: str, batch: int, **more) -> Writer:
        return joint.open(_dataset(layer), out_shape(heads, dim, dtype, layout, batch, more["sequences"]), rows)

    return opened


def _together(request: AttendRequest, layers: list[Layer], outcomes: list[Outcome]) -> Outcome:
    """One outcome for all layers: sums, the largest peak, and the error over all rows and heads that were audited."""
    first, last = outcomes[0], outcomes[-1]
    counts: dict[str, int] = {}
    for outcome in outcomes:
        for name, count in outcome.counts.items():
            counts[name] = counts.get(name, 0) + count
    parts = tuple(
        LayerResult(
            layer.number, layer.group, outcome.rows, outcome.seconds, outcome.memory.get("peak"), outcome.output,
            outcome.audit and outcome.audit.method, tuple(head.error for head in outcome.audit.heads) if outcome.audit else (),
        )
        for layer, outcome in zip(layers, outcomes, strict=True)
    )  # fmt: skip
    audits = [outcome.audit for outcome in outcomes if outcome.audit]
    return replace(
        last,
        facts=first.facts,
        rows=sum(o.rows for o in outcomes),
        rows_before=sum(o.rows_before for o in outcomes),
        seconds=sum(o.seconds for o in outcomes),
        wait_seconds=sum(o.wait_seconds for o in outcomes),
        bytes_read=sum(o.bytes_read for o in outcomes),
        memory=last.memory | {key: max(o.memory.get(key, 0) for o in outcomes) for key in ("projected", "peak")},
        counts=counts,
        audit=_audit(audits) if len(audits) == len(outcomes) else None,
        output=request.output,
        notes=tuple(dict.fromkeys(note for o in outcomes for note in o.notes)),
        series={},
        layers=parts,
    )


def _audit(audits: list[Audit]) -> Audit:
    """All layers in one: squared errors add up by the squared norms of the exact answers. The limits are those that would hold if
    every layer were at its own, which is more than 95% allows."""
    norms = [audit.norm**2 for audit in audits]
    whole = sum(norms) or 1.0

    def mean(of: Callable[[ErrorEstimate], float], which: Callable[[Audit], ErrorEstimate]) -> float:
        return (sum(n * of(which(a)) ** 2 for n, a in zip(norms, audits, strict=True)) / whole) ** 0.5

    def all_of(which: Callable[[Audit], ErrorEstimate]) -> ErrorEstimate:
        names = ("error", "low", "high", "median_row", "p95_row")
        figures = {name: mean(lambda e, name=name: getattr(e, name), which) for name in names}
        return ErrorEstimate(**figures, enough=all(which(a).enough for a in audits))

    rows = sum(a.rows for a in audits)
    return Audit(rows, all_of(lambda a: a.method), all_of(lambda a: a.trivial), norm=whole**0.5)
