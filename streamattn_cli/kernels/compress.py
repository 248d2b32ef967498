"""One compression of a weighted set of keys under a Gaussian model of the queries (METHODS.md (N5) to (N10), (N25)).

With the queries' covariance Sigma = R R^T, t = s x R, M = I + (2 alpha / n) t^T t = L L^T and z = t L^-T, the closed form is
    A^-1 = R M^-1 R^T,    s^2 x A^-1 x' = z.z',    s x.A^-1 Sigma^-1 mu = z.(L^-1 R^-1 mu):
two Cholesky factors of d x d, no inverse, and nothing that single precision could not hold.
"""

import math

import numpy as np

from streamattn_cli.kernels.blas import LEFT, PLAIN, product
from streamattn_cli.kernels.exponential import exp
from streamattn_cli.kernels.jit import FAST, kernel
from streamattn_cli.kernels.linear import BLOCK, LANE, invert_factor, largest, smallest, transpose
from streamattn_cli.kernels.rotary import ahead, turn

ALPHA = 1.0  # exponent of the normaliser model p_q(k) = e^(s q.x) / e^(alpha/2 s^2 q^T Sk q)
ALPHA_TURNED = 0.5  # the same where queries are turned to their future positions
RIDGE = 1e-5  # of the unit diagonal; in single precision less would not always be enough
APART, STEEP, MOST = 1e-3, 3.0, 14.0  # of the diagonal's part that keeps the atoms of far longer keys (see keep_apart)
ALIKE = 1e-3  # lengths that differ by no more, relative and in logits, are as good as equal
LOWEST = -40.0  # of the log diagonal below its maximum, so that squares of what is below stay above 0


@kernel(cache=True, fastmath=FAST)
def compress(gemm, x, w, factor, direction, scale, temper, keep, rope, now, draw, scratch, alive):
    """Choose `keep` of n atoms so that sum_a e^(s q.k_a) C_a changes least for q ~ N(mean, R R^T), in place.

    gemm: `blas.address` of the dtype. x (n, d): keys, spoilt. w (n, c): coefficients; those of the survivors become the
    new ones. factor (d, d) upper: R^T. direction (d,): R^-1 mean. temper (0..1] flattens the log diagonal of the kernel,
    for a model of the queries that over-trusts keys far out. rope: see rotary.turn; with frequencies the queries' model is one
    of queries turned back, `now` is the position that the stream has reached, and `draw` chooses the positions ahead of it
    that atoms are fitted for. scratch: 2 (n (n + d + 1) + d d + b b) + n (n - keep + 3 + c) + 4 (c - 1) numbers of the same
    dtype, b = min(max(n, d), BLOCK), n more, and (n + 2) d more with a rotation. alive (n,) bool: who survives.
    """
    n, d = x.shape
    at = 0
    kernel, at = scratch[at : at + n * n].reshape(n, n), at + n * n
    inverse, at = scratch[at : at + n * n].reshape(n, n), at + n * n
    other, at = scratch[at : at + n * d].reshape(n, d), at + n * d
    turned, at = scratch[at : at + n * d].reshape(d, n), at + n * d
    square, at = scratch[at : at + d * d].reshape(d, d), at + d * d
    square2, at = scratch[at : at + d * d].reshape(d, d), at + d * d
    half, root, at = scratch[at : at + n], scratch[at + n : at + 2 * n], at + 2 * n
    small = 2 * min(max(n, d), BLOCK) ** 2
    blocks, at = scratch[at : at + small], at + small
    length, at = scratch[at : at + n], at + n
    rotates, sane, ridge = rope[0].shape[0] > 0, True, RIDGE
    extra = (n + 2) * d if rotates else 0
    there, at = scratch[at : at + extra], at + extra
    if not rotates:
        sane = whiten(
            gemm, x, factor, direction, scale, temper, ALPHA, other, turned, square, square2, half, root, blocks
        )
    while sane:
        if rotates:
            work = there, other, turned, square, square2, half, blocks
            sane = mixture(
                gemm, x, factor, direction, scale, temper, ridge, rope, now, draw, work, inverse, root, length, kernel
            )
            if not sane:
                break
        else:
            unit_kernel(gemm, turned, half, ridge, kernel)
            length[:] = 0
            add_lengths(half, length)
        keep_apart(length, rope[3] if rotates else 1, kernel)
        if invert_factor(gemm, kernel, 0.1 * ridge, inverse, blocks):
            break
        ridge *= 10
        sane = ridge < 100
    if not sane:  # keys so large that nothing can be said of them: the smallest coefficients go
        inverse[:], root[:] = 0, 1
        for i in range(n):
            inverse[i, i] = 1
    refit(inverse, root, w, keep, scratch[at:], alive)


