"""What the coresets that follow the keys need: sampling keys, the self-balancing walk, pivoted Cholesky."""

import math

import numpy as np

from streamattn_cli.kernels.counters import GOLDEN, mix
from streamattn_cli.kernels.jit import kernel

_U1, _U11 = np.uint64(1), np.uint64(11)


@kernel(cache=True)
def priorities(seed, first, out):
    """out (n,) uint64: splitmix64 of a seed and the global rows first, first + 1, ...; seed and first are uint64."""
    key = mix(seed + GOLDEN)
    for i in range(out.shape[0]):
        out[i] = mix(key ^ mix((first + np.uint64(i) + _U1) * GOLDEN))


@kernel(cache=True)
def walk(gram, gamma, chance, keep):
    """Self-balancing walk over the pairs (0, 1), (2, 3), ...: keep (n,) bool of the survivors, one of each pair.

    gram (n, n): inner products of the rows' features. With x_p the difference of a pair's features and w the signed
    sum of those before it, + is chosen with probability 1/2 - gamma <w, x_p> / max |x|^2; chance (pairs,) in
    [0, 1) decides.
    """
    pairs = gram.shape[0] // 2
    largest = 1e-300
    for p in range(pairs):
        a, b = 2 * p, 2 * p + 1
        largest = max(largest, gram[a, a] - 2 * gram[a, b] + gram[b, b])
    for p in range(pairs):
        a, b = 2 * p, 2 * p + 1
        lean = 0.0
        for i in range(a):
            term = gram[i, a] - gram[i, b]
            lean += term if keep[i] else -term
        plus = chance[p] < 0.5 - gamma * lean / largest
        keep[a], keep[b] = plus, not plus


@kernel(cache=True, fastmath=True, _nrt=True)
def pivots(kernel, weight, count, index):
    """Greedy pivoted Cholesky of a kernel matrix (n, n) of unit diagonal: index (count,) of the chosen rows.

    The next pivot has the largest residual * weight (n,). Fewer than `count` are chosen when the others are the span of
    those before them; returns how many.
    """
    n = kernel.shape[0]
    factor = np.empty((count, n))
    residual = np.ones(n)
    column = np.empty(n)
    for r in range(count):
        best, j = 0.0, -1
        for i in range(n):
            if residual[i] > 1e-10 and residual[i] * weight[i] > best:
                best, j = residual[i] * weight[i], i
        if j < 0:
            return r
        index[r] = j
        for i in range(n):
            column[i] = kernel[j, i]
        for q in range(r):
            f = factor[q, j]
            for i in range(n):
                column[i] -= f * factor[q, i]
        scale = 1.0 / math.sqrt(residual[j])
        for i in range(n):
            factor[r, i] = column[i] * scale
            residual[i] -= factor[r, i] * factor[r, i]
        residual[j] = 0.0
    return count


@kernel(cache=True)
def uniform(hashes, out):
    """out (n,) float64 in [0, 1) from hashes (n,) uint64."""
    for i in range(out.shape[0]):
        out[i] = np.float64(hashes[i] >> _U11) * (1.0 / 9007199254740992.0)
