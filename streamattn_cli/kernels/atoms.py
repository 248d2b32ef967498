"""Atoms of a coreset: int8 keys, int8 or int16 coefficients, a bfloat16 scale for each, and the weight in float32."""

import math

import numpy as np
from numba import njit

_S16 = np.uint32(16)
_ROUND_UP = np.uint32(0xFFFF)
_GOLDEN, _MIX1, _MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_U11, _U27, _U30, _U31, _U32 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)


@njit(cache=True, nogil=True, error_model="numpy")
def quantise(rows, out, scales):
    """out (n, w) int8 and scales (n,) uint16 (bfloat16 bits) with rows (n, w) ~ out * scale.

    The scale is the row's largest absolute item / 127, rounded away from zero so that nothing exceeds 127.
    """
    for i in range(rows.shape[0]):
        top = 0.0
        for j in range(rows.shape[1]):
            top = max(top, abs(rows[i, j]))
        wide = np.float32(max(top / 127.0, 1e-30)).view(np.uint32)
        bits = np.uint32(np.uint32(wide + _ROUND_UP) >> _S16)
        scales[i] = bits
        scale = np.float64(np.uint32(bits << _S16).view(np.float32))
        for j in range(rows.shape[1]):
            out[i, j] = np.int8(np.rint(rows[i, j] / scale))


@njit(cache=True, nogil=True, error_model="numpy")
def quantise_at_random(rows, limit, counter, out, scales):
    """`quantise` to -limit..limit, each item rounded up or down at random so that its mean is right (unbiased).

    Rounding to the nearest would lose every increment below half a step, and on long streams all of them are. The
    random numbers are splitmix64 of (counter, place), so that the same stream always rounds the same way.
    """
    n, w = rows.shape
    for i in range(n):
        top = 0.0
        for j in range(w):
            top = max(top, abs(rows[i, j]))
        wide = np.float32(max(top / limit, 1e-30)).view(np.uint32)
        bits = np.uint32(np.uint32(wide + _ROUND_UP) >> _S16)
        scales[i] = bits
        scale = np.float64(np.uint32(bits << _S16).view(np.float32))
        for j in range(w):
            x = (counter << _U32) + np.uint64(i * w + j)
            x = x * _GOLDEN + _GOLDEN
            x = (x ^ (x >> _U30)) * _MIX1
            x = (x ^ (x >> _U27)) * _MIX2
            draw = np.float64((x ^ (x >> _U31)) >> _U11) * 2.0**-53
            out[i, j] = min(max(math.floor(rows[i, j] / scale + draw), -limit), limit)


@njit(cache=True, nogil=True, error_model="numpy")
def load(keys, coefs, scales, weights, centre, first, k, c):
    """Atoms first .. first + n as k (n, d) and c (n, dv + 1), n = k.shape[0]; keys (m, d), coefs (m, dv)."""
    for i in range(k.shape[0]):
        a = first + i
        scale = np.uint32(np.uint32(scales[a, 0]) << _S16).view(np.float32)
        for j in range(k.shape[1]):
            k[i, j] = keys[a, j] * scale + centre[j]
        scale = np.uint32(np.uint32(scales[a, 1]) << _S16).view(np.float32)
        for j in range(coefs.shape[1]):
            c[i, j] = coefs[a, j] * scale
        c[i, coefs.shape[1]] = weights[a]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def invert_triangle(lower, out):
    """out (n, n) = inverse of a lower triangular matrix, row by row (n^3 / 6 multiply-adds over contiguous rows)."""
    n = lower.shape[0]
    out[:] = 0
    for i in range(n):
        r = 1.0 / lower[i, i]
        for k in range(i):
            f = lower[i, k] * r
            for t in range(k + 1):
                out[i, t] -= f * out[k, t]
        out[i, i] = r


@njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def eliminate(inverse, w, count):
    """Backward elimination (methods.md 3.3): remove `count` atoms, each time the one with the least |W_j|^2 / G_jj.

    G = T^T T is the inverse of the kernel matrix, given by T = `inverse` (n, n) of its Cholesky factor, and is never
    formed: its diagonal is kept, and the column of an atom is made when it is removed. w (n, c), in place, becomes the
    ridge least-squares solution on the survivors. Returns alive (n,) bool.
    """
    n, c = w.shape
    alive = np.ones(n, np.bool_)
    g, s = np.zeros(n), np.zeros(n)
    removed = np.empty((count, n))
    column, gone = np.empty(n), np.empty(c)
    for k in range(n):
        for i in range(k + 1):
            g[i] += inverse[k, i] * inverse[k, i]
    for i in range(n):
        for t in range(c):
            s[i] += w[i, t] * w[i, t]
    for r in range(count):
        best, j = np.inf, -1
        for i in range(n):
            if alive[i] and (j < 0 or s[i] / g[i] < best):
                best, j = s[i] / g[i], i
        column[:] = 0
        for k in range(j, n):
            f = inverse[k, j]
            for i in range(k + 1):
                column[i] += f * inverse[k, i]
        for q in range(r):
            f = removed[q, j]
            for i in range(n):
                column[i] -= f * removed[q, i]
        p = 1.0 / column[j]
        root = np.sqrt(p)
        for t in range(c):
            gone[t] = w[j, t]
        alive[j] = False
        for i in range(n):
            removed[r, i] = column[i] * root
            if not alive[i]:
                continue
            g[i] -= removed[r, i] * removed[r, i]
            f = column[i] * p
            total = 0.0
            for t in range(c):
                x = w[i, t] - f * gone[t]
                w[i, t] = x
                total += x * x
            s[i] = total
    return alive
