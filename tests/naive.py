"""The oracle: every algorithm once more, in float64, with loops and no cleverness."""

import math

import numpy as np


def attention(q, k, v, scale, causal=False, weights=None):
    """softmax(scale q k^T) v for one head: q (n, d), k (m, d), v (m, dv) -> (n, dv)."""
    out = np.zeros((len(q), v.shape[1]))
    for i in range(len(q)):
        seen = range(i + 1) if causal else range(len(k))
        seen = [j for j in seen if weights is None or weights[j] > 0]
        logits = {j: scale * sum(float(a) * float(b) for a, b in zip(q[i], k[j])) for j in seen}
        top = max(logits.values())
        z = sum(math.exp(x - top) for x in logits.values())
        for j in seen:
            out[i] += math.exp(logits[j] - top) / z * v[j].astype(np.float64)
    return out


def weighted(kernels, v):
    """sum_j w_j v_j / sum_j w_j for weights given as a list of (j, w)."""
    z = sum(w for _, w in kernels)
    return sum(w * v[j].astype(np.float64) for j, w in kernels) / z


def windowed(q, k, v, scale, sinks, window, causal=True):
    """Sinks and the `window` most recent rows (of the query's row when causal, of the stream otherwise)."""
    out = np.zeros((len(q), v.shape[1]))
    for i in range(len(q)):
        last = i if causal else len(k) - 1
        seen = [j for j in range(last + 1) if j < sinks or j > last - window]
        logits = [scale * float(q[i].astype(np.float64) @ k[j].astype(np.float64)) for j in seen]
        top = max(logits)
        out[i] = weighted([(j, math.exp(x - top)) for j, x in zip(seen, logits)], v)
    return out


def history_mass(q, k, scale, rows, sinks, group, window, causal):
    """The share of softmax(scale q k^T) on keys that are neither sinks nor recent, for queries `rows`.

    Causal with groups: recent is every row since the group's start, or since that of the group to which the `window`
    last rows before it reach back. group None, or full attention: the `window` last rows that are seen.
    """
    shares = []
    for i in rows:
        last = i if causal else len(k) - 1
        base = max(0, last - window + 1)
        if causal and group is not None:
            base = i // group * group
            reach = base - max(window - 1, 0)
            while base > max(reach, 0):
                base -= group
        logits = [scale * float(q[i].astype(np.float64) @ k[j].astype(np.float64)) for j in range(last + 1)]
        top = max(logits)
        weights = [math.exp(x - top) for x in logits]
        shares.append(sum(w for j, w in enumerate(weights) if sinks <= j < base) / sum(weights))
    return shares


def monomials(x, degree):
    """All multi-indices a with |a| <= degree and x^a for each: a dict {a: product}."""
    from itertools import product

    return {
        a: math.prod(float(c) ** e for c, e in zip(x, a))
        for a in product(range(degree + 1), repeat=len(x))
        if sum(a) <= degree
    }


def shrink(x, radius):
    """x, scaled down to norm `radius` where it is longer."""
    norm = math.sqrt(sum(float(c) ** 2 for c in x))
    return x if norm <= radius else x * (radius / norm)


def hermite(degree, x, mean, variance):
    """The degree-g Hermite expansion of e^(x - mean - variance/2) under N(mean, variance), term by term."""
    sigma = math.sqrt(variance)
    if sigma == 0:
        return sum((x - mean) ** l / math.factorial(l) for l in range(degree + 1))
    h = (x - mean) / sigma
    he = [1.0, h]
    for l in range(1, degree):
        he.append(h * he[l] - l * he[l - 1])
    return sum(sigma**l / math.factorial(l) * he[l] for l in range(degree + 1))


def poly_weights(q, k, scale, mu, radius, degree, taylor=False):
    """Weights of all keys for one query: P of x = scale q.(k - mu), norms of both sides bounded by `radius` (keys, queries).

    P approximates e^x, see `logit_weights`.
    """
    u = shrink(math.sqrt(scale) * q.astype(np.float64), radius[1])
    x = [float(u @ shrink(math.sqrt(scale) * (row.astype(np.float64) - mu), radius[0])) for row in k]
    return logit_weights(x, degree, taylor, radius[0] * float(np.linalg.norm(u)))


