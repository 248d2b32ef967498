"""What the rest of the house sees of an input: a tensor of rows, read in order into the caller's buffer.

Every layout reduces to a 3-D array (O, T, I): T is the row (token) axis, O the product of the axes before it and I of
those after it. Rows are handed out in storage dtype; `kernels/widen.py` turns them into floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from streamattn_cli.errors import InputMalformed, UsageError


@dataclass(frozen=True)
class Storage:
    """One storage dtype: halves of both kinds are held as uint16 bit patterns."""

    name: str
    holder: np.dtype
    itemsize: int


STORAGE = {
    "f2": Storage("f2", np.dtype("<u2"), 2),
    "bf16": Storage("bf16", np.dtype("<u2"), 2),
    "f4": Storage("f4", np.dtype("<f4"), 4),
    "f8": Storage("f8", np.dtype("<f8"), 8),
}

_WORDS = {
    "f2": "f2", "f16": "f2", "float16": "f2", "half": "f2",
    "bf16": "bf16", "bfloat16": "bf16",
    "f4": "f4", "f32": "f4", "float32": "f4", "float": "f4",
    "f8": "f8", "f64": "f8", "float64": "f8", "double": "f8",
}  # fmt: skip


class RowTensor(Protocol):
    """Rows of one array, reduced to (O, T, I). Not thread-safe: one reader at a time."""

    name: str  # for messages: "dump.h5:/k"
    outer: int  # O
    width: int  # I, items
    dtype: str  # key of STORAGE
    rows: int | None  # T; None: unknown until the end
    seekable: bool  # any start may be read, any number of times
    path: str | None  # of the file that holds it, None for pipes and memory

    @property
    def held_bytes(self) -> int:
        """Bytes of the tensor's own buffers (chunk cache, peeked rows)."""

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        """Fill buf, C-contiguous (O, n, I) in storage dtype, with rows [start, start+n); return the rows read.

        segment: buf is (m, n, I) for the m segments from that one on. Only tensors of files and of memory know it.

        Fewer than n only at the end of the tensor; then buf[:, :returned] holds them only if O == 1 or the tensor's
        `rows` is known and the caller asked for no more than there are. A tensor that is not seekable demands that
        start equals the rows read so far. Raises InputMalformed for a truncated source.
        """

    def peek(self, n: int) -> np.ndarray:
        """The first m <= n rows as a new array (O, m, I), without consuming them; of a tensor that is not seekable
        the next rows, which wait in memory until they are read."""

    def close(self) -> None:
        """Release files and buffers. May be called twice."""


def row_bytes(tensor: RowTensor) -> int:
    """Bytes of one row over all O segments."""
    return tensor.outer * tensor.width * STORAGE[tensor.dtype].itemsize


def check_buffer(tensor: RowTensor, buf: np.ndarray, segment: int | None = None) -> None:
    """Demand what `read_into` promises to accept."""
    holder = STORAGE[tensor.dtype].holder
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
    count = max(0, min(n, tensor.rows))
    buf = np.empty((tensor.outer, count, tensor.width), STORAGE[tensor.dtype].holder)
    tensor.read_into(buf, 0)
    return buf


def storage_word(word: str, option: str) -> str:
    """The storage dtype that a user's word names ('f32' -> 'f4'); UsageError for an unknown one."""
    try:
        return _WORDS[word.lower()]
    except KeyError:
        raise UsageError(f"{option} {word}: unknown dtype; use one of f16, bf16, f32, f64") from None


def storage_of(found: np.dtype, name: str, wanted: str | None = None) -> tuple[str, str | None]:
    """Storage dtype of a NumPy dtype found in a file, and a note when it had to be guessed.

    uint16, int16 and V2 (two opaque bytes, how ml_dtypes saves bfloat16) are bit patterns: `wanted` says of what, bf16
    unless told; of other dtypes it says nothing. Raises InputMalformed for other dtypes and for big-endian ones.
    """
    if found.byteorder == ">":
        raise InputMalformed(
            f"{name}: dtype {found.str} is big-endian, expected little-endian; "
            f"convert it with array.astype(array.dtype.newbyteorder('<')) and save again"
        )
    if found.str in ("<u2", "<i2", "|V2", "<V2") and wanted in (None, "bf16", "f2"):
        kind = "float16" if wanted == "f2" else "bfloat16"
        hint = "" if wanted else " (--dtype f16 if they are float16)"
        return wanted or "bf16", f"{name}: {found} items are read as {kind} bit patterns{hint}"
    plain = {"<f2": "f2", "<f4": "f4", "<f8": "f8"}.get(found.str)
    if plain is None:
        raise InputMalformed(
            f"{name}: dtype {found} found, expected float16, bfloat16, float32 or float64; "
            f"convert it with array.astype('float32') and save again"
        )
    return plain, None
