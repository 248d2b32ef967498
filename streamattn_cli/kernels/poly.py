"""The answers of `poly`: power sums of every query's logits, times its polynomial."""

import math
from typing import NamedTuple

import numpy as np

from streamattn_cli.kernels.expansion import evaluate, polynomials
from streamattn_cli.kernels.jit import CONTRACT, kernel
from streamattn_cli.kernels.monomials import centre, columns, power_sums


class Scratch(NamedTuple):
    """Arrays of no meaning between calls, for G queries at a time."""

    x: np.ndarray  # (d, G): queries, from their centre on
    low: np.ndarray  # (count, G): their monomials of low degree
    part: np.ndarray  # (w, G)
    sums: np.ndarray  # (g + 1, w, G): power sums
    work: np.ndarray  # (g + 6, G) float64
    spare: np.ndarray  # see `polynomials`


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
def answer(where, q, mu, origin, scale, radius, taylor, weighed, start, run, scratch, m, y, doubt):
    """Partial answers m (r,), y (r, w) to queries q (r, d) from `weighed` (t, w), and their doubt (r,). Return how many
    queries were clipped.

    As many queries at a time as the scratch has columns. mu (d,): the centre of the keys; origin (d,): 0. radius (2,): bounds on the
    lengths of keys and queries. where: `blas.address` of the dtype.
    """
    x, low, part, sums, work, spare = scratch
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
    where, q, at, origin, scale, radius, taylor, weighed, start, run, span, fallback, scratch, counts, out, doubt
):
    """Attention out (n, dv) of queries q (n, d) over the tokens behind `weighed` (t, w) alone, with their doubt (n,): `answer`
    and division in one.

    Panels of G queries at a time, the first of which began `at` queries before. span (2, dv): the range of the values;
    fallback (dv,): where z <= 0. counts (3,): queries clipped, guarded and unanswered are added. The rest as in `answer`.
    """
    x, low, part, sums, work, spare = scratch
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
