"""The header of a checkpoint: metadata and the place of every tensor (FORMAT.md). Needs no numpy.

There is exactly one valid header for given metadata, names, dtypes and shapes. The reader therefore lays the tensors
out again and compares: whatever differs is damage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from streamattn_cli.errors import CheckpointCorrupt, CheckpointIncompatible, StreamattnError

CONTAINER = "container"  # metadata key of the version
VERSION = 1
ALIGN = 64  # bytes
LONGEST_HEADER = 1 << 20  # bytes of JSON and the spaces after it
SEAL = "seal"
SEAL_BYTES = 32
PADDING = "~"  # begins the names of padding tensors
ITEMSIZE = {"U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}
MOST_DIMENSIONS = 8
MOST_BYTES = 1 << 62  # of one tensor, its empty dimensions counted as 1: what numpy can give a shape to

_NAME = re.compile(r"(?!seal\Z|__metadata__\Z)[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_VERSION = re.compile(r"sattn/([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Tensor:
    """A tensor's name, safetensors dtype ("F32"), shape, and place [begin, end) in bytes from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def padding(self) -> bool:
        """Whether it only fills the room before the next tensor."""
        return self.name.startswith(PADDING)


@dataclass(frozen=True)
class Header:
    """What a file says about itself: metadata (without the container version), and in `layout` every tensor in order,
    state, padding and the seal."""

    version: int
    meta: dict[str, str]
    layout: tuple[Tensor, ...]
    text: bytes  # everything before the data

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the state, sorted by name."""
        return tuple(tensor for tensor in self.layout[:-1] if not tensor.padding)

    @property
    def state_bytes(self) -> int:
        """Bytes that the state takes in memory."""
        return sum(tensor.end - tensor.begin for tensor in self.tensors)

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.text) + self.layout[-1].end


def canonical_json(value: object) -> str:
    """JSON with one spelling: sorted keys, no spaces, ASCII, no NaN or infinity (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], meta: Mapping[str, str]) -> Header:
    """The header for (name, dtype, shape) of a state and metadata without the container's own key.

    Raises StreamattnError for names, types or sizes that the format does not allow.
    """
    described = sorted(tensors)
    for name, dtype, shape in described:
        wrong = _wrong_description(name, dtype, shape)
        if wrong:
            raise StreamattnError(f"checkpoint tensor {name[:80]}: {wrong}; see checkpoint/FORMAT.md")
    for key, value in meta.items():
        if not _is_text(key) or not _is_text(value) or key == CONTAINER:
            raise StreamattnError(
                f"checkpoint metadata {key!r}: {value!r}: expected Unicode text under a key that is not {CONTAINER!r}"
            )
    header = _spelled(described, meta)
    if len(header.text) - 8 > LONGEST_HEADER:
        raise StreamattnError(
            f"checkpoint header of {len(header.text) - 8} bytes for {len(described)} tensors found, "
            f"expected at most {LONGEST_HEADER}; stack the arrays of all heads into one tensor"
        )
    return header


def header_length(file: str, start: bytes, file_bytes: int) -> int:
    """Bytes of JSON after the first 8, which are `start`. Raises CheckpointCorrupt before anything large is read."""
    if not start:
        raise damaged(file, "the file is empty: truncated, or never written")
    if len(start) < 8:
        raise damaged(file, f"{file_bytes} bytes found, expected at least 8; the file is truncated")
    length = int.from_bytes(start, "little")
    if length > LONGEST_HEADER:
        raise damaged(file, f"header of {length} bytes found, expected at most {LONGEST_HEADER}; not a checkpoint")
    if length > file_bytes - 8:
        raise damaged(file, f"header of {length} bytes in a file of {file_bytes}; the file is truncated")
    return length


def parse_header(file: str, text: bytes, file_bytes: int) -> Header:
    """The header whose bytes, with the 8 of the length, are `text`, of a file of this name and size.

    Raises CheckpointCorrupt for anything out of place, CheckpointIncompatible for a newer container version.
    """
    found = _json(file, text[8:])
    meta = found.pop("__metadata__", None)
    if not isinstance(meta, dict) or not all(_is_text(key) and _is_text(value) for key, value in meta.items()):
        raise damaged(file, "no __metadata__ of Unicode strings found in the header; not a checkpoint")
    _check_version(file, meta.pop(CONTAINER, ""))
    places = [_tensor(file, name, entry) for name, entry in found.items()]
    state = [tensor for tensor in places if tensor.name != SEAL and not tensor.padding]
    header = _spelled(sorted((tensor.name, tensor.dtype, tensor.shape) for tensor in state), meta)
    _check_layout(file, places, header.layout)
    if header.text != text:
        raise damaged(file, "the header is not spelled as this program spells it (order, spaces, escapes or padding)")
    if header.file_bytes != file_bytes:
        what = "the file is truncated" if file_bytes < header.file_bytes else "there are trailing bytes"
        raise damaged(file, f"{file_bytes} bytes found, expected {header.file_bytes}; {what}")
    return header


