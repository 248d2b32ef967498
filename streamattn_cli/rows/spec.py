"""What the user said about the input, in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from streamattn_cli.errors import UsageError
from streamattn_cli.options import INPUT, check_choices, one_of, option
from streamattn_cli.rows.dtypes import PATTERNS, WORDS
from streamattn_cli.rows.tensors.layout import LAYOUTS

RECORDS = ("qkv", "kv", "q", "k", "v")

source = partial(option, panel=INPUT)
sequences = partial(source, metavar="NUMBERS", arrays=True, decides=True)


def read_numbers(word: str, name: str = "--select") -> tuple[int, ...]:
    """'0,2' as (0, 2); name: of the option. Raises UsageError."""
    try:
        return tuple(int(part) for part in word.split(","))
    except ValueError:
        raise UsageError(f"{name} {word}: give numbers with commas between them, such as 0,2") from None


def read_range(option: str, word: str) -> tuple[int, int | None]:
    """'A:B' as (A, B), 'A:' as (A, None)."""
    try:
        first, last = word.split(":")
        return int(first or 0), int(last) if last else None
    except ValueError:
        raise UsageError(f"{option} {word}: give A:B, such as 0:4096 or 1000: (to the end)") from None


@dataclass(frozen=True)
class InputSpec:
    """Words of the command line. FILE may be FILE:DATASET, and `-` is standard input."""

    input: str | None = None  # holds all of q, k, v (or packed rows, see record)
    more: tuple[str, ...] = ()  # further files whose rows follow those of `input` (see several_files.py)
    like: str | None = None  # of queries to a sketch: the layout that its keys had
    own_queries: bool = False  # of keys and values: the queries of `input` are read, too
    # a file of its own for one of them wins over `input`
    q: str | None = source(None, "Queries: FILE, FILE:DATASET or -.", "--q", arrays=True)
    k: str | None = source(None, "Keys.", "--k", arrays=True)
    v: str | None = source(None, "Values.", "--v", arrays=True)
    group: str | None = source(None, "HDF5 group or name prefix of q, k, v.")
    layer: str | None = source(
        None,
        "Layers, one after the other: 3, 0:8, 1,5 or all; by the number in their names, or a {layer} in FILE.",
        metavar="NUMBERS",
    )
    number: int | None = None  # of the layer, where it is known
    config: str | None = source(
        None,
        "config.json of the model (transformers), or its folder: causal, scale, windows, softcap, heads; what the file or an "
        "option says goes before.",
        metavar="FILE",
        arrays=True,
        decides=True,
    )
    layout: str | None = source(None, "Axes of a tensor.", choices=LAYOUTS, open=True, shown="of the file, or inferred")
    record: str | None = source(None, "What packed rows hold.", choices=RECORDS)
    raw: str | None = source(None, f"Rows without headers, of {one_of(WORDS)}.", choices=WORDS, open=True)
    dtype: str | None = source(
        None, f"What 8- or 16-bit integers are: {one_of(PATTERNS)}.", choices=PATTERNS, open=True
    )
    heads: int | None = source(None, "Query heads in fused rows.", "--heads")
    kv_heads: int | None = source(None, "Key heads in fused rows.", "--kv-heads", shown="as --heads")
    dim: int | None = source(None, "Length of a query or key in fused rows.")
    value_dim: int | None = source(None, "Length of a value.", shown="as --dim")
    missing: str = source(
        "error", "What to do with rows of HDF5 and Zarr that are not stored.", choices=("error", "zeros"), decides=True
    )
    select: tuple[int, ...] | None = source(
        None,
        "Key heads to use, such as 0,2 (with their query heads).",
        "--select",
        read=read_numbers,
        decides=True,
        heads=True,
    )
    rows: tuple[int, int | None] | None = source(
        None, "Rows A to B (not included) only.", metavar="A:B", read=partial(read_range, "--rows")
    )
    q_rows: tuple[int, int | None] | None = source(
        None,
        "Rows A to B of queries that have a file of their own.",
        metavar="A:B",
        read=partial(read_range, "--q-rows"),
    )
    lengths: str | None = sequences(
        None,
        "Rows of each sequence, padded or packed: 5,9,7 or FILE, FILE:DATASET, which may be a mask of 0 and 1, too.",
    )
    starts: str | None = sequences(
        None, "First row of each sequence in packed rows, and their end: 0,5,14,21 or FILE, FILE:DATASET."
    )
    q_lengths: str | None = sequences(
        None, "--lengths of the queries, where the batch has fewer of them.", shown="all rows"
    )
    q_starts: str | None = sequences(
        None, "--starts of the queries, where sequences have fewer of them (cu_seqlens_q).", shown="as --starts"
    )
    stdin: BinaryIO | None = None  # None: sys.stdin.buffer

    def __post_init__(self) -> None:
        check_choices(self)
