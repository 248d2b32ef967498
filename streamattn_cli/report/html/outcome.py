"""The page of one run: how wrong, by head and position, how fast, in what memory, and how to read all that."""

from __future__ import annotations

import os
from collections.abc import Callable
from html import escape
from math import inf

from streamattn_cli.report.html.layers import layers_section, streams_section
from streamattn_cli.report.html.page import (
    figure,
    folded,
    heading,
    interval,
    keys,
    listed,
    origin,
    page,
    pair,
    pairs_table,
    paragraph,
    percent,
    table,
)
from streamattn_cli.report.html.svg import heat_map, interval_plot, line_plot
from streamattn_cli.report.text.outcome import facts_text, head_name, sparse_rows
from streamattn_cli.units import format_bytes, format_count, format_duration, is_timed

MOST_HEADS = 64  # shown one by one; of more, the worst
TIME = "time since the pass began"
FOLD = 12  # lines of a table above which it is folded
READING = (
    "Error: |answer - exact| / |exact| over all audited rows and heads (Frobenius norms). 1% means that the "
    "answers are off by a hundredth of their size.",
    "Interval: of 100 such runs with other samples, about 95 would show an interval that holds the true error "
    "over all rows. It covers the chance of the sample and nothing else.",
    "Row errors: the same, row by row. A median far below the error means that a few rows carry most of it; "
    "they are listed as the worst rows.",
    "Trivial: the error of answering with the mean of the values. A method is worth something only far below it.",
    "History mass: the share of the exact attention of the audited rows that falls on rows which are neither sinks nor "
    'in the window: what only the compressed history can answer, and the method "window" never does. Near 0, any '
    "method will do; the larger it is, the more depends on the history.",
    "Clipped, guarded, unanswered: how often a method had to step in. Norms beyond its bound were shortened, a history "
    "whose weights did not come out positive was left out, a query that no token answered got the mean of the values.",
    "Projected memory is a bound computed before a row was read; the peak is what was measured above the "
    "program itself.",
)


def outcome_page(found: dict) -> str:
    """The page of an outcome (the dict of Outcome.to_dict)."""
    audit, layers = found.get("audit"), found.get("layers") or []
    if layers:
        found = {**found, "inputs": {}}  # of the last layer alone
    files = (os.path.basename(name.rpartition(":")[0] or name) for name in (found.get("inputs") or {}).values())
    read = f"{len(layers)} layers" if layers else ", ".join(dict.fromkeys(files))
    body = [f"<h1>streamattn {found['command']}{': ' if read else ''}{escape(read)}</h1>"]
    body += [paragraph(_verdict(found), "" if audit else "warn"), keys(_keys(found)), *origin(found)]
    body += _error_section(audit, found["facts"].get("shapes") or {}) if audit and not layers else []
    body += layers_section(layers)
    body += streams_section(found.get("streams"))
    body += _time_section(found)
    body += [heading("What ran"), pairs_table("Settings and counts", _facts(found))]
    body += [heading("How to read this"), listed(READING)]
    return page(f"streamattn {found['command']}: {found.get('output') or 'run'}", body)


def _keys(found: dict) -> list[tuple[str, str, str]]:
    entries = []
    if audit := found.get("audit"):
        e = audit["method"]
        entries.append(("Error", percent(e["error"]), f"95%: {interval(e)}"))
        if before := audit.get("before"):
            entries.append(("Before --repair", percent(before["error"]), f"95%: {interval(before)}"))
        if flagged := audit.get("flagged"):
            error = percent(flagged["error"]["error"]) if flagged["error"] else "unknown"
            told = f"the method does not answer for them; error {error}"
            entries.append(("Flagged rows", str(flagged["rows"]), told))
        entries.append(("95% of rows below", percent(e["p95_row"]), f"median row {percent(e['median_row'])}"))
        if mass := audit.get("history_mass"):
            entries.append(("History mass", percent(sum(mass) / len(mass)), "attention outside sinks and window"))
    done, seconds = found["rows"] - found.get("rows_before", 0), found["seconds"]
    if done and is_timed(seconds):
        told = f"{done} rows in {format_duration(seconds)}"
        entries.append(("Speed", f"{format_count(done / seconds)} rows/s", told))
    memory = found["memory"]
    if memory.get("peak") is not None:
        entries.append(("Peak memory", format_bytes(memory["peak"]), f"projected {format_bytes(memory['projected'])}"))
    return entries


def _verdict(found: dict) -> str:
    audit = found.get("audit")
    if not audit:
        return f"The error was not measured: {found.get('audit_reason') or 'nobody asked'}."
    e, trivial = audit["method"], audit["trivial"]["error"]
    worth = f"{trivial / e['error']:.3g} times less than" if 0 < e["error"] < inf else "against"
    return (
        f"Measured against exact attention on {audit['rows']} sampled rows, all heads: {percent(e['error'])}, {worth} the "
        f"{percent(trivial)} of answering with the mean of the values."
    )


