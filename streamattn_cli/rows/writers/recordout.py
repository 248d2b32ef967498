"""Outputs without a place: standard output, fifos and devices receive concatenated .npy records."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from streamattn_cli.errors import UsageError
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.fdio import write_all
from streamattn_cli.rows.writers.npyout import npy_header
from streamattn_cli.rows.writers.outshape import OutShape
from streamattn_cli.rows.writers.temporary import failing_as_output, or_abort


class RecordWriter(Writer):
    """A Writer of one .npy record per block: (rows, dim) for layout TD, (rows, heads * dim) for TC, else
    (rows, heads, dim). What was written cannot be taken back."""

    def __init__(
        self, file: BinaryIO, name: str, shape: OutShape, owned: bool, header: Callable[[int], bytes] | None = None
    ):
        """header: that of a record of so many rows, if it is not the plain one."""
        self._header = header or (lambda rows: npy_header(self._shape.shape(rows), self._shape.dtype))
        self._file, self._owned = file, owned
        if file.isatty():
            self.abort()
            raise UsageError(f"{name} is a terminal, and the output is binary; give -o FILE or pipe it on")
        self.name = name
        self.rows_written = 0
        layout = shape.layout if shape.layout in ("TD", "TC") else "THD"
        self._shape = OutShape(layout, shape.heads, shape.dim, shape.dtype)
        try:
            self._fd = file.fileno()
            file.flush()
        except io.UnsupportedOperation:
            self._fd = -1

    def write(self, start: int, block: np.ndarray) -> None:
        """See base.Writer. BrokenPipeError when the reader has gone."""
        self._shape.check(block, start, self.rows_written)
        items = self._shape.cut(block)[0]
        with or_abort(self):
            self._put(memoryview(self._header(len(block))))
            self._put(memoryview(items.reshape(-1)).cast("B"))
        self.rows_written += len(block)

    def _put(self, view: memoryview) -> None:
        if self._fd >= 0:
            write_all(self._fd, view)
        else:
            self._file.write(view)
            self._file.flush()

    def commit(self, meta: dict) -> None:
        """See base.Writer; `meta` has no place here."""
        self.abort()

    def abort(self) -> None:
        if self._owned:
            self._file.close()


def waits(target: str) -> bool:
    """Whether opening this for writing may wait: an existing fifo, device or socket."""
    return os.path.exists(target) and not os.path.isfile(target) and not os.path.isdir(target)


def open_special(path: str) -> BinaryIO:
    """A fifo or device for writing, as it is (a fifo waits for its reader)."""
    with failing_as_output(path):
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY), "wb", buffering=0)
