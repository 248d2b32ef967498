"""From storage items to floats: one head after the other, counting what is not finite in the same pass.

float16 and bfloat16 arrive as uint16 bit patterns, fp8 as uint8 ones.
"""

import numpy as np

from streamattn_cli.kernels.half import half_to_single, single_to_half
from streamattn_cli.kernels.jit import kernel

# `kind` of a storage dtype: rows/dtypes.py names the one of each
HALF, BRAIN, FLOAT, E4M3, E5M2 = 0, 1, 2, 3, 4

_BODY = np.uint32(0x7FFF)
_BRAIN_EXPONENT = np.uint32(0x7F80)
_HALF_EXPONENT, _BFLOAT_EXPONENT = np.uint16(0x7C00), np.uint16(0x7F80)
_E4M3_NAN, _E5M2_EXPONENT = np.uint16(0x7F), np.uint16(0x7C)
_BYTE_SIGN, _REBIAS = np.uint16(0x80), np.float32(256)  # float16 bias 15 - E4M3 bias 7, as a power of two
_S7, _S8 = np.uint16(7), np.uint16(8)
_BRAIN_QUIET = np.uint32(1 << 6)  # a signalling NaN would warn when it is converted once more
_S16 = np.uint32(16)
_ZERO = np.uint32(0)
_SINGLE_LIMIT = 2.0**128 - 2.0**103  # from here on a float64 rounds to an infinite float32


@kernel(cache=True)
def widen(src, kind, outer, column, dim, start, rows, factor, dst, mask):
    """Widen rows [start, start + rows) of a block into per-head float rows.

    src     (O, n, I) C-contiguous: uint8 or uint16 bit patterns, float32 or float64
    kind    HALF, BRAIN, FLOAT, E4M3 or E5M2
    outer, column   int64[heads]: head h is src[outer[h], :, column[h] : column[h] + dim]
    factor  float32[heads] that rows are multiplied by, rounded to float32; of no heads: by nothing
    dst     (heads, >= rows, >= dim) float32 or float64: dst[h, t, :dim] is written for t < rows
    mask    uint8 (heads, >= rows): set to 1 where all items of head h, row t are finite, else 0; shape (0, 0): unwanted
    Returns (bad, head, row): the number of items that are not finite once in dst, and the lowest row (counted from
    `start`) that has one with its lowest head; (0, -1, -1) if there is none.
    """
    bad, bad_head, bad_row = 0, -1, -1
    for h in range(outer.size):
        segment, first = outer[h], column[h]
        for t in range(rows):
            found = widen_row(src[segment, start + t, first : first + dim], kind, dst[h, t, :dim])
            if factor.size:
                for d in range(dim):
                    dst[h, t, d] = np.float32(np.float32(dst[h, t, d]) * factor[h])
            if mask.size:
                mask[h, t] = found == 0
            if found:
                bad += found
                if bad_row < 0 or t < bad_row:
                    bad_head, bad_row = h, t
    return bad, bad_head, bad_row


@kernel(cache=True)
def any_bad(src, kind, outer, column, width, start, rows):
    """Whether rows [start, start + rows) of a block hold, in these runs of items, one that is not finite (see `widen`).

    outer, column, width   int64[runs]: run i is src[outer[i], :, column[i] : column[i] + width[i]]
    """
    for i in range(outer.size):
        part, first, end = src[outer[i], start : start + rows], column[i], column[i] + width[i]
        if end - first == part.shape[1]:
            if _bad_among(part.reshape(-1), kind):
                return True
        else:
            for t in range(rows):
                if _bad_among(part[t, first:end], kind):
                    return True
    return False