def damaged(file: str, what: str) -> CheckpointCorrupt:
    """The error for a damaged file."""
    return CheckpointCorrupt(f"{file}: damaged checkpoint: {what}; restore it from a copy, or make it again")


def _spelled(described: list[tuple[str, str, tuple[int, ...]]], meta: Mapping[str, str]) -> Header:
    """The one header for sorted descriptions and metadata without the version."""
    layout = _lay_out(described)
    entries = {
        tensor.name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (tensor.begin, tensor.end)}
        for tensor in layout
    }
    strings = dict(sorted({**meta, CONTAINER: f"sattn/{VERSION}"}.items()))
    text = json.dumps({"__metadata__": strings, **entries}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    return Header(VERSION, dict(meta), layout, len(text).to_bytes(8, "little") + text)


def _lay_out(described: list[tuple[str, str, tuple[int, ...]]]) -> tuple[Tensor, ...]:
    """Places: the state in order of names, each at a multiple of ALIGN, padding where needed, the seal last."""
    layout, at = [], 0
    for name, dtype, shape in described:
        end = at + ITEMSIZE[dtype] * prod(shape)
        layout.append(Tensor(name, dtype, shape, at, end))
        at = end + -end % ALIGN
        if at > end:
            layout.append(Tensor(PADDING + name, "U8", (at - end,), end, at))
    layout.append(Tensor(SEAL, "U8", (SEAL_BYTES,), at, at + SEAL_BYTES))
    return tuple(layout)


def _wrong_description(name: str, dtype: str, shape: tuple[int, ...]) -> str:
    """What is wrong with a tensor of the state, or ""."""
    if not _NAME.fullmatch(name):
        return "name found with characters or a length that are not allowed"
    if dtype not in ITEMSIZE:
        return f"unknown dtype {dtype[:80]!r} found, expected one of {', '.join(ITEMSIZE)}"
    if len(shape) > MOST_DIMENSIONS:
        return f"{len(shape)} dimensions found, expected at most {MOST_DIMENSIONS}"
    if prod(max(size, 1) for size in shape) * ITEMSIZE[dtype] > MOST_BYTES:
        return f"absurd shape {str(list(shape))[:80]} found"
    return ""


def _is_text(value: object) -> bool:
    """Whether it is text that UTF-8 can hold (names of files may hold halves of surrogate pairs)."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _json(file: str, text: bytes) -> dict:
    try:
        found = json.loads(text.decode("ascii"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise damaged(file, f"the header is not plain JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise damaged(file, f"a JSON {type(found).__name__} found as header, expected an object")
    return found


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _check_version(file: str, text: str) -> None:
    match = _VERSION.fullmatch(text)
    if not match:
        raise damaged(file, f"metadata {CONTAINER}: {text[:80]!r} found, expected 'sattn/{VERSION}'; not a checkpoint")
    if int(match[1]) > VERSION:
        raise CheckpointIncompatible(
            f"{file}: checkpoint of container version {match[1]} found, expected at most "
            f"{VERSION}; read it with the newer version of streamattn that wrote it"
        )


def _tensor(file: str, name: str, entry: object) -> Tensor:
    """One tensor of the table if its entry has the three fields in their types."""
    if isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}:
        dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
        if isinstance(dtype, str) and _sizes(shape) and _sizes(place) and len(place) == 2:
            plain = "tensor" if name == SEAL else name.removeprefix(PADDING)  # these two have names of their own
            wrong = _wrong_description(plain, dtype, tuple(shape))
            if wrong:
                raise damaged(file, f"tensor {name[:80]!r}: {wrong}")
            return Tensor(name, dtype, tuple(shape), *place)
    raise damaged(file, f"tensor {name[:80]!r}: entry without a sane dtype, shape or data_offsets: {str(entry)[:80]}")


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MOST_BYTES for item in value)


def _check_layout(file: str, found: list[Tensor], expected: tuple[Tensor, ...]) -> None:
    """Name the first tensor that is not where, or what, the layout demands."""
    if not found or found[-1].name != SEAL:
        raise damaged(file, f"last tensor {found[-1].name if found else 'none'!r} found, expected {SEAL!r}")
    end = 0
    for tensor, wanted in zip(found, expected, strict=False):
        if tensor != wanted:
            raise damaged(file, f"tensor {_line(tensor)} found, expected {_line(wanted)}{_relation(tensor, end)}")
        end = tensor.end
    if len(found) != len(expected):
        raise damaged(file, f"{len(found)} tensors found, expected {len(expected)}")


def _line(tensor: Tensor) -> str:
    return f"{tensor.name} {tensor.dtype} {list(tensor.shape)} at data bytes {tensor.begin} to {tensor.end}"


def _relation(tensor: Tensor, end: int) -> str:
    if tensor.begin > end:
        return f" (a gap of {tensor.begin - end} bytes before it)"
    return f" (it overlaps the tensor before it by {end - tensor.begin} bytes)" if tensor.begin < end else ""
