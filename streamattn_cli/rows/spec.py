"""What the user said about the input, in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class InputSpec:
    """Words of the command line. FILE may be FILE:DATASET, and `-` is standard input."""

    input: str | None = None  # holds all of q, k, v (or packed rows, see record)
    more: tuple[str, ...] = ()  # further files whose rows follow those of `input` (see many.py)
    q: str | None = None  # a file of its own for one of them; wins over `input`
    k: str | None = None
    v: str | None = None
    group: str | None = None  # HDF5 group or safetensors name prefix of q, k, v
    layout: str | None = None  # one of layout.LAYOUTS; None: from the file's attributes, or inferred
    record: str | None = None  # packed rows: 'qkv', 'kv', 'q', 'k', 'v'; None: the parts that have no file of their own
    raw: str | None = None  # dtype of headerless rows: `input`, standard input, fifos
    dtype: str | None = None  # what uint16 or V2 items are: 'bf16' (as when None) or 'f16'
    heads: int | None = None  # query heads, where fused rows do not say
    kv_heads: int | None = None  # key heads; None: as heads
    dim: int | None = None  # items of a query or key head
    value_dim: int | None = None  # items of a value head; None: as dim
    select: tuple[int, ...] | None = None  # key heads to keep, with the query heads of their groups
    rows: tuple[int, int | None] | None = None  # rows [A, B) of k and v, and of q where it shares their tensor
    q_rows: tuple[int, int | None] | None = None  # rows [A, B) of q
    stdin: BinaryIO | None = None  # None: sys.stdin.buffer
