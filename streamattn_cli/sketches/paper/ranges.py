"""Which global rows a linear sketch has absorbed: a row counts once, and only once."""

from __future__ import annotations

import numpy as np

from streamattn_cli.errors import CheckpointIncompatible

CAPACITY = 64  # separate stretches of rows that a state can remember


def ranges_spec() -> tuple[tuple[int, ...], str]:
    """Shape and dtype of the state array: [start, stop) pairs in order, unused ones (0, 0)."""
    return ((CAPACITY, 2), "i8")


def stretches(ranges: np.ndarray) -> list[tuple[int, int]]:
    """The stretches of rows in a ranges array."""
    return [(int(a), int(b)) for a, b in ranges if b > a]


def row_count(ranges: np.ndarray) -> int:
    """How many rows there are in all."""
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def extend(ranges: np.ndarray, start: int, stop: int, what: str) -> None:
    """Note rows [start, stop). Raises CheckpointIncompatible for rows that are there already."""
    found = stretches(ranges)
    if found and found[-1][1] == start:  # the usual case: the next rows of a stream
        ranges[len(found) - 1, 1] = stop
        return
    _store(ranges, [*found, (start, stop)], what)


def _store(ranges: np.ndarray, found: list[tuple[int, int]], what: str) -> None:
    joined: list[tuple[int, int]] = []
    for a, b in sorted(found):
        if joined and a < joined[-1][1]:
            raise CheckpointIncompatible(
                f"{what}: rows {a} to {min(b, joined[-1][1])} have been absorbed already; a row counts once"
            )
        if joined and a == joined[-1][1]:
            joined[-1] = (joined[-1][0], b)
        else:
            joined.append((a, b))
    if len(joined) > CAPACITY:
        raise CheckpointIncompatible(f"{what}: more than {CAPACITY} separate stretches of rows")
    ranges[:] = 0
    ranges[: len(joined)] = joined
