"""Monomials of rows and their products with values (methods.md 2.1): the polynomial feature map, never all in memory.

Monomial m is monomial parent[m] times coordinate var[m]; monomial 0 is 1. The first `low.shape[0]` of them, those of
less than the top degree, are parents and are kept; the others are consumed as soon as they are made.
Rows are columns here (coordinates x rows), so that every loop runs over contiguous rows.
"""

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")
def centre(rows, mu, factor, radius, out):
    """out (d, G) = factor * (rows (n, d) - mu), shrunk to norm `radius`; columns n.. are 0. Return how many shrank."""
    clipped = 0
    n, d = rows.shape
    for r in range(n):
        norm = 0.0
        for i in range(d):
            x = factor * (rows[r, i] - mu[i])
            out[i, r] = x
            norm += x * x
        if norm > radius * radius:
            clipped += 1
            shrink = radius / math.sqrt(norm)
            for i in range(d):
                out[i, r] *= shrink
    out[:, n:] = 0
    return clipped


@njit(cache=True, nogil=True, error_model="numpy")
def monomials(x, parent, var, first, low, out):
    """Rows first.. of the monomial matrix of x (d, G) into out (count, G); `low` is filled as its rows come by."""
    for i in range(out.shape[0]):
        m = first + i
        w = out[i]
        if m == 0:
            low[0] = 1
            w[:] = 1
            continue
        p = low[parent[m]]
        c = x[var[m]]
        for r in range(w.shape[0]):
            w[r] = p[r] * c[r]
        if m < low.shape[0]:
            kept = low[m]
            for r in range(w.shape[0]):
                kept[r] = w[r]


@njit(inline="always")
def add(moments, m, j, a, b, c):
    """moments[m, j : j + 3] += a, b, c, as far as there are columns."""
    moments[m, j] += a
    if j + 1 < moments.shape[1]:
        moments[m, j + 1] += b
    if j + 2 < moments.shape[1]:
        moments[m, j + 2] += c


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def absorb(x, c, parent, var, low, four, moments):
    """moments (t, w) += monomials(x) @ c.T, with x (d, G) and c (w padded to a multiple of 3 with zeros, G).

    Four monomials and three columns at a time: twelve dot products for seven loads. four (4, G) is scratch.
    """
    count, width = moments.shape
    zero = x.dtype.type(0)
    u0, u1, u2, u3 = four[0], four[1], four[2], four[3]
    for first in range(0, count, 4):
        some = min(4, count - first)
        monomials(x, parent, var, first, low, four[:some])
        for j in range(0, width, 3):
            c0, c1, c2 = c[j], c[j + 1], c[j + 2]
            a00 = a01 = a02 = a10 = a11 = a12 = a20 = a21 = a22 = a30 = a31 = a32 = zero
            for r in range(x.shape[1]):
                p, q, s = c0[r], c1[r], c2[r]
                v0, v1, v2, v3 = u0[r], u1[r], u2[r], u3[r]
                a00 += v0 * p
                a01 += v0 * q
                a02 += v0 * s
                a10 += v1 * p
                a11 += v1 * q
                a12 += v1 * s
                a20 += v2 * p
                a21 += v2 * q
                a22 += v2 * s
                a30 += v3 * p
                a31 += v3 * q
                a32 += v3 * s
            add(moments, first, j, a00, a01, a02)
            if some > 1:
                add(moments, first + 1, j, a10, a11, a12)
            if some > 2:
                add(moments, first + 2, j, a20, a21, a22)
            if some > 3:
                add(moments, first + 3, j, a30, a31, a32)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def power_sums(x, moments, weight, start, parent, var, low, eight, sums):
    """sums (g + 1, w, G): for every query the sums of (its logit)^l c over the tokens behind `moments` (t, w).

    x (d, G) are the queries, weight (t,) the multinomials l!/a!, start (g + 2,) the first monomial of each level.
    Eight monomials at a time, so that a row of the result is loaded and stored once for eight products.
    """
    width = moments.shape[1]
    s = np.zeros((8, width), sums.dtype)
    u0, u1, u2, u3, u4, u5, u6, u7 = (
        eight[0], eight[1], eight[2], eight[3], eight[4], eight[5], eight[6], eight[7],
    )  # fmt: skip
    for level in range(start.shape[0] - 1):
        sums[level] = 0
        for first in range(start[level], start[level + 1], 8):
            some = min(8, start[level + 1] - first)
            monomials(x, parent, var, first, low, eight[:some])
            eight[some:] = 0  # they are multiplied by 0 below, and what another head left here may be infinite
            for i in range(8):
                for j in range(width):
                    s[i, j] = weight[first + i] * moments[first + i, j] if i < some else 0.0
            for j in range(width):
                a, b, c, d = s[0, j], s[1, j], s[2, j], s[3, j]
                e, f, g, h = s[4, j], s[5, j], s[6, j], s[7, j]
                w = sums[level, j]
                for r in range(w.shape[0]):
                    w[r] += (
                        (a * u0[r] + b * u1[r]) + (c * u2[r] + d * u3[r]) + (e * u4[r] + f * u5[r]) + (g * u6[r] + h * u7[r])
                    )


