"""Counter-based normal numbers: any entry of an endless random matrix, on its own, in any order.

The entry (row, column) of a stream is Box-Muller applied to one splitmix64 output per pair of columns. The counter is
(row << 20 | pair), so that no entry depends on how the rows are cut into blocks or on how wide the matrix is. The
logarithm, sine and cosine are polynomials in IEEE add, multiply, divide and square root: the same bits on every
machine, compiled or not, and in a form that the compiler turns into vector code (libm calls would stay scalar).

Unsigned 64-bit products wrap around on purpose: without JIT the caller silences NumPy's overflow warning.
"""

import math

import numpy as np

from streamattn_cli.kernels.counters import GOLDEN, mix
from streamattn_cli.kernels.jit import kernel

ROW_SHIFT = 20  # pairs of columns take the low 20 bits of a counter, rows the 44 bits above
CHUNK = 4096  # pairs made at a time: about 100 KiB of scratch, inside the second-level cache

_ONE = np.uint64(0x3FF0000000000000)  # bits of 1.0: or-ed with 52 random bits it is uniform in [1, 2)
_MANTISSA = np.uint64(0x000FFFFFFFFFFFFF)
_TWO52 = np.uint64(0x4330000000000000)  # bits of 2**52: or-ed with a small integer it is 2**52 + that integer
_U1, _U2, _U20 = np.uint64(1), np.uint64(2), np.uint64(20)
_U32, _U52, _U62 = np.uint64(32), np.uint64(52), np.uint64(62)
_ANGLE = _MANTISSA & ~np.uint64(0x3FFFFF)  # the upper 30 bits of a mantissa


@kernel(cache=True)
def stream_key(seed, stream):
    """The key (uint64) of one stream of a seed; both arguments uint64."""
    return mix(mix(seed + GOLDEN) ^ (stream * GOLDEN))


@kernel(inline="always")
def _minus_log(h):
    """-ln of the uniform number ((h >> 32) + 0.5) / 2**32, by 2 atanh((m-1)/(m+1)) on m in [0.7, 1.42)."""
    uniform = np.uint64(((h >> _U32) << _U20) | _ONE).view(np.float64) - (1.0 - 2.0**-33)
    bits = np.float64(uniform).view(np.uint64)
    m = np.uint64((bits & _MANTISSA) | _ONE).view(np.float64)
    exponent = np.uint64((bits >> _U52) | _TWO52).view(np.float64) - (4503599627370496.0 + 1023.0)
    large = m > 1.4142135623730951
    m = m * 0.5 if large else m
    exponent = exponent + 1.0 if large else exponent
    t = (m - 1.0) / (m + 1.0)
    t2 = t * t
    p = 1.0 / 15.0
    p = p * t2 + 1.0 / 13.0
    p = p * t2 + 1.0 / 11.0
    p = p * t2 + 1.0 / 9.0
    p = p * t2 + 1.0 / 7.0
    p = p * t2 + 1.0 / 5.0
    p = p * t2 + 1.0 / 3.0
    p = p * t2 + 1.0
    return -(2.0 * t * p + exponent * 0.6931471805599453)


@kernel(inline="always")
def _sine_cosine(h):
    """Sine and cosine of an angle in [-pi/4, pi/4) made of bits 2..31 of h (Taylor, error below 1e-12)."""
    x = np.uint64(((h << _U20) & _ANGLE) | _ONE).view(np.float64)
    angle = (x - 1.5) * 1.5707963267948966
    y = angle * angle
    s = 1.0 / 6227020800.0
    s = s * y - 1.0 / 39916800.0
    s = s * y + 1.0 / 362880.0
    s = s * y - 1.0 / 5040.0
    s = s * y + 1.0 / 120.0
    s = s * y - 1.0 / 6.0
    s = s * y + 1.0
    c = -1.0 / 87178291200.0
    c = c * y + 1.0 / 479001600.0
    c = c * y - 1.0 / 3628800.0
    c = c * y + 1.0 / 40320.0
    c = c * y - 1.0 / 720.0
    c = c * y + 1.0 / 24.0
    c = c * y - 0.5
    c = c * y + 1.0
    return s * angle, c


@kernel(cache=True)
def _normal_pairs(key, first_row, rows, pairs, counters, first, second):
    """Fill first, second (float64) with the standard normals of `rows` rows of `pairs` column pairs each."""
    for r in range(rows):
        row = np.uint64(first_row + r) << np.uint64(ROW_SHIFT)
        for p in range(pairs):
            counters[r * pairs + p] = key + (row | np.uint64(p)) * GOLDEN
    for i in range(rows * pairs):
        h = mix(counters[i])
        radius = math.sqrt(2.0 * _minus_log(h))
        s, c = _sine_cosine(h)
        # Bits 0 and 1 choose the quarter of the circle: swap the two, and turn by half a circle.
        swap = (h & _U1) != np.uint64(0)
        sign = (h & _U2) << _U62
        x = s if swap else c
        y = c if swap else s
        first[i] = np.uint64(np.float64(radius * x).view(np.uint64) ^ sign).view(np.float64)
        second[i] = np.uint64(np.float64(radius * y).view(np.uint64) ^ sign).view(np.float64)


@kernel(cache=True, _nrt=True)
def fill_normals(key, first_row, width, scale, mean, out, column):
    """out[:, column:column+width] = scale * normal + mean; out (n, C) float32 or float64, row 0 being first_row."""
    pairs = (width + 1) // 2
    step = max(1, CHUNK // pairs)
    counters = np.empty(step * pairs, np.uint64)
    first = np.empty(step * pairs, np.float64)
    second = np.empty(step * pairs, np.float64)
    for start in range(0, out.shape[0], step):
        rows = min(step, out.shape[0] - start)
        _normal_pairs(key, first_row + start, rows, pairs, counters, first, second)
        for r in range(rows):
            for c in range(0, width - 1, 2):
                i = r * pairs + c // 2
                out[start + r, column + c] = first[i] * scale + mean
                out[start + r, column + c + 1] = second[i] * scale + mean
            if width % 2:
                out[start + r, column + width - 1] = first[r * pairs + pairs - 1] * scale + mean


@kernel(cache=True)
def align_heads(out, column, heads, dim, level):
    """Set the part of every head's vector along (1, ..., 1)/sqrt(dim) to `level`; the part across stays."""
    along = level / math.sqrt(dim)
    for r in range(out.shape[0]):
        for h in range(heads):
            base = column + h * dim
            total = 0.0
            for c in range(dim):
                total += np.float64(out[r, base + c])
            shift = along - total / dim
            for c in range(dim):
                out[r, base + c] += shift


@kernel(cache=True)
def set_length(out, column, heads, dim, length):
    """Scale every head's vector to Euclidean `length` (a zero vector stays)."""
    for r in range(out.shape[0]):
        for h in range(heads):
            base = column + h * dim
            total = 0.0
            for c in range(dim):
                total += np.float64(out[r, base + c]) * np.float64(out[r, base + c])
            if total > 0:
                factor = length / math.sqrt(total)
                for c in range(dim):
                    out[r, base + c] *= factor


@kernel(cache=True)
def heavy_positions(key, rows, heavy, first, out):
    """Row numbers (int64) of heavy rows first, first + 1, ...: a hashed place in each of `heavy` equal segments."""
    base = rows // heavy
    longer = rows % heavy  # the first `longer` segments have one row more
    for i in range(out.size):
        segment = first + i
        start = segment * base + min(segment, longer)
        length = base + 1 if segment < longer else base
        draw = mix(key + np.uint64(segment) * GOLDEN) % np.uint64(length)
        out[i] = start + np.int64(draw)
