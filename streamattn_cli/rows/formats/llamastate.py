"""Sequence states of llama.cpp (llama_state_seq_save_file, --slot-save-path): keys and values of every layer.

Three numbers of 32 bits (magic, version, tokens), tokens, and the cache: the number of streams, and for each stream its cells,
what is known of each cell (position, number of sequences, perhaps more, the sequence), whether values are transposed, the number
of layers, the keys of all layers, and the values of all layers. Each has its ggml type and the size of a row before it. Source:
llama_kv_cache::state_write in src/llama-kv-cache.cpp, llama_state_seq_save_file in src/llama-context.cpp.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from streamattn_cli.errors import InputMalformed
from streamattn_cli.options import one_of
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.formats.format import Format
from streamattn_cli.rows.formats.inflate import file_key
from streamattn_cli.rows.formats.names import check_there
from streamattn_cli.rows.formats.strided import ColumnsTensor
from streamattn_cli.rows.tensors.file import FileTensor
from streamattn_cli.rows.tensors.layout import Extent
from streamattn_cli.rows.tensors.stored import Stored
from streamattn_cli.rows.tensors.tensor import RowTensor

MAGIC = b"qsgg"
# bytes that a cell may have besides: places in a picture, and the token; None: before there were streams (July 2025) a cell
# had no sequence either
VERSIONS = {2: (0, 8, None), 3: (0, 12)}
TYPES = {0: "f4", 1: "f2", 30: "bf16"}
QUANTISED = {2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 20: "iq4_nl"}  # of those that caches are kept in
LAYERS = 1 << 14  # at most
CELLS = 1 << 16  # that are looked at together


@dataclass(frozen=True)
class Block:
    """Keys or values of one layer: (cells, width) rows, or transposed."""

    kind: int
    offset: int
    cells: int
    bytes: int
    transposed: int | None = None  # the width where it is


class _Reader:
    """Numbers of a file in order. Raises ValueError where it ends before."""

    def __init__(self, file: int, at: int):
        self.file, self.at, self.size = file, at, os.fstat(file).st_size

    def numbers(self, kinds: str) -> tuple[int, ...]:
        data = os.pread(self.file, struct.calcsize("<" + kinds), self.at)
        if len(data) < struct.calcsize("<" + kinds):
            raise ValueError("it ends too early")
        self.at += len(data)
        return struct.unpack("<" + kinds, data)

    def skip(self, count: int) -> int:
        """Where these bytes begin."""
        if count > self.size - self.at:
            raise ValueError("it ends too early")
        self.at += count
        return self.at - count


@lru_cache(maxsize=1)
def _blocks(path: str, _key: tuple[int, ...]) -> dict[str, Block]:
    """Keys and values by name. InputMalformed for anything out of place."""
    with open(path, "rb") as file:
        try:
            reader = _Reader(file.fileno(), 4)
            version, tokens = reader.numbers("II")
            if version not in VERSIONS:
                known = " and ".join(map(str, VERSIONS))
                raise InputMalformed(f"{path}: a llama.cpp sequence state of version {version}; {known} are read")
            start, failed = reader.skip(4 * tokens) + 4 * tokens, ValueError()
        except ValueError as error:
            raise InputMalformed(f"{path}: a damaged llama.cpp sequence state: {error}; save it again") from error
        for more in VERSIONS[version]:  # the file does not say it: only one of them ends where the file does
            try:
                return dict(_cache(path, _Reader(file.fileno(), start), more))
            except ValueError as error:
                failed = failed if str(failed) else error
    raise InputMalformed(f"{path}: a damaged llama.cpp sequence state: {failed}; save it again") from failed


def _cache(path: str, reader: _Reader, more: int | None) -> Iterator[tuple[str, Block]]:
    """The blocks of the one stream that holds cells."""
    (streams,) = reader.numbers("I") if more is not None else (1,)
    found = False
    for _ in range(streams):
        (cells,) = reader.numbers("I")
        if cells and found:
            raise ValueError("cells in several streams")
        if cells:
            found = True
            _check_cells(path, reader, cells, more)
            yield from _layers(reader, cells)
    if not found:
        raise ValueError("it holds no cells")
    if reader.at != reader.size:
        raise ValueError(
            f"{reader.size - reader.at} bytes are left behind the cache, as of models with sliding windows or recurrent layers, "
            "which are not read"
        )


def _check_cells(path: str, reader: _Reader, cells: int, more: int | None) -> None:
    """Each cell is of one sequence, and they are in the order of their positions."""
    size, last = (8 if more is None else 12 + more), -1
    start = reader.skip(cells * size)
    for first in range(0, cells, CELLS):
        count = min(CELLS, cells - first)
        data = os.pread(reader.file, count * size, start + first * size)
        table = np.frombuffer(data, "<i4").reshape(count, size // 4)
        if (table[:, 1] != (more is not None)).any():
            raise ValueError("a cell that is not of one sequence")
        positions = np.concatenate([[last], table[:, 0]])
        if (np.diff(positions) < 0).any():
            raise InputMalformed(
                f"{path}: the cells of the cache are not in the order of their positions; save a state that was not shifted"
            )
        last = int(positions[-1])


def _layers(reader: _Reader, cells: int) -> Iterator[tuple[str, Block]]:
    transposed, layers = reader.numbers("II")
    if transposed > 1 or not 0 < layers <= LAYERS:
        raise ValueError(f"{layers} layers")
    for part in "kv":
        for layer in range(layers):
            if part == "v" and reader.at == reader.size:
                return  # models whose values are part of the keys
            if part == "v" and transposed:
                kind, item, width = reader.numbers("iII")
                size, turned = item * width, width
            else:
                kind, size = reader.numbers("iQ")
                turned = None
            yield f"layers.{layer}.{part}", Block(kind, reader.skip(size * cells), cells, size, turned)


def _names(path: str) -> list[str]:
    return sorted(_blocks(path, file_key(path)))


def _arrays(path: str, names: dict[str, str], wanted: str | None) -> dict[str, Stored]:
    blocks = _blocks(path, file_key(path))
    check_there(path, names.values(), blocks)
    return {key: _stored(path, name, blocks[name]) for key, name in names.items()}


def _stored(path: str, name: str, block: Block) -> Stored:
    label, dtype = f"{path}:{name}", TYPES.get(block.kind)
    if dtype is None:
        kind = QUANTISED.get(block.kind, f"ggml type {block.kind}")
        known = one_of(tuple(DTYPES[found].title for found in TYPES.values()))
        raise InputMalformed(f"{label}: rows are {kind}, expected {known}; run llama.cpp with -ctk f16 -ctv f16")
    item = DTYPES[dtype].itemsize
    if block.bytes % item or (block.transposed is not None and block.bytes != block.transposed * item):
        raise InputMalformed(f"{label}: rows of {block.bytes} bytes of {dtype}: the file is damaged; save it again")
    shape = (block.cells, block.bytes // item)

    def open_(extent: Extent) -> RowTensor:
        if block.transposed is None:
            return FileTensor(path, block.offset, extent, dtype, label)
        return ColumnsTensor(path, block.offset, extent, dtype, label)

    return Stored(label, shape, dtype, open_)


FORMAT = Format(
    name="llama-state",
    extensions=(),
    sniff=lambda path, start: start.startswith(MAGIC),
    names=_names,
    arrays=_arrays,
)
