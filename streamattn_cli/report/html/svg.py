"""Pictures for the page: small SVG plots of fixed proportions, coloured by the page's style sheet, with words for all.

Every plot is a string with role="img", a <title> and a <desc> that says in words what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

WIDE, HIGH = 440, 270  # of the drawing; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 24, 40  # LEFT at least: more where labels are longer
LETTER = 7.8  # the width of a letter of a label, at most: on a phone they are larger in proportion
SHADES = 7
DEPTH = 100


class Scale:
    """Values to places along one side, linear or logarithmic; `binary` values (bytes) have ticks at powers of two."""

    def __init__(
        self, values: Sequence[float], first: float, last: float, log: bool = False, zero: bool = False,
        binary: bool = False,
    ):  # fmt: skip
        low, high = min(values), max(values)
        if log:
            room = max(0.08 * math.log(high / low), 0.1)
            low, high = low * math.exp(-room), high * math.exp(room)
        else:
            low = 0.0 if zero else low
            high = high if high > low else low + 1.0
        self.low, self.high, self.log, self.binary = low, high, log, binary
        self._first, self._length = first, last - first

    def at(self, value: float) -> float:
        """The place of a value."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self._first + share * self._length, 1)

    def ticks(self) -> list[float]:
        """Two to eight round values within the scale."""
        if self.log:
            if self.binary:
                inside = [2.0**e for e in range(60) if self.low <= 2.0**e <= self.high]
                inside = inside[:: 1 + len(inside) // 8]
            else:
                steps = [m * 10.0**e for e in range(-12, 16) for m in (1, 2, 5)]
                inside = [s for s in steps if self.low <= s <= self.high]
                inside = inside if len(inside) <= 7 else [s for s in inside if f"{s:e}".startswith("1")][:7]
            if len(inside) > 1:
                return inside
        rough = (self.high - self.low) / 4
        if self.binary:
            step = 2.0 ** math.ceil(math.log2(rough))
        else:
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, int(self.high / step + 1e-9) + 1)]


def picture(title: str, description: str, body: list[str], high: float = HIGH) -> str:
    """An <svg> around a drawing."""
    return (
        f'<svg viewBox="0 0 {WIDE} {high:g}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(body)}</svg>"
    )


def text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    """A line of text at a place."""
    return f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'


def left_of(labels: Sequence[str]) -> float:
    """Where the drawing begins, so that these labels have their place beside it."""
    return max(LEFT, 10 + LETTER * max(map(len, labels), default=0))


def axes(
    x: Scale, y: Scale, x_words: Callable, y_words: Callable, x_name: str, y_name: str, left: float,
    bottom: float = HIGH - BOTTOM,
) -> list[str]:  # fmt: skip
    """Grid lines and labels; the name of the horizontal axis below, that of the other above it."""
    found = [text(2, 12, y_name, "name")]
    for tick in y.ticks():
        place = y.at(tick)
        found.append(f'<line class="grid" x1="{left:g}" x2="{WIDE - RIGHT}" y1="{place}" y2="{place}"/>')
        found.append(text(left - 6, place + 4, y_words(tick), "tick", "end"))
    for place, words in _apart([(x.at(tick), x_words(tick)) for tick in x.ticks()]):
        half = LETTER / 2 * len(words)
        found.append(text(min(max(place, half), WIDE - half), bottom + 17, words, "tick", "middle"))
        found.append(f'<line class="grid" x1="{place}" x2="{place}" y1="{TOP}" y2="{bottom}"/>')
    found.append(text((left + WIDE - RIGHT) / 2, bottom + 35, x_name, "name", "middle"))
    return found


