"""safetensors files, read by hand: 8 bytes of header length, a JSON header, then raw tensors."""

from __future__ import annotations

import json
import os
from math import prod

import numpy as np

from streamattn_cli.errors import InputMalformed
from streamattn_cli.options import one_of
from streamattn_cli.rows.dtypes import DTYPES, storage_of
from streamattn_cli.rows.formats.format import Format
from streamattn_cli.rows.formats.names import check_there
from streamattn_cli.rows.tensors.file import FileTensor
from streamattn_cli.rows.tensors.layout import Extent
from streamattn_cli.rows.tensors.stored import Stored

_DTYPES = {found.safetensors: name for name, found in DTYPES.items()}
_INTEGERS = {"U16": "<u2", "I16": "<i2", "U8": "|u1", "I8": "|i1"}  # of which --dtype may say what they are
_WHOLE = {"I64": "<i8", "U64": "<u8", "I32": "<i4", "U32": "<u4", "BOOL": "?", **_INTEGERS}
_SIZES = {word: DTYPES[name].itemsize for word, name in _DTYPES.items()}
_SIZES |= {word: np.dtype(name).itemsize for word, name in _INTEGERS.items()}
_LONGEST = 100_000_000  # bytes of header; the format's own limit


def read_safetensors_header(path: str) -> tuple[dict[str, dict], dict[str, str], int]:
    """(tensors by name, metadata, offset of the data). Raises InputMalformed for anything out of place."""
    with open(path, "rb") as file:
        there = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if there < 8 or length > min(_LONGEST, there - 8):
            raise InputMalformed(
                f"{path}: safetensors header of {length} bytes in a file of {there}; it is truncated "
                f"or not a safetensors file"
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _checked(path, name, entry) for name, entry in header.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputMalformed(f"{path}: unreadable safetensors header: {error}") from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputMalformed(f"{path}: safetensors __metadata__ is not a map of strings")
    _check_places(path, tensors, there - 8 - length)
    return tensors, metadata, 8 + length


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _checked(path: str, name: str, entry: object) -> dict:
    """One tensor's entry if it has the three fields in their types."""
    if isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}:
        lists = all(
            isinstance(entry[key], list) and all(type(item) is int and item >= 0 for item in entry[key])
            for key in ("shape", "data_offsets")
        )
        if lists and len(entry["data_offsets"]) == 2 and isinstance(entry["dtype"], str):
            return entry
    raise InputMalformed(
        f"{path}: tensor {name}: header entry {str(entry)[:80]} lacks a sane dtype, shape or data_offsets"
    )


def _check_places(path: str, tensors: dict[str, dict], size: int) -> None:
    """Tensors lie within the file, do not overlap, and those of our dtypes are as long as their shape says."""
    last_end, last_name = 0, ""
    for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        if not begin <= end <= size:
            raise InputMalformed(
                f"{path}: truncated: tensor {name} lies at data bytes {begin} to {end}, the file has "
                f"{size}; copy it again"
            )
        if begin < last_end:
            raise InputMalformed(f"{path}: tensors {last_name} and {name} overlap; the header is damaged")
        item = _SIZES.get(entry["dtype"])
        needed = prod(entry["shape"]) * item if item else end - begin
        if end - begin != needed:
            raise InputMalformed(
                f"{path}: tensor {name} of shape {entry['shape']} {entry['dtype']} needs {needed} "
                f"bytes, its header entry gives {end - begin}"
            )
        last_end, last_name = end, name


def safetensors_arrays(path: str, names: dict[str, str], wanted: str | None = None) -> dict[str, Stored]:
    """The tensors `names` (key -> name in the file); wanted: what 16-bit integers are. InputMissing lists what is there."""
    tensors, metadata, base = read_safetensors_header(path)
    check_there(path, names.values(), tensors, "tensor")
    return {key: _stored(path, name, tensors[name], metadata, base, wanted) for key, name in names.items()}


def _stored(path: str, name: str, entry: dict, metadata: dict[str, str], base: int, wanted: str | None) -> Stored:
    label, note = f"{path}:{name}", None
    dtype = _DTYPES.get(entry["dtype"])
    if entry["dtype"] in _INTEGERS:
        dtype, note = storage_of(np.dtype(_INTEGERS[entry["dtype"]]), label, wanted)
    if dtype is None:
        raise InputMalformed(f"{label}: dtype {entry['dtype']} found, expected {one_of(tuple(_DTYPES))}; convert it")
    offset = base + entry["data_offsets"][0]

    def open_(extent: Extent) -> FileTensor:
        return FileTensor(path, offset, extent, dtype, label)

    return Stored(label, tuple(entry["shape"]), dtype, open_, dict(metadata), (note,) if note else ())


def _integers(path: str, name: str, most: int) -> np.ndarray | None:
    tensors, _, base = read_safetensors_header(path)
    entry = tensors.get(name, {"dtype": ""})
    if entry["dtype"] not in _WHOLE or (count := prod(entry["shape"])) > most:
        return None
    dtype, (begin, end) = np.dtype(_WHOLE[entry["dtype"]]), entry["data_offsets"]
    if count * dtype.itemsize != end - begin:
        raise InputMalformed(
            f"{path}: tensor {name}: {end - begin} bytes for {count} {entry['dtype']}; the header is damaged"
        )
    return np.fromfile(path, dtype, count, offset=base + begin).reshape(entry["shape"])


FORMAT = Format(
    name="safetensors",
    integers=_integers,
    extensions=(".safetensors",),
    sniff=lambda path, start: start[8:9] == b"{",
    names=lambda path: sorted(read_safetensors_header(path)[0]),
    arrays=safetensors_arrays,
)
