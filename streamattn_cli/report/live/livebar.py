"""The live view on a terminal: at most three lines that drop their least important figures when it is narrow."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamattn_cli.engine.watch.events import Event, Finished, Note, Progress
from streamattn_cli.engine.watch.series import Series
from streamattn_cli.report.live.lines import Quiet, eta_seconds
from streamattn_cli.report.live.memoryline import memory_line
from streamattn_cli.units import format_bytes, format_clock, format_count, is_timed

LINES = 2  # of figures; memory has a line of its own
GAP = "  "
SHORTEST_BAR, LONGEST_BAR = 8, 40
NARROWEST_WITH_BAR = 60


class LiveBar(Quiet):
    """Shows the last Progress event, refreshed four times a second, and goes away at the end."""

    def __init__(self, stream: TextIO, width: int | None = None):
        super().__init__(stream)
        self._console = Console(file=stream, width=width, highlight=False)
        self._live: Live | None = None
        self._series = Series()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Progress):
            self._series.add(event.phase, event.rows, event.memory_now)
            if self._live is None:
                self._start()
        elif isinstance(event, Note) and not event.decides:
            self.note(event)
        elif isinstance(event, Finished):
            self.close()

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        if self.last is not None:
            yield from bar_lines(self.last, options.max_width)
            history = self._series.to_dict()["memory"]
            if memory := memory_line(self.last, history, options.max_width, options.ascii_only):
                yield memory

    def write(self, line: str) -> None:
        """A line above the bar."""
        try:
            self._console.print(Text(line))
        except (OSError, ValueError, RuntimeError):
            return

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            try:
                live.stop()
            except (OSError, ValueError):
                return

    def _start(self) -> None:
        # stdout carries data and must stay as it is; transient: the outcome takes the place of the bar.
        self._live = Live(
            self,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        try:
            self._live.start()
            self._console.show_cursor(
                True
            )  # a run that is stopped by Ctrl-Z, or killed, would leave a terminal without
        except (OSError, ValueError):
            self._live = None


def figures(event: Progress) -> list[tuple[tuple[str, ...], str]]:
    """(spellings, style) of every figure of an event: the most important figure and the longest spelling first."""
    timed = is_timed(event.seconds)
    share = f"{100 * event.rows / max(1, event.total):.0f}%" if event.total is not None else format_clock(event.seconds)
    eta = eta_seconds(event)
    rows = format_count(event.rows) + ("" if event.total is None else f" of {format_count(event.total)}")
    entries = [
        ((event.phase,), "bold"),
        ((share,), "magenta"),
        ((f"ETA {format_clock(eta)}",) if eta is not None else (), "cyan"),
        ((f"{event.sheets_done} of {event.sheets} layers done",) if event.sheets else (), ""),
        ((f"{format_count((event.rows - event.rows_before) / event.seconds)} rows/s",) if timed else (), ""),
        ((f"error so far {event.error:.3g}", f"error {event.error:.3g}") if event.error is not None else (), "yellow"),
        (saved_words(event), ""),
        ((f"{rows} rows",), ""),
        ((f"{format_bytes(event.bytes / event.seconds)}/s",) if timed else (), ""),
        ((f"sketch {format_bytes(event.sketch_bytes)}",) if event.sketch_bytes else (), ""),
    ]
    return [(spellings, style) for spellings, style in entries if spellings]


def saved_words(event: Progress) -> tuple[str, ...]:
    """How old the last checkpoint is, or the run: what would have to be done again."""
    if event.unsaved_seconds is None:
        return ()
    return (f"not saved for {format_clock(event.unsaved_seconds)}", f"unsaved {format_clock(event.unsaved_seconds)}")


def bar_lines(event: Progress, width: int) -> list[Table | Text]:
    """At most LINES lines of at most `width` columns. A figure of which no spelling fits is left out."""
    lines: list[list[tuple[str, str]]] = [[] for _ in range(LINES)]
    with_bar = event.total is not None and width >= NARROWEST_WITH_BAR
    room = [width - (SHORTEST_BAR + len(GAP) if with_bar else 0)] + [width] * (LINES - 1)
    for spellings, style in figures(event):
        place = _place(spellings, lines, room)
        if place is not None:
            line, text = place
            room[line] -= len(text) + (len(GAP) if lines[line] else 0)
            lines[line].append((text, style))
    rendered: list[Table | Text] = [_text(line) for line in lines if line]
    if with_bar:
        rendered[0] = _with_bar(event, lines[0], min(LONGEST_BAR, SHORTEST_BAR + room[0]))
    return rendered


def _place(spellings: tuple[str, ...], lines: list[list[tuple[str, str]]], room: list[int]) -> tuple[int, str] | None:
    """The first line with room for a spelling, the longest first: (line, spelling)."""
    for text in spellings:
        for i, entries in enumerate(lines):
            if len(text) + (len(GAP) if entries else 0) <= room[i]:
                return i, text
    return None


def _text(entries: list[tuple[str, str]]) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for i, (entry, style) in enumerate(entries):
        text.append((GAP if i else "") + entry, style)
    return text


def _with_bar(event: Progress, entries: list[tuple[str, str]], bar_width: int) -> Table:
    """The phase, the bar, then the other figures."""
    row = Table.grid(padding=0)
    row.add_row(
        Text(entries[0][0] + GAP, entries[0][1], no_wrap=True),
        ProgressBar(total=max(1, event.total or 1), completed=event.rows, width=bar_width),
        Text.assemble(GAP, _text(entries[1:]), no_wrap=True),
    )
    return row