@njit(cache=True, nogil=True, error_model="numpy")
def hermite(degree, mean, variance, out):
    """out (g + 1,): powers of x of the degree-g polynomial nearest to e^(x - mean - variance/2) under N(mean, variance).

    The Hermite expansion sum_l sigma^l/l! He_l((x - mean)/sigma) collects to sum_j a_j (x - mean)^j with
    a_j = 1/j! sum_{k <= (g-j)/2} (-variance/2)^k / k!; then the powers of (x - mean) are multiplied out.
    """
    out[:] = 0
    factorial = 1.0
    for j in range(degree + 1):
        if j > 0:
            factorial *= j
        a, term = 0.0, 1.0
        for k in range((degree - j) // 2 + 1):
            if k > 0:
                term *= -variance / (2 * k)
            a += term
        a /= factorial
        binomial, power = 1.0, 1.0  # C(j, i) and (-mean)^i for the coefficient of x^(j - i)
        for i in range(j + 1):
            out[j - i] += a * binomial * power
            binomial *= (j - i) / (i + 1)
            power *= -mean


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def blend(sums, taylor, factor, m, y):
    """Turn power sums (g + 1, w, G), spoilt, into partial answers: y (G, w), and what is factored out is added to m (G,).

    Each query's own logits have mean S1/S0 and variance S2/S0 - mean^2 (S_l the sum of their l-th powers, the last
    row of sums[l]); its polynomial is the Hermite expansion for these, or Taylor's. factor (g + 1, G): scratch.
    """
    levels, width, queries = sums.shape
    a = np.empty(levels)
    for r in range(queries):
        mean, variance, z = 0.0, 0.0, sums[0, width - 1, r]
        if not taylor and z > 0 and levels > 1:
            mean = sums[1, width - 1, r] / z
            if levels > 2:
                variance = max(0.0, sums[2, width - 1, r] / z - mean * mean)
        hermite(levels - 1, mean, variance, a)
        m[r] += mean + variance / 2
        for level in range(levels):
            factor[level, r] = a[level]
    for j in range(width):
        total, f = sums[0, j], factor[0]
        for r in range(queries):
            total[r] *= f[r]
        for level in range(1, levels):
            part, f = sums[level, j], factor[level]
            for r in range(queries):
                total[r] += f[r] * part[r]
    for r in range(queries):
        for j in range(width):
            y[r, j] = sums[0, j, r]


@njit(cache=True, nogil=True, error_model="numpy")
def row_factors(sums, taylor, out):
    """out (g + 1, G): what the monomials of each level count in a query's normalised answer, from its power sums.

    sums (g + 1, 1, G) are those of the weights alone, so that z = sum_l a_l S_l; out is a_l / z, and 0 where z <= 0.
    Returns the number of queries with z <= 0.
    """
    levels, _, queries = sums.shape
    a = np.empty(levels)
    bad = 0
    for r in range(queries):
        mean, variance, count, z = 0.0, 0.0, sums[0, 0, r], 0.0
        if not taylor and count > 0 and levels > 1:
            mean = sums[1, 0, r] / count
            if levels > 2:
                variance = max(0.0, sums[2, 0, r] / count - mean * mean)
        hermite(levels - 1, mean, variance, a)
        for level in range(levels):
            z += a[level] * sums[level, 0, r]
        if not (z > 0 and z < math.inf):
            bad += 1
            out[:, r] = 0
            continue
        for level in range(levels):
            out[level, r] = a[level] / z
    return bad


@njit(cache=True, nogil=True, error_model="numpy")
def scatter(x, factor, level, parent, var, low, eight, target, sign, count, sketch, total):
    """sketch[target[r, e]] += sign[r, e] w_r for e < count[r], and total += w_r, for the columns r of x (d, G).

    w_r (t,) are the monomials of column r times factor[level of the monomial, r]; sketch is (m, t), total (t,), all
    float64. Rows are added one after the other, so that the sums do not depend on how a stream was cut into blocks.
    """
    features = total.shape[0]
    for first in range(0, features, 8):
        some = min(8, features - first)
        monomials(x, parent, var, first, low, eight[:some])
        eight[some:] = 0
        for i in range(some):
            w, f = eight[i], factor[level[first + i]]
            for r in range(w.shape[0]):
                w[r] *= f[r]
        if some == 8:
            _scatter_eight(eight, first, target, sign, count, sketch, total)
            continue
        for r in range(x.shape[1]):
            for i in range(some):
                total[first + i] += eight[i, r]
                for e in range(count[r]):
                    sketch[target[r, e], first + i] += sign[r, e] * eight[i, r]


@njit(cache=True, nogil=True, error_model="numpy")
def _scatter_eight(u, first, target, sign, count, sketch, total):
    """Eight monomials u (8, G) of every row at a time: one cache line of the sketch for each target."""
    t = total[first : first + 8]
    t0, t1, t2, t3, t4, t5, t6, t7 = t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7]
    for r in range(u.shape[1]):
        a, b, c, d = u[0, r], u[1, r], u[2, r], u[3, r]
        e, f, g, h = u[4, r], u[5, r], u[6, r], u[7, r]
        t0 += a
        t1 += b
        t2 += c
        t3 += d
        t4 += e
        t5 += f
        t6 += g
        t7 += h
        for i in range(count[r]):
            s = sign[r, i]
            row = sketch[target[r, i], first : first + 8]
            row[0] += s * a
            row[1] += s * b
            row[2] += s * c
            row[3] += s * d
            row[4] += s * e
            row[5] += s * f
            row[6] += s * g
            row[7] += s * h
    t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7] = t0, t1, t2, t3, t4, t5, t6, t7
