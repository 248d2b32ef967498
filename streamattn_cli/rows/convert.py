"""Between storage items and numbers, in NumPy: for a few rows. Many are converted by kernels/widen.py."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from streamattn_cli.rows.dtypes import DTYPES


def numbers(items: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers of storage items, float64; what is not finite may come out as another number that is not."""
    d = DTYPES[dtype]
    if d.numpy:
        with np.errstate(invalid="ignore"):  # signalling NaNs
            return np.ascontiguousarray(items).view(d.numpy).astype(np.float64)
    bits = items.astype(np.int64)
    size = bits & ((1 << (8 * d.itemsize - 1)) - 1)
    exponent = np.maximum(size >> d.mantissa, 1)  # 0 is that of subnormal numbers, which lack the leading 1
    leading = (size >= 1 << d.mantissa) << d.mantissa
    found = np.ldexp((size & ((1 << d.mantissa) - 1)) + leading, exponent - d.bias - d.mantissa)
    return np.where(size >= d.limit, np.nan, np.where(bits > size, -found, found))


def items_of(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 numbers (no NaN) as storage items, rounded to the nearest, ties to even; not finite where they are too large."""
    d = DTYPES[dtype]
    if d.numpy:
        with np.errstate(over="ignore"):
            return values.astype(d.numpy).view(d.holder)
    # with this exponent's bias a float32 begins with the bits of the item, subnormal ones included
    bits = (values * np.float32(2.0 ** (d.bias - 127))).view(np.uint32)
    sign = (bits >> np.uint32(32 - 8 * d.itemsize)).astype(d.holder) & np.array(1 << (8 * d.itemsize - 1), d.holder)
    bits &= np.uint32(0x7FFFFFFF)
    dropped = np.uint32(23 - d.mantissa)
    odd = (bits >> dropped) & np.uint32(1)
    bits += odd + np.uint32((1 << (22 - d.mantissa)) - 1)
    bits >>= dropped
    np.minimum(bits, np.uint32(d.limit), out=bits)
    items: np.ndarray = bits.astype(d.holder) | sign
    return items


@cache
def not_a_number(dtype: str) -> Any:
    """The item that is a quiet NaN."""
    d = DTYPES[dtype]
    size = 8 * d.itemsize
    return np.array(d.limit | 1 << (d.mantissa - 1), f"<u{size // 8}").view(d.holder)[()]
