"""Monomials of rows and their products with values: the feature map, never all in memory (METHODS.md (P3) to (P6)).

Monomial m is monomial parent[m] times coordinate var[m]; monomial 0 is 1. The first `low.shape[0]` of them, those of
less than the top degree, are parents and are kept; the others are consumed as soon as they are made.
Rows are columns here (coordinates x rows), so that every loop runs over contiguous rows.
"""

import math

from streamattn_cli.kernels.blas import LEFT, PLAIN, RIGHT, SMALL, product
from streamattn_cli.kernels.jit import CONTRACT, kernel
from streamattn_cli.kernels.quadrature import central, fit

NARROW = 12  # columns up to which BLAS is faster with rows that lie side by side, and then for
FLAT = 1200  # results of at most so many numbers
TOGETHER = 128  # monomials of queries in one product
FAR = 4.0  # variance of logits from which a sample's largest are not where a Gaussian has them
SMALL_REMAINDER = 1e-3


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


@kernel(cache=True, fastmath=CONTRACT)
def blend(sums, taylor, work, spare, m, y):
    """Turn power sums (g + 1, w, G) into partial answers: y (G, w), and what is factored out is added to m (G,).

    work (g + 6, G or more) float64: scratch; row g + 3 holds a bound on |logit| before, and the doubt afterwards. spare:
    see `polynomials`.
    """
    levels, width, queries = sums.shape
    polynomials(sums, taylor, work[:-2], spare)
    mean, variance, total = work[levels], work[levels + 1], work[levels + 3]
    for r in range(queries):
        m[r] += mean[r] + variance[r] / 2
    for j in range(width):
        evaluate(sums, j, work, total)
        for r in range(queries):
            y[r, j] = total[r]


@kernel(fastmath=CONTRACT)
def doubt_shortened(u, limit, doubt):
    """Where a column of u (d, G) was shortened to norm `limit`, the doubt (G,) is 1 at least."""
    for r in range(u.shape[1] if limit < math.inf else 0):
        norm = 0.0
        for i in range(u.shape[0]):
            norm += u[i, r] * u[i, r]
        if norm >= limit * limit * (1 - 1e-6):
            doubt[r] = max(doubt[r], 1.0)


@kernel(cache=True, fastmath=CONTRACT)
def reaches(u, longest, out):
    """out (G,): a bound on |u . x| for the columns of u (d, G) and any x of at most that length."""
    out[:] = 0.0
    for i in range(u.shape[0]):
        for r in range(u.shape[1]):
            out[r] += u[i, r] * u[i, r]
    for r in range(u.shape[1]):
        out[r] = longest * math.sqrt(out[r])


@kernel(cache=True)
def answer(
    where, q, mu, origin, scale, radius, taylor, weighed, start, run, x, low, part, sums, work, spare, m, y, doubt
):
    """Partial answers m (r,), y (r, w) to queries q (r, d) from `weighed` (t, w), and their doubt (r,). Return how many
    queries were clipped.

    As many queries at a time as the scratch has columns: x (d, G), low (count, G), part (w, G), sums (g + 1, w, G) and work
    (g + 6, G) float64; spare: see `polynomials`. mu (d,): the centre of the keys; origin (d,): 0. radius (2,): bounds on the
    lengths of keys and queries. where: `blas.address` of the dtype.
    """
    levels, width, most = sums.shape
    clipped, root, flat = 0, math.sqrt(scale), sums.reshape(levels * width, most)
    for first in range(0, q.shape[0], most):
        rows, shifts, out = q[first : first + most], m[first : first + most], y[first : first + most]
        n, d = rows.shape
        u, some = columns(x, n), columns(flat, n).reshape(levels, width, n)
        dots = work[0]
        dots[:] = 0
        for i in range(d):
            for r in range(n):
                dots[r] += rows[r, i] * mu[i]
        for r in range(n):
            shifts[r] = scale * dots[r]
        clipped += centre(rows, origin, root, radius[1], 0, u)[0]
        power_sums(where, u, weighed, start, run, columns(low, n), columns(part, n), some)
        reaches(u, radius[0], work[levels + 2])
        blend(some, taylor, work, spare, shifts, out)
        doubt_shortened(u, radius[1], work[levels + 2])
        for r in range(n):
            doubt[first + r] = work[levels + 2, r]
    return clipped


@kernel(cache=True, fastmath=CONTRACT)
def outputs(
    where,
    q,
    at,
    origin,
    scale,
    radius,
    taylor,
    weighed,
    start,
    run,
    span,
    fallback,
    x,
    low,
    part,
    sums,
    work,
    spare,
    counts,
    out,
    doubt,
):
    """Attention out (n, dv) of queries q (n, d) over the tokens behind `weighed` (t, w) alone, with their doubt (n,): `answer`
    and division in one.

    Panels of G queries at a time, the first of which began `at` queries before. span (2, dv): the range of the values;
    fallback (dv,): where z <= 0. counts (3,): queries clipped, guarded and unanswered are added. The rest as in `answer`.
    """
    levels, width, most = sums.shape
    n, root, total, z = q.shape[0], math.sqrt(scale), work[levels + 3], work[levels + 4]
    for panel in range(-at, n, most):
        a, b = max(panel, 0), min(panel + most, n)
        counts[0] += centre(q[a:b], origin, root, radius[1], a - panel, x)[0]
        power_sums(where, x, weighed, start, run, low, part, sums)
        reaches(x, radius[0], work[levels + 2])
        polynomials(sums, taylor, work[:-2], spare)
        doubt_shortened(x, radius[1], work[levels + 2])
        evaluate(sums, width - 1, work, z)
        for r in range(most):
            z[r] = 1 / z[r] if z[r] > 0 and z[r] < math.inf else -1
        for j in range(width - 1):
            evaluate(sums, j, work, total)
            least, greatest = span[0, j], span[1, j]
            for r in range(most):
                y = total[r] * z[r]
                y = y if y > least else least
                total[r] = y if y < greatest else greatest
            for i in range(a, b):
                out[i, j] = total[i - panel]
        for i in range(a, b):
            doubt[i] = work[levels + 2, i - panel]
            if z[i - panel] < 0:
                doubt[i] = math.inf
                counts[1] += 1
                counts[2] += 1
                for j in range(width - 1):
                    out[i, j] = fallback[j]


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
