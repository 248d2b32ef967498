"""Dense algebra on small matrices that stay in the cache, without the interpreter, without allocation, in any precision.

LAPACK is called through Python, one matrix at a time, and spends more time on the way than on matrices of a hundred
rows. Here every inner loop runs over contiguous rows, several of them at once, and starts at a multiple of LANE, so that it
becomes whole vector instructions: three times LAPACK's speed at a hundred rows, as fast as it at five hundred.
"""

import math

from numba import njit

from streamattn_cli.kernels.blas import LEFT, PLAIN, product

LANE = 16
BLOCK = 32  # rows that are worked on without BLAS; a multiple of LANE
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
def invert_factor(gemm, a, least, out, scratch):
    """out (n, n) = L^-1, lower triangular with zeros above, for a (n, n) = L L^T, of which the upper triangle is read and spoilt.

    False, with out undefined, as soon as a pivot is not above `least`. gemm: `blas.address` of the dtype. scratch: 2 min(n, BLOCK)^2
    numbers. Block by block: with U = L^T and T = L^-1,
        U_kj = T_kk (A_kj - sum_{m<k} U_mk^T U_mj),    T_kj = -T_kk sum_{j<=m<k} U_mk^T T_mj;
    U lies above the diagonal of out in the meantime.
    """
    n, half = a.shape[0], min(a.shape[0], BLOCK) ** 2
    for k in range(0, n, BLOCK):
        size = min(BLOCK, n - k)
        end = k + size
        block = scratch[: size * size].reshape(size, size)
        inverse = scratch[half : half + size * size].reshape(size, size)
        block[:] = 0
        for i in range(size):
            for j in range(i, size):
                block[i, j] = a[k + i, k + j]
        if not cholesky(block, least):
            return False
        invert(block, inverse)
        for i in range(size):
            for j in range(size):
                out[k + i, k + j] = inverse[i, j]
        product(gemm, PLAIN, inverse, a[k:end, end:], out[k:end, end:])
        for j in range(end, n, BLOCK):
            past = min(j + BLOCK, n)
            product(gemm, LEFT, out[k:end, j:past], out[k:end, j:], a[j:past, j:], -1.0, 1.0)
        for j in range(0, k, BLOCK):
            past = j + BLOCK
            part = scratch[: size * BLOCK].reshape(size, BLOCK)
            product(gemm, LEFT, out[j:k, k:end], out[j:k, j:past], part)
            product(gemm, PLAIN, inverse, part, out[k:end, j:past], -1.0)
    for i in range(n):
        out[i, min(n, i - i % BLOCK + BLOCK) :] = 0
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def transpose(a, out):
    """out (m, n) = a^T for a (n, m)."""
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            out[j, i] = a[i, j]
