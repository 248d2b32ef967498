"""The model of the queries: weighted mean, deviations and correlations of 16 or 8 bits (METHODS.md (N3), (N26))."""

import math

import numpy as np

from streamattn_cli.kernels.blas import LEFT, product
from streamattn_cli.kernels.hadamard import turn_rows
from streamattn_cli.kernels.jit import FAST, kernel
from streamattn_cli.kernels.linear import BLOCK, cholesky
from streamattn_cli.kernels.rotary import midway, turn

FULL, FULL8 = np.float32(32767), np.float32(127)  # correlation 1 in int16 and in int8
OWN = 0.02  # Sigma_jj += OWN Sigma_jj where correlations are int8: what rounding may take from the least eigenvalues
RIDGE = 1e-2  # Sigma += RIDGE tr(Sigma)/d I


@kernel(cache=True, fastmath=FAST)
def learn(gemm, q, u, forget, weight, mean, std, corr, scratch):
    """Take in queries q (r, d) of weights u (r,); what was there counts `forget` times as much from now on.

    gemm: `blas.address` of float32. weight (1,) float64, mean, std (d,), corr uint8: the bytes of d (d - 1) / 2
    int16 or int8; the model, in place. scratch: (r + 1 + d) d numbers of float32.
    """
    n, d = q.shape
    covariance = scratch[: d * d].reshape(d, d)
    rows = scratch[d * d : d * d + (n + 1) * d].reshape(n + 1, d)
    old, new = weight[0] * forget, 0.0
    for i in range(n):
        new += u[i]
    total = old + new
    unpack(std, corr, old, covariance)
    centre = rows[n]
    centre[:] = 0
    for i in range(n):
        share = np.float32(u[i] / new)
        for j in range(d):
            centre[j] += share * q[i, j]
    for i in range(n):
        root = np.float32(math.sqrt(u[i]))
        for j in range(d):
            rows[i, j] = (q[i, j] - centre[j]) * root
    part, root = np.float32(new / total), np.float32(math.sqrt(old * new / total))
    for j in range(d):
        step = centre[j] - mean[j]
        mean[j] += step * part
        centre[j] = step * root
    for i in range(0, d, BLOCK):
        product(gemm, LEFT, rows[:, i : i + BLOCK], rows[:, i:], covariance[i : i + BLOCK, i:], 1.0, 1.0)
    weight[0] = total
    pack(covariance, total, std, corr)


@kernel(inline="always")
def _narrow(std, corr):
    """Whether the correlations that are in the bytes `corr` are int8, and not int16."""
    pairs = std.shape[0] * (std.shape[0] - 1) // 2
    return 0 < pairs == corr.shape[0]


@kernel(cache=True, fastmath=FAST)
def unpack(std, corr, weight, out):
    """Upper triangle of out (d, d) = weight * covariance; what lies below is 0."""
    if _narrow(std, corr):
        _unpack(std, corr.view(np.int8), FULL8, weight, out)
    else:
        _unpack(std, corr.view(np.int16), FULL, weight, out)


@kernel(fastmath=FAST)
def _unpack(std, corr, full, weight, out):
    d, at = std.shape[0], 0
    for i in range(d):
        out[i, :i] = 0
        size = np.float32(std[i] * weight)
        out[i, i] = size * std[i]
        size /= full
        row, others, found = corr[at : at + d - 1 - i], std[i + 1 :], out[i, i + 1 :]
        for j in range(row.shape[0]):
            found[j] = row[j] * size * others[j]
        at += row.shape[0]


@kernel(cache=True, fastmath=FAST)
def pack(covariance, weight, std, corr):
    """Keep the upper triangle of covariance (d, d) / weight as deviations and correlations."""
    for i in range(std.shape[0]):
        std[i] = math.sqrt(max(covariance[i, i] / weight, 1e-30))
    if _narrow(std, corr):
        _pack(covariance, FULL8, weight, std, corr.view(np.int8))
    else:
        _pack(covariance, FULL, weight, std, corr.view(np.int16))


@kernel(fastmath=FAST)
def _pack(covariance, full, weight, std, corr):
    d, at = std.shape[0], 0
    for i in range(d):
        size = np.float32(full / (std[i] * weight))
        row, others, shares = corr[at : at + d - 1 - i], std[i + 1 :], covariance[i, i + 1 :]
        for j in range(row.shape[0]):
            share = shares[j] * size / others[j]
            row[j] = np.rint(min(max(share, -full), full))
        at += row.shape[0]


@kernel(cache=True, fastmath=FAST)
def factor(weight, mean, std, corr, out, direction):
    """out (d, d) upper: U with U^T U = covariance + RIDGE tr / d I; direction (d,) = U^-T mean.

    Without any query, and where numbers are too large for float32: the unit Gaussian around 0.
    """
    d = std.shape[0]
    trace = 0.0
    for j in range(d):
        trace += std[j] * std[j]
        direction[j] = 0
    known = weight[0] > 0 and trace < np.inf
    ridge, own = RIDGE * trace / d + 1e-12, OWN if _narrow(std, corr) else 0.0
    size = trace / d + 1e-10  # of the diagonal: pivots are measured by it
    while known:
        unpack(std, corr, 1.0 / size, out)
        for j in range(d):
            out[j, j] += (ridge + own * std[j] * std[j]) / size
        if cholesky(out, 0.01 * ridge / size):
            break
        if own > 0:  # correlations are rounded: their matrix may be off, by a little with 16 bits
            own *= 2
        else:
            ridge *= 10
        known = ridge < size and own < 10
    if not known:
        out[:] = 0
        for j in range(d):
            out[j, j] = 1
        return
    root = np.float32(math.sqrt(size))
    for i in range(d):
        row = out[i, i:]
        for j in range(row.shape[0]):
            row[j] *= root
        direction[i] = mean[i]
    for i in range(d):
        direction[i] /= out[i, i]
        row, rest, x = out[i, i + 1 :], direction[i + 1 :], direction[i]
        for j in range(row.shape[0]):
            rest[j] -= row[j] * x


@kernel(cache=True)
def typical(mean, scale, rope, now, out, scratch):
    """out (d,): scale * the mean query, `mean` (d,), turned as keys of six bits are (METHODS.md (N24)).

    With a rotation `mean` is that of queries turned back, and out the mean over positions ahead of `now`. scratch (3 d,), (4,) at
    least.
    """
    d, times = mean.shape[0], max(rope[3], 1) if rope[0].shape[0] else 1
    there, tables = scratch[:d].reshape(1, d), scratch[d : 3 * d]
    out[:] = 0
    for t in range(times):
        for j in range(d):
            there[0, j] = mean[j] * np.float32(scale / times)
        if rope[0].shape[0]:
            turn(there, rope, now + midway(t, times), 0.0, tables)
        for j in range(d):
            out[j] += there[0, j]
    turn_rows(out.reshape(1, d), d, False)
