"""From storage items to floats: one head after the other, counting what is not finite in the same pass.

float16 and bfloat16 arrive as uint16 bit patterns; the bits are moved with integer operations that LLVM vectorises.
"""

import numpy as np
from numba import njit

# `kind` of every storage dtype
HALF, BRAIN, FLOAT = 0, 1, 2
KIND = {"f2": HALF, "bf16": BRAIN, "f4": FLOAT, "f8": FLOAT}

_SIGN = np.uint32(0x8000)
_BODY = np.uint32(0x7FFF)
_EXPONENT = np.uint32(0x7C00)
_SMALLEST_NORMAL = np.uint32(0x0400)
_REBIAS = np.uint32(112 << 23)  # float32 bias 127 - float16 bias 15
_REBIAS_SUBNORMAL = np.uint32(113 << 23)
_TINY = np.float32(2.0**-14)  # the float32 whose bits are _REBIAS_SUBNORMAL
_BRAIN_EXPONENT = np.uint32(0x7F80)
_HALF_EXPONENT, _BFLOAT_EXPONENT = np.uint16(0x7C00), np.uint16(0x7F80)
_QUIET = np.uint32(1 << 22)  # a signalling NaN would warn when it is converted once more
_BRAIN_QUIET = np.uint32(1 << 6)
_SINGLE_BODY, _BELOW_TIE, _ONE = np.uint32(0x7FFFFFFF), np.uint32(0xFFF), np.uint32(1)
_HALF, _HALF_BITS = np.float32(0.5), np.float32(0.5).view(np.uint32)
_S13 = np.uint32(13)
_S16 = np.uint32(16)
_ZERO = np.uint32(0)
_SINGLE_LIMIT = 2.0**128 - 2.0**103  # from here on a float64 rounds to an infinite float32


@njit(cache=True, nogil=True)
def widen(src, kind, outer, column, dim, start, rows, dst, mask):
    """Widen rows [start, start + rows) of a block into per-head float rows.

    src     (O, n, I) C-contiguous: uint16 bit patterns, float32 or float64
    kind    KIND[storage dtype]
    outer, column   int64[heads]: head h is src[outer[h], :, column[h] : column[h] + dim]
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
            if mask.size:
                mask[h, t] = found == 0
            if found:
                bad += found
                if bad_row < 0 or t < bad_row:
                    bad_head, bad_row = h, t
    return bad, bad_head, bad_row


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _bad_among(items, kind):
    """Whether any of these items is not finite; in a form that LLVM vectorises."""
    if kind == FLOAT:
        bad = 0
        for i in range(items.size):
            bad += not abs(items[i]) < _SINGLE_LIMIT
        return bad > 0
    exponent = _HALF_EXPONENT if kind == HALF else _BFLOAT_EXPONENT
    largest = np.uint16(0)
    for i in range(items.size):
        largest = max(largest, np.uint16(np.uint16(items[i]) & exponent))
    return largest == exponent


@njit(cache=True, nogil=True)
def widen_row(src, kind, dst):
    """One row of one head; returns the number of items that are not finite in dst."""
    if kind == HALF:
        return _half_row(src, dst)
    if kind == BRAIN:
        return _brain_row(src, dst)
    if dst.itemsize < src.itemsize:
        return _narrow_row(src, dst)
    return _float_row(src, dst)


@njit(cache=True, nogil=True)
def _half_to_single(bits):
    """One float16 bit pattern (uint32) as float32: exact, no branches."""
    body = np.uint32((bits & _BODY) << _S13)
    extra = _REBIAS if (bits & _EXPONENT) == _EXPONENT else _ZERO  # inf and nan: exponent 255
    quiet = _QUIET if (bits & _BODY) > _EXPONENT else _ZERO
    normal = np.uint32((body + _REBIAS + extra) | quiet)
    # a subnormal's mantissa, put behind the exponent of 2^-14, is 2^-14 too large
    small = np.float32(np.uint32(body + _REBIAS_SUBNORMAL).view(np.float32) - _TINY)
    magnitude = np.float32(small).view(np.uint32) if (bits & _BODY) < _SMALLEST_NORMAL else normal
    return np.uint32(magnitude | np.uint32((bits & _SIGN) << _S16)).view(np.float32)


@njit(cache=True, nogil=True)
def _half_row(src, dst):
    bad = 0
    for d in range(dst.size):
        bits = np.uint32(src[d])
        bad += (bits & _EXPONENT) == _EXPONENT
        dst[d] = _half_to_single(bits)
    return bad


@njit(cache=True, nogil=True)
def _brain_row(src, dst):
    bad = 0
    for d in range(dst.size):
        bits = np.uint32(src[d])
        bad += (bits & _BRAIN_EXPONENT) == _BRAIN_EXPONENT
        quiet = _BRAIN_QUIET if (bits & _BODY) > _BRAIN_EXPONENT else _ZERO
        dst[d] = np.uint32((bits | quiet) << _S16).view(np.float32)
    return bad


@njit(cache=True, nogil=True)
def _float_row(src, dst):
    bad = 0
    for d in range(dst.size):
        bad += not np.isfinite(src[d])
        dst[d] = src[d]
    return bad


@njit(cache=True, nogil=True)
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


@njit(cache=True)
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
            dst[d] = _single_to_half(np.float32(src[d]).view(np.uint32))


@njit(cache=True)
def _single_to_half(bits):
    """A finite float32 (its bits) as float16 bits."""
    sign = np.uint32(np.uint32(bits >> _S16) & _SIGN)
    size = np.uint32(bits & _SINGLE_BODY)
    # adding a half puts a subnormal's mantissa, rounded, at the end of the sum's
    small = np.uint32(np.float32(size.view(np.float32) + _HALF).view(np.uint32) - _HALF_BITS)
    odd = np.uint32(np.uint32(size >> _S13) & _ONE)
    normal = np.uint32(np.uint32(size - _REBIAS + _BELOW_TIE + odd) >> _S13)
    body = small if size < _REBIAS_SUBNORMAL else normal
    return np.uint32(sign | (body if body < _EXPONENT else _EXPONENT))
