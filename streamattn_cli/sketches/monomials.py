"""The table of monomials of total degree <= g in d variables, by parent pointers (methods.md 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np


def feature_count(dim: int, degree: int) -> int:
    """t = C(dim + degree, degree), the number of monomials of degree <= `degree`."""
    return comb(dim + degree, degree)


@dataclass(frozen=True)
class Monomials:
    """parent, var (t,) int32 and multinomial l!/a! (t,) float64; sorted by degree, monomial 0 is 1."""

    parent: np.ndarray
    var: np.ndarray
    multinomial: np.ndarray
    start: np.ndarray  # (degree + 2,) int64: the first monomial of each degree, and t


@lru_cache(maxsize=8)
def table(dim: int, degree: int) -> Monomials:
    """The monomials of `dim` variables up to `degree`: each is its parent times one variable, in graded order."""
    parent, var, many = [np.zeros(1, np.int32)], [np.zeros(1, np.int32)], [np.ones(1)]
    start = [0, 1]
    run = np.zeros(1, np.int64)  # the exponent of the last variable
    last = np.zeros(1, np.int64)
    for l in range(1, degree + 1):
        grown = dim - last  # a monomial grows by its last variable or a later one, so that each is made once
        up = np.repeat(np.arange(len(last)), grown)
        first = np.cumsum(grown) - grown
        new = np.arange(len(up)) - first[up] + last[up]
        # l!/a! = (l-1)!/a_parent! * l / (new exponent of the variable)
        exponent = np.where(new == last[up], run[up], 0) + 1
        many.append(many[-1][up] * l / exponent)
        parent.append((up + start[l - 1]).astype(np.int32))
        var.append(new.astype(np.int32))
        start.append(start[l] + len(up))
        run, last = exponent, new
    return Monomials(*(np.concatenate(p) for p in (parent, var, many)), start=np.array(start))
