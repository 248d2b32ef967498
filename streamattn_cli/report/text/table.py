"""Labelled rows as text: a rich table on a terminal, aligned plain lines anywhere else."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from typing import TextIO

from streamattn_cli.report.text.terminal import columns, is_live

Rows = list[tuple[str, str]]


def print_rows(title: str, rows: Rows, stream: TextIO) -> None:
    """Write the title and the (label, text) rows to the stream, never wider than its terminal."""
    if is_live(stream):
        _print_rich(title, rows, stream, columns(stream))
        stream.flush()
    else:
        print_lines(plain_lines(title, rows, columns(stream)), stream)


def print_lines(lines: list[str], stream: TextIO) -> None:
    """Write lines to the stream at once."""
    stream.write("\n".join(lines) + "\n")
    stream.flush()


def plain_lines(title: str, rows: Rows, width: int) -> list[str]:
    """The same as lines of at most `width` characters; long texts go on below themselves."""
    lines = _wrap(title, width, "  ")
    label_width = max((len(label) for label, _ in rows), default=0)
    beside = width - label_width - 4 >= 24  # too narrow for two columns: the text goes below its label
    for label, text in rows:
        if beside:
            head = f"  {label:<{label_width}}  "
            lines += [head + line if i == 0 else " " * len(head) + line for i, line in
                      enumerate(_wrap(text, width - len(head), ""))]  # fmt: skip
        else:
            lines += _wrap(label, width, "  ") + ["  " + line for line in _wrap(text, max(1, width - 2), "")]
    return lines


def table_lines(
    rows: Sequence[Sequence[str]], width: int, dropped: Sequence[int] = (), left: Collection[int] = (0,)
) -> list[str]:
    """Rows of cells (the first one is the head) as lines of at most `width` characters. dropped: columns that a narrow terminal
    does without, in this order; left: those whose cells stand to the left."""
    kept = list(range(len(rows[0])))
    for column in (*dropped, None):
        wide = {c: max(len(row[c]) for row in rows) for c in kept}
        if column is None or sum(wide.values()) + 2 * len(wide) - 2 <= width:
            break
        kept.remove(column)
    cells = [[row[c].ljust(w) if c in left else row[c].rjust(w) for c, w in wide.items()] for row in rows]
    return ["  ".join(row).rstrip()[:width].rstrip() for row in cells]


def _wrap(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, max(width, len(indent) + 1), subsequent_indent=indent) or [""]


def _print_rich(title: str, rows: Rows, stream: TextIO, width: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(style="cyan", overflow="fold")
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(Text(label), Text(text))
    Console(file=stream, width=width, highlight=False).print(table)
