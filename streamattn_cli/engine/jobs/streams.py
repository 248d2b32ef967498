"""What an outcome says of the sheets of a job, which are sequences of layers, and of their heads: bounded, however many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.watch.events import Audit, Outcome, SequenceError, SheetResult, Streams, WorstStream
from streamattn_cli.rows.inputs.layers import Layer

MOST_STREAMS = 10_000  # key heads of sequences of layers, beyond which single sheets are not told
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
WORST = 10


def with_sheets(outcome: Outcome, problem: Problem) -> Outcome:
    """The outcome of one layer with its sequences, where there are several."""
    if not problem.sequences:
        return outcome
    count = len(problem.sequences) * len(problem.k)
    known = {one.sequence: one for one in outcome.audit.sequences} if outcome.audit else {}
    rows = np.diff(problem.q.several.edges).tolist() if count <= MOST_STREAMS else []
    sheets = tuple(_of_sequence(number, rows[number], known.get(number)) for number in range(len(rows)))
    return replace(outcome, sheets=sheets, streams=_summary(list(_measured(None, outcome.audit)), count))


def of_layers(layers: list[Layer], outcomes: list[Outcome]) -> tuple[tuple[SheetResult, ...], Streams]:
    """The sheets of all layers, none of more than MOST_STREAMS streams, and these together."""
    shapes = [outcome.facts["shapes"] for outcome in outcomes]
    count = sum(shape.get("sequences", 1) * shape["kv_heads"] for shape in shapes)
    pairs = list(zip((layer.number for layer in layers), outcomes, strict=True))
    measured = [each for number, outcome in pairs for each in _measured(number, outcome.audit)]
    sheets = (
        [sheet for number, outcome in pairs for sheet in _of_layer(number, outcome)] if count <= MOST_STREAMS else []
    )
    return tuple(sheets), _summary(measured, count)


def _of_layer(number: int, outcome: Outcome) -> list[SheetResult]:
    """The sheets of a layer: its sequences, or the one of all its rows."""
    if outcome.sheets or outcome.facts["shapes"].get("sequences"):
        return [replace(sheet, layer=number) for sheet in outcome.sheets]
    audit = outcome.audit
    told = (audit.rows, audit.method.error, tuple(head.error for head in audit.heads)) if audit else (0, None)
    return [SheetResult(number, None, outcome.rows, *told)]


def _of_sequence(number: int, rows: int, found: SequenceError | None) -> SheetResult:
    told = (found.audited, found.error, found.heads) if found else (0, None)
    return SheetResult(None, number, rows, *told)


def _measured(layer: int | None, audit: Audit | None) -> Iterator[WorstStream]:
    """The error of every query head of every sequence that was audited."""
    if audit is None:
        return
    for sequence in audit.sequences:
        for head, error in enumerate(sequence.heads):
            if error is not None:
                yield WorstStream(layer, sequence.sequence, head, error)
    for head, estimate in enumerate(() if audit.sequences else audit.heads):
        yield WorstStream(layer, None, head, estimate.error)


def _summary(measured: list[WorstStream], count: int) -> Streams:
    errors = [each.error for each in measured]
    quantiles = np.quantile(errors, QUANTILES, method="nearest").tolist() if errors else []
    worst = sorted(measured, key=lambda each: -each.error)[:WORST]
    return Streams(count, len(errors), tuple(quantiles), tuple(worst))
