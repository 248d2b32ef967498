"""The header of an .npy file or record, read strictly: a dtype we can read, C order, a sane shape.

Rows may say what they hold: records of NumPy with fields q, k and v (heads, dim), side by side, of one dtype. The title of the
first field may be attributes, as JSON.
"""

from __future__ import annotations

import ast
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.dtypes import DTYPES, storage_of

MAGIC = b"\x93NUMPY"
_OTHER_NUMBERS = re.compile(r"\b(\d+)L\b|\bnp\.u?int\d*\((\d+)\)")  # as Python 2 wrote them, and as NumPy 2 shows them
_EXTENDED = {"bfloat16": "<V2", "<f1": "|V1"}  # what ml_dtypes writes that NumPy alone does not read; f1 is fp8 E5M2
_LONGEST = 10_000  # bytes of header text; NumPy's own limit


@dataclass(frozen=True)
class NpyHeader:
    """What an .npy header says."""

    shape: tuple[int, ...]
    dtype: str  # key of dtypes.DTYPES
    size: int  # bytes of the header itself
    note: str | None  # an inference about the dtype
    parts: tuple[tuple[str, int, int], ...] = ()  # (q, k or v, heads, dim) of rows that say what they hold
    attrs: dict = field(default_factory=dict)  # what such rows say about themselves

    @property
    def payload(self) -> int:
        """Bytes of data that follow the header."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def read_header(read: Callable[[int], bytes], name: str, wanted: str | None = None) -> NpyHeader:
    """Read and parse a header from `read(n)`, which returns exactly n bytes or fewer at the end. InputMalformed."""
    return parse_header(raw_header(read, name), name, wanted)


def raw_header(read: Callable[[int], bytes], name: str) -> bytes:
    """The bytes of one header and not one more, checked for length only."""
    start = read(8)
    if start[:6] != MAGIC[: len(start)] or len(start) < 8:
        raise InputMalformed(f"{name}: not an .npy header: found bytes {start!r}, expected {MAGIC!r} and a version")
    version = start[6]
    if version not in (1, 2, 3):
        raise InputMalformed(f"{name}: .npy version {version} found, expected 1, 2 or 3; save it with a current NumPy")
    digits = _digits(version)
    length_bytes = read(digits)
    length = int.from_bytes(length_bytes, "little")
    if len(length_bytes) < digits or length > _LONGEST:
        raise InputMalformed(f"{name}: .npy header of {length} bytes, expected at most {_LONGEST}; the file is damaged")
    text = read(length)
    if len(text) < length:
        raise InputMalformed(f"{name}: truncated: the .npy header promises {length} bytes of text, found {len(text)}")
    return start + length_bytes + text


def _digits(version: int) -> int:
    """Bytes of the length field."""
    return 2 if version == 1 else 4


def shape_and_dtype(read: Callable[[int], bytes], name: str) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and bytes of a header of an array of any dtype. InputMalformed."""
    raw = raw_header(read, name)
    shape, dtype, _ = _parse(_text(raw), name)
    return shape, dtype, len(raw)


def _text(raw: bytes) -> str:
    return raw[8 + _digits(raw[6]) :].decode("latin1" if raw[6] < 3 else "utf-8", "replace")


def parse_header(raw: bytes, name: str, wanted: str | None = None) -> NpyHeader:
    """What the bytes of a header say. Raises InputMalformed."""
    shape, dtype, told = _parse(_text(raw), name)
    parts, attrs = _parts(dtype), {}
    if parts and len(shape) == 1:
        attrs = _attributes(dtype)
        dtype, shape = dtype[0].base, (*shape, sum(heads * dim for _, heads, dim in parts))
        told = attrs.pop("dtype", None)
    if dtype.names or dtype.subdtype:
        raise InputMalformed(
            f"{name}: dtype {dtype} found: records are not read, but for those with fields q, k and v of one dtype; save a plain "
            "float array"
        )
    storage, note = storage_of(dtype, name, wanted or told)
    return NpyHeader(shape, storage, len(raw), note, parts, attrs)


