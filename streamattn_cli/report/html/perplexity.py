"""The page of what `perplexity` found: what each method and budget costs a language model."""

from __future__ import annotations

import string
from html import escape

from streamattn_cli.report.html.page import figure, heading, keys, listed, origin, page, pairs_table, percent, table
from streamattn_cli.report.html.svg import scatter_plot
from streamattn_cli.report.text.perplexity import label_of, numbers
from streamattn_cli.units import format_bytes

READING = (
    "The model read the same text several times side by side: once with its own attention, and once for each method and budget, "
    "whose layers were answered in constant memory.",
    "More nats: by how much the mean of -ln p of the tokens is above that of exact attention. The interval is that of the "
    "mean of paired differences over 32 stretches of the text.",
    "KL is how far the distribution of the next token is from the exact one, same first choice how often both have the same "
    "most likely token.",
    "A point is one method and budget, the vertical line its interval; in colour: none has both fewer rows and less increase. "
    "Methods that do not increase the nats have no place on a logarithmic axis.",
)
HEADS = (
    "method", "mark", "rows", "nats per token", "more", "95% interval", "KL", "same first choice", "memory", "tokens/s",
)  # fmt: skip


def perplexity_page(found: dict) -> str:
    """The page (the dict of Perplexity.to_dict)."""
    exact, *others = found["readings"]
    letters = string.ascii_letters + "*" * len(others)
    marked = list(zip(letters, others, strict=False))
    unbeaten = [letter for letter, mine in marked if not any(_beats(other, mine) for _, other in marked)]
    title = f"streamattn perplexity: {found['model']}"
    body = [f"<h1>{escape(title)}</h1>", *origin(found), keys(_keys(found, exact, others))]
    rows = [_row("", exact)] + [_row(letter, reading) for letter, reading in marked]
    best = [at for at, row in enumerate(rows) if row[1] in unbeaten]
    body += [heading("Nats per token"), table("Methods and budgets", HEADS, rows, words=2, best=best)]
    body += _picture(marked, unbeaten)
    parts = exact["by_position"]
    body.append(
        table(
            "More nats by position",
            ("method", "mark", *(f"{part['first']} to {part['last']}" for part in parts)),
            [[label_of(reading), letter, *(f"{part['increase']:+.4f}" for part in reading["by_position"])]
             for letter, reading in marked],
            words=2,
        )
    )  # fmt: skip
    body.append(pairs_table("What was read", _about(found)))
    return page(title, [*body, heading("How to read this"), listed(READING)])


def _keys(found: dict, exact: dict, others: list[dict]) -> list[tuple[str, str, str]]:
    entries = [("Exact attention", f"{exact['nats']:.4f}", f"nats per token, {format_bytes(exact['attention_bytes'])}")]
    if others:
        least = min(others, key=lambda reading: reading["increase"]["mean"])
        told = f"{label_of(least)}, {format_bytes(least['attention_bytes'])}"
        entries.append(("Least increase", f"{least['increase']['mean']:+.4f}", told))
    return [*entries, ("Tokens", str(found["tokens"]), f"the model was made for {found['context'] or '?'}")]


def _about(found: dict) -> list[tuple[str, str]]:
    beyond, back = found["context"] and found["tokens"] > found["context"], found["reference_window"]
    return [
        ("text", ", ".join(found["texts"])),
        ("layers", f"{len(found['layers'])} answered by the method: {numbers(found['layers'])}"),
        (
            "beyond",
            "the text is longer than what the model was made for: there exact attention is no truth" if beyond else "",
        ),
        ("exact attention", f"looks back {back} rows in these layers, the methods as far as they do" if back else ""),
        *(("note", note) for note in found["notes"]),
    ]


def _row(letter: str, reading: dict) -> list[str]:
    more, speed = reading.get("increase"), reading["tokens_per_second"]
    known = more and more["low"] is not None
    return [
        reading["method"],
        letter,
        str(reading["resident_rows"] or "all"),
        f"{reading['nats']:.4f}",
        f"{more['mean']:+.4f}" if more else "",
        f"{more['low']:.4f} to {more['high']:.4f}" if more and known else "",
        f"{reading['kl']:.4f}" if more and reading["kl"] is not None else "",
        percent(reading["agreement"]) if more and reading["agreement"] is not None else "",
        format_bytes(reading["attention_bytes"]),
        f"{speed:.0f}" if speed else "",
    ]


def _beats(other: dict, mine: dict) -> bool:
    """Whether another reading has neither more rows nor more increase, and less of one of them."""
    a, b = ((reading["resident_rows"], reading["increase"]["mean"]) for reading in (other, mine))
    return a != b and a[0] <= b[0] and a[1] <= b[1]


def _picture(marked: list[tuple[str, dict]], unbeaten: list[str]) -> list[str]:
    points = []
    for letter, reading in marked:
        more = reading["increase"]
        if more["mean"] > 0:
            low, high = (more["mean"] if more[end] is None else more[end] for end in ("low", "high"))
            points.append((reading["resident_rows"], more["mean"], low, high, letter, letter in unbeaten))
    if len(points) < 2:
        return []
    title = "More nats per token against resident rows"
    told = (
        f"{len(points)} methods and budgets; in colour: {', '.join(label_of(r) for a, r in marked if a in unbeaten)}."
    )
    svg = scatter_plot(title, told, points, lambda rows: f"{rows:.0f}", lambda nats: f"{nats:g}", "resident rows, logarithmic",
                       y_name="more nats per token")  # fmt: skip
    return [figure(title, "letters as in the table; in colour: not beaten", svg)]
