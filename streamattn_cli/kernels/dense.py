"""Exact softmax over a tile of logits, and the combination of partial answers (methods.md section 1)."""

import math

import numpy as np
from numba import njit, types
from numba.extending import overload

from streamattn_cli.kernels.blas import product


_SIGN_SHIFT, _ALL_BUT_SIGN = np.int32(31), np.int32(0x7FFFFFFF)


def exp32(x):
    """e^x in float32 by range reduction and a degree-6 polynomial (relative error 8e-8); below -87 it is 0.

    Written out because LLVM turns it into vector code, which it cannot do with a call to libm.
    """
    clamped = max(x, np.float32(-87.0))
    n = np.floor(clamped * np.float32(1.44269504) + np.float32(0.5))
    r = clamped - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    bits = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))
    return p * bits.view(np.float32) if x > np.float32(-87.0) else np.float32(0.0)


def exp(x):
    """e^x for x <= 0 in the precision of x; this body runs only when the JIT is disabled."""
    return exp32(x) if isinstance(x, np.float32) else math.exp(x)


@overload(exp, inline="always", jit_options={"error_model": "numpy"})
def _exp(x):
    if x == types.float32:
        return exp32
    return lambda x: math.exp(x)


def largest32(row):
    """The largest item of a float32 row that has one and holds no NaN, found by its bits: LLVM makes vector code of integers'
    maximum only."""
    bits = row.view(np.int32)
    top = np.int32(-(2**31))
    for j in range(bits.shape[0]):
        # the bits of a negative number grow as it falls: all but the sign are turned round
        top = max(top, np.int32(bits[j] ^ ((bits[j] >> _SIGN_SHIFT) & _ALL_BUT_SIGN)))
    return np.int32(top ^ ((top >> _SIGN_SHIFT) & _ALL_BUT_SIGN)).view(np.float32)


def largest(row):
    """The largest item of a row that has one and holds no NaN; this body runs only when the JIT is disabled."""
    return largest32(row) if row.dtype == np.float32 else row.max()


@overload(largest, jit_options={"error_model": "numpy"})
def _largest(row):
    if row.dtype == types.float32:
        return largest32
    return lambda row: row.max()


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "arcp", "nsz"})
def softmax_tile(logits, c, shift, always, low, high, m, y):
    """One step of the online softmax: turn a tile of logits into weights and rescale what was gathered so far.

    logits (r, n), in place. Column j is token j + shift, and row i sees low[i] <= token < high[i]; the first `always`
    columns it sees whatever low says. c (n, dv + 1): a token of weight 0 is not there, whatever its logit. What is seen
    becomes exp(logit - m[i]), all else 0.
    m (r,), of the logits' dtype, holds the running maximum (-inf at first) and is raised; y (r, w) is multiplied by
    exp(m_old - m_new).
    """
    columns, weight = logits.shape[1], c.shape[1] - 1
    absent = 0
    for j in range(columns):
        absent += c[j, weight] == 0
    for i in range(logits.shape[0]):
        row = logits[i]
        end = min(max(high[i] - shift, 0), columns)
        row[end:] = 0
        live = row[:end]
        first = min(always, end)
        live[max(first, 0) : max(first, min(low[i] - shift, end), 0)] = -math.inf
        if absent:
            for j in range(end):
                if c[j, weight] == 0:
                    live[j] = -math.inf
        if end == 0:
            continue
        top = largest(live)
        if top == -math.inf:
            live[:] = 0
            continue
        if top > m[i]:
            shrink = math.exp(m[i] - top)
            for j in range(y.shape[1]):
                y[i, j] *= shrink
            m[i] = top
        else:
            top = m[i]
        for j in range(end):
            live[j] = exp(live[j] - top)


@njit(cache=True, nogil=True, error_model="numpy")
def attend(gemm, q, k, c, shift, always, low, high, logits, gathered, m, y):
    """Take a tile of tokens k (n, d), c (n, dv + 1) into the partial answers (m, y) of queries q (r, d), already scaled.

    As `softmax_tile` between two matrix products, without the interpreter. gemm: `blas.address` of the dtype. logits (r, n)
    becomes the weights, gathered (r, dv + 1) is scratch.
    """
    product(gemm, q, k, True, logits)
    softmax_tile(logits, c, shift, always, low, high, m, y)
    product(gemm, logits, c, False, gathered)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] += gathered[i, j]