@kernel(fastmath=FAST)
def refit(inverse, root, w, keep, scratch, alive):
    """Leave `keep` of n atoms with coefficients w (n, c), in place: see `eliminate`. root (n,): of the kernel's diagonal, spoilt."""
    n, at = w.shape[0], 0
    top, width = largest(w.reshape(-1)), w.shape[1] - 1
    if not top > 0:
        top = w.dtype.type(1)
    coefs, at = scratch[at : at + n * width].reshape(n, width), at + n * width
    weights, at = scratch[at : at + n], at + n
    for i in range(n):
        root[i] *= 1 / top
        for t in range(width):
            coefs[i, t] = w[i, t] * root[i]
        weights[i] = w[i, width] * root[i]
    eliminate(inverse, coefs, weights, n - keep, scratch[at:], alive)
    for i in range(n):
        back = w.dtype.type(1) / root[i]
        for t in range(width):
            w[i, t] = coefs[i, t] * back
        w[i, width] = weights[i] * back


@kernel(fastmath=FAST)
def whiten(gemm, x, factor, direction, scale, temper, alpha, other, turned, square, square2, half, root, blocks):
    """turned (d, n) = z^T of keys x (n, d), which are spoilt; half (n,) = |z|^2 / 2; root (n,): of the kernel's diagonal, the largest 1.

    other (n, d), square and square2 (d, d), blocks: scratch. False when the numbers are too large for all that.
    """
    n, d = x.shape
    kind = x.dtype.type
    mean = other[0]
    mean[:] = 0
    for i in range(n):
        for j in range(d):
            mean[j] += x[i, j]
    for j in range(d):
        mean[j] /= kind(n)
    for i in range(n):
        for j in range(d):
            x[i, j] = (x[i, j] - mean[j]) * kind(scale)
    transpose(factor, square)
    for i in range(d):
        square[i, i + 1 :] = 0
    for j in range(0, d, BLOCK):  # t; half of a triangle is zeros, which need no product
        product(gemm, PLAIN, x[:, j:], square[j:, j : j + BLOCK], other[:, j : j + BLOCK])
    for j in range(0, d, BLOCK):
        product(gemm, LEFT, other[:, j : j + BLOCK], other[:, j:], square[j : j + BLOCK, j:])
    for i in range(d):
        row = square[i, i:]
        for j in range(row.shape[0]):
            row[j] *= kind(2 * alpha / n)
        square[i, i] += kind(1)
    if not invert_factor(gemm, square, 0.5, square2, blocks):
        square2[:] = 0
        for i in range(d):
            square2[i, i] = 1
    columns = x.reshape(-1)[: d * n].reshape(d, n)
    transpose(other, columns)
    for j in range(0, d, BLOCK):
        some = slice(j, min(j + BLOCK, d))
        product(gemm, PLAIN, square2[some, : j + BLOCK], columns[: j + BLOCK], turned[some])
    half[:], root[:] = 0, 0
    for j in range(d):
        row, along = turned[j], kind(0)
        for k in range(j + 1):
            along += square2[j, k] * direction[k]
        for i in range(n):
            half[i] += row[i] * row[i]
            root[i] += row[i] * along
    highest = kind(-np.inf)
    for i in range(n):
        half[i] *= kind(0.5)
        root[i] = kind(temper) * (half[i] + root[i])
        highest = max(highest, root[i])
        if not half[i] + abs(root[i]) < np.inf:
            return False
    for i in range(n):
        root[i] = exp(max(root[i] - highest, kind(LOWEST)))
    return True


