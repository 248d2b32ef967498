"""A scatter plot in characters: points as letters, lines through some of them in braille dots, or in full stops."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

HEIGHT = 10
WIDEST = 100
SHOWN = "\u28ff\u2502"  # what an encoding must have for dots
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bit of row, column within a braille cell


@dataclass(frozen=True)
class Point:
    """A point above 0 in both directions, its letter, and the name of the line that passes through it."""

    x: float
    y: float
    letter: str
    line: str | None = None


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis over `cells` cells; `text` writes its ends."""

    low: float
    high: float
    cells: int

    @classmethod
    def over(cls, values: list[float], cells: int) -> Axis:
        """An axis on which all values lie, with a little room at both ends."""
        low, high = min(values), max(values)
        room = max(0.05 * math.log(high / low), 0.05)
        return cls(low * math.exp(-room), high * math.exp(room), cells)

    def place(self, value: float) -> float:
        """From 0 at the low end to just below `cells`."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return min(max(share, 0.0), 0.999999) * self.cells


def scatter(points: list[Point], width: int, height: int, dots: bool = True) -> list[str]:
    """Lines of `width` characters; both axes are logarithmic, larger is right and up. Needs a point. dots: lines are drawn in
    braille, else in ASCII."""
    across = Axis.over([p.x for p in points], width)
    up = Axis.over([p.y for p in points], height)
    cells = [[0] * width for _ in range(height)]
    for name in {p.line for p in points} - {None}:
        line = sorted((across.place(p.x), height - up.place(p.y)) for p in points if p.line == name)
        for (x0, y0), (x1, y1) in pairwise(line):
            steps = 1 + int(8 * max(abs(x1 - x0), abs(y1 - y0)))
            for i in range(steps + 1):
                x, y = (min(a + (b - a) * i / steps, n - 1e-6) for a, b, n in ((x0, x1, width), (y0, y1, height)))
                cells[int(y)][int(x)] |= _DOTS[int(4 * (y % 1))][int(2 * (x % 1))]
    rows = [[(chr(0x2800 + cell) if dots else ".") if cell else " " for cell in row] for row in cells]
    for p in sorted(points, key=lambda p: p.line is not None):  # those on a line are drawn last: on top
        rows[int(height - up.place(p.y) - 1e-9)][int(across.place(p.x))] = p.letter
    return ["".join(row) for row in rows]


def plot(title: str, points: list[Point], text: Callable[[float], str], width: int, dots: bool) -> list[str]:
    """A title and a framed plot of at most `width` characters; text writes the ends of the axis across."""
    width = min(width, WIDEST)
    up = Axis.over([p.y for p in points], HEIGHT)
    across = Axis.over([p.x for p in points], width)
    ends = [f"{up.high:.2g}", f"{up.low:.2g}"]
    margin = max(map(len, ends)) + 1
    lines = scatter(points, max(8, width - margin - 1), HEIGHT, dots)
    labels = [ends[0], *[""] * (HEIGHT - 2), ends[1]]
    frame = "\u2502" if dots else "|"
    body = [f"{label:>{margin - 1}} {frame}{line}".rstrip() for label, line in zip(labels, lines, strict=True)]
    low, high = text(across.low), text(across.high)
    gap = max(1, width - margin - 1 - len(low) - len(high))
    return ["", *textwrap.wrap(title, width), *body, " " * (margin + 1) + low + " " * gap + high]