def logit_weights(x, degree, taylor=False, reach=math.inf):
    """The polynomial that a query's logits x are given, at each of them: Taylor's where its remainder is small, the Hermite
    expansion where they look like a Gaussian's, or else that of `quadrature_weights`."""
    x = np.asarray(x, np.float64)
    if taylor:
        weights = [sum(a**l / math.factorial(l) for l in range(degree + 1)) for a in x]
        even = degree // 2 * 2
        if degree < 4 or not x.any():
            return np.array(weights)
        largest = min(reach, (x**even).sum() ** (1 / even))
        last = math.exp(largest) - sum(largest**l / math.factorial(l) for l in range(degree + 1))
        alike = last / largest**even * (x**even).sum() / sum(weights) < 1e-3
    else:
        mean, variance = x.mean(), x.var() if degree > 1 else 0.0
        weights = [math.exp(mean + variance / 2) * hermite(degree, a, mean, variance) for a in x] if degree else x**0
        even = degree // 2 * 2
        expected = variance ** (even / 2) * math.prod(range(1, even, 2))
        alike = degree < 4 or (variance <= 4 and abs(((x - mean) ** even).mean() - expected) <= expected / 2)
    return np.array(weights) if alike else quadrature_weights(x, degree)


def quadrature_weights(x, degree):
    """At each of x, the polynomial with the value and the slope of e^x at the nodes of the Gaussian quadrature that the moments
    of x up to `degree` define."""
    mean, spread = x.mean(), x.std()
    h = (x - mean) / spread
    count = min((degree + 1) // 2, len(np.unique(x)))
    basis = [np.ones_like(h)]  # orthonormal polynomials under x, by Gram and Schmidt
    for _ in range(count):
        p = h * basis[-1]
        for _ in range(2):
            for b in basis:
                p = p - (p * b).mean() * b
        basis.append(p / math.sqrt((p * p).mean()))
    jacobi = np.array([[(h * a * b).mean() for b in basis[:count]] for a in basis[:count]])
    nodes = np.linalg.eigvalsh(jacobi)
    rows = [[node**l for l in range(2 * count)] for node in nodes]
    rows += [[l * node ** max(l - 1, 0) for l in range(2 * count)] for node in nodes]
    values = [*np.exp(spread * nodes), *(spread * np.exp(spread * nodes))]
    return math.exp(mean) * np.polynomial.polynomial.polyval(h, np.linalg.solve(rows, values))


def poly(q, k, v, scale, mu, radius, degree, taylor=False, sinks=0, window=0, group=None):
    """Polynomial attention with exact sinks and exact recent rows, values of the history clipped to their range.

    Full (group None): the last `window` rows are exact. Causal: every row from the base of the query's group on is.
    """
    out = np.zeros((len(q), v.shape[1]))
    v = v.astype(np.float64)
    for i in range(len(q)):
        if group is None:
            base, last = len(k) - window, len(k) - 1
        else:
            base, last = max(0, (i // group * group - max(window - 1, 0)) // group * group), i
        past = list(range(sinks, base))
        exact = [j for j in range(last + 1) if j < sinks or j >= base]
        shift = scale * float(q[i].astype(np.float64) @ mu)
        logits = [scale * float(q[i].astype(np.float64) @ k[j].astype(np.float64)) for j in exact]
        z = sum(math.exp(x - shift) for x in logits)
        y = sum((math.exp(x - shift) * v[j] for j, x in zip(exact, logits)), np.zeros(v.shape[1]))
        if past:
            weights = poly_weights(q[i], k[past], scale, mu, radius, degree, taylor)
            zp = sum(weights)
            if zp > 0:
                mean = sum(w * v[j] for j, w in zip(past, weights)) / zp
                z += zp
                y = y + zp * np.clip(mean, v[past].min(axis=0), v[past].max(axis=0))
        out[i] = y / z
    return out
