"""Dense algebra on small matrices that stay in the cache, without the interpreter, without allocation, in any precision.

LAPACK is called through Python, one matrix at a time, and spends more time on the way than on matrices of a hundred
rows. Here every inner loop runs over contiguous rows, several of them at once, and starts at a multiple of LANE, so that it
becomes whole vector instructions: three times LAPACK's speed at a hundred rows, as fast as it at five hundred.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from streamattn_cli.kernels.blas import LEFT, PLAIN, product
from streamattn_cli.kernels.jit import FAST, kernel

LANE = 16
BLOCK = 32  # rows that are worked on without BLAS; a multiple of LANE


@kernel(cache=True, fastmath=FAST)
def cholesky(a, least):
    """Upper U with U^T U = A for a = A (n, n), in place; reads and writes the upper triangle, what lies below is undefined.

    Of a = [A, I] (n, 2 n) the second half becomes U^-T in the same elimination. False, with a spoilt, as soon as a pivot is
    not above `least` (or is not a number).
    """
    n = a.shape[0]
    for i in range(n):
        first, end, whole = i - i % LANE, min(n + i + LANE - i % LANE, a.shape[1]), i - i % 4
        row = a[i, first:end]
        for k in range(0, whole, 4):
            f0, f1, f2, f3 = a[k, i], a[k + 1, i], a[k + 2, i], a[k + 3, i]
            a0, a1, a2, a3 = a[k, first:end], a[k + 1, first:end], a[k + 2, first:end], a[k + 3, first:end]
            for j in range(row.shape[0]):
                row[j] -= f0 * a0[j] + f1 * a1[j] + f2 * a2[j] + f3 * a3[j]
        for k in range(whole, i):
            f0, a0 = a[k, i], a[k, first:end]
            for j in range(row.shape[0]):
                row[j] -= f0 * a0[j]
        pivot = a[i, i]
        if not (pivot > least and pivot < math.inf):
            return False
        reciprocal = a.dtype.type(1) / math.sqrt(pivot)
        for j in range(row.shape[0]):
            row[j] *= reciprocal
    return True


@kernel(cache=True, fastmath=FAST)
def invert_factor(gemm, a, least, out, scratch):
    """out (n, n) = L^-1, lower triangular with zeros above, for a (n, n) = L L^T, of which the upper triangle is read; a is spoilt.

    False, with out undefined, as soon as a pivot is not above `least`. gemm: `blas.address` of the dtype. scratch: 2 min(n, BLOCK)^2
    numbers. Block by block: with U = L^T and T = L^-1,
        U_kj = T_kk (A_kj - sum_{m<k} U_mk^T U_mj),    T_kj = -T_kk sum_{j<=m<k} U_mk^T T_mj;
    U lies above the diagonal of out in the meantime, and what a has below it serves as scratch.
    """
    n = a.shape[0]
    for k in range(0, n, BLOCK):
        size = min(BLOCK, n - k)
        end = k + size
        both = scratch[: 2 * size * size].reshape(size, 2 * size)
        product(gemm, LEFT, out[:k, k:end], out[:k, k:], a[k:end, k:], -1.0, 1.0)
        for i in range(size):
            _copy(a[k + i, k:end], both[i, :size])
            both[i, size:] = 0
            both[i, size + i] = 1
        if not cholesky(both, least):
            return False
        inverse = both[:, size:]
        for i in range(size):
            _copy(both[i, size:], out[k + i, k:end])
        product(gemm, PLAIN, inverse, a[k:end, end:], out[k:end, end:])
        for j in range(0, k, BLOCK):
            past, part = j + BLOCK, a[k:end, :BLOCK]
            product(gemm, LEFT, out[j:k, k:end], out[j:k, j:past], part)
            product(gemm, PLAIN, inverse, part, out[k:end, j:past], -1.0)
    for i in range(n):
        out[i, min(n, i - i % BLOCK + BLOCK) :] = 0
    return True


@kernel()
def _copy(a, out):
    for j in range(out.shape[0]):
        out[j] = a[j]


@kernel(fastmath=FAST)
def largest(x):
    """The largest absolute number of x (n,), or NaN; 0 if there is none."""
    top = ordinal(x.dtype.type(0))
    for i in range(x.shape[0]):
        top = max(top, ordinal(abs(x[i])))
    return number(top)


@kernel(fastmath=FAST)
def smallest(x):
    """The smallest of numbers x (n,) that are not negative, NaN aside."""
    least = ordinal(x.dtype.type(np.inf))
    for i in range(x.shape[0]):
        least = min(least, ordinal(x[i]))
    return number(least)


def ordinal(x):
    """A number that is not negative as an integer, in the same order: LLVM compares integers in vectors, but not floats."""
    return x.view(np.int32 if isinstance(x, np.float32) else np.int64)


def number(x):
    """What `ordinal` was given."""
    return x.view(np.float32 if isinstance(x, np.int32) else np.float64)


@overload(ordinal, inline="always")
def _ordinal(x):
    return (lambda x: np.float32(x).view(np.int32)) if x == types.float32 else (lambda x: np.float64(x).view(np.int64))


@overload(number, inline="always")
def _number(x):
    return (lambda x: np.int32(x).view(np.float32)) if x == types.int32 else (lambda x: np.int64(x).view(np.float64))


@kernel(cache=True)
def transpose(a, out):
    """out (m, n) = a^T for a (n, m)."""
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            out[j, i] = a[i, j]
