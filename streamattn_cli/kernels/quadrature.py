"""A polynomial for e^x that follows the logits of one query, whatever their distribution, made from their moments alone."""

import math

from streamattn_cli.kernels.jit import CONTRACT, kernel

NODES = 6  # at most: moments up to degree 12 give no more
ORDER = 2 * NODES
SPARE = (11, ORDER + 2)  # scratch of one query: its moments, their errors, and that of `fit`


@kernel(fastmath=CONTRACT)
def central(sums, column, r, mean, out, error, work):
    """out (g + 1,): central moments of query r's logits from its power sums (g + 1, w, G), as shares of the number of tokens.

    error (g + 1,): a bound on the rounding of each. By E[x^j (x - mean)^l] = E[x^(j+1) (x - mean)^(l-1)] - mean times that
    of j, from l = 0 on, and the same of the sizes; work (2, g + 1 or more) is scratch.
    """
    levels, share, unit = sums.shape[0], 1 / float(sums[0, column, r]), 2.4e-7 if sums.itemsize == 4 else 4.4e-16
    mixed, sizes, far = work[0], work[1], abs(mean)
    for level in range(levels):
        mixed[level] = sums[level, column, r] * share
        sizes[level] = abs(mixed[level])
    out[0], error[0] = mixed[0], unit * sizes[0]
    for level in range(1, levels):
        for j in range(levels - level):
            mixed[j] = mixed[j + 1] - mean * mixed[j]
            sizes[j] = sizes[j + 1] + far * sizes[j]
        out[level], error[level] = mixed[0], unit * sizes[0]