def _error_section(audit: dict, shapes: dict) -> list[str]:
    def name(head: int) -> str:
        return head_name(head, shapes)

    body = [heading("Error by head and position")]
    heads = list(enumerate(audit.get("heads") or []))
    shown = sorted(sorted(heads, key=lambda h: -h[1]["error"])[:MOST_HEADS])
    if len(heads) > len(shown):
        body.append(paragraph(f"The {len(shown)} worst of {len(heads)} query heads are shown.", "dim"))
    drawn = [
        (name(i), e["error"], e["low"] or e["error"], e["high"] or e["error"]) for i, e in shown if 0 < e["error"] < inf
    ]
    figures = []
    if drawn:
        label, error, low, high = max(drawn, key=lambda d: d[1])
        limits = f"{percent(low)} to {percent(high)}"
        told = f"{len(drawn)} query heads; the worst is {label} with {percent(error)}, interval {limits}."
        svg = interval_plot("Error by query head", told, drawn, percent)
        figures.append(figure("Error by query head", "the dot is the estimate, the line its 95% interval", svg))
    figures += _map(audit, [i for i, _ in shown], name)
    body.append(pair(*figures))
    mass = audit.get("history_mass")
    rows = [
        [name(i), percent(e["error"]), interval(e), percent(e["median_row"]), percent(e["p95_row"])]
        + ([percent(mass[i])] if mass else [])
        for i, e in shown
    ]
    names = ["query head", "error", "95% interval", "median row", "95% of rows below"] + ["history mass"] * bool(mass)
    heads_table = table("Error by query head", names, rows)
    body.append(folded("Error by query head, as a table", heads_table) if len(rows) > FOLD else heads_table)
    if worst := audit.get("worst"):
        several = any(w.get("sequence") is not None for w in worst)
        listed = [[str(w["sequence"])] * several + [str(w["row"]), name(w["head"]), percent(w["error"])] for w in worst]
        titles = ["sequence"] * several + ["row", "query head", "error of that row"]
        body.append(table("Worst rows of the sample", titles, listed, words=2 + several))
    return body


def _map(audit: dict, heads: list[int], name: Callable[[int], str]) -> list[str]:
    """Error by head and position as a picture and, folded, as a table."""
    edges = audit.get("edges") or []
    values = [audit["by_position"][i] for i in heads] if edges else []
    if len(edges) < 3 or not any(v for line in values for v in line):
        return []
    pieces = [[v for v in column if v is not None] for column in zip(*values, strict=True)]
    means = [(sum(p) / len(p), edges[j], edges[j + 1]) for j, p in enumerate(pieces) if p]
    worst = max(means)
    told = (
        f"Rows {edges[0]} to {edges[-1]} in {len(edges) - 1} pieces; the error is greatest, "
        f"on average over heads, in rows {worst[1]} to {worst[2]}: {percent(worst[0])}."
    )
    labels = [name(i) for i in heads]
    svg = heat_map("Error by query head and position", told, values, labels, edges, "row of the stream", percent)
    names = ["query head", *(f"{a} to {b}" for a, b in zip(edges, edges[1:], strict=False))]
    cells = [["none" if v is None else percent(v) for v in line] for line in values]
    rows = [[label, *line] for label, line in zip(labels, cells, strict=True)]
    under = "darker (on black: lighter) is more; empty: no error, or no row"
    beside = folded("As a table", table("Error by head and rows", names, rows))
    return [figure("Error by query head and position", under, svg + beside)]


def _time_section(found: dict) -> list[str]:
    series = found.get("series") or {}
    seconds, memory = series.get("seconds") or [], series.get("memory") or []
    if len(seconds) < 3:
        return []
    xs = [0.0, *seconds]
    projected = found["memory"].get("projected")
    marks = [] if projected is None else [(float(projected), f"projected {format_bytes(projected)}")]
    told = f"The most seen at the end of a block is {format_bytes(max(memory))}."
    svg = line_plot(
        "Memory over time", told, xs, [0.0, *map(float, memory)], format_duration, format_bytes, x_name=TIME, y_name="memory",
        marks=marks, binary=True,
    )  # fmt: skip
    figures = [
        figure("Memory over time", "above the program itself; the dashed line is the bound computed beforehand", svg)
    ]
    rates, at = _rates(series)
    if len(rates) > 2:
        told = f"Between {format_count(min(rates))} and {format_count(max(rates))} rows a second."
        svg = line_plot(
            "Speed over time", told, at, rates, format_duration, format_count, x_name=TIME, y_name="rows per second"
        )
        figures.append(figure("Speed over time", "rows per second between samples, all passes", svg))
    return [heading("Memory and speed"), pair(*figures)]


def _rates(series: dict) -> tuple[list[float], list[float]]:
    """Rows per second between neighbouring samples of one pass, and when."""
    rates, at = [], []
    samples = list(zip(series["seconds"], series["phase"], series["rows"], strict=True))
    for (t0, phase0, rows0), (t1, phase1, rows1) in zip(samples, samples[1:], strict=False):
        if phase0 == phase1 and t1 > t0 and rows1 > rows0:
            rates.append((rows1 - rows0) / (t1 - t0))
            at.append(t1)
    return rates, at


def _facts(found: dict) -> list[tuple[str, str]]:
    facts, memory = found["facts"], found["memory"]
    rows = [("ran", facts_text(facts)), ("rows", str(found["rows"])), ("read", format_bytes(found["bytes_read"]))]
    waiting = min(1.0, found["wait_seconds"] / max(found["seconds"], 1e-9))
    rows.append(("time", f"{format_duration(found['seconds'])}, {percent(waiting)} of it waiting for input"))
    rows.append(("memory", ", ".join(f"{name} {format_bytes(v)}" for name, v in memory.items() if v is not None)))
    rows.append(("counts", ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in found["counts"].items())))
    rows += sparse_rows(facts["top_k"]) if "top_k" in facts else []
    rows += list((found.get("inputs") or {}).items())
    rows.append(("output", found.get("output") or ""))
    rows.append(("versions", ", ".join(f"{name} {v}" for name, v in facts.get("versions", {}).items())))
    return [*rows, *(("note", note) for note in found.get("notes", ()))]