@njit(cache=True, error_model="numpy")
def place(q, group, at, scale, high, slope, window, raw, scaled, lows, highs):
    """Lay queries q (heads, n, d) into a tile of heads x group rows, from row `at` of each head on; the other rows see nothing.

    raw, scaled (r, d): the queries, and scale * the queries. Query i sees the tokens lows <= j < highs (r,), the last
    `window` before high + slope * i.
    """
    heads, n, d = q.shape
    for r in range(heads * group):
        i = r % group - at
        if i < 0 or i >= n:
            raw[r], scaled[r], lows[r], highs[r] = 0, 0, 0, 0
            continue
        highs[r] = high + slope * i
        lows[r] = max(highs[r] - window, 0)
        for j in range(d):
            x = q[r // group, i, j]
            raw[r, j] = x
            scaled[r, j] = x * scale


@njit(cache=True, error_model="numpy")
def add_history(m, y, past_m, past_y, low, high, seen, share):
    """Make a history's partial answer (past_m, past_y) sane (see `guard`) and add it to (m, y), in place.

    share (r,): which part of the mass it brought, 0..1. Rows that saw nothing (seen[i] = 0) are left alone. Returns the
    number of rows whose z was not positive.
    """
    bad, width = 0, y.shape[1] - 1
    for i in range(m.shape[0]):
        share[i] = 0
        if seen[i] == 0:
            continue
        if not _sane(past_y[i], low, high):
            bad += 1
            continue
        part = past_y[i, width] * _join(m, y, past_m, past_y, i)
        share[i] = min(max(part / y[i, width], 0.0), 1.0)
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def combine(m, y, other_m, other_y):
    """Add the partial answer (other_m, other_y) of a disjoint set of tokens to (m, y), in place.

    m (r,), y (r, dv + 1) with z in the last column. An empty part has m = -inf.
    """
    for i in range(m.shape[0]):
        if max(m[i], other_m[i]) > -math.inf:
            _join(m, y, other_m, other_y, i)


@njit(error_model="numpy")
def _join(m, y, other_m, other_y, i):
    """Row i of `combine`, where either has anything; returns what the other's numbers were multiplied by."""
    top = max(m[i], other_m[i])
    mine = math.exp(m[i] - top)
    theirs = math.exp(other_m[i] - top)
    for j in range(y.shape[1]):
        y[i, j] = y[i, j] * mine + other_y[i, j] * theirs
    m[i] = top
    return theirs


@njit(cache=True, error_model="numpy")
def extend_range(c, low, high):
    """Widen low, high (dv,) to the values of the rows of c (n, dv + 1) that have a weight; return the number of those."""
    live = 0
    width = c.shape[1] - 1
    for i in range(c.shape[0]):
        if c[i, width] > 0:
            live += 1
            for j in range(width):
                low[j] = min(low[j], c[i, j])
                high[j] = max(high[j], c[i, j])
    return live


@njit(cache=True, nogil=True, error_model="numpy")
def guard(m, y, low, high):
    """Make a compressed part sane, in place; return the number of rows whose z was not positive.

    Such a row contributes nothing (m = -inf). Elsewhere y / z is clipped per channel to [low, high] (dv,), the range
    of the values that the part absorbed.
    """
    bad = 0
    for i in range(m.shape[0]):
        if not _sane(y[i], low, high):
            bad += 1
            m[i] = -math.inf
            y[i] = 0
    return bad


@njit(error_model="numpy")
def _sane(row, low, high):
    """Clip a partial answer (dv + 1,) to the range of its values, in place; False where its z is not positive."""
    z = row[row.shape[0] - 1]
    if not (z > 0 and z < math.inf):
        return False
    for j in range(row.shape[0] - 1):
        row[j] = min(max(row[j], low[j] * z), high[j] * z)
    return True


@njit(cache=True, error_model="numpy")
def finish(m, y, fallback, out):
    """out (r, dv) = y / z; a row that no token answered gets `fallback` (dv,). Return the number of those."""
    empty = 0
    width = y.shape[1] - 1
    for i in range(m.shape[0]):
        z = y[i, width]
        if m[i] == -math.inf or not z > 0:
            empty += 1
            for j in range(width):
                out[i, j] = fallback[j]
        else:
            for j in range(width):
                out[i, j] = y[i, j] / z
    return empty
