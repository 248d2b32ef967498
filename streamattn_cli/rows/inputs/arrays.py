"""The arrays that words name: from a path or standard input to Stored arrays."""

from __future__ import annotations

import os
import sys
from math import prod
from typing import BinaryIO

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.attributes import plain
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.inputs.paths import Place
from streamattn_cli.rows.inputs.scales import with_scale
from streamattn_cli.rows.npyheader import MAGIC
from streamattn_cli.rows.tensors.bytestream import ByteStream
from streamattn_cli.rows.tensors.file import FileTensor
from streamattn_cli.rows.tensors.stored import Stored
from streamattn_cli.rows.tensors.stream import NpyRecords, RawRows, StreamTensor


def standard_input(given: BinaryIO | None) -> BinaryIO:
    """Standard input as bytes; UsageError if it is a terminal or closed."""
    file = given if given is not None else getattr(sys.stdin, "buffer", None)
    if file is None:
        raise UsageError("standard input is closed, but an input is '-'; give a file or a pipe")
    if file.isatty():
        raise UsageError("standard input is a terminal, but an input is '-'; pipe rows into it: ... | streamattn ... -")
    return file


def pipe(path: str) -> BinaryIO:
    """A fifo or device, opened unbuffered (this waits for its writer)."""
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise InputMissing(f"{path}: cannot be opened: {error.strerror}") from error


def record_stream(file: BinaryIO, name: str, wanted: str | None) -> Stored:
    """Concatenated .npy records; waits for the first one. InputMalformed if there is no row."""
    stream = ByteStream(file, name)
    records = NpyRecords(stream, wanted)
    first = records.first
    if first is None:
        raise InputMalformed(f"{name}: is empty, expected .npy records (headerless rows need --raw and --dim)")
    tensor = StreamTensor(stream, records, prod(first.shape[1:]), first.dtype)
    notes, attrs = (first.note,) if first.note else (), plain(first.attrs.items(), name)
    stored = Stored(name, (None, *first.shape[1:]), first.dtype, lambda extent: tensor, attrs, notes, parts=first.parts)
    return _not_empty(tensor, stored)


def raw_stream(file: BinaryIO, name: str, dtype: str, width: int) -> Stored:
    """Headerless rows of `width` items; waits for the first one. InputMalformed if there is none."""
    stream = ByteStream(file, name)
    tensor = StreamTensor(stream, RawRows(stream, width * DTYPES[dtype].itemsize), width, dtype)
    if tensor.peek(1).tobytes().startswith(MAGIC):
        raise UsageError(f"{name}: these are .npy records, not raw rows; omit --raw")
    return _not_empty(tensor, Stored(name, (None, width), dtype, lambda extent: tensor))


def _not_empty(tensor: StreamTensor, stored: Stored) -> Stored:
    if tensor.peek(1).shape[1] == 0:
        raise InputMalformed(f"{stored.name}: no rows, expected at least one")
    return stored


def raw_file(path: str, dtype: str, width: int) -> Stored:
    """Headerless rows of `width` items in a regular file. InputMalformed for none or a partial last row."""
    size, row = os.stat(path).st_size, width * DTYPES[dtype].itemsize
    if size % row or size == 0:
        raise InputMalformed(
            f"{path}: {size} bytes found, expected whole rows of {row} bytes ({width} items of "
            f"{dtype}; {size % row} bytes are left over); check --raw, --dim, --heads and --record"
        )
    return Stored(path, (size // row, width), dtype, lambda extent: FileTensor(path, 0, extent, dtype))


def single(place: Place, word: str, part: str | None, wanted: str | None) -> Stored:
    """The one array that FILE or FILE:DATASET names. `part` chooses q, k or v in a file that names them."""
    held, name = place.held, place.inside
    if name is None and len(names := held.names(place.path)) == 1:
        name = names[0]
    if name is not None:
        return with_scale(held.arrays(place.path, {"one": name}, wanted)["one"], held, place.path, name, part)
    if part is not None:
        return parts_of(place, (part,), None, wanted)[part]
    raise UsageError(f"{word}: holds several arrays ({', '.join(names[:40])}); name one: {word}:NAME")


def parts_of(place: Place, parts: tuple[str, ...], group: str | None, wanted: str | None) -> dict[str, Stored]:
    """The arrays q, k, v (those asked for) of a file that names its arrays. InputMissing lists what is there."""
    held, path = place.held, place.path
    names = held.names_of(path, parts, group)
    found = held.arrays(path, names, wanted)
    return {part: with_scale(stored, held, path, names[part], part) for part, stored in found.items()}