@kernel(fastmath=CONTRACT)
def recurrence(moments, error, alpha, beta, table):
    """Coefficients of the orthogonal polynomials of a distribution of mean 0 and variance 1 from its moments (g + 1,).

    Fills alpha and beta (NODES,). Returns the number of nodes that the moments decide (Chebyshev's algorithm; it ends where
    they are rounding, or where the distribution has no more points), and the integral of the squared monic polynomial of
    that degree. table (3, ORDER + 2) is scratch.
    """
    top = moments.shape[0] - 1
    most = min((top + 1) // 2, NODES)
    before, now, after = table[0], table[1], table[2]
    before[:], now[:] = 0.0, 0.0
    for i in range(top + 1):
        now[i] = moments[i]
    alpha[0], beta[0], rest = 0.0, 1.0, 1.0
    for k in range(1, most + 1):
        if 2 * k > top:
            return k, rest  # of one node less: no moment tells more
        for i in range(k, top - k + 1):
            after[i] = now[i + 1] - alpha[k - 1] * now[i] - beta[k - 1] * before[i]
        rest = after[k]
        if not rest > max(8 * error[2 * k], 1e-9):
            return k, max(rest, 0.0)
        if k == most or 2 * k + 1 > top:
            return k, rest
        alpha[k] = after[k + 1] / after[k] - now[k] / now[k - 1]
        beta[k] = after[k] / now[k - 1]
        before, now, after = now, after, before
    return most, rest


@kernel(fastmath=CONTRACT)
def roots(alpha, beta, count, out):
    """The nodes: roots of the orthogonal polynomial of degree `count`, largest first, into out (NODES,).

    Newton's method from above on what is left when the known roots are divided out: it falls monotonically to the next.
    """
    high = -math.inf
    for i in range(count):
        left = math.sqrt(beta[i]) if i > 0 else 0.0
        right = math.sqrt(beta[i + 1]) if i + 1 < count else 0.0
        high = max(high, alpha[i] + left + right)
    for found in range(count):
        x = high + 1e-3
        for _ in range(60):
            p, before, slope, slope_before = 1.0, 0.0, 0.0, 0.0
            for k in range(count):
                up = (x - alpha[k]) * p - (beta[k] * before if k else 0.0)
                slope_up = p + (x - alpha[k]) * slope - (beta[k] * slope_before if k else 0.0)
                before, p, slope_before, slope = p, up, slope, slope_up
            for other in range(found):
                slope -= p / (x - out[other])
            if slope == 0.0:
                break
            step = p / slope
            x -= step
            if not step > 1e-13 * max(abs(x), 1.0):
                break
        out[found] = x


@kernel(fastmath=CONTRACT)
def osculate(nodes, count, spread, out, work):
    """Powers of x (2 count,) of the polynomial that has value and slope of e^(spread (x - nodes[0])) at every node.

    By divided differences, each node twice; work (2, ORDER) is scratch.
    """
    order = 2 * count
    z, difference = work[0], work[1]
    for i in range(order):
        z[i] = nodes[i // 2]
        difference[i] = math.exp(spread * (z[i] - nodes[0]))
    for k in range(1, order):
        for i in range(order - 1, k - 1, -1):
            gap = z[i] - z[i - k]
            if gap == 0.0:
                difference[i] = spread * math.exp(spread * (z[i] - nodes[0]))
            else:
                difference[i] = (difference[i] - difference[i - 1]) / gap
    out[:order] = 0.0
    for k in range(order - 1, -1, -1):
        for i in range(order - 1, 0, -1):
            out[i] = out[i - 1] - z[k] * out[i]
        out[0] = difference[k] - z[k] * out[0]


@kernel(fastmath=CONTRACT)
def fit(r, count, reach, mean, moments, error, polynomial, spare):
    """Fit a polynomial to query r's logits; return what is factored out of it, and its doubt.

    The powers of the logit go into column r of polynomial (g + 1, G). count: of tokens; mean and moments (g + 1,) of the
    logits, central ones, with a bound on their rounding, error (g + 1,); reach: a bound on |logit|. spare (9, ORDER + 2) is
    scratch.

    The polynomial interpolates e^x at the nodes of the Gaussian quadrature that the moments define, value and slope. What
    it misses of a token is e^x_i pi(x)^2 / (2 N)!, with pi the monic polynomial of the nodes and x_i between them and x. The
    moments give the integral of pi^2, so the doubt is that loss relative to the normaliser, x_i taken halfway (in logs)
    from the largest node to the largest logit that the moments and the norms allow.
    """
    levels, spread = polynomial.shape[0], math.sqrt(moments[2])
    scaled, unsure, alpha, beta, nodes, table, fitted = (
        spare[0, :levels], spare[1, :levels], spare[2], spare[3], spare[4], spare[5:8], spare[8],
    )  # fmt: skip
    power = 1.0
    for level in range(levels):
        scaled[level], unsure[level] = moments[level] / power, error[level] / power
        power *= spread
    found, rest = recurrence(scaled, unsure, alpha, beta, table)
    roots(alpha, beta, found, nodes)
    osculate(nodes, found, spread, fitted, table)
    z = 0.0
    for level in range(2 * found):
        z += fitted[level] * scaled[level]
    even = (levels - 1) // 2 * 2
    shift = mean + spread * nodes[0]
    largest = min(reach, mean + spread * (count * max(scaled[even], 1.0)) ** (1.0 / even))
    doubt = rest / z * math.exp(min(max(largest - shift, 0.0) / 2, 80.0))
    for i in range(2 * found):
        doubt *= spread / (i + 1)
    powers_of_logits(fitted, 2 * found, mean, spread, polynomial, r)
    return shift, doubt


@kernel(fastmath=CONTRACT)
def powers_of_logits(fitted, count, mean, spread, polynomial, r):
    """Column r of polynomial (g + 1, G): powers of x of the polynomial `fitted` (count,) in (x - mean) / spread."""
    for level in range(polynomial.shape[0]):
        polynomial[level, r] = 0.0
    for k in range(count - 1, -1, -1):  # Horner's rule, with polynomials
        for i in range(count - 1, 0, -1):
            polynomial[i, r] = (polynomial[i - 1, r] - mean * polynomial[i, r]) / spread
        polynomial[0, r] = fitted[k] - mean / spread * polynomial[0, r]
