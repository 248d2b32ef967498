"""Rows of Arrow IPC files and streams, in place where they are not compressed.

Both are messages one after the other; the description of each, a flatbuffer, says where the buffers of every column are.
Format: https://arrow.apache.org/docs/format/Columnar.html, Message.fbs. The library reads the schema and decompresses; its own
reader would take a whole batch of all columns into memory. This module imports pyarrow.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from streamattn_cli.errors import InputMalformed, damaged
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.formats.arrowtypes import stored_columns
from streamattn_cli.rows.formats.flatbuffer import LONGEST, MAGIC, Table
from streamattn_cli.rows.tensors.file import OpenFileTensor
from streamattn_cli.rows.tensors.layout import Extent
from streamattn_cli.rows.tensors.stored import Stored

BATCH = 3  # the kind of messages that hold rows
CODECS = ("lz4", "zstd")  # by number; the first is that of frames
LARGEST = 1 << 31  # bytes of one column of a compressed batch


@dataclass(frozen=True)
class Message:
    """A record batch: its rows, its description, and where its buffers are."""

    rows: int
    batch: Table
    body: int
    size: int


@dataclass(frozen=True)
class Piece:
    """The rows of one column in one batch; codec None: as they are."""

    rows: int
    offset: int
    stored: int
    codec: str | None


def ipc_names(path: str) -> list[str]:
    """Names of the columns, sorted."""
    return sorted(set(_schema(path).names))


def ipc_arrays(path: str, names: dict[str, str], wanted: str | None) -> dict[str, Stored]:
    """The columns `names` (key -> name)."""
    schema, batches = _schema(path), _batches(path)

    def make(column: str, extent: Extent, dtype: str, label: str) -> ArrowTensor:
        row = extent.width * DTYPES[dtype].itemsize
        return ArrowTensor(path, [_piece(m, schema, column, row, label) for m in batches], extent, dtype, label)

    return stored_columns(path, schema, names, sum(batch.rows for batch in batches), wanted, make)


def _schema(path: str) -> pa.Schema:
    try:
        with open(path, "rb") as file:
            start = 8 if file.read(8) == MAGIC else 0
            file.seek(start)
            head = file.read(8)
            length = int.from_bytes(head[4:8], "little")
            if length > LONGEST:
                raise ValueError(f"a schema of {length} bytes")
            schema = pa.ipc.read_schema(pa.BufferReader(head + file.read(length)))
            schema.names  # noqa: B018 - which may not be text
            return schema
    except Exception as error:  # of a damaged schema the library raises whatever it meets
        raise damaged(path, f"unreadable as an Arrow file: {error}") from error


def _batches(path: str) -> list[Message]:
    """All record batches, from the descriptions alone."""
    found = []
    with open(path, "rb") as file:
        whole = os.fstat(file.fileno()).st_size
        at = 8 if os.pread(file.fileno(), 8, 0) == MAGIC else 0
        try:
            while at + 8 <= whole:
                mark, length = struct.unpack("<II", os.pread(file.fileno(), 8, at))
                if mark != 0xFFFFFFFF or length == 0:
                    break
                data = os.pread(file.fileno(), length, at + 8) if length <= LONGEST else b""
                message = Table.of(data)
                body, size = at + 8 + length, message.number(3, "q")
                if len(data) < length or not 0 <= size <= whole - body:
                    raise ValueError("a batch that reaches beyond the end")
                if message.number(1, "B") == BATCH:
                    batch = message.table(2)
                    found.append(Message(batch.number(0, "q"), batch, body, size))
                at = body + size
        except (struct.error, ValueError) as error:
            raise damaged(path, f"truncated or damaged: {error}") from error
        if at >= whole or (mark, length) != (0xFFFFFFFF, 0):
            raise damaged(path, "truncated: it ends without the mark of its end")
    return found


def _piece(message: Message, schema: pa.Schema, column: str, row: int, label: str) -> Piece:
    """Where the rows of a column are, which needs `row` bytes for each. InputMalformed for nulls and for what does not fit."""
    nodes = buffers = 0
    for field in schema:
        if field.name == column:
            break
        more = _counts(field.type, label)
        nodes, buffers = nodes + more[0], buffers + more[1]
    depth = _counts(schema.field(column).type, label)[0]
    try:
        for level in range(depth):
            if message.batch.struct(1, nodes + level)[1]:
                raise InputMalformed(f"{label}: has nulls, expected a number everywhere; omit or fill these rows")
        where, stored = message.batch.struct(2, buffers + depth)
        codec = message.batch.table(3).number(0, "b") if message.batch.has(3) else None
    except (struct.error, ValueError) as error:
        raise damaged(label, f"truncated or damaged: {error}") from error
    needed = message.rows * row
    fits = 0 <= where and 0 <= stored and where + stored <= message.size and message.rows >= 0
    if not fits or (codec is None and stored < needed) or codec not in (None, 0, 1):
        raise damaged(label, f"{message.rows} rows need {needed} bytes, a batch has {stored}")
    return Piece(message.rows, message.body + where, stored, None if codec is None or not needed else CODECS[codec])


def _counts(kind: pa.DataType, label: str) -> tuple[int, int]:
    """Nodes and buffers that a column has in a batch."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if pa.types.is_dictionary(kind):
        return 1, 2
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        raise InputMalformed(f"{label}: lies behind a column of {kind}, whose size is not known; omit that column")
    own = kind.num_buffers
    below = [_counts(kind.field(i).type, label) for i in range(kind.num_fields)]
    return 1 + sum(nodes for nodes, _ in below), own + sum(count for _, count in below)


