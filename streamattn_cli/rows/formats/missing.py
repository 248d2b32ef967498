"""Rows that no file stores, as intervals of row numbers."""

from __future__ import annotations

from collections.abc import Iterable

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.tensors.tensor import SeekableTensor

Intervals = list[tuple[int, int]]  # rows [first, last), sorted, apart


def within(found: Intervals, first: int, last: int) -> tuple[int, int] | None:
    """The first of these rows in [first, last), and how many there are; None if there is none."""
    cut = [(max(a, first), min(b, last)) for a, b in found if a < last and b > first]
    return (cut[0][0], sum(b - a for a, b in cut)) if cut else None


def merged(found: Iterable[tuple[int, int]]) -> Intervals:
    """Sorted intervals, those that touch joined."""
    joined: Intervals = []
    for first, last in found:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined


class PartlyStored(SeekableTensor):
    """The base of a tensor whose file may lack some of its rows: these are refused unless they are allowed."""

    missing: Intervals
    missing_allowed = False  # they are zeros, or what the file says

    def allow_missing(self) -> None:
        """Read them as what the file says of them."""
        self.missing_allowed = True

    mend: str  # how to complete the file

    def refuse_missing(self, first: int, count: int) -> None:
        """Raise InputMalformed for `count` such rows, `first` before others, unless they are allowed."""
        if not self.missing_allowed:
            raise InputMalformed(
                f"{self.name}: {count} rows are not stored in the file or in its sources, row {first} is the first; "
                f"{self.mend}, read only rows that are there (--rows, --q-rows), or take them as zeros with --missing zeros"
            )
