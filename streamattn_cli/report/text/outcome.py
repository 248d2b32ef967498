"""A finished run as a short text: what ran, how fast, in what memory, and how wrong the result is."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

from streamattn_cli.engine.watch.events import Audit, ErrorEstimate, Flagged, LayerResult, Outcome, Streams, WorstRow
from streamattn_cli.report.text.table import Rows, print_rows
from streamattn_cli.units import format_bytes, format_count, format_duration, is_timed

MEMORY_WORDS = ("allowed", "reserved", "projected", "peak")
WORST = 3  # rows named
SAID = {"group": "buffer", "active": "atoms compressed at a time", "temper": "kernel flattened to"}  # the names of JSON
LISTS = "layers", "texts", "heads"  # of names and numbers, where others are shapes
FLOATS = {"f2": "float16", "bf16": "bfloat16", "f4": "float32", "f8": "float64"}
SHOWN_FACTS = ("method", "mode", "params", "scale", "shapes", "seed", "threads")


def render_outcome(outcome: Outcome) -> None:
    """Write the outcome to standard error.

    A reader that has gone is no failure: the run is over and its result is where it should be.
    """
    with suppress(OSError):
        print_rows(f"streamattn {outcome.command}", outcome_rows(outcome), sys.stderr)


def outcome_rows(outcome: Outcome) -> Rows:
    """The outcome as (label, text) rows. Its notes are left out: the listener has shown each when it arose."""
    rows = [("ran", facts_text(outcome.facts)), ("rows", _speed(outcome)), ("memory", _memory(outcome.memory))]
    counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in outcome.counts.items() if count)
    rows.append(("counts", counts))
    rows += _errors(outcome.audit, outcome.audit_reason, outcome.facts.get("shapes", {}))
    if "top_k" in outcome.facts:
        rows += sparse_rows(outcome.facts["top_k"])
    rows += _layers(outcome.layers)
    rows.append(("streams", streams_text(outcome.streams)))
    rows.append(("output", outcome.output or ""))
    return [(label, text) for label, text in rows if text]


def sparse_rows(top: dict) -> Rows:
    """What --top-k kept and who found it, and how it compares with keeping nothing at all."""
    who = "heaps over the produced rows: exact" if top["by"] == "heaps" else f"Phi, decoded by {top['by']}"
    how = ", jointly over columns" if top["joint"] else ""
    about = " of the deviations from the mean output" if top["deviation"] else ""
    sure = "" if top["by"] == "heaps" else f", {top['significant']} of them above the sketch's noise"
    kept = f"{top['k']} entries a column{about}, by {who}{how}; {top['entries']} in all{sure}"
    measured = (
        "measured on the produced rows" if top["measured"] else "as the sketch itself shows; --audit N measures it"
    )
    ratios = (
        f"{top['recovery_ratio']['median']:.4g} (worst column {top['recovery_ratio']['worst']:.4g}) times the error of the best "
        f"{top['k']}; nothing at all: {top['zero_ratio']['median']:.4g} (worst {top['zero_ratio']['worst']:.4g}); {measured}"
    )
    return [("top-k", kept), ("recovery", ratios)]


def facts_text(facts: dict) -> str:
    """'poly, full, degree 4, scale 0.354, seed 1': the facts a reader wants, in a fixed order."""
    return ", ".join(entry for name in SHOWN_FACTS if name in facts for entry in [_fact(name, facts[name])] if entry)


def _fact(name: str, value: object) -> str:
    if value is None or value == {} or (name, value) == ("temper", 1):
        return ""
    if name == "storage":
        return f"rows kept as {FLOATS.get(str(value), value)}"
    name = SAID.get(name, name)
    if name in ("method", "mode"):
        return str(value)
    if isinstance(value, dict):
        return ", ".join(filter(None, (_fact(str(key).replace("_", " "), entry) for key, entry in value.items())))
    if isinstance(value, float):
        return f"{name} {value:.4g}"
    if name == "head rows" and isinstance(value, (list, tuple)):
        return f"resident rows by key head {', '.join(map(str, value))}"
    if isinstance(value, (list, tuple)):
        return f"{name} " + (", " if name in LISTS else " x ").join(str(entry) for entry in value)
    return f"{name} {value}"


def _speed(outcome: Outcome) -> str:
    done, seconds = outcome.rows - outcome.rows_before, max(outcome.seconds, 1e-9)
    text = f"{done} in {format_duration(outcome.seconds)}"
    if outcome.rows_before:
        text = f"{outcome.rows}, of which {text}"
    if is_timed(outcome.seconds) or not done:
        text += f" ({format_count(done / seconds)} rows/s, {format_bytes(outcome.bytes_read / seconds)}/s)"
        text += f", {100 * min(1.0, outcome.wait_seconds / seconds):.0f}% of it waiting for input"
    return text


def _memory(memory: dict) -> str:
    known = [(word, memory[word]) for word in MEMORY_WORDS if memory.get(word) is not None]
    return ", ".join(f"{word} {format_bytes(count)}" for word, count in known)


def head_name(head: int, shapes: dict) -> str:
    """'head 4', or 'batch 1 head 4' where there are several batches; shapes: those of the facts."""
    batches = shapes.get("batches", 1)
    if batches == 1:
        return f"head {head}"
    batch, head = divmod(head, shapes["heads"] // batches)
    return f"batch {batch} head {head}"


def _errors(audit: Audit | None, reason: str | None, shapes: dict) -> Rows:
    if audit is None:
        return [("error", f"not measured: {reason}" if reason else "")]
    return [
        ("error", f"{_estimate(audit.method, audit.rows)} ({audit.rows} rows audited)"),
        ("before", f"{_estimate(audit.before)} (before --repair)" if audit.before else ""),
        ("flagged", flagged_text(audit.flagged)),
        ("trivial", f"{_estimate(audit.trivial)} (the same for the mean of the values)"),
        ("heads", _heads(audit.heads, shapes)),
        ("history", history_text(audit.history_mass)),
        ("worst", ", ".join(f"{_place(w, shapes)} {w.error:.3g}" for w in audit.worst[:WORST] if w.error)),
    ]


def _layers(layers: tuple[LayerResult, ...]) -> Rows:
    """How wrong every layer is, and its worst query head, if they were audited."""
    failed = [(f"layer {layer.number}", f"failed: {layer.failed.message}") for layer in layers if layer.failed]
    done = [layer for layer in layers if not layer.failed]
    if not done or any(layer.error is None for layer in done):
        return ([("layers", ", ".join(str(layer.number) for layer in done))] if done else []) + failed
    texts = failed
    for layer in done:
        if layer.error is None:
            continue
        worst = max(range(len(layer.heads)), key=lambda head: layer.heads[head]) if len(layer.heads) > 1 else None
        at = "" if worst is None else f", worst head {worst} {layer.heads[worst]:.3g}"
        texts.append((f"layer {layer.number}", f"{_estimate(layer.error)}{at}"))
    return texts


def streams_text(streams: Streams | None) -> str:
    """How the errors of the heads of all sequences of all layers are spread, and the worst of them; "" where none is known."""
    if streams is None or not streams.measured:
        return ""
    middle, far = streams.quantiles[2], streams.quantiles[4]
    names = [f"{stream_name(asdict(one))} {one.error:.3g}" for one in streams.worst[:WORST]]
    return (
        f"{streams.count}; {streams.measured} query heads measured, half of them below {middle:.3g}, 95% below {far:.3g}; "
        f"worst {', '.join(names)}"
    )


def stream_name(stream: dict) -> str:
    """'layer 3 sequence 7 head 2'."""
    return " ".join(f"{word} {stream[word]}" for word in ("layer", "sequence", "head") if stream[word] is not None)


def _place(row: WorstRow, shapes: dict) -> str:
    sequence = "" if row.sequence is None else f"sequence {row.sequence} "
    return f"{sequence}row {row.row} {head_name(row.head, shapes)}"


def _heads(heads: tuple[ErrorEstimate, ...], shapes: dict) -> str:
    """The best and the worst query head, where there are several."""
    if len(heads) < 2:
        return ""
    order = sorted(range(len(heads)), key=lambda i: heads[i].error)
    shown = [f"{heads[i].error:.3g} ({head_name(i, shapes)})" for i in (order[0], order[-1])]
    return f"{shown[0]} to {shown[1]}, median {heads[order[len(order) // 2]].error:.3g}"


def history_text(mass: Sequence[float]) -> str:
    """How much of the exact attention falls on rows that are not held exactly, by query head; "" where nobody knows."""
    if not mass:
        return ""
    least, mean, most = (f"{100 * x:.3g}%" for x in (min(mass), sum(mass) / len(mass), max(mass)))
    heads = f" (by head {least} to {most})" if least != most else ""
    return f"{mean} of the exact attention falls on rows outside sinks and window{heads}"


def flagged_text(flagged: Flagged | None) -> str:
    """'16 rows, error 0.98 (16 audited)': the rows that the method does not answer for; "" where there are none."""
    if flagged is None:
        return ""
    found = f"error {flagged.error.error:.3g} ({flagged.audited} audited)" if flagged.error else "none audited"
    return f"{flagged.rows} row{'s' * (flagged.rows != 1)} the method does not answer for, {found}"


def _estimate(estimate: ErrorEstimate, rows: int = 0) -> str:
    """With how many rows it rests on, where more of them are to be asked for."""
    if rows and not estimate.enough:
        return f"about {estimate.error:.3g}, not enough rows to tell; use --audit {max(64, 4 * rows)}"
    return (
        f"{estimate.error:.3g}, 95% interval {interval_text(estimate.low, estimate.high)};"
        f" row median {estimate.median_row:.3g}, p95 {estimate.p95_row:.3g}"
    )


def interval_text(low: float, high: float | None) -> str:
    """'0.012 to 0.018', or that so few rows say nothing about it (JSON has null for infinity)."""
    return "unknown, too few rows" if high is None or math.isinf(high) else f"{low:.3g} to {high:.3g}"