@kernel(fastmath=FAST)
def mixture(gemm, x, factor, direction, scale, temper, ridge, rope, now, draw, work, part, root, length, out):
    """As `whiten` and `unit_kernel`, for queries at the positions ahead: out is the sum of their kernels, at unit diagonal, and
    length (n,) that of their |z|.

    To turn the queries forward or all keys x (n, d) back is the same, and keeps one factor. x stays as it is. part (n, n),
    work: scratch.
    """
    there, other, turned, square, square2, half, blocks = work
    (n, d), kind = x.shape, x.dtype.type
    keys, tables = there[: n * d].reshape(n, d), there[n * d :]
    length[:] = 0
    for t in range(rope[3]):
        for i in range(n):
            for j in range(d):
                keys[i, j] = x[i, j]
        turn(keys, rope, -(now + ahead(draw, t, rope[3])), 0.0, tables)
        if not whiten(
            gemm, keys, factor, direction, scale, temper, ALPHA_TURNED, other, turned, square, square2, half, root,
            blocks,
        ):  # fmt: skip
            return False
        unit_kernel(gemm, turned, half, kind(0), part)
        add_lengths(half, length)
        for i in range(n):
            first = i - i % LANE
            row, theirs, more, mine = out[i, first:], root[first:], part[i, first:], root[i]
            for j in range(row.shape[0]):
                row[j] = (row[j] if t else kind(0)) + more[j] * (mine * theirs[j])
    for i in range(n):
        root[i] = math.sqrt(out[i, i])
        half[i] = kind(1) / root[i]
    for i in range(n):
        first = i - i % LANE
        row, theirs, mine = out[i, first:], half[first:], half[i]
        for j in range(row.shape[0]):
            row[j] = row[j] * mine * theirs[j]
        out[i, i] = 1 + ridge
    return True


@kernel(fastmath=FAST)
def unit_kernel(gemm, turned, half, ridge, out):
    """Upper triangle of out (n, n): exp(-|z_i - z_j|^2 / 2), and 1 + ridge on the diagonal; turned (d, n) = z^T."""
    n = out.shape[0]
    for i in range(0, n, BLOCK):
        product(gemm, LEFT, turned[:, i : i + BLOCK], turned[:, i:], out[i : i + BLOCK, i:])
    for i in range(n):
        first = i - i % LANE
        row, theirs, mine = out[i, first:], half[first:], half[i]
        for j in range(row.shape[0]):
            row[j] = min(row[j] - theirs[j] - mine, row.dtype.type(0))
        for j in range(row.shape[0]):
            row[j] = exp(row[j])
        out[i, i] = 1 + ridge


@kernel(fastmath=FAST)
def add_lengths(half, length):
    """Add |z|, whose square is twice half (n,), to length (n,)."""
    root = half.dtype.type(math.sqrt(2))
    for i in range(half.shape[0]):
        length[i] += root * math.sqrt(half[i])


@kernel(fastmath=FAST)
def keep_apart(length, count, out):
    """Add to the diagonal of out (n, n) what keeps atoms whose keys are far longer than others: METHODS.md (N25). length (n,): the
    sum of count lengths."""
    n, kind = length.shape[0], length.dtype.type
    mean, spread = kind(0), kind(0)
    for i in range(n):
        mean += length[i]
    mean /= kind(n)
    for i in range(n):
        spread += abs(length[i] - mean)
    spread = spread / kind(n) + kind(ALIKE) * (mean + kind(ALIKE))
    for i in range(n):
        square = (length[i] / kind(count)) ** 2  # logits that hardly differ find no key
        own = kind(APART) * min(square * square * square * square, kind(1))
        out[i, i] += own * exp(min((length[i] - mean) * (kind(STEEP) / spread), kind(MOST)))