def _apart(labels: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """As many labels as do not run into one another, evenly chosen."""
    for step in range(1, len(labels) + 1):
        chosen = labels[::step]
        pairs = zip(chosen, chosen[1:], strict=False)
        if all(b - a > LETTER / 2 * (len(before) + len(after)) + 4 for (a, before), (b, after) in pairs):
            return chosen
    return labels[:1]


def line_plot(
    title: str, description: str, xs: Sequence[float], ys: Sequence[float], x_words: Callable, y_words: Callable,
    *, x_name: str, y_name: str, marks: Sequence[tuple[float, str]] = (), binary: bool = False,
) -> str:  # fmt: skip
    """ys over xs, from 0; `marks` are horizontal lines with words; `binary`: ys are bytes."""
    y = Scale([*ys, *(m for m, _ in marks)], HIGH - BOTTOM, TOP + 16, zero=True, binary=binary)
    left = left_of([y_words(tick) for tick in y.ticks()])
    x = Scale(xs, left, WIDE - RIGHT, zero=True)
    points = " ".join(f"{x.at(a):g},{y.at(b):g}" for a, b in zip(xs, ys, strict=True))
    body = axes(x, y, x_words, y_words, x_name, y_name, left)
    body.append(f'<polygon class="under" points="{x.at(xs[0])},{y.at(0)} {points} {x.at(xs[-1])},{y.at(0)}"/>')
    body.append(f'<polyline class="line" points="{points}"/>')
    for value, words in marks:
        place = y.at(value)
        body.append(f'<line class="mark" x1="{left:g}" x2="{WIDE - RIGHT}" y1="{place}" y2="{place}"/>')
        body.append(text(WIDE - RIGHT, place - 4, words, "note", "end"))
    return picture(title, description, body)


def interval_plot(
    title: str, description: str, rows: Sequence[tuple[str, float, float, float]], words: Callable
) -> str:
    """One line per (label, value, low, high): a dot on its interval, on a logarithmic axis. All values above 0."""
    step = 22 if len(rows) <= 16 else 16
    bottom, left = TOP + step * len(rows) + 4, left_of([label for label, *_ in rows])
    x = Scale([v for _, value, low, high in rows for v in (value, low, high)], left, WIDE - RIGHT, log=True)
    body = axes(x, _NoScale(), words, str, "relative error, logarithmic", "query head", left, bottom)
    for i, (label, value, low, high) in enumerate(rows):
        y = TOP + step * (i + 0.5)
        body.append(text(left - 6, y + 4, label, "tick", "end"))
        body.append(f'<line class="span" x1="{x.at(low)}" x2="{x.at(high)}" y1="{y}" y2="{y}"/>')
        body.append(f'<circle class="dot" cx="{x.at(value)}" cy="{y}" r="{4 if step > 16 else 3}"/>')
    return picture(title, description, body, bottom + BOTTOM)


class _NoScale(Scale):
    """An axis without ticks."""

    def __init__(self) -> None:
        """It has no values."""

    def ticks(self) -> list[float]:
        return []


def heat_map(
    title: str, description: str, values: Sequence[Sequence[float | None]], labels: Sequence[str], edges: Sequence[int],
    x_name: str, words: Callable, y_name: str = "query head",
) -> str:  # fmt: skip
    """values[line][piece] as shades on a logarithmic scale to the greatest from the least, or from a DEPTH-th of the
    greatest where there is less: rounding errors of exact rows must not use up the shades. None and 0 stay empty."""
    known = [v for line in values for v in line if v]
    high = max(known)
    low = max(min(known), high / DEPTH)
    least = words(low) if low == min(known) else f"up to {words(low)}"
    step = max(6, min(22, 640 // len(values)))
    left = left_of(labels)
    wide = (WIDE - RIGHT - left) / len(values[0])
    body = [text(2, 12, y_name, "name")]
    for i, line in enumerate(values):
        y = TOP + i * step
        if step >= 12 or i % 8 == 0:
            body.append(text(left - 6, y + min(step - 1, step / 2 + 4), labels[i], "tick", "end"))
        for j, value in enumerate(line):
            body.append(
                f'<rect class="{shade(value, low, high)}" x="{left + j * wide:.1f}" y="{y}" width="{wide - 1:.1f}" '
                f'height="{step - 1}"/>'
            )  # fmt: skip
    bottom = TOP + step * len(values)
    body.append(text(left, bottom + 16, str(edges[0]), "tick"))
    body.append(text(WIDE - RIGHT, bottom + 16, str(edges[-1]), "tick", "end"))
    body.append(text((left + WIDE - RIGHT) / 2, bottom + 16, x_name, "name", "middle"))
    size = 22
    start = (WIDE + LEFT - RIGHT - SHADES * size) / 2
    body += [
        f'<rect class="s{s}" x="{start + s * size:g}" y="{bottom + 28}" width="{size - 1}" height="12"/>'
        for s in range(SHADES)
    ]
    body.append(text(start - 6, bottom + 38, least, "tick", "end"))
    body.append(text(start + SHADES * size + 5, bottom + 38, words(high), "tick"))
    return picture(title, description, body, bottom + 48)


def shade(value: float | None, low: float, high: float) -> str:
    """The class of a value between low and high: 's0' to 's6', 'none' where there is nothing."""
    if not value:
        return "none"
    share = math.log(value / low) / math.log(high / low) if high > low else 0.5
    return f"s{min(SHADES - 1, max(0, int(share * SHADES)))}"


def scatter_plot(
    title: str, description: str, points: Sequence[tuple[float, float, float, float, str, bool]], x_words: Callable,
    y_words: Callable, x_name: str, binary: bool = False, y_name: str = "relative error",
) -> str:  # fmt: skip
    """(x, y, low, high, letter, on the front) with intervals, both axes logarithmic; a line along the front."""
    y = Scale([v for p in points for v in p[1:4] if v > 0], HIGH - BOTTOM, TOP, log=True)
    left = left_of([y_words(tick) for tick in y.ticks()])
    x = Scale([p[0] for p in points], left, WIDE - RIGHT, log=True, binary=binary)
    body = axes(x, y, x_words, y_words, x_name, y_name, left)
    front = sorted((x.at(p[0]), y.at(p[1])) for p in points if p[5])
    body.append('<polyline class="front" points="' + " ".join(f"{a:g},{b:g}" for a, b in front) + '"/>')
    for a, b, low, high, letter, best in sorted(points, key=lambda p: p[5]):
        px, py = x.at(a), y.at(b)
        body.append(f'<line class="span" x1="{px}" x2="{px}" y1="{y.at(max(low, y.low))}" y2="{y.at(high)}"/>')
        body.append(f'<circle class="{"best" if best else "other"}" cx="{px}" cy="{py}" r="9"/>')
        body.append(text(px, py + 4, letter, "letter", "middle"))
    return picture(title, description, body)
