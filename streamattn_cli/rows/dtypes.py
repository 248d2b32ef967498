"""The storage dtypes: everything that the package knows of one is in its line of DTYPES.

NumPy is imported when numbers are converted: the command line makes its choices from this table before it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamattn_cli.errors import InputMalformed, UsageError
from streamattn_cli.options import one_of

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Dtype:
    """One storage dtype: a sign bit, `exponent` bits with bias 2^(exponent - 1) - 1, and `mantissa` bits, little-endian.

    Those that NumPy does not know are held as bit patterns, and so is float16, whose conversion in NumPy is slow.
    """

    name: str  # in JSON documents and checkpoints
    title: str  # in messages
    words: tuple[str, ...]  # what options call it, the first one in help texts
    exponent: int
    mantissa: int
    finite: int = 0  # the lowest bit pattern that is not; 0: that with all bits of the exponent
    holder: str  # NumPy dtype of an array of its items
    numpy: str = ""  # NumPy dtype of its numbers, "" where there is none
    patterns: tuple[str, ...] = ()  # other NumPy dtypes that its bit patterns are saved as, which --dtype must say,
    assumed: tuple[str, ...] = ()  # but need not for these
    safetensors: str
    torch: tuple[str, str]  # class of its storage, and its name
    kernel: str  # its branch in kernels/widen.py
    kept: str = ""  # storage dtype in which its rows are kept; "": its own

    @property
    def itemsize(self) -> int:
        """Bytes of an item."""
        return (1 + self.exponent + self.mantissa) // 8

    @property
    def bias(self) -> int:
        """What is subtracted from an exponent."""
        return (1 << (self.exponent - 1)) - 1

    @property
    def limit(self) -> int:
        """The lowest bit pattern, without the sign, that is not finite."""
        return self.finite or ((1 << self.exponent) - 1) << self.mantissa

    @property
    def scaled(self) -> bool:
        """Whether rows of it may come with a scale that they are multiplied by."""
        return self.itemsize == 1


_SHORTS, _BYTES = ("<u2", "<i2", "|V2", "<V2"), ("|u1", "|i1", "|V1", "<V1")  # V: how ml_dtypes saves bfloat16 and E4M3
DTYPES = {found.name: found for found in (
    Dtype(
        name="f2", title="float16", words=("f16", "f2", "float16", "half"), exponent=5, mantissa=10, holder="<u2",
        numpy="<f2", patterns=_SHORTS, safetensors="F16", torch=("HalfStorage", "float16"), kernel="HALF",
    ),
    Dtype(
        name="bf16", title="bfloat16", words=("bf16", "bfloat16"), exponent=8, mantissa=7, holder="<u2",
        patterns=_SHORTS, assumed=_SHORTS, safetensors="BF16", torch=("BFloat16Storage", "bfloat16"), kernel="BRAIN",
    ),
    Dtype(
        name="f4", title="float32", words=("f32", "f4", "float32", "float"), exponent=8, mantissa=23, holder="<f4",
        numpy="<f4", safetensors="F32", torch=("FloatStorage", "float32"), kernel="FLOAT",
    ),
    Dtype(
        name="f8", title="float64", words=("f64", "f8", "float64", "double"), exponent=11, mantissa=52, holder="<f8",
        numpy="<f8", safetensors="F64", torch=("DoubleStorage", "float64"), kernel="FLOAT",
    ),
    # OCP 8-bit floating point: E4M3 has no infinity, and only one NaN
    Dtype(
        name="f8e4m3", title="fp8 E4M3", words=("f8e4m3", "f8e4m3fn", "e4m3", "float8_e4m3fn"), exponent=4, mantissa=3,
        finite=0x7F, holder="|u1", patterns=_BYTES, assumed=("|V1", "<V1"), safetensors="F8_E4M3",
        torch=("Float8_e4m3fnStorage", "float8_e4m3fn"), kernel="E4M3", kept="f2",
    ),
    Dtype(
        name="f8e5m2", title="fp8 E5M2", words=("f8e5m2", "e5m2", "float8_e5m2"), exponent=5, mantissa=2, holder="|u1",
        patterns=_BYTES, safetensors="F8_E5M2", torch=("Float8_e5m2Storage", "float8_e5m2"), kernel="E5M2", kept="f2",
    ),
)}  # fmt: skip
WORDS = tuple(found.words[0] for found in DTYPES.values())
PATTERNS = tuple(found.words[0] for found in DTYPES.values() if found.patterns)
WRITTEN = tuple(found.words[0] for found in DTYPES.values() if not found.scaled)  # what `generate` makes
EXPECTED = one_of(tuple(found.title for found in DTYPES.values()))


def storage_word(word: str, option: str) -> str:
    """The storage dtype that a user's word names ('f32' -> 'f4'); UsageError for an unknown one."""
    for found in DTYPES.values():
        if word.lower() in found.words:
            return found.name
    raise UsageError(f"{option} {word}: unknown dtype; use {one_of(WORDS)}")


def number_word(word: str, option: str) -> str:
    """The same of a word that names a dtype of outputs: those that NumPy has; UsageError for others."""
    name = storage_word(word, option)
    if not DTYPES[name].numpy:
        known = one_of(tuple(found.words[0] for found in DTYPES.values() if found.numpy))
        raise UsageError(f"{option} {word}: neither .npy nor NumPy has it; use {known}")
    return name


def storage_of(found: np.dtype, name: str, wanted: str | None = None) -> tuple[str, str | None]:
    """Storage dtype of a NumPy dtype found in a file, and a note when it had to be guessed.

    Integers and opaque bytes are bit patterns: `wanted` says of what, if it is of their size; of other dtypes it says
    nothing. Raises InputMalformed for other dtypes, for big-endian ones, and for bytes of which nobody says what they are.
    """
    if found.byteorder == ">":
        raise InputMalformed(
            f"{name}: dtype {found.str} is big-endian, expected little-endian; "
            f"convert it with array.astype(array.dtype.newbyteorder('<')) and save again"
        )
    for dtype in DTYPES.values():
        if found.str == dtype.numpy:
            return dtype.name, None
    possible = [dtype for dtype in DTYPES.values() if found.str in dtype.patterns]
    told = [dtype for dtype in possible if dtype.name == wanted]
    for dtype in told or [dtype for dtype in possible if found.str in dtype.assumed]:
        hints = [f"--dtype {other.words[0]} if they are {other.title}" for other in possible if other is not dtype]
        hint = "" if told else f" ({', '.join(hints)})"
        return dtype.name, f"{name}: {found} items are read as {dtype.title} bit patterns{hint}"
    words = one_of(tuple(f"--dtype {dtype.words[0]}" for dtype in possible))
    raise InputMalformed(
        f"{name}: dtype {found} found, expected {EXPECTED}; convert it with array.astype('float32') and save again"
        + (f", or give {words} if its items are such bit patterns" if possible else "")
    )
