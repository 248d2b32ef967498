"""Monomials of rows and their products with values: the feature map, never all in memory (METHODS.md (P3) to (P6)).

Monomial m is monomial parent[m] times coordinate var[m]; monomial 0 is 1. The first `low.shape[0]` of them, those of
less than the top degree, are parents and are kept; the others are consumed as soon as they are made.
Rows are columns here (coordinates x rows), so that every loop runs over contiguous rows.
"""

import math

from streamattn_cli.kernels.blas import LEFT, PLAIN, RIGHT, SMALL, product
from streamattn_cli.kernels.jit import CONTRACT, kernel

NARROW = 12  # columns up to which BLAS is faster with rows that lie side by side, and then for
FLAT = 1200  # results of at most so many numbers
TOGETHER = 128  # monomials of queries in one product


@kernel(cache=True, fastmath=CONTRACT)
def centre(rows, mu, factor, radius, first, out):
    """Columns first.. of out (d, G) = factor * (rows (n, d) - mu), shrunk to norm `radius`; all others are 0. Return how
    many shrank, and the largest norm before."""
    clipped, longest = 0, 0.0
    n, d = rows.shape
    for r in range(n):
        norm = 0.0
        for i in range(d):
            x = factor * (rows[r, i] - mu[i])
            out[i, first + r] = x
            norm += x * x
        longest = max(longest, norm)
        if norm > radius * radius:
            clipped += 1
            shrink = radius / math.sqrt(norm)
            for i in range(d):
                out[i, first + r] *= shrink
    out[:, :first] = 0
    out[:, first + n :] = 0
    return clipped, math.sqrt(longest)


@kernel(cache=True)
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


@kernel(fastmath=CONTRACT)
def parents(x, start, run, low):
    """Fill low (count, G) with the monomials of x (d, G) of the lowest degrees, in the table's `order`.

    There those of one degree are sorted by their last variable, so that the ones that grow by variable v are the first
    run[degree, v] of them.
    """
    low[0] = 1
    made, degree = 1, 0
    while made < low.shape[0]:
        for v in range(x.shape[0]):
            c = x[v]
            for i in range(start[degree], start[degree] + run[degree, v]):
                p, w = low[i], low[made]
                for r in range(w.shape[0]):
                    w[r] = p[r] * c[r]
                made += 1
        degree += 1


@kernel(inline="always")
def columns(scratch, count):
    """The memory of scratch (rows, G) as a contiguous array of `count` <= G columns."""
    rows = scratch.shape[0]
    return scratch.reshape(-1)[: rows * count].reshape(rows, count)


@kernel(cache=True)
def absorb(where, k, mu, factor, radius, c, start, order, run, x, low, values, block, moments):
    """moments (t, w) += the monomials of keys k (n, d), centred (see `centre`), times c (n, w). Return how many shrank, and the
    largest norm.

    The monomials of the top degree are not made: those that end in variable v, times c, are a part of `low`, all of the
    others, times x[v] c. x (d, G), low (count, G), values (2, w G) and block (some, w) are scratch, n <= G. where:
    `blas.address` of the dtype.
    """
    rows, width = c.shape
    top = start.shape[0] - 2
    x, low = columns(x, rows), columns(low, rows)
    found = centre(k, mu, factor, radius, 0, x)
    parents(x, start, run, low)
    narrow = width <= NARROW
    form, shape = (RIGHT, (width, rows)) if narrow else (PLAIN, (rows, width))
    plain, scaled = values[0, : c.size].reshape(shape), values[1, : c.size].reshape(shape)
    for i in range(shape[0]):
        for j in range(shape[1]):
            plain[i, j] = c[j, i] if narrow else c[i, j]
    step = min(block.shape[0], FLAT // width if narrow else max(SMALL // c.size, 16))
    add_products(where, form, low, plain, order[: low.shape[0]], step, block, moments)
    at = low.shape[0]
    for v in range(x.shape[0] if at < order.shape[0] else 0):
        for i in range(shape[0]):
            for j in range(shape[1]):
                scaled[i, j] = plain[i, j] * (x[v, j] if narrow else x[v, i])
        first, count = start[top - 1], run[top - 1, v]
        add_products(where, form, low[first : first + count], scaled, order[at : at + count], step, block, moments)
        at += count
    return found


@kernel()
def add_products(where, form, u, c, order, step, block, moments):
    """moments[order] += u (count, G) times c, (G, w) or transposed as `form` says, `step` monomials at a time."""
    for first in range(0, u.shape[0], step):
        part = u[first : first + step]
        out = block[: part.shape[0]]
        product(where, form, part, c, out)
        for i in range(out.shape[0]):
            row = moments[order[first + i]]
            for j in range(row.shape[0]):
                row[j] += out[i, j]


@kernel(cache=True)
def weigh(moments, weight, order, out):
    """out (t, w) = moments in the table's `order`, each times its multinomial `weight`."""
    for i in range(order.shape[0]):
        m, row = order[i], out[i]
        for j in range(row.shape[0]):
            row[j] = weight[m] * moments[m, j]


@kernel(cache=True, fastmath=CONTRACT)
def power_sums(where, x, weighed, start, run, low, part, sums):
    """sums (g + 1, w, G): for every query the sums of (its logit)^l c over the tokens behind `weighed` (t, w), see `weigh`.

    x (d, G) are the queries. As in `absorb` the monomials of the top degree are not made. low (count, G) and part (w, G) are
    scratch. where: `blas.address` of the dtype.
    """
    top = sums.shape[0] - 1
    parents(x, start, run, low)
    for level in range(top + 1):
        at, end = start[level], start[level + 1]
        if end <= low.shape[0]:
            product(where, LEFT, weighed[at:end], low[at:end], sums[level])
            continue
        sums[level] = 0
        for v in range(x.shape[0]):
            first, count = start[top - 1], run[top - 1, v]
            sum_products(where, weighed[at : at + count], low[first : first + count], x[v], part, sums[level])
            at += count


@kernel(fastmath=CONTRACT)
def sum_products(where, weighed, u, factor, part, total):
    """total (w, G) += factor (G,) times weighed^T u, with weighed (n, w) and u (n, G)."""
    for first in range(0, u.shape[0], TOGETHER):
        product(where, LEFT, weighed[first : first + TOGETHER], u[first : first + TOGETHER], part)
        for j in range(total.shape[0]):
            t, p = total[j], part[j]
            for r in range(t.shape[0]):
                t[r] += factor[r] * p[r]


@kernel(cache=True)
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


@kernel(cache=True)
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
