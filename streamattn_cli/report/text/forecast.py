"""What `plan` found, as text: a line per method and the command to paste."""

from __future__ import annotations

from typing import TextIO

from streamattn_cli.report.text.outcome import facts_text
from streamattn_cli.report.text.table import plain_lines, print_lines, table_lines
from streamattn_cli.report.text.terminal import columns
from streamattn_cli.units import format_bytes, format_count, format_duration

COLUMNS = ("method", "settings", "resident", "memory", "time", "expected error")
GUESS = (
    "The error of poly is a guess by a formula, which is rather too high; above 25%, and of the others, it is unknown until "
    "they run: compare and --audit measure it."
)
DROPPED = (2, 3, 4, 1)  # columns that a narrow terminal does without, in this order


def render_forecast(found: dict, stream: TextIO) -> None:
    """Write the plan (the dict of engine/jobs/forecast.py) to `stream`."""
    print_lines(forecast_lines(found, columns(stream)), stream)


def forecast_lines(found: dict, width: int) -> list[str]:
    """The plan as lines; only the command line, which is to be pasted, may be longer than `width`."""
    logits = found["logits"]
    rows = [
        ("for", facts_text(found)),
        ("budget", format_bytes(found["memory"]) if found["memory"] else "none given (--memory): the usual settings"),
    ]
    if logits and logits["row_std"]:
        rms, p95 = logits["row_std_rms"], logits["row_std_p95"]
        rows.append(("logits", f"of a row: standard deviation {rms:.2g}; 95% of rows below {p95:.2g}"))
    best = found["recommended"]
    title = f"streamattn plan: {found['input']}"
    options = [COLUMNS] + [_cells(option) for option in found["options"] if not option["refused"]]
    lines = [*plain_lines(title, rows, width), "", *table_lines(options, width, DROPPED, left=range(len(COLUMNS))), ""]
    lines += [*plain_lines(GUESS, [], width), ""]
    refused = [(o["method"], o["refused"]) for o in found["options"] if o["refused"]]
    if refused:
        lines += [*plain_lines("do not fit", refused, width), ""]
    lines += plain_lines("recommended", [(best["method"], best["reason"])], width)
    if "job" in found:
        lines += ["", *plain_lines(f"all {len(found['job']['layers'])} layers, so", _job(found["job"]), width)]
    return [*lines, "", f"    {best['command']}"]


def _job(job: dict) -> list[tuple[str, str]]:
    """What all layers of a job come to."""
    slowest = max(job["layers"], key=lambda layer: layer["seconds"])
    rows = [
        ("rows", f"{format_count(sum(layer['rows'] for layer in job['layers']))} of keys"),
        ("one by one", f"{format_duration(job['seconds'])}, {format_bytes(job['projected'])}"),
        ("slowest", f"layer {slowest['number']}, {format_duration(slowest['seconds'])}"),
    ]
    if job["workers"] > 1:
        both = f"{format_duration(job['workers_seconds'])}, {format_bytes(job['workers_projected'])}"
        rows.append((f"{job['workers']} at once", f"{both} (--engine processes)"))
    return rows


def _cells(option: dict) -> tuple[str, ...]:
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in option["settings"].items())
    seconds = option["seconds"]
    return (
        option["method"], settings, format_bytes(option["resident_bytes"]) if option["resident_bytes"] else "",
        format_bytes(option["projected"]), "unknown" if seconds is None else format_duration(seconds), option["error"],
    )  # fmt: skip
