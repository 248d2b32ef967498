"""A comparison as text: a table, and two plots of error against what it costs."""

from __future__ import annotations

import string
from collections.abc import Callable
from math import inf
from typing import TextIO

from streamattn_cli.report.text.braille import SHOWN, Point, plot
from streamattn_cli.report.text.outcome import facts_text, interval_text
from streamattn_cli.report.text.table import plain_lines, print_lines, table_lines
from streamattn_cli.report.text.terminal import columns, shows
from streamattn_cli.units import format_bytes, format_count, format_duration

COLUMNS = ("", "method", "resident", "rows kept", "error", "95% interval", "row p95", "rows/s", "peak", "not beaten in")
DROPPED = (9, 3, 8, 6, 2, 5, 7)  # columns that a narrow terminal does without, in this order


def render_compare(found: dict, stream: TextIO) -> None:
    """Write the comparison (the dict of Comparison.to_dict) to `stream`."""
    print_lines(compare_lines(found, columns(stream), dots=shows(stream, SHOWN)), stream)


def compare_lines(found: dict, width: int, dots: bool = True) -> list[str]:
    """The whole text as lines of at most `width` characters; dots: see braille.scatter."""
    trials = found["trials"]
    letters = dict(zip(range(len(trials)), string.ascii_letters + "*" * len(trials), strict=False))
    title = f"streamattn compare: {found['input']}"
    trivial = found["trivial"]
    rows = [
        ("ran", facts_text(found["facts"])),
        (
            "truth",
            f"{found['audited']} rows answered exactly in {format_duration(found['truth_seconds'])}, the same for all",
        ),
        ("trivial", f"{trivial['error']:.3g} (the error of the mean of the values)"),
    ]
    lines = [*plain_lines(title, rows, width), "", *_table(trials, letters, width)]
    refused = [(t["label"], f"at {t['budget']} rows: {t['refused']}") for t in trials if not t["audit"]]
    if refused:
        lines += ["", *plain_lines("not run", refused, width)]
    if found.get("layers"):
        lines += ["", "error by layer", *_layer_lines(found["layers"], letters, width)]
    ran = [(letters[i], t) for i, t in enumerate(trials) if t["audit"] and 0 < t["audit"]["method"]["error"] < inf]
    if len(ran) > 1:
        lines += _plot("error against resident memory", ran, "memory", "resident_bytes", format_bytes, width, dots)
        lines += _plot("error against time", ran, "time", "seconds", format_duration, width, dots)
    return lines


def _table(trials: list[dict], letters: dict[int, str], width: int) -> list[str]:
    rows = [COLUMNS] + [_cells(letters[i], t) for i, t in enumerate(trials) if t["audit"]]
    return table_lines(rows, width, DROPPED, left=(1, 9))


def by_layer(layers: list[dict], letters: dict[int, str]) -> list[tuple[str, ...]]:
    """The error of every trial on every layer, under a head of letters."""
    errors = [
        (
            str(layer["number"]),
            *(f"{t['audit']['method']['error']:.3g}" if t["audit"] else "-" for t in layer["trials"]),
        )
        for layer in layers
    ]
    return [("layer", *(letters[i] for i in range(len(layers[0]["trials"])))), *errors]


def _layer_lines(layers: list[dict], letters: dict[int, str], width: int) -> list[str]:
    """The same as text; the last trials are left out where the terminal is narrow."""
    rows = by_layer(layers, letters)
    return table_lines(rows, width, range(len(rows[0]) - 1, 1, -1), left=())


def _cells(letter: str, trial: dict) -> tuple[str, ...]:
    e = trial["audit"]["method"]
    return (
        letter,
        label_of(trial),
        format_bytes(trial["resident_bytes"]),
        f"{trial['params'].get('resident_rows', 0):.0f}",
        f"{e['error']:.3g}",
        interval_text(e["low"], e["high"]) if e["enough"] else "too few rows",
        f"{e['p95_row']:.3g}",
        format_count(trial["rows"] / max(trial["seconds"], 1e-9)),
        "" if trial["peak"] is None else format_bytes(trial["peak"]),
        ", ".join(trial["front"]),
    )


def label_of(trial: dict) -> str:
    """What a trial is called in a table."""
    degree = trial["params"].get("degree")
    return f"{trial['label']} degree {degree}" if degree and "degree" not in trial["label"] else str(trial["label"])


def _plot(
    title: str, ran: list[tuple[str, dict]], front: str, cost: str, text: Callable[[float], str], width: int, dots: bool
) -> list[str]:  # fmt: skip
    points = [
        Point(max(t[cost], 1e-9), t["audit"]["method"]["error"], letter, "front" if front in t["front"] else None)
        for letter, t in ran
    ]
    return plot(f"{title} (logarithmic; the line joins those that are not beaten)", points, text, width, dots)