class ArrowTensor(OpenFileTensor):
    """A RowTensor over one column of all batches. Of compressed ones it keeps the last."""

    def __init__(self, path: str, pieces: list[Piece], extent: Extent, dtype: str, name: str):
        super().__init__(name, path, extent, dtype)
        self._pieces = [piece for piece in pieces if piece.rows]
        self._firsts = np.cumsum([0, *(piece.rows for piece in self._pieces)]).tolist()
        packed = [piece for piece in self._pieces if piece.codec]
        largest = max((piece.rows * self._row for piece in packed), default=0)
        if largest > LARGEST:
            raise InputMalformed(f"{name}: a compressed batch of {largest} bytes; write it in smaller batches")
        self.held_bytes = largest + max((piece.stored for piece in packed), default=0) + 96 * len(pieces)
        self._kept: tuple[int, memoryview] | None = None

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        count = self.there(buf, start, segment)
        if not count * self._row:
            return count
        view, at = memoryview(buf).cast("B"), start
        while at < start + count:
            number = bisect_right(self._firsts, at) - 1
            first, piece = self._firsts[number], self._pieces[number]
            stop = min(start + count, self._firsts[number + 1])
            into = view[(at - start) * self._row : (stop - start) * self._row]
            skip = (at - first) * self._row
            if piece.codec is None:
                self.fill(into, piece.offset + skip)
            else:
                into[:] = self._unpacked(number)[skip : skip + len(into)]
            at = stop
        return count

    def _unpacked(self, number: int) -> memoryview:
        """All rows of a compressed batch: eight bytes say how many, -1 that they are as they are."""
        if self._kept is None or self._kept[0] != number:
            self._kept = None  # give it back before the next is made
            piece, data = self._pieces[number], bytearray(self._pieces[number].stored)
            self.fill(memoryview(data), piece.offset)
            needed, said = piece.rows * self._row, int.from_bytes(data[:8], "little", signed=True)
            if not needed <= (len(data) - 8 if said == -1 else said) <= 2 * needed + 1024:
                raise damaged(self.name, f"a batch of {said} bytes, expected {needed}")
            rest = memoryview(data)[8:]
            try:
                found = rest if said == -1 else memoryview(pa.decompress(rest, said, piece.codec)).cast("B")
            except Exception as error:  # of damaged bytes the codecs raise whatever they meet
                raise damaged(self.name, f"a damaged batch: {error}") from error
            self._kept = number, found
        return self._kept[1]

    def close(self) -> None:
        """Close the file."""
        self._kept = None
        super().close()
