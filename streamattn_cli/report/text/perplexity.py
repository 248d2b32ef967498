"""What `perplexity` found, as text."""

from __future__ import annotations

import string
from typing import Any, TextIO

from streamattn_cli.report.text.braille import SHOWN, Point, plot
from streamattn_cli.report.text.outcome import interval_text
from streamattn_cli.report.text.table import plain_lines, print_lines, table_lines
from streamattn_cli.report.text.terminal import columns, shows
from streamattn_cli.units import format_bytes, format_duration

HEAD = "method", "rows", "nats", "more", "95% interval", "KL", "same", "memory", "tokens/s"
DROPPED = 8, 6, 5, 2, 4, 7  # columns that a narrow terminal does without, in this order


def figures(found: Any) -> str:
    """One line of a Perplexity while the text is read."""
    nats = ", ".join(f"{reading.label} {reading.nats.mean():.4f}" for reading in found.readings)
    return f"{found.tokens} tokens, nats per token: {nats}"


def render_perplexity(found: dict, stream: TextIO) -> None:
    """Write the dict of Perplexity.to_dict to `stream`."""
    print_lines(perplexity_lines(found, columns(stream), shows(stream, SHOWN)), stream)


def perplexity_lines(found: dict, width: int, dots: bool = True) -> list[str]:
    """A table of the readings, one of the increase by position, and a plot; dots: see braille.scatter."""
    exact = found["readings"][0]
    layers = found["layers"]
    rows = [
        ("read", f"{found['tokens']} tokens of {', '.join(found['texts'])} in {format_duration(found['seconds'])}"),
        ("layers", f"{len(layers)} answered by the method: {numbers(layers)}"),
        ("memory", f"exact attention keeps {format_bytes(exact['attention_bytes'])} of these layers"),
    ]
    if found["context"] and found["tokens"] > found["context"]:
        rows.append(
            ("context", f"the model was made for {found['context']} tokens: beyond them exact attention is no truth")
        )
    if found["reference_window"]:
        rows.append(("exact", f"looks back {found['reference_window']} rows in these layers"))
    lines = plain_lines(f"streamattn perplexity: {found['model']}", rows, width)
    lines += ["", *table_lines([HEAD, *(_cells(reading) for reading in found["readings"])], width, DROPPED)]
    parts = exact["by_position"]
    heads = ("more nats by position", *(f"to {part['last']}" for part in parts))
    later = [
        (label_of(reading), *(f"{part['increase']:+.4f}" for part in reading["by_position"]))
        for reading in found["readings"][1:]
    ]
    if later:
        lines += ["", *table_lines([heads, *later], width, range(1, len(parts)))]
    return lines + _plot(found["readings"][1:], width, dots)


def _plot(readings: list[dict], width: int, dots: bool) -> list[str]:
    """The increase of each method against resident rows, or against the position where there is one budget."""
    if len({reading["resident_rows"] for reading in readings}) > 1:
        against = "resident rows"
        found = [(r, r["resident_rows"], r["increase"]["mean"], label_of(r)) for r in readings]
    else:
        against = "position"
        found = [(r, part["last"], part["increase"], f"{r['method']} to {part['last']}")
                 for r in readings for part in r["by_position"]]  # fmt: skip
    letters = dict(zip(dict.fromkeys(r["method"] for r in readings), string.ascii_letters, strict=False))
    points = [Point(x, y, letters[r["method"]], r["method"]) for r, x, y, _ in found if y > 0]
    if len({point.x for point in points}) < 2:
        return []
    title = f"more nats against {against} (logarithmic): {', '.join(f'{a} {name}' for name, a in letters.items())}"
    if below := [told for _, _, y, told in found if y <= 0]:
        title += f"; not above 0: {', '.join(below)}"
    return plot(title, points, lambda value: f"{value:.0f}", width, dots)


def _cells(reading: dict) -> tuple[str, ...]:
    more = reading.get("increase")
    speed = reading["tokens_per_second"]
    return (
        reading["method"],
        str(reading["resident_rows"] or "all"),
        f"{reading['nats']:.4f}",
        f"{more['mean']:+.4f}" if more else "",
        interval_text(more["low"], more["high"]) if more and more["low"] is not None else "",
        f"{reading['kl']:.4f}" if more and reading["kl"] is not None else "",
        f"{reading['agreement']:.1%}" if more and reading["agreement"] is not None else "",
        format_bytes(reading["attention_bytes"]),
        f"{speed:.0f}" if speed else "",
    )


def label_of(reading: dict) -> str:
    """'window 512': method and resident rows."""
    return f"{reading['method']} {reading['resident_rows']}"


def numbers(layers: list[int]) -> str:
    """'0 to 29', or all of them with commas."""
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))
