"""How one budget is divided over key heads so that the squared error of all of them is least.

Every head has a curve: squared errors measured at a few numbers of resident rows. Between them, and beyond, log error is taken
to be linear in log rows. Rows go one step after the other to the head whose error falls most by it, along the lower convex hull
of its curve: for convex curves that is the best division (Fox, Operations Research 14, 1966).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_TINY = 1e-30  # of a squared error: that of a head which is answered exactly


@dataclass(frozen=True)
class Curve:
    """Squared errors (absolute, summed over all rows) of one key head at these numbers of resident rows, which rise."""

    rows: tuple[int, ...]
    squares: tuple[float, ...]

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Squared errors (n,) at numbers of rows (n,)."""
        x = np.log(np.array(self.rows, np.float64))
        y = np.log(np.minimum.accumulate(np.maximum(self.squares, _TINY)))
        if len(x) == 1:
            return np.full(len(rows), np.exp(y[0]))
        piece = np.clip(np.searchsorted(x, np.log(rows)) - 1, 0, len(x) - 2)
        slope = np.diff(y) / np.diff(x)
        found: np.ndarray = np.exp(y[piece] + slope[piece] * (np.log(rows) - x[piece]))
        return found


def divide(curves: Sequence[Curve], total: int, least: int, most: int) -> list[int]:
    """Resident rows of every head, `total` together at most, each from `least` to `most` (of which `least` fits for all)."""
    step = max(1, total // (64 * len(curves)))
    sizes = np.arange(least, max(least, min(most, total)) + 1, step)
    costs = [_hull(curve.at(sizes)) for curve in curves]
    at, left = [0] * len(curves), (total - least * len(curves)) // step
    gains = [(-_gain(cost, 0), head) for head, cost in enumerate(costs)]
    heapq.heapify(gains)
    while left > 0 and gains:
        gain, head = heapq.heappop(gains)
        if gain == 0 and at[head] == len(sizes) - 1:
            continue
        at[head] += 1
        left -= 1
        heapq.heappush(gains, (-_gain(costs[head], at[head]), head))
    return [int(sizes[i]) for i in at]


def _gain(cost: np.ndarray, at: int) -> float:
    """By how much one step more lowers the error; 0 at the end."""
    return float(cost[at] - cost[at + 1]) if at + 1 < len(cost) else 0.0


def _hull(cost: np.ndarray) -> np.ndarray:
    """The lower convex hull (n,) of values at equal distances (n,)."""
    corners = [0]
    for i in range(1, len(cost)):
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            if (cost[b] - cost[a]) * (i - b) < (cost[i] - cost[b]) * (b - a):
                break
            corners.pop()
        corners.append(i)
    found: np.ndarray = np.interp(np.arange(len(cost)), corners, cost[corners])
    return found
