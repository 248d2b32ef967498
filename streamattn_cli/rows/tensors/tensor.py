"""What the rest of the house sees of an input: a tensor of rows, read in order into the caller's buffer.

Every layout reduces to a 3-D array (O, T, I): T is the row (token) axis, O the product of the axes before it and I of
those after it. Rows are handed out in storage dtype; `kernels/widen.py` turns them into floats.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.tensors.layout import Extent


class RowTensor(Protocol):
    """Rows of one array, reduced to (O, T, I). Not thread-safe: one reader at a time."""

    @property
    def name(self) -> str:
        """For messages: "dump.h5:/k"."""

    @property
    def outer(self) -> int:
        """O."""

    @property
    def width(self) -> int:
        """I, items."""

    @property
    def dtype(self) -> str:
        """Key of DTYPES."""

    @property
    def rows(self) -> int | None:
        """T; None: unknown until the end."""

    @property
    def seekable(self) -> bool:
        """Any start may be read, any number of times."""

    @property
    def path(self) -> str | None:
        """Of the file that holds it, None for pipes and memory."""

    @property
    def held_bytes(self) -> int:
        """Bytes of the tensor's own buffers (chunk cache, peeked rows)."""

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        """Fill buf, C-contiguous (O, n, I) in storage dtype, with rows [start, start+n); return the rows read.

        segment: buf is (m, n, I) for the m segments from this one on, those of one batch.

        Fewer than n only at the end of the tensor; then buf[:, :returned] holds them only if O == 1 or the tensor's
        `rows` is known and the caller asked for no more than there are. A tensor that is not seekable demands that
        start equals the rows read so far. Raises InputMalformed for a truncated source.
        """

    def peek(self, n: int) -> np.ndarray:
        """The first m <= n rows as a new array (O, m, I), without consuming them; of a tensor that is not seekable
        the next rows, which wait in memory until they are read."""

    def close(self) -> None:
        """Release files and buffers. May be called twice."""


class SeekableTensor:
    """The base of a RowTensor of known length that can be read anywhere: its attributes, and what all of them do alike."""

    seekable = True
    held_bytes = 0
    path: str | None = None

    def __init__(self, name: str, path: str | None, extent: Extent, dtype: str):
        self.name, self.path, self.dtype = name, path, dtype
        self.outer, self.rows, self.width = extent.outer, extent.count, extent.width
        self._row = extent.width * DTYPES[dtype].itemsize

    def there(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        """How many of the rows that a buffer asks for there are. ValueError for one that `read_into` does not accept."""
        check_buffer(self, buf, segment)
        count: int = max(0, min(buf.shape[1], self.rows - start))
        return count

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        raise NotImplementedError

    def peek(self, n: int) -> np.ndarray:
        return peek_seekable(self, n)

    def close(self) -> None:
        """See RowTensor."""


def row_count(tensor: RowTensor) -> int:
    """Rows of a tensor that says how many it has."""
    assert tensor.rows is not None, f"{tensor.name} does not say how many rows it has"
    return tensor.rows


def row_bytes(tensor: RowTensor) -> int:
    """Bytes of one row over all O segments."""
    return tensor.outer * tensor.width * DTYPES[tensor.dtype].itemsize


def check_buffer(tensor: RowTensor, buf: np.ndarray, segment: int | None = None) -> None:
    """Demand what `read_into` promises to accept."""
    holder = DTYPES[tensor.dtype].holder
    fits = buf.ndim == 3 and (
        buf.shape[0] == tensor.outer if segment is None else segment + buf.shape[0] <= tensor.outer
    )
    if not fits or buf.shape[2] != tensor.width or buf.dtype != holder:
        raise ValueError(
            f"{tensor.name}: buffer {buf.shape} {buf.dtype}, expected ({tensor.outer}, n, {tensor.width}) {holder}"
        )
    if not buf.flags.c_contiguous:
        raise ValueError(f"{tensor.name}: buffer is not C-contiguous")


def peek_seekable(tensor: RowTensor, n: int) -> np.ndarray:
    """`peek` of a seekable tensor of known length: read the first rows into a new array."""
    count = max(0, min(n, row_count(tensor)))
    buf = np.empty((tensor.outer, count, tensor.width), DTYPES[tensor.dtype].holder)
    tensor.read_into(buf, 0)
    return buf
