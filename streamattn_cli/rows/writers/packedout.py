"""Rows that hold q, k and v side by side and say so: an .npy file or records on a pipe, which need no option to be read."""

from __future__ import annotations

import numpy as np

from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.npyheader import packed_header
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.fdio import pwrite_all
from streamattn_cli.rows.writers.fileout import Format, PlacedWriter
from streamattn_cli.rows.writers.outshape import OutShape
from streamattn_cli.rows.writers.recordout import RecordWriter, open_special
from streamattn_cli.rows.writers.temporary import Temporary
from streamattn_cli.rows.writers.writer import check_target, standard_output

Parts = tuple[tuple[str, int, int], ...]  # name, heads, dim


class PackedFormat(Format):
    """A header that says what the rows hold."""

    def __init__(self, parts: Parts, dtype: str, attrs: dict):
        """dtype: a storage dtype; attrs: see packed_header."""
        self._parts, self._dtype, self._attrs = parts, dtype, attrs

    def header(self, rows: int) -> bytes:
        """The header of so many rows."""
        return packed_header(rows, self._parts, self._dtype, self._attrs)

    def begin(self, temporary: Temporary, shape: OutShape, rows: int | None) -> int:
        """The header comes first; the rows are known."""
        header = self.header(rows or 0)
        pwrite_all(temporary.fd, memoryview(header), 0)
        return len(header)

    def again(self, temporary: Temporary) -> int:
        """The header has one size."""
        return len(self.header(0))


def open_packed(
    target: str, rows: int, parts: Parts, dtype: str, attrs: dict, tag: str, going_on: tuple[str, int] | None = None,
) -> Writer:  # fmt: skip
    """A Writer of blocks (n, 1, items of a row), items as they are stored (DTYPES[dtype].holder). target: FILE.npy, -, a fifo or
    a device; tag, going_on: see open_writer. Raises OutputFailed and UsageError."""
    format_ = PackedFormat(parts, dtype, attrs)
    width = sum(heads * dim for _, heads, dim in parts)
    shape = OutShape("TD", 1, width, np.dtype(DTYPES[dtype].holder))
    if target == "-":
        return RecordWriter(standard_output(None), "standard output", shape, owned=False, header=format_.header)
    if check_target(target) == "special":
        return RecordWriter(open_special(target), target, shape, owned=True, header=format_.header)
    return PlacedWriter(target, rows, shape, format_, going_on, tag)