def packed_header(rows: int, parts: tuple[tuple[str, int, int], ...], dtype: str, attrs: dict) -> bytes:
    """The header of rows that say what they hold; of one size for any number of rows, a multiple of 64 bytes.

    parts: (name, heads, dim); dtype: key of DTYPES; attrs: plain values, and lists of numbers.
    """
    found = DTYPES[dtype]
    kind = found.numpy or found.patterns[-1]
    titled = {"dtype": dtype} if not found.numpy else {}
    title = json.dumps(titled | attrs, sort_keys=True)
    fields = [((title, name) if at == 0 else name, kind, (heads, dim)) for at, (name, heads, dim) in enumerate(parts)]
    start = f"{{'descr': {fields!r}, 'fortran_order': False, 'shape': ("
    room = -(-(len(MAGIC) + 4 + len(start) + len(f"{1 << 63},), }}\n")) // 64) * 64 - len(MAGIC) - 4
    if room > _LONGEST:
        raise ValueError(f"attributes of {len(title)} letters are too long for a header")
    return MAGIC + b"\x01\x00" + room.to_bytes(2, "little") + f"{start}{rows},), }}".ljust(room - 1).encode() + b"\n"


def _parts(dtype: np.dtype) -> tuple[tuple[str, int, int], ...]:
    """(name, heads, dim) of the fields of a record that holds q, k and v, or some of them, side by side; else nothing."""
    names = dtype.names or ()
    if not names or "".join(names) not in ("qkv", "kv", "q", "k", "v") or dtype.hasobject:
        return ()
    kinds = [dtype[at] for at in range(len(names))]
    whole = sum(kind.itemsize for kind in kinds) == dtype.itemsize and len({kind.base for kind in kinds}) == 1
    alike = all(len(kind.shape) in (1, 2) and kind.itemsize and not kind.base.names for kind in kinds)
    if not (whole and alike and kinds[0].base.itemsize):
        return ()
    sizes = [(1, *kind.shape)[-2:] for kind in kinds]
    return tuple((name, heads, dim) for name, (heads, dim) in zip(names, sizes, strict=True))


def _attributes(dtype: np.dtype) -> dict:
    """What the title of the first field says, if it is a JSON object."""
    first: tuple = dtype.fields[dtype.names[0]] if dtype.fields and dtype.names else ()
    try:
        found = json.loads(str(first[2])) if len(first) > 2 else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# of several threads at once Python 3.11 loses count of how deep it parses (SystemError)
_ONE_AT_A_TIME = threading.Lock()


def _parse(text: str, name: str) -> tuple[tuple[int, ...], np.dtype, str | None]:
    """Shape, dtype, and what its items are where the header says that in a way of its own."""
    try:
        with _ONE_AT_A_TIME:
            found = ast.literal_eval(_OTHER_NUMBERS.sub(lambda m: m[1] or m[2], text.strip()))
        descr, fortran, shape = found["descr"], found["fortran_order"], found["shape"]
        known: Any = _EXTENDED.get(descr, descr) if isinstance(descr, str) else descr
        dtype = np.lib.format.descr_to_dtype(known)
    except (SyntaxError, ValueError, TypeError, KeyError, OverflowError, MemoryError, RecursionError) as error:
        raise InputMalformed(f"{name}: unreadable .npy header {text[:80]!r}: {error}") from error
    if not isinstance(shape, tuple) or not all(type(items) is int and items >= 0 for items in shape):
        raise InputMalformed(f"{name}: .npy header has shape {shape!r}, expected a tuple of whole numbers")
    if dtype.hasobject:
        raise InputMalformed(
            f"{name}: dtype {dtype} found: Python objects are not read (unpickling could run code); save a plain float array"
        )
    if fortran and len(shape) > 1:
        raise InputMalformed(
            f"{name}: stored in Fortran order, expected C order; save it again with "
            f"numpy.save(name, numpy.ascontiguousarray(array))"
        )
    return shape, dtype, "f8e5m2" if descr == "<f1" else None
