"""One file that several writers fill, each some heads or some rows of it, perhaps in other processes."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.fdio import begin_writeback, pwrite_all
from streamattn_cli.rows.writers.outshape import OutShape
from streamattn_cli.rows.writers.temporary import failing_as_output


@dataclass(frozen=True)
class Place:
    """Where the rows of an output lie: in an unfinished file, from a byte on."""

    path: str
    offset: int
    rows: int
    shape: OutShape


class PieceWriter(Writer):
    """A Writer of heads [first, stop) of the rows of an output from row `start` on, into the place of them all.

    Nobody else writes there, so that the same piece may be written again. The file is opened for writing alone: what lies
    beside a piece is never read, and never written back.
    """

    placed = True

    def __init__(self, place: Place, name: str, start: int, rows: int, heads: tuple[int, int]):
        """name: of the output, for messages. Raises OutputFailed, also where this machine does not see the file."""
        self.name, self.rows_written = name, 0
        self._place, self._start, self._rows, self._heads = place, start, rows, heads
        with failing_as_output(f"{name}: {place.path}, which every worker must see under the same path"):
            self._fd = os.open(place.path, os.O_WRONLY | os.O_CLOEXEC)

    def write(self, start: int, block: np.ndarray) -> None:
        if start != self.rows_written or start + len(block) > self._rows:
            raise ValueError(
                f"rows {start} to {start + len(block)} of {self._rows}, and {self.rows_written} are written"
            )
        self._put(start, block)
        self.rows_written += len(block)

    def patch(self, row: int, head: int, answer: np.ndarray) -> None:
        with failing_as_output(self.name):
            place, first = self._place, self._heads[0] + head
            for at, part in place.shape.lines(self._start + row, place.rows, answer[None, None], first):
                self._at(at, part)

    def commit(self, meta: dict) -> None:
        """All rows are there: make them durable. `meta` is left to who commits the whole file."""
        if self.rows_written != self._rows:
            raise ValueError(f"{self.name}: {self.rows_written} rows written, {self._rows} promised")
        with failing_as_output(self.name):
            os.fdatasync(self._fd)
        self.abort()

    def keep(self) -> str:
        """See base.Writer: the file outlives this writer anyway."""
        with failing_as_output(self.name):
            os.fdatasync(self._fd)
        return os.path.basename(self._place.path)

    def abort(self) -> None:
        """Close the file; what was written stays, until it is written again or the file goes."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _put(self, row: int, block: np.ndarray) -> None:
        shape, place = self._place.shape, self._place
        first, stop = self._heads
        with failing_as_output(self.name):
            if stop - first == shape.heads:
                width = shape.row_bytes // shape.segments
                for number, part in shape.places(self._start + row, place.rows, block):
                    self._at(number * width, part)
                return
            for at, part in shape.lines(self._start + row, place.rows, block, first):
                self._at(at, part)

    def _at(self, position: int, part: np.ndarray) -> None:
        place = self._place.offset + position
        pwrite_all(self._fd, memoryview(part.reshape(-1)).cast("B"), place)
        begin_writeback(self._fd, place, part.nbytes)
