"""The bones of a page: one file, no scripts, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isinf

from streamattn_cli.report.html.style import STYLE


def page(title: str, body: list[str]) -> str:
    """A whole HTML document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def origin(found: dict) -> list[str]:
    """By which command line, when and by which version a document was made, as far as it says so."""
    versions = found["versions"] if "versions" in found else found.get("facts", {}).get("versions")
    version = (versions or {}).get("streamattn-cli")
    when = (found.get("finished") or "").replace("T", " ").replace("+00:00", " UTC")
    told = [word for word in (when, f"streamattn {version}" if version else "") if word]
    words = (found.get("command_line") or "").split(" ")  # a line ends between words, not at their hyphens
    line = (
        ["<p><code>" + " ".join(f"<span>{escape(word)}</span>" for word in words) + "</code></p>"] if words[0] else []
    )
    return line + ([paragraph(", ".join(told), "dim")] if told else [])


def figure(caption: str, under: str, svg: str) -> str:
    """A picture with its caption and a line on how to read it."""
    return f"<figure><figcaption>{escape(caption)}<span>{escape(under)}</span></figcaption>{svg}</figure>"


def pair(*figures: str) -> str:
    """Figures side by side where there is room."""
    return '<div class="pair">' + "".join(figures) + "</div>"


def keys(entries: Sequence[tuple[str, str, str]]) -> str:
    """The few figures that matter: (label, value, small print)."""
    cards = (
        f"<div><dt>{escape(a)}</dt><dd><b>{escape(b)}</b><small>{escape(c)}</small></dd></div>" for a, b, c in entries
    )
    return '<dl class="key">' + "".join(cards) + "</dl>"


def pairs_table(caption: str, rows: Sequence[tuple[str, str]]) -> str:
    """A table of labels and texts."""
    body = "".join(f'<tr><th scope="row">{escape(a)}</th><td class="long">{escape(b)}</td></tr>' for a, b in rows if b)
    return f"<table><caption>{escape(caption)}</caption><tbody>{body}</tbody></table>"


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1, best: Sequence[int] = ()
) -> str:
    """A table whose first `words` columns are words and the others numbers; rows numbered in `best` stand out."""
    kind = ["" if i < words else ' class="n"' for i in range(len(heads))]
    head = "".join(f'<th scope="col"{k}>{escape(h)}</th>' for h, k in zip(heads, kind, strict=True))
    body = []
    for i, row in enumerate(rows):
        first, *rest = row
        cells = "".join(f"<td{k}>{escape(c)}</td>" for c, k in zip(rest, kind[1:], strict=True))
        stands_out = ' class="best"' if i in best else ""
        body.append(f'<tr{stands_out}><th scope="row"{kind[0]}>{escape(first)}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def folded(summary: str, body: str) -> str:
    """Something that opens when it is wanted."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def paragraph(text: str, style: str = "") -> str:
    """A paragraph."""
    return f'<p class="{style}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    """A heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def listed(entries: Sequence[str]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{escape(entry)}</li>" for entry in entries) + "</ul>"


def interval(error: dict, unknown: str = "too few rows to tell") -> str:
    """'1.2% to 1.8%', the interval of an estimate; `unknown` where so few rows say nothing about it."""
    if error["high"] is None or not error.get("enough", True):
        return unknown
    return f"{percent(error['low'])} to {percent(error['high'])}"


def percent(value: float | None) -> str:
    """'1.23%', '0.0456%', '12.3%': three digits of a share."""
    if value is not None and isinf(value):
        return "infinite"
    return "unknown" if value is None else f"{100 * value:.3g}%"
