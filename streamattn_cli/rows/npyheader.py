"""The header of an .npy file or record, read strictly: a dtype we can read, C order, a sane shape."""

from __future__ import annotations

import ast
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
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


def parse_header(raw: bytes, name: str, wanted: str | None = None) -> NpyHeader:
    """What the bytes of a header say. Raises InputMalformed."""
    text = raw[8 + _digits(raw[6]) :].decode("latin1" if raw[6] < 3 else "utf-8", "replace")
    shape, dtype, note = _parse(text, name, wanted)
    return NpyHeader(shape, dtype, len(raw), note)


_ONE_AT_A_TIME = (
    threading.Lock()
)  # of several threads at once Python 3.11 loses count of how deep it parses (SystemError)


def _parse(text: str, name: str, wanted: str | None) -> tuple[tuple[int, ...], str, str | None]:
    try:
        with _ONE_AT_A_TIME:
            found = ast.literal_eval(_OTHER_NUMBERS.sub(lambda m: m[1] or m[2], text.strip()))
        descr, fortran, shape = found["descr"], found["fortran_order"], found["shape"]
        if descr == "<f1":
            wanted = wanted or "f8e5m2"
        known: Any = _EXTENDED.get(descr, descr) if isinstance(descr, str) else descr
        dtype = np.lib.format.descr_to_dtype(known)
    except (SyntaxError, ValueError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise InputMalformed(f"{name}: unreadable .npy header {text[:80]!r}: {error}") from error
    if not isinstance(shape, tuple) or not all(type(items) is int and items >= 0 for items in shape):
        raise InputMalformed(f"{name}: .npy header has shape {shape!r}, expected a tuple of whole numbers")
    if dtype.hasobject or dtype.names:
        raise InputMalformed(
            f"{name}: dtype {dtype} found: Python objects and records are not read (unpickling could "
            f"run code); save a plain float array"
        )
    if fortran and len(shape) > 1:
        raise InputMalformed(
            f"{name}: stored in Fortran order, expected C order; save it again with "
            f"numpy.save(name, numpy.ascontiguousarray(array))"
        )
    storage, note = storage_of(dtype, name, wanted)
    return shape, storage, note
