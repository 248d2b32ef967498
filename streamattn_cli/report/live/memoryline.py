"""The memory of a run as one line of at most some columns: what it holds of its budget, and how that came about."""

from __future__ import annotations

from rich.text import Text

from streamattn_cli.engine.watch.events import Progress
from streamattn_cli.units import format_bytes

LABEL, NAME, GAP = "mem ", "over time ", "  "
SHORTEST, LONGEST = 8, 16  # columns of the bar
HISTORY = 24  # at most, of the sparkline
LEVELS = "▁▂▃▄▅▆▇█"
HELD, PEAK, FREE = "█▒░"
PLAIN = str.maketrans(HELD + PEAK + FREE, "#=.")  # for terminals that know ASCII alone


def memory_line(event: Progress, history: list[int], width: int, ascii_only: bool = False) -> Text | None:
    """'mem ███▒░░░░  33.0 MiB, peak 40.0 MiB of 64.0 MiB  over time ▂▅▆': the bar is the budget, ▒ what was held at the peak.

    The longest words that leave room for a bar, then the bar, then `history` (bytes, oldest first) in what is left.
    None where memory is not measured.
    """
    if not event.memory_peak:
        return None
    words = _words(event)
    least = len(LABEL) + (SHORTEST + len(GAP) if event.memory_allowed else 0)
    text = next((w for w in words if least + len(w) <= width), None)
    line = Text(no_wrap=True, overflow="ellipsis")
    if text is None:
        return line.append(words[-1], "green")
    line.append(LABEL, "green")
    room = width - len(LABEL) - len(text)
    if event.memory_allowed:
        bar = min(LONGEST, room - len(GAP))
        room -= bar + len(GAP)
        drawn = budget_bar(event.memory_now, event.memory_peak, event.memory_allowed, bar)
        line.append((drawn.translate(PLAIN) if ascii_only else drawn) + GAP, "green")
    line.append(text, "green")
    room -= len(GAP) + len(NAME)
    if room >= SHORTEST and len(history) > 1 and not ascii_only:
        line.append(GAP + NAME + sparkline(history, min(HISTORY, room)), "green")
    return line


def budget_bar(now: int, peak: int, allowed: int, width: int) -> str:
    """'███▒░░░░': what is held now, what was held at the peak, and what is left of the budget."""
    held, most = (min(width, -(-width * count // max(1, allowed))) for count in (now, max(now, peak)))
    return HELD * held + PEAK * (most - held) + FREE * (width - most)


def sparkline(values: list[int], width: int) -> str:
    """At most `width` columns for values from 0 up, oldest first; a column shows the largest value of its part."""
    columns = min(width, len(values))
    parts = [values[len(values) * i // columns : len(values) * (i + 1) // columns] for i in range(columns)]
    top = max(1, *values)
    return "".join(LEVELS[min(len(LEVELS) - 1, max(part) * len(LEVELS) // top)] for part in parts)


def _words(event: Progress) -> tuple[str, ...]:
    """The figures, the longest spelling first."""
    now, peak = format_bytes(event.memory_now), f"peak {format_bytes(event.memory_peak)}"
    if event.memory_allowed is None:
        return (f"{now}, {peak}", peak)
    of = f" of {format_bytes(event.memory_allowed)}"
    return (f"{now}, {peak}{of}", peak + of, peak)