@kernel(cache=True)
def _bad_among(items, kind):
    """Whether any of these items is not finite; in a form that LLVM vectorises."""
    if kind == FLOAT:
        bad = 0
        for i in range(items.size):
            bad += not abs(items[i]) < _SINGLE_LIMIT
        return bad > 0
    exponent = _BFLOAT_EXPONENT
    if kind == HALF:
        exponent = _HALF_EXPONENT
    elif kind == E4M3:
        exponent = _E4M3_NAN
    elif kind == E5M2:
        exponent = _E5M2_EXPONENT
    largest = np.uint16(0)
    for i in range(items.size):
        largest = max(largest, np.uint16(np.uint16(items[i]) & exponent))
    return largest == exponent


@kernel(cache=True)
def widen_row(src, kind, dst):
    """One row of one head; returns the number of items that are not finite in dst."""
    if kind == HALF:
        return _half_row(src, dst)
    if kind == BRAIN:
        return _brain_row(src, dst)
    if kind == E4M3:
        return _e4m3_row(src, dst)
    if kind == E5M2:
        return _e5m2_row(src, dst)
    if dst.itemsize < src.itemsize:
        return _narrow_row(src, dst)
    return _float_row(src, dst)


@kernel(cache=True)
def _half_row(src, dst):
    largest = np.uint16(0)
    for d in range(dst.size):
        bits = np.uint16(src[d])
        largest = max(largest, np.uint16(bits & _HALF_EXPONENT))
        dst[d] = half_to_single(bits)
    bad = 0
    if largest == _HALF_EXPONENT:
        for d in range(dst.size):
            bad += np.uint16(np.uint16(src[d]) & _HALF_EXPONENT) == _HALF_EXPONENT
    return bad


@kernel(cache=True)
def _brain_row(src, dst):
    bad = 0
    for d in range(dst.size):
        bits = np.uint32(src[d])
        bad += (bits & _BRAIN_EXPONENT) == _BRAIN_EXPONENT
        quiet = _BRAIN_QUIET if (bits & _BODY) > _BRAIN_EXPONENT else _ZERO
        dst[d] = np.uint32((bits | quiet) << _S16).view(np.float32)
    return bad


@kernel(cache=True)
def _e4m3_row(src, dst):
    """As float16 with the exponent and mantissa moved to where they are there; only what is all ones is not a number."""
    bad = 0
    for d in range(dst.size):
        bits = np.uint16(src[d])
        lost = (bits & _E4M3_NAN) == _E4M3_NAN
        bad += lost
        half = np.uint16(np.uint16((bits & _BYTE_SIGN) << _S8) | np.uint16((bits & _E4M3_NAN) << _S7))
        dst[d] = np.float32(np.nan) if lost else np.float32(half_to_single(half) * _REBIAS)
    return bad


@kernel(cache=True)
def _e5m2_row(src, dst):
    """The upper byte of a float16."""
    bad = 0
    for d in range(dst.size):
        bits = np.uint16(src[d])
        bad += (bits & _E5M2_EXPONENT) == _E5M2_EXPONENT
        dst[d] = half_to_single(np.uint16(bits << _S8))
    return bad


@kernel(cache=True)
def _float_row(src, dst):
    bad = 0
    for d in range(dst.size):
        bad += not np.isfinite(src[d])
        dst[d] = src[d]
    return bad


@kernel(cache=True)
def _narrow_row(src, dst):
    """float64 into float32; what is too large becomes infinite without NumPy's warning."""
    bad = 0
    for d in range(dst.size):
        item = src[d]
        finite = abs(item) < _SINGLE_LIMIT
        bad += not finite
        beyond = np.inf if item > 0 else -np.inf
        dst[d] = item if finite or item != item else beyond
    return bad


@kernel(cache=True)
def narrow_row(src, kind, dst):
    """Numbers (n,) in storage form, halves rounded to the nearest, ties to even; bfloat16 only for numbers that it holds."""
    if dst.itemsize != 2:
        for d in range(dst.size):
            dst[d] = src[d]
    elif kind == BRAIN:
        for d in range(dst.size):
            dst[d] = np.float32(src[d]).view(np.uint32) >> _S16
    else:
        for d in range(dst.size):
            dst[d] = single_to_half(np.float32(src[d]))
