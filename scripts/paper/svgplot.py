"""Line plots, by default with logarithmic axes, as SVG text. Series of one figure share its axes; nothing else is
needed here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 440, 70, 210, 44, 54
COLORS = ("#1f5fa8", "#d1491f", "#2a8c4a", "#8a3fa0", "#b8860b", "#17848f", "#6b6b6b", "#c2307a", "#444444")


@dataclass
class Figure:
    """A figure under way: add series, then `save`."""

    title: str
    x: str
    y: str
    log_y: bool = True
    log_x: bool = True
    series: list[tuple[str, list[tuple[float, float]], bool]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)  # vertical lines

    def line(self, name: str, points, dashed: bool = False) -> None:
        """Add a series of (x, y); points that a logarithm cannot show are left out."""
        shown = [(float(x), float(y)) for x, y in points if x > 0 and math.isfinite(y) and (y > 0 or not self.log_y)]
        self.series.append((name, shown, dashed))

    def save(self, path: Path) -> None:
        """Write the SVG."""
        path.write_text("\n".join(self._parts()) + "\n")

    def _parts(self):
        points = [p for _, line, _ in self.series for p in line]
        marked = [p[0] for p in points] + [x for x, _ in self.marks]
        low_x, high_x = _decades(marked) if self.log_x else (min(marked), max(marked))
        low_y, high_y = _decades([p[1] for p in points]) if self.log_y else _round_range([p[1] for p in points])
        across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

        def place_x(x):
            at = math.log10(x) if self.log_x else x
            return LEFT + across * (at - low_x) / (high_x - low_x)

        def place_y(y):
            at = math.log10(y) if self.log_y else y
            return TOP + down * (1 - (at - low_y) / (high_y - low_y))

        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        )
        yield _text(LEFT, 24, self.title, "start", 15)
        for value, label in _ticks(low_x, high_x, self.log_x):
            at = place_x(value)
            yield f'<path d="M{at:.1f} {TOP}V{TOP + down}" stroke="#e4e4e4"/>' + _text(at, TOP + down + 17, label)
        for value, label in _ticks(low_y, high_y, self.log_y):
            at = place_y(value)
            yield f'<path d="M{LEFT} {at:.1f}H{LEFT + across}" stroke="#e4e4e4"/>' + _text(
                LEFT - 7, at + 4, label, "end"
            )
        yield f'<rect x="{LEFT}" y="{TOP}" width="{across}" height="{down}" fill="none" stroke="#777"/>'
        yield _text(LEFT + across / 2, HEIGHT - 14, self.x)
        yield f'<g transform="rotate(-90 18 {TOP + down / 2})">{_text(18, TOP + down / 2, self.y)}</g>'
        for x, label in self.marks:
            at = place_x(x)
            yield f'<path d="M{at:.1f} {TOP}V{TOP + down}" stroke="#999" stroke-dasharray="2 3"/>'
            yield f'<g transform="rotate(-90 {at - 4:.1f} {TOP + 8})">{_text(at - 4, TOP + 8, label, "end", 10)}</g>'
        for i, (name, line, dashed) in enumerate(self.series):
            color = COLORS[i % len(COLORS)]
            path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in line)
            dash = ' stroke-dasharray="6 4"' if dashed else ""
            yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>'
            if not dashed:
                yield "".join(
                    f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="2.6" fill="{color}"/>' for x, y in line
                )
            at = TOP + 12 + 20 * i
            yield f'<path d="M{LEFT + across + 12} {at}h22" stroke="{color}" stroke-width="2"{dash}/>'
            yield _text(LEFT + across + 40, at + 4, name, "start")
        yield "</svg>"


def _text(x: float, y: float, words: str, anchor: str = "middle", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#222">{escape(words)}</text>'


def _decades(values: list[float]) -> tuple[float, float]:
    low, high = math.floor(math.log10(min(values)) * 2) / 2, math.ceil(math.log10(max(values)) * 2) / 2
    return low, max(high, low + 0.5)


def _round_range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    step = 10 ** math.floor(math.log10(max(high - low, 1e-9)))
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _ticks(low: float, high: float, log: bool):
    if not log:
        parts = int(high - low) if high - low == int(high - low) and high - low <= 12 else 5
        for i in range(parts + 1):
            value = low + (high - low) * i / parts
            yield value, f"{value:.3g}"
        return
    step = max(1, math.ceil((high - low) / 9))
    for power in range(math.ceil(low), math.floor(high) + 1, step):
        yield 10.0**power, f"1e{power}" if abs(power) > 3 else f"{10.0**power:g}"
