"""Outputs whose every byte has a known place: .npy, and contiguous HDF5 of a known number of rows."""

from __future__ import annotations

import os

import numpy as np

from streamattn_cli.errors import StreamattnError, UsageError
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.fdio import begin_writeback, pwrite_all
from streamattn_cli.rows.writers.outshape import OutShape
from streamattn_cli.rows.writers.shared import Place
from streamattn_cli.rows.writers.temporary import Temporary, Unfinished, failing_as_output, or_abort

_CLEARED = 1 << 20  # bytes at a time
ADDED = (
    "a dataset that is added to a file cannot be resumed: others may add to it meanwhile; give it a file of its own, or omit "
    "--checkpoint"
)


class Format:
    """What surrounds the rows in a file: nothing, unless a method says otherwise. adds: whether they are added to a file that is
    there."""

    adds = False

    def begin(self, temporary: Temporary, shape: OutShape, rows: int | None) -> int:
        """Prepare the file; return the byte at which the rows begin."""
        return 0

    def again(self, temporary: Temporary) -> int:
        """The same byte of a file that was prepared by an earlier run."""
        return 0

    def finish(self, temporary: Temporary, shape: OutShape, rows: int, meta: dict) -> None:
        """Write what could not be written before, commit the file, and leave `meta` with it where there is a place."""
        temporary.commit()


class PlacedWriter(Unfinished, Writer):
    """A Writer of blocks at their place in a temporary file."""

    placed = True

    def __init__(
        self, path: str, rows: int | None, shape: OutShape, format_: Format, going_on: tuple[str, int] | None = None,
        tag: str | None = None, temporary: Temporary | None = None,
    ):  # fmt: skip
        """`going_on`: name of the unfinished file of an earlier run (see `part`) and how many of its rows count; `tag`:
        of the name of a new unfinished file (see Temporary); `temporary`: the file, if it is open already."""
        if rows is None and shape.segments > 1:
            raise UsageError(
                f"{path}: layout {shape.layout} needs the number of rows in advance, which a pipe does "
                f"not tell; write to - or choose a layout that begins with T"
            )
        self.name = path
        self.unresumable = ADDED if format_.adds else None
        part, self.rows_written = going_on or (None, 0)
        self._lasting = part is not None  # a checkpoint counts on it
        self._rows, self._shape, self._format = rows, shape, format_
        with failing_as_output(path):
            self._temporary = temporary or Temporary(path, part, tag)
        with or_abort(self):
            self._offset = format_.again(self._temporary) if part else format_.begin(self._temporary, shape, rows)
            if not (part or temporary):
                clear_padding(self._temporary.fd, self._offset, shape, rows or 0)

    def write(self, start: int, block: np.ndarray) -> None:
        self._shape.check(block, start, self.rows_written)
        row = self._shape.row_bytes // self._shape.segments
        with or_abort(self):
            for number, part in self._shape.places(start, self._rows, block):
                place = self._offset + number * row
                pwrite_all(self._temporary.fd, memoryview(part.reshape(-1)).cast("B"), place)
                begin_writeback(self._temporary.fd, place, part.nbytes)
        self.rows_written += len(block)

    def patch(self, row: int, head: int, answer: np.ndarray) -> None:
        if row >= self.rows_written:
            raise ValueError(f"row {row}, and {self.rows_written} are written")
        assert self._rows is not None, "rows of a pipe are not written again"
        with or_abort(self):
            for at, part in self._shape.lines(row, self._rows, answer[None, None], head):
                pwrite_all(self._temporary.fd, memoryview(part).cast("B"), self._offset + at)

    def share(self) -> Place:
        """Where others may write the rows, all of them: this writer then only commits."""
        with failing_as_output(self.name):  # they may be written in any order, and some of them never
            end = _end(self._offset, self._shape, self._rows or 0)
            os.ftruncate(self._temporary.fd, max(os.fstat(self._temporary.fd).st_size, end))
        self.rows_written = self._rows or 0
        return Place(self._temporary.path, self._offset, self.rows_written, self._shape)

    def commit(self, meta: dict) -> None:
        with or_abort(self):
            if self._rows not in (None, self.rows_written):
                raise StreamattnError(f"{self.name}: {self.rows_written} rows written, {self._rows} promised")
            self._format.finish(self._temporary, self._shape, self.rows_written, meta)


def clear_padding(fd: int, offset: int, shape: OutShape, rows: int) -> None:
    """Zeros where padded rows are, which are never written: what lies there may be what a file held before."""
    if shape.sequences is None or shape.sequences.is_whole:
        return
    end = _end(offset, shape, rows)
    for at in range(offset, min(end, os.fstat(fd).st_size), _CLEARED):
        pwrite_all(fd, memoryview(bytes(min(_CLEARED, end - at))), at)
    if os.fstat(fd).st_size < end:
        os.ftruncate(fd, end)


def _end(offset: int, shape: OutShape, rows: int) -> int:
    """The byte after the last row of an output that begins there."""
    return offset + int(np.prod(shape.shape(rows), dtype=np.int64)) * shape.dtype.itemsize
