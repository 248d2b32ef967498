"""The outcomes of several layers as one."""

from __future__ import annotations

from dataclasses import replace

from streamattn_cli.engine.audit.together import of_layers
from streamattn_cli.engine.watch.events import Failed, LayerResult, Outcome
from streamattn_cli.errors import StreamattnError
from streamattn_cli.rows.inputs.layers import Layer


def together(output: str, layers: list[Layer], results: list[Outcome | StreamattnError]) -> Outcome:
    """One outcome for all layers: sums, the largest peak, and the error over all rows and heads that were audited.

    results: of each layer its outcome, or why it failed. Raises the worst of the failures where there is nothing else.
    """
    outcomes = [result for result in results if isinstance(result, Outcome)]
    if not outcomes:
        worst = max((error for error in results if isinstance(error, StreamattnError)), key=lambda error: error.code)
        raise type(worst)(f"none of the layers could be run; one of them: {worst}")
    first, last = outcomes[0], outcomes[-1]
    params = [outcome.facts["params"] for outcome in outcomes]
    facts = first.facts
    if "head_rows" in params[0]:
        rows, size = [n for each in params for n in each["head_rows"]], sum(each["resident_bytes"] for each in params)
        facts = facts | {"params": params[0] | {"head_rows": rows, "resident_bytes": size}}
    parts = tuple(_part(layer, result) for layer, result in zip(layers, results, strict=True))
    audits = [outcome.audit for outcome in outcomes if outcome.audit]
    return replace(
        last,
        facts=facts,
        rows=sum(o.rows for o in outcomes),
        rows_before=sum(o.rows_before for o in outcomes),
        seconds=sum(o.seconds for o in outcomes),
        wait_seconds=sum(o.wait_seconds for o in outcomes),
        bytes_read=sum(o.bytes_read for o in outcomes),
        memory=last.memory | {key: max(sizes) for key in ("projected", "peak") if (sizes := _sizes(outcomes, key))},
        counts=summed([o.counts for o in outcomes]),
        audit=of_layers(audits) if len(audits) == len(outcomes) else None,
        output=output,
        notes=tuple(dict.fromkeys(note for o in outcomes for note in o.notes)),
        series={},
        layers=parts,
    )


def _sizes(outcomes: list[Outcome], key: str) -> list[int]:
    """One of the figures of memory of all layers that have it."""
    return [outcome.memory[key] for outcome in outcomes if outcome.memory.get(key) is not None]


def _part(layer: Layer, result: Outcome | StreamattnError) -> LayerResult:
    if isinstance(result, StreamattnError):
        return LayerResult(layer.number, layer.group, 0, 0.0, None, None, None, failed=Failed(str(result), result.code))
    audit = result.audit
    return LayerResult(
        layer.number, layer.group, result.rows, result.seconds, result.memory.get("peak"), result.output,
        error=audit.method if audit else None,
        heads=tuple(head.error for head in audit.heads) if audit else (),
        head_rows=tuple(result.facts["params"].get("head_rows", ())),
    )  # fmt: skip


def summed(counts: list[dict[str, int]]) -> dict[str, int]:
    """Counts by name, added up."""
    found: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            found[name] = found.get(name, 0) + count
    return found
