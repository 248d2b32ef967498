"""The table of monomials of total degree <= g in d variables, by parent pointers (METHODS.md (P2), (P3))."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np


def feature_count(dim: int, degree: int) -> int:
    """t = C(dim + degree, degree), the number of monomials of degree <= `degree`."""
    return comb(dim + degree, degree)


def low_count(dim: int, degree: int) -> int:
    """Monomials that kernels keep: those of less than the top degree, and the variables themselves."""
    return feature_count(dim, max(degree - 1, 1))


@dataclass(frozen=True)
class Monomials:
    """parent, var (t,) int32 and multinomial l!/a! (t,) float64; sorted by degree, monomial 0 is 1.

    order (t,) int64 sorts those of a degree by their last variable: the ones that grow by variable v are then the first
    run[degree, v] of them (run (degree + 1, dim) int64), and what they become follows in the same order.
    """

    parent: np.ndarray
    var: np.ndarray
    multinomial: np.ndarray
    start: np.ndarray  # (degree + 2,) int64: the first monomial of each degree, and t
    order: np.ndarray
    run: np.ndarray


@lru_cache(maxsize=8)
def table(dim: int, degree: int) -> Monomials:
    """The monomials of `dim` variables up to `degree`: each is its parent times one variable, in graded order."""
    parent, var, many = [np.zeros(1, np.int32)], [np.zeros(1, np.int32)], [np.ones(1)]
    start, order = [0, 1], [np.zeros(1, np.int64)]
    run = np.array([[comb(v + l, l) for v in range(dim)] for l in range(degree + 1)], np.int64)
    exponent = np.zeros(1, np.int64)  # of the last variable
    last = np.zeros(1, np.int64)
    for l in range(1, degree + 1):
        grown = dim - last  # a monomial grows by its last variable or a later one, so that each is made once
        up = np.repeat(np.arange(len(last)), grown)
        first = np.cumsum(grown) - grown
        new = np.arange(len(up)) - first[up] + last[up]
        # l!/a! = (l-1)!/a_parent! * l / (new exponent of the variable)
        exponent = np.where(new == last[up], exponent[up], 0) + 1
        many.append(many[-1][up] * l / exponent)
        parent.append((up + start[l - 1]).astype(np.int32))
        var.append(new.astype(np.int32))
        start.append(start[l] + len(up))
        by_last = [order[-1][: run[l - 1, v]] - start[l - 1] for v in range(dim)]
        order.append(start[l] + np.concatenate([first[p] + v - last[p] for v, p in enumerate(by_last)]))
        last = new
    parents, variables, places = np.concatenate(parent), np.concatenate(var), np.concatenate(order)
    return Monomials(parents, variables, np.concatenate(many), np.array(start), places, run)


def exponents(monomials: Monomials, dim: int) -> np.ndarray:
    """The multi-index of every monomial, (t, dim) uint8."""
    found = np.zeros((len(monomials.parent), dim), np.uint8)
    for m in range(1, len(found)):
        found[m] = found[monomials.parent[m]]
        found[m, monomials.var[m]] += 1
    return found


def recentre(moments: np.ndarray, monomials: Monomials, shift: np.ndarray) -> np.ndarray:
    """Moments sum_j x_j^a c_j (t, w) turned into those of x_j + shift (dim,): exact, as sums of lower moments.

    One variable after the other: sum C(e, f) s^(e-f) M_f is made by additions of s M_(e-1), as in Pascal's triangle.
    """
    power = exponents(monomials, len(shift))
    place = {row.tobytes(): m for m, row in enumerate(power)}
    moved = moments.copy()
    degree = len(monomials.start) - 2
    for i in np.flatnonzero(shift):
        one = np.zeros(len(shift), np.uint8)
        one[i] = 1
        level = [np.flatnonzero(power[:, i] == e) for e in range(degree + 1)]
        below = [np.array([place[(row - one).tobytes()] for row in power[at]], np.int64) for at in level[1:]]
        for first in range(1, degree + 1):
            for e in range(degree, first - 1, -1):
                moved[level[e]] += shift[i] * moved[below[e - 1]]
    return moved
