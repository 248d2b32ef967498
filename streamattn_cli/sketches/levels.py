"""Merge-and-reduce in a fixed number of rows: what `balance` and `wildcat` share.

Rows of level l stand for 2^l rows each. New rows are of level 0, and when there is no room, the lowest level that has
an eighth of all places (or else the fullest) is halved into the next. Levels lie one after the other,
the highest first.
"""

from __future__ import annotations

import numpy as np

LEVELS = 60
SHARE = 8  # a level is halved when it has 1/SHARE of the places


def level_to_halve(counts: np.ndarray, places: int) -> int | None:
    """Which level to halve, given the rows of each (LEVELS,); None when no level has two rows."""
    full = np.flatnonzero(counts * SHARE >= places)
    level = int(full[0]) if len(full) and counts[full[0]] > 1 else int(counts[: LEVELS - 1].argmax())
    return level if counts[level] > 1 and level < LEVELS - 1 else None


def segment(counts: np.ndarray, level: int) -> tuple[int, int]:
    """First and last place (exclusive) of a level's rows."""
    first = int(counts[level + 1 :].sum())
    return first, first + int(counts[level])


def level_of(counts: np.ndarray) -> np.ndarray:
    """The level of every row, in their order."""
    return np.repeat(np.arange(LEVELS)[::-1], counts[::-1])


def interleave(
    mine: list[np.ndarray], counts: np.ndarray, theirs: list[np.ndarray], their_counts: np.ndarray
) -> list[np.ndarray]:
    """The rows of two sets of levels as one: arrays (rows, ...) of each set, level by level."""
    order = np.argsort(-np.concatenate([level_of(counts), level_of(their_counts)]), kind="stable")
    a, b = int(counts.sum()), int(their_counts.sum())
    return [np.concatenate([x[:a], y[:b]])[order] for x, y in zip(mine, theirs, strict=True)]