@kernel(cache=True, fastmath=FAST)
def eliminate(inverse, w, last, count, scratch, alive):
    """Backward elimination, METHODS.md (N9), (N10): remove `count` atoms, each time that of least |W_j|^2 / G_jj.

    G = T^T T is the inverse of the kernel matrix, given by T = `inverse` (n, n) of its Cholesky factor, and is never
    formed: its diagonal is kept, and the column of an atom is made when it is removed. W = [w, last], w (n, c) and last (n,)
    in place, becomes the ridge least-squares solution on the survivors. alive (n,) bool: who survives. scratch:
    (count + 3) n + 4 c numbers.

    W, which the first cache does not hold, follows four removals at a time, and |W_j|^2 is what it was before these four:
    errors are the same to two digits (thirty-two at a time: 6% larger). A row of c + 1 numbers would begin in the middle of a
    cache line, and take twice as long.
    """
    n, c = w.shape
    removed = scratch[: count * n].reshape(count, n)
    at = count * n
    g, s, cost = scratch[at : at + n], scratch[at + n : at + 2 * n], scratch[at + 2 * n : at + 3 * n]
    gone = scratch[at + 3 * n : at + 3 * n + 4 * c].reshape(4, c)
    one, least = w.dtype.type(1), w.dtype.type(1e-30)
    g[:] = 0
    for k in range(n):
        row = inverse[k]
        for i in range(min(n, k + LANE - k % LANE)):
            g[i] += row[i] * row[i]
    for i in range(n):
        total = last[i] * last[i]
        for t in range(c):
            total += w[i, t] * w[i, t]
        s[i], alive[i] = total, True
    for first in range(0, count, 4):
        end = min(first + 4, count)
        gone[:] = 0
        for r in range(first, end):
            row, column, j = gone[r - first], removed[r], cheapest(s, g, cost, alive)
            alive[j], s[j] = False, np.inf
            inverse_column(inverse, removed, j, r, column)
            root = one / math.sqrt(max(column[j], least))
            for i in range(n):
                column[i] *= root
                g[i] = max(g[i] - column[i] * column[i], least)
            for t in range(c):
                row[t] = w[j, t]
            for q in range(first, r):
                f, other = removed[q, j], gone[q - first]
                for t in range(c):
                    row[t] -= f * other[t]
            for t in range(c):
                row[t] *= root
            weight = root * last[j]  # up to date
            for i in range(n):
                last[i] -= column[i] * weight
        spread_gone(removed[first:end], gone, w, last, s, alive)


@kernel(fastmath=FAST)
def spread_gone(removed, gone, w, last, s, alive):
    """w (n, c) after up to four removals: their columns `removed` (., n), and what they had, gone (4, c), 0 where there are fewer. s (n,):
    squares of the rows of [w, last]."""
    end, c = removed.shape[0] - 1, w.shape[1]
    f0, f1, f2, f3 = removed[0], removed[min(1, end)], removed[min(2, end)], removed[end]
    g0, g1, g2, g3 = gone[0], gone[1], gone[2], gone[3]
    for i in range(w.shape[0]):
        if not alive[i]:
            continue
        row, a0, a1, a2, a3, total = w[i], f0[i], f1[i], f2[i], f3[i], last[i] * last[i]
        for t in range(c):
            x = row[t] - (a0 * g0[t] + a1 * g1[t] + a2 * g2[t] + a3 * g3[t])
            row[t] = x
            total += x * x
        s[i] = total


@kernel(fastmath=FAST)
def cheapest(s, g, cost, alive):
    """The first living atom with the least s / g, all (n,), s infinite for the dead; cost is scratch."""
    n = s.shape[0]
    for i in range(n):
        cost[i] = s[i] / g[i]
    best, j = smallest(cost), np.int32(n)
    for i in range(n):
        j = min(j, np.int32(i) if cost[i] == best else np.int32(n))
    if j == n or not alive[j]:  # no number among them
        j = np.int32(0)
        while not alive[j]:
            j += np.int32(1)
    return np.int64(j)


@kernel(fastmath=FAST)
def inverse_column(inverse, removed, j, r, column):
    """Column j (n,) of G = T^T T after the removals behind the first r rows of `removed` (., n)."""
    n = inverse.shape[0]
    column[:] = 0
    k = j
    while k + 4 <= n:
        f0, f1, f2, f3 = inverse[k, j], inverse[k + 1, j], inverse[k + 2, j], inverse[k + 3, j]
        r0, r1, r2, r3 = inverse[k], inverse[k + 1], inverse[k + 2], inverse[k + 3]
        for i in range(min(n, k + 4 + LANE - (k + 4) % LANE)):
            column[i] += f0 * r0[i] + f1 * r1[i] + f2 * r2[i] + f3 * r3[i]
        k += 4
    while k < n:
        f0, r0 = inverse[k, j], inverse[k]
        for i in range(n):
            column[i] += f0 * r0[i]
        k += 1
    whole = r - r % 4
    for q in range(0, whole, 4):
        f0, f1, f2, f3 = removed[q, j], removed[q + 1, j], removed[q + 2, j], removed[q + 3, j]
        r0, r1, r2, r3 = removed[q], removed[q + 1], removed[q + 2], removed[q + 3]
        for i in range(n):
            column[i] -= f0 * r0[i] + f1 * r1[i] + f2 * r2[i] + f3 * r3[i]
    for q in range(whole, r):
        f0, r0 = removed[q, j], removed[q]
        for i in range(n):
            column[i] -= f0 * r0[i]
