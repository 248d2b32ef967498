"""Where the answers of a pass go: to the writer, and to whoever else wants to know them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from streamattn_cli.engine.planning.footprint import OUTPUTS
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.workers.lanes import Answers
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.sketches.headparams import allocate


class Hearer(Protocol):
    """Is told all answers, block by block."""

    def observe(self, start: int, answers: Answers, q: np.ndarray | None) -> None:
        """Answers to rows start..; q: the stored queries, where they cannot be read again."""


class Output:
    """Blocks of answers, written in order by a thread of their own while the next block is answered."""

    def __init__(self, plan: Plan, writer: Writer, doubts: Writer | None = None, hearers: Sequence[Hearer] = ()):
        """doubts: the writer of --doubt."""
        self.writer, self.doubts, self.hearers = writer, doubts, hearers
        p = plan.problem
        rows = 0 if p.method == "exact" else plan.query_block_rows
        shape = OUTPUTS, rows, len(p.q)
        room = allocate({"rows": ((*shape, p.v.dim), p.precision), "doubt": (shape, "f4")})
        self._rooms = deque(map(Answers, room["rows"], room["doubt"]))
        self._thread = ThreadPoolExecutor(1, "streamattn-writer")
        self._written: Future | None = None

    def room(self, rows: int) -> Answers:
        """Room for the answers to a block."""
        self._rooms.rotate(1)
        room = self._rooms[0]
        return Answers(room.rows[:rows], room.doubt[:rows])

    def write_behind(self, start: int, answers: Answers, q: np.ndarray | None = None) -> None:
        """Write to a file while the next block is answered. A pipe may keep a writer waiting: that is left to this thread,
        which signals reach."""
        self.settle()
        if not self.writer.placed:
            self.write(start, answers, q)
            return
        self._written = self._thread.submit(self._put, start, answers)
        self._tell(start, answers, q)

    def write(self, start: int, answers: Answers, q: np.ndarray | None = None) -> None:
        """Write answers to rows start.., and tell them; q: see Hearer."""
        self._put(start, answers)
        self._tell(start, answers, q)

    def patch(self, row: int, head: int, answer: np.ndarray) -> None:
        """Write the exact answer (dv,) of a query head to a row in the place of the one before."""
        self.writer.patch(row, head, answer)
        if self.doubts:
            self.doubts.patch(row, head, np.zeros(1, "f4"))

    def settle(self) -> None:
        """Wait until all answers so far are written; raises what went wrong."""
        written, self._written = self._written, None
        if written:
            written.result()

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=True)

    def _put(self, start: int, answers: Answers) -> None:
        self.writer.write(start, answers.rows)
        if self.doubts:
            self.doubts.write(start, answers.doubt[:, :, None])

    def _tell(self, start: int, answers: Answers, q: np.ndarray | None) -> None:
        for hearer in self.hearers:
            hearer.observe(start, answers, q)
