"""The outcomes of several layers as one."""

from __future__ import annotations

from dataclasses import replace

from streamattn_cli.engine.audit.together import of_layers
from streamattn_cli.engine.request.settings import AttendRequest
from streamattn_cli.engine.watch.events import LayerResult, Outcome
from streamattn_cli.rows.inputs.layers import Layer


def together(request: AttendRequest, layers: list[Layer], outcomes: list[Outcome]) -> Outcome:
    """One outcome for all layers: sums, the largest peak, and the error over all rows and heads that were audited."""
    first, last = outcomes[0], outcomes[-1]
    parts = tuple(
        LayerResult(
            layer.number, layer.group, outcome.rows, outcome.seconds, outcome.memory.get("peak"), outcome.output,
            outcome.audit.method if outcome.audit else None,
            tuple(head.error for head in outcome.audit.heads) if outcome.audit else (),
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
        counts=summed([o.counts for o in outcomes]),
        audit=of_layers(audits) if len(audits) == len(outcomes) else None,
        output=request.output,
        notes=tuple(dict.fromkeys(note for o in outcomes for note in o.notes)),
        series={},
        layers=parts,
    )


def summed(counts: list[dict[str, int]]) -> dict[str, int]:
    """Counts by name, added up."""
    found: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            found[name] = found.get(name, 0) + count
    return found
