"""Polynomials that stand for e^x over the logits of a query, from their power sums, and what each of them misses."""

import math

from streamattn_cli.kernels.jit import CONTRACT, kernel
from streamattn_cli.kernels.quadrature import central, fit

FAR = 4.0  # variance of logits from which a sample's largest are not where a Gaussian has them
SMALL_REMAINDER = 1e-3


@kernel(cache=True, fastmath=CONTRACT)
def hermite(mean, variance, out):
    """out (g + 1, G): powers of x of the degree-g polynomials nearest to e^(x - mean - variance/2) under N(mean, variance).

    The Hermite expansion sum_l sigma^l/l! He_l((x - mean)/sigma) collects to sum_j a_j (x - mean)^j with
    a_j = 1/j! sum_{k <= (g-j)/2} (-variance/2)^k / k!; then it is shifted by repeated division. mean, variance (G,).
    """
    degree = out.shape[0] - 1
    factorial = 1.0
    for j in range(degree + 1):
        factorial *= max(j, 1)
        a = out[j]
        a[:] = 1
        for k in range((degree - j) // 2, 0, -1):
            for r in range(a.shape[0]):
                a[r] = 1 - variance[r] * a[r] / (2 * k)
        for r in range(a.shape[0]):
            a[r] /= factorial
    for i in range(degree):
        for j in range(degree - 1, i - 1, -1):
            a, b = out[j], out[j + 1]
            for r in range(a.shape[0]):
                a[r] -= mean[r] * b[r]


@kernel(fastmath=CONTRACT)
def polynomials(sums, taylor, work, spare):
    """work (g + 4, G or more): the polynomial of each query, two numbers (a, b) with e^(a + b / 2) factored out, and its doubt.

    Hermite's (see `hermite`) where the logits look like a Gaussian's, and Taylor's where its remainder is small; elsewhere the
    polynomial that the moments of the logits define (see `fit`). sums (g + 1, w, G): power sums, those of the weights last.
    On entry the last row of work is a bound on each query's |logit|. spare SPARE is scratch.
    """
    levels, last = sums.shape[0], sums.shape[1] - 1
    mean, variance, doubt = work[levels], work[levels + 1], work[levels + 2]
    mean[:], variance[:] = 0, 0
    if not taylor and levels > 1:
        for r in range(sums.shape[2]):
            z = sums[0, last, r]
            if z > 0:
                mean[r] = sums[1, last, r] / z
                if levels > 2:
                    variance[r] = max(0.0, sums[2, last, r] / z - mean[r] * mean[r])
    hermite(mean, variance, work[:levels])
    moments, error, rest = spare[0, :levels], spare[1, :levels], spare[2:]
    for r in range(sums.shape[2]):
        count, reach = float(sums[0, last, r]), doubt[r]
        doubt[r] = 0.0
        if not count > 0:
            continue
        if levels < 3:  # nothing is known of the logits but their bound
            doubt[r] = math.exp(min(reach, 80.0)) - 1 - (reach if levels > 1 else 0.0)
            continue
        centre_at = sums[1, last, r] / count
        central(sums, last, r, centre_at, moments, error, rest)
        if not moments[2] > 4 * error[2]:
            continue  # all logits are the same
        missed = taylor_remainder(sums, last, r, reach) if taylor else gaussian_remainder(moments, error)
        if levels < 5 and not taylor:
            missed = max(missed, far_remainder(moments[2], count, reach))
        if levels < 5 or missed < (SMALL_REMAINDER if taylor else math.inf):
            doubt[r] = missed
        else:
            shift, doubt[r] = fit(r, count, reach, centre_at, moments, error, work[:levels], rest)
            mean[r], variance[r] = shift, 0.0


@kernel(fastmath=CONTRACT)
def gaussian_remainder(moments, error):
    """What Hermite's polynomial misses where the central moments (g + 1,) are a Gaussian's of a moderate variance; else infinity.

    It is the tail of a Poisson law: sqrt(P[Poisson(variance) > g]), relative to the root mean square of e^x.
    """
    levels, variance = moments.shape[0], moments[2]
    even, expected, kept, term = (levels - 1) // 2 * 2, 1.0, 0.0, math.exp(-variance)
    for i in range(1, even, 2):
        expected *= i * variance
    for level in range(levels):
        kept += term
        term *= variance / (level + 1)
    alike = abs(moments[even] - expected) <= expected / 2 + 4 * error[even]
    if levels > 4 and (variance > FAR or not alike):
        return math.inf
    return math.sqrt(max(1 - kept, 0.0))


@kernel(fastmath=CONTRACT)
def far_remainder(variance, count, reach):
    """What a polynomial of the second degree misses where all of the variance is in the farthest tokens that it allows."""
    x = min(reach, math.sqrt(variance * count), 80.0)
    return (math.exp(x) - 1 - x - x * x / 2) * variance / (x * x) if x > 0 else 0.0


@kernel(fastmath=CONTRACT)
def taylor_remainder(sums, column, r, reach):
    """What Taylor's polynomial misses at most, relative to the normaliser.

    |e^x - T(x)| / |x|^e is largest at the largest |x|, and the sum of |x|^e is known for even e.
    """
    top = sums.shape[0] - 1
    even = top // 2 * 2
    power = float(sums[even, column, r])
    largest, total, term, z = min(reach, max(power, 0.0) ** (1.0 / even)), 0.0, 1.0, 0.0
    factor = 1.0
    for level in range(top + 1):
        total += term
        term *= largest / (level + 1)
        z += sums[level, column, r] * factor
        factor /= level + 1
    if not z > 0:
        return math.inf
    if not largest > 0:
        return 0.0
    return max(math.exp(min(largest, 300.0)) - total, 0.0) / largest**even * power / z


@kernel(fastmath=CONTRACT)
def evaluate(sums, j, polynomial, out):
    """out (G,): every query's polynomial (g + 1, G) of column j of its power sums (g + 1, w, G)."""
    for level in range(sums.shape[0]):
        part, f = sums[level, j], polynomial[level]
        if level == 0:
            for r in range(part.shape[0]):
                out[r] = f[r] * part[r]
        else:
            for r in range(part.shape[0]):
                out[r] += f[r] * part[r]


@kernel(cache=True)
def row_factors(sums, taylor, work, spare):
    """work[: g + 1]: what the monomials of each level count in a query's normalised answer, from its power sums.

    sums (g + 1, 1, G) are those of the weights alone, so that z = sum_l a_l S_l; the result is a_l / z, and 0 where
    z <= 0. work (g + 4, G) float64, whose last row is a bound on |logit| before and the doubt afterwards; spare: see
    `polynomials`. Returns the number of queries with z <= 0.
    """
    levels, _, queries = sums.shape
    polynomials(sums, taylor, work, spare)
    bad = 0
    for r in range(queries):
        z = 0.0
        for level in range(levels):
            z += work[level, r] * sums[level, 0, r]
        sane = z > 0 and z < math.inf
        bad += not sane
        for level in range(levels):
            work[level, r] = work[level, r] / z if sane else 0.0
    return bad
