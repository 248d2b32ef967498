"""The oracle of the coresets: the query model and one compression, in float64, with loops and no cleverness."""

import math

import numpy as np


class QueryModel:
    """Every query with its weight, so that the moments are sums over all of them."""

    def __init__(self, forget, lookback):
        self.forget, self.lookback = forget, lookback
        self.seen = []  # [query, weight]

    def learn(self, q, share, rows):
        """Older queries count e^(-rows / forget) less from now on."""
        for item in self.seen:
            item[1] *= math.exp(-rows / self.forget)
        for row, part in zip(q, share):
            self.seen.append([row.astype(np.float64), float(part) ** 2 + self.lookback])

    def moments(self, ridge):
        """Weighted mean, and covariance plus ridge times its mean diagonal."""
        total = sum(u for _, u in self.seen)
        mean = sum(u * q for q, u in self.seen) / total
        covariance = sum(u * np.outer(q - mean, q - mean) for q, u in self.seen) / total
        return mean, covariance + ridge * np.trace(covariance) / len(mean) * np.eye(len(mean))


def kernel(keys, mean, covariance, scale, alpha, temper):
    """Kernel of unit diagonal (n, n) and the logs of its diagonal's roots (n,), up to a constant: METHODS.md (N8)."""
    n = len(keys)
    x = [key - sum(keys) / n for key in keys]
    spread = sum(np.outer(row, row) for row in x) / n
    precision = np.linalg.inv(covariance)
    inner = np.linalg.inv(precision + 2 * alpha * scale**2 * spread)
    h = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            difference = x[i] - x[j]
            h[i, j] = math.exp(-0.5 * scale**2 * difference @ inner @ difference)
    e = [temper * (0.5 * scale**2 * row @ inner @ row + scale * row @ inner @ precision @ mean) for row in x]
    return h, np.array(e)


def lengths(keys, covariance, scale, alpha):
    """|z| (n,) of the whitened keys: METHODS.md (N6)."""
    x = keys - keys.mean(axis=0)
    inner = np.linalg.inv(np.linalg.inv(covariance) + 2 * alpha * scale**2 * x.T @ x / len(x))
    return np.array([scale * math.sqrt(row @ inner @ row) for row in x])


def kept_apart(lengths, count, least, steep, most, alike):
    """What the diagonal gets for keys that are far longer than others (n,): METHODS.md (N25). lengths: sums of count."""
    mean = sum(lengths) / len(lengths)
    spread = sum(abs(one - mean) for one in lengths) / len(lengths)
    steps = [min(steep * (one - mean) / (spread + alike * (mean + alike)), most) for one in lengths]
    return np.array(
        [least * min((one / count) ** 8, 1) * math.exp(step) for one, step in zip(lengths, steps, strict=True)]
    )


def turned(row, position, theta, pairs):
    """A query or key (d,) as rotary embedding puts it at a position, plane by plane."""
    d, out = len(row), np.array(row, np.float64)
    for j in range(d // 2):
        a, b = (2 * j, 2 * j + 1) if pairs == "interleaved" else (j, j + d // 2)
        angle = position * theta ** (-2 * j / d)
        out[a] = row[a] * math.cos(angle) - row[b] * math.sin(angle)
        out[b] = row[a] * math.sin(angle) + row[b] * math.cos(angle)
    return out


def mixed_kernel(keys, mean, covariance, scale, alpha, temper, positions, theta, pairs):
    """`kernel` for queries at several positions, mean and covariance being those of queries turned back to 0: the sum of
    the kernels at each, the largest diagonal of each being 1 (METHODS.md (N18))."""
    total = np.zeros((len(keys), len(keys)))
    for position in positions:
        there = np.stack([turned(column, position, theta, pairs) for column in np.eye(len(mean))], axis=1)
        h, e = kernel(keys, there @ mean, there @ covariance @ there.T, scale, alpha, temper)
        root = np.exp(e - e.max())
        total += h * np.outer(root, root)
    root = np.sqrt(np.diag(total))
    return total / np.outer(root, root), np.log(root)


def compress(keys, coefs, mean, covariance, scale, temper, keep, alpha, ridge, apart, turning=None):
    """Remove the atom whose removal costs least, solving the ridge least squares anew; (indices, coefs). apart: the last four
    numbers of `kept_apart`.

    The cost is |W_i|^2 / G_ii; of four removals in turn, the last three take |W_i|^2 from before the first. turning:
    positions, theta and pairs of `mixed_kernel`.
    """
    make = (lambda *words: mixed_kernel(*words, *turning)) if turning else kernel
    h, e = make(keys, mean, covariance, scale, alpha, temper)
    root = np.exp(e - e.max())
    wanted = coefs * root[:, None]
    positions, theta, pairs = turning or ([0], 1.0, "half")
    there = [np.array([turned(key, -position, theta, pairs) for key in keys]) for position in positions]
    long = sum(lengths(k, covariance, scale, alpha) for k in there)
    regular = h + np.diag(ridge + kept_apart(long, len(positions), *apart))
    target = regular @ wanted
    alive = list(range(len(keys)))

    def solve(chosen):
        return np.linalg.solve(regular[np.ix_(chosen, chosen)], target[chosen])

    while len(alive) > keep:
        if (len(keys) - len(alive)) % 4 == 0:
            size = {i: float(row @ row) for i, row in zip(alive, solve(alive), strict=True)}
        inverse = np.linalg.inv(regular[np.ix_(alive, alive)])
        costs = [size[i] / inverse[at, at] for at, i in enumerate(alive)]
        del alive[int(np.argmin(costs))]
    return np.array(alive), solve(alive) / root[alive, None]


def sampled_kernel(keys, scale, alpha, queries):
    """The kernel as what it stands for: the mean over queries of p_q(k) p_q(k'), as unit diagonal and logs of roots."""
    x = keys - keys.mean(axis=0)
    spread = x.T @ x / len(x)
    h = np.zeros((len(x), len(x)))
    for q in queries:
        p = np.exp(scale * x @ q - 0.5 * alpha * scale**2 * q @ spread @ q)
        h += np.outer(p, p)
    root = np.sqrt(np.diag(h))
    return h / np.outer(root, root), np.log(root)


def doubt(q, scale, atoms, weights, exact, span, answer):
    """METHODS.md (N14), (N15) of one query: atoms (m, d) and their weights (m,), the keys (n, d) that are exact, the
    range (2, dv) of the values, and the answer (dv,)."""
    brought = [weight * math.exp(scale * float(q @ key)) for key, weight in zip(atoms, weights, strict=True)]
    z = sum(brought)
    noise = 0.03 * math.sqrt(sum(b * b for b in brought)) / z
    share = z / (z + sum(math.exp(scale * float(q @ key)) for key in exact))
    x = share * noise * (1 + np.linalg.norm(span[1] - span[0]) / np.linalg.norm(answer))
    return x / (1 + x)
