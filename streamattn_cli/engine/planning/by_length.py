"""Settings that follow the length of each sequence, so that it is answered as in a run of its own.

A short sequence fits into --resident-rows and is answered exactly, `nystrom` gives streams of a few rows per resident row
eight bits, and groups of --local follow the rows that there are: all of these are steps at a few lengths.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from streamattn_cli.rows.tensors.sequences import Sequences
from streamattn_cli.sketches.headparams import HeadParams

Kinds = tuple[tuple[int, HeadParams], ...]


def shorter_ones(of_rows: Callable[[int], HeadParams | None], sequences: Sequences, longest: HeadParams) -> Kinds:
    """(most rows, parameters) of the sequences whose settings differ from those of the longest, the shortest ones first.

    of_rows: the parameters for a sequence of so many keys, which change at some lengths and never change back.
    """
    lengths = np.unique(np.diff(sequences.edges))
    rest, found, params = lengths[lengths > 0].tolist(), list[tuple[int, HeadParams]](), longest
    while rest := rest[: bisect_left(rest, True, key=lambda rows: _like(of_rows(rows), params, rows))]:
        here = of_rows(rest[-1])
        assert here is not None, "a method has parameters for all lengths or for none"
        params = here
        found.insert(0, (rest[-1], params))
    return tuple(found)


def _like(one: HeadParams | None, other: HeadParams, rows: int) -> bool:
    """Whether a sequence of so many rows gets the same bytes from both: a window that holds all of it may be any longer."""
    if one is None or one.history or min(one.window, other.window) < rows:
        return one == other
    return replace(one, window=other.window) == other


def differences(kinds: Kinds) -> str:
    """A note on them."""

    def told(params: HeadParams) -> str:
        bits = params.history.to_dict().get("bits") if params.history else None
        return (
            f"kept in {bits} bits" if bits else "with settings of their own" if params.history else "answered exactly"
        )

    words = ", ".join(f"up to {most} rows {told(params)}" for most, params in kinds)
    return f"every sequence is answered as if it ran alone: {words}"
