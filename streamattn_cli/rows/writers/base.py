"""What every output of rows does, and two outputs in memory."""

from __future__ import annotations

import numpy as np

from streamattn_cli.rows.writers.topk import BestRows, Sparse


class Writer:
    """An output that receives its rows in order.

    placed: whether every row has a known place in a file, so that rows can be patched, and a run be resumed in the middle
    of them. best: the heaps of --top-k. unresumable: why a run with this output cannot be resumed, None if it can.
    """

    placed = False
    best: BestRows | None = None
    unresumable: str | None = None
    name = ""
    rows_written = 0

    def write(self, start: int, block: np.ndarray) -> None:
        """Append block (n, heads, dim), any float dtype, as rows start .. start+n; start must be `rows_written`.

        Raises OutputFailed (the temporary file is then gone) or BrokenPipeError.
        """
        raise NotImplementedError

    def resume(self, rows: int) -> None:
        """Expect the rows after the first `rows`, which an earlier run has written."""
        self.rows_written = rows

    def commit(self, meta: dict) -> None:
        """All rows are there: make them durable, then visible under the final name, with `meta` (JSON-able) as
        attributes (.h5) or NAME.json (.npy). Raises OutputFailed."""

    def finish(self) -> dict:
        """All rows have been seen: what is kept of them (JSON-able), by an output that does not keep all."""
        raise NotImplementedError

    def abort(self) -> None:
        """Leave nothing behind; does nothing after `commit`."""

    def patch(self, row: int, head: int, answer: np.ndarray) -> None:
        """Write answer (dim,) over that of one head to a row that is written already. Raises OutputFailed."""
        raise NotImplementedError

    def keep(self) -> str:
        """Make the rows written so far durable, and let the unfinished file outlive a failure: a checkpoint counts on it.
        Returns its name, in the folder of the output. Raises OutputFailed."""
        raise NotImplementedError

    def recover(self, results: list[Sparse], by: str, joint: bool, rows: int, measured: bool) -> None:
        """Take what was recovered of `rows` rows, which were never produced: one Sparse per query head, and the name of the
        decoder that found them. joint: whole rows were recovered, not entries; measured: their norms are exact."""
        raise NotImplementedError


class Nowhere(Writer):
    """A writer that forgets, when `best` has seen the rows."""

    def __init__(self, best: BestRows | None = None):
        self.best = best

    def write(self, start: int, block: np.ndarray) -> None:
        if self.best:
            self.best.offer(start, block)

    def patch(self, row: int, head: int, answer: np.ndarray) -> None:
        """See Writer."""

    def recover(self, results: list[Sparse], by: str, joint: bool, rows: int, measured: bool) -> None:
        """See Writer."""


class ArrayWriter(Writer):
    """A writer into an array (rows, heads, dim)."""

    def __init__(self, out: np.ndarray):
        self.out = out

    def write(self, start: int, block: np.ndarray) -> None:
        self.out[start : start + len(block)] = block

    def patch(self, row: int, head: int, answer: np.ndarray) -> None:
        self.out[row, head] = answer
