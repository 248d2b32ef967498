"""Merge-and-reduce in a fixed number of rows: what `balance` and `wildcat` share.

Rows of level l stand for 2^l rows each. New rows are of level 0, and when there is no room, the lowest level that has
an eighth of all places (or else the fullest) is halved into the next. Levels lie one after the other,
the highest first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streamattn_cli.sketches.histories.bank import RowHistory, live

LEVELS = 60
SHARE = 8  # a level is halved when it has 1/SHARE of the places


class LevelHistory(RowHistory):
    """A history of rows of levels; the state array "counts" has how many there are of each."""

    PARTS: tuple[str, ...] = ("rows",)  # state arrays with an entry for every row; all but the first begin as 1

    def absorb(self, k: np.ndarray, c: np.ndarray, work: dict) -> int:
        """See History. No key is clipped: 0."""
        counts = self.state["counts"]
        k, c = live(k, c)
        for i in range(len(k)):
            if counts.sum() == self.params.rows and not self._halve():
                break
            at = int(counts.sum())
            self.bank.put(at, k[i : i + 1], c[i : i + 1])
            for name in self.PARTS[1:]:
                self.state[name][at] = 1
            counts[0] += 1
        return 0

    def merge(self, other: LevelHistory) -> None:
        """Take in the rows of another history, as if they came now.

        The highest level, which is the oldest, comes first, and no level is halved before all places are taken: that leaves
        levels like those of one pass. (Where all rows are laid side by side and halved until they fit, 16 shards of real heads
        err by up to 1.27 times one pass.)
        """
        counts, theirs = self.state["counts"], other.state
        for level in np.flatnonzero(theirs["counts"])[::-1]:
            first, end = segment(theirs["counts"], level)
            while first < end:
                total = int(counts.sum())
                count = min(self.params.rows - total, end - first)
                if count:
                    at = segment(counts, level)[1]
                    for name in self.PARTS:
                        array = self.state[name]
                        array[at + count : total + count] = array[at:total].copy()
                        array[at : at + count] = theirs[name][first : first + count]
                    counts[level] += count
                    first += count
                elif not self._halve():
                    return

    def _halve(self) -> bool:
        """Halve a level into the next; whether one could be."""
        raise NotImplementedError

    @property
    def kept(self) -> int:
        """How many rows it keeps."""
        return int(self.state["counts"].sum())

    @staticmethod
    def transient_bytes(params: Any, dim: int, value_dim: int, group: int, queries: int) -> int:
        """Bound on the bytes that are held for a while: kernel and factor of the block that is halved."""
        return int(8 * params.rows * (3 * params.rows + 6 * (dim + value_dim)))


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
