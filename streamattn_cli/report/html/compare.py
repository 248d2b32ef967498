"""The page of a comparison: what each method costs and how wrong it is, and which nothing beats."""

from __future__ import annotations

import string
from collections.abc import Callable
from html import escape
from math import inf

from streamattn_cli.report.html.page import (
    figure,
    heading,
    interval,
    keys,
    listed,
    origin,
    page,
    pair,
    pairs_table,
    percent,
    table,
)
from streamattn_cli.report.html.svg import scatter_plot
from streamattn_cli.report.text.compare import by_layer, label_of
from streamattn_cli.report.text.outcome import facts_text
from streamattn_cli.units import format_bytes, format_count, format_duration

READING = (
    "All methods answered the same rows, and were measured against the same exact answers on the same sample.",
    "Resident memory is the state of all key heads with everything counted: kept rows, weights, statistics, "
    "buffers. The peak is that of the whole run, read buffers included.",
    "The vertical line through a point is its 95% interval. Two methods whose intervals overlap widely cannot "
    "be told apart by this sample; ask for a larger --audit.",
    "A line joins the methods that nothing else on the picture beats in both directions. Both axes are "
    "logarithmic: down is less error, left is less cost.",
    "Times were measured on this machine (with --engine while others ran beside them), answers to all rows included, and vary by "
    "some tens of percent.",
)
COLUMNS = (
    "mark", "method", "resident", "error", "95% interval", "95% of rows below", "rows/s", "peak", "not beaten in",
)  # fmt: skip


def comparison_page(found: dict) -> str:
    """The page of a comparison (the dict of Comparison.to_dict)."""
    trials = found["trials"]
    letters = string.ascii_letters + "*" * len(trials)
    ran = [(letter, t) for letter, t in zip(letters, trials, strict=False) if t["audit"]]
    body = [f"<h1>streamattn compare: {escape(found['input'])}</h1>", *origin(found)]
    body += [keys(_keys(found, ran)), heading("Error and cost"), _table(ran)]
    if refused := [(t["label"], f"at {t['budget']} rows: {t['refused']}") for t in trials if not t["audit"]]:
        body.append(pairs_table("Not run", refused))
    drawn = [(letter, t) for letter, t in ran if 0 < t["audit"]["method"]["error"] < inf]
    if len(drawn) > 1:
        axis = "resident memory, logarithmic"
        memory = _picture("Error against resident memory", drawn, "memory", "resident_bytes", format_bytes, axis)
        axis = "time for all rows, logarithmic"
        body.append(pair(memory, _picture("Error against time", drawn, "time", "seconds", format_duration, axis)))
    if found.get("layers"):
        head, *rows = by_layer(found["layers"], dict(enumerate(letters)))
        body.append(table("Error by layer", list(head), [list(row) for row in rows], words=1))
    body += [pairs_table("What ran", [("ran", facts_text(found["facts"]))])]
    body += [heading("How to read this"), listed(READING)]
    return page(f"streamattn compare: {found['input']}", body)


def _keys(found: dict, ran: list) -> list[tuple[str, str, str]]:
    _, best = min(ran, key=lambda entry: entry[1]["audit"]["method"]["error"])
    e = best["audit"]["method"]
    return [
        ("Least error", percent(e["error"]), f"{best['label']}, {format_bytes(best['resident_bytes'])}"),
        ("Rows measured", str(found["audited"]), f"answered exactly in {format_duration(found['truth_seconds'])}"),
        ("Trivial answer", percent(found["trivial"]["error"]), "the mean of the values"),
    ]


def _table(ran: list) -> str:
    rows = []
    for letter, t in ran:
        e = t["audit"]["method"]
        errors = [percent(e["error"]), interval(e, "unknown"), percent(e["p95_row"])]
        speed, peak = (
            format_count(t["rows"] / max(t["seconds"], 1e-9)),
            "" if t["peak"] is None else format_bytes(t["peak"]),
        )
        rows.append(
            [letter, label_of(t), format_bytes(t["resident_bytes"]), *errors, speed, peak, ", ".join(t["front"])]
        )
    best = [i for i, (_, t) in enumerate(ran) if t["front"]]
    return table("Methods at equal resident memory", COLUMNS, rows, words=2, best=best)


def _picture(title: str, drawn: list, front: str, cost: str, words: Callable[[float], str], name: str) -> str:
    points, unbeaten = [], []
    for letter, t in drawn:
        e = t["audit"]["method"]
        errors = e["error"], e["low"] or e["error"], e["high"] or e["error"]
        points.append((max(t[cost], 1e-9), *errors, letter, front in t["front"]))
        if front in t["front"]:
            unbeaten.append(f"{letter} ({t['label']}, {words(t[cost])}, {percent(e['error'])})")
    told = f"{len(points)} methods; not beaten: {', '.join(unbeaten)}."
    svg = scatter_plot(title, told, points, words, percent, name, binary=cost == "resident_bytes")
    return figure(title, "letters as in the table; filled in colour: not beaten", svg)
