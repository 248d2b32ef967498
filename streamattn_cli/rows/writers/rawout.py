"""Bare rows without any header, to a stream or to a file."""

from __future__ import annotations

import os
import sys

import numpy as np

from streamattn_cli.errors import OutputFailed, UsageError
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.fdio import write_all
from streamattn_cli.rows.writers.fileout import PlacedWriter
from streamattn_cli.rows.writers.outshape import OutShape
from streamattn_cli.rows.writers.recordout import open_special, waits
from streamattn_cli.rows.writers.temporary import Temporary, failing_as_output


class RawFormat:
    """See fileout.Format: nothing surrounds the rows, and `meta` has no place."""

    adds = False

    def begin(self, temporary: Temporary, shape: OutShape, rows: int | None) -> int:
        """The rows begin at once."""
        return 0

    def again(self, temporary: Temporary) -> int:
        """They begin there in any run."""
        return 0

    def finish(self, temporary: Temporary, shape: OutShape, rows: int, meta: dict) -> None:
        """The rows are all there is."""
        temporary.commit()


class RawStream(Writer):
    """A Writer of rows to standard output (`target` '-'), a fifo or a device; what was written stays written."""

    def __init__(self, target: str, shape: OutShape):
        self.name = "standard output" if target == "-" else target
        self.rows_written = 0
        self._shape = shape
        self._own = None if target == "-" else open_special(target)
        self._fd = sys.stdout.fileno() if self._own is None else self._own.fileno()
        if os.isatty(self._fd):
            raise UsageError(f"{self.name} is a terminal, and rows are binary; name a file or pipe it on")

    def write(self, start: int, block: np.ndarray) -> None:
        """See base.Writer. BrokenPipeError when the reader has gone."""
        self._shape.check(block, start, self.rows_written)
        with failing_as_output(self.name):
            write_all(self._fd, memoryview(self._shape.cut(block)[0].reshape(-1)).cast("B"))
        self.rows_written += len(block)

    def commit(self, meta: dict) -> None:
        """See base.Writer; `meta` has no place here."""
        self.abort()

    def abort(self) -> None:
        """See base.Writer."""
        if self._own is not None:
            self._own.close()


def open_raw(target: str, rows: int, width: int, holder: np.dtype) -> Writer:
    """A Writer of bare rows (n, 1, width) of `holder` items to '-', a fifo or device, or a file of any name."""
    shape = OutShape("TD", 1, width, holder)
    if target == "-" or is_special(target):
        return RawStream(target, shape)
    return PlacedWriter(target, rows, shape, RawFormat())


def is_special(target: str) -> bool:
    """True for an existing fifo, device or socket; OutputFailed for a folder."""
    if os.path.isdir(target):
        raise OutputFailed(f"{target}: is a folder, expected the name of a file; write to a name inside it")
    return waits(target)
