"""`wildcat`: merge-and-reduce by pivoted Cholesky on the keys' own kernel (WildCat; METHODS.md (B5), (B7), (B8)).

When rows must go, a block of them is halved: greedy pivots of exp(s k.k') survive, with coefficients that reproduce
the whole block best in that kernel's norm. Like `nystrom`, but blind to what the queries look like.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamattn_cli.kernels import coreset as kernel
from streamattn_cli.sketches.budget import BUDGETED, keeping
from streamattn_cli.sketches.histories.bank import bank_spec
from streamattn_cli.sketches.histories.levels import LEVELS, LevelHistory, level_to_halve, segment
from streamattn_cli.sketches.method import Load, Method, PlainParams
from streamattn_cli.sketches.partial import Partial

RIDGE = 1e-3
LOWEST = -600.0  # of the log diagonal below its maximum, so that its reciprocal stays finite
WINDOW_SHARE = 0.6  # of the rows; tuned on real heads


@dataclass(frozen=True)
class WildcatParams(PlainParams):
    """How many atoms are kept; `sharpness` multiplies the exponent of the kernel."""

    rows: int
    sharpness: float = 0.1  # of 0.03 to 2 the best on real heads
    storage: str = "f4"


class WildcatHistory(LevelHistory):
    """The atoms of one key head. State arrays: see `state_spec`."""

    PARTS = ("rows", "factor", "weight")

    @staticmethod
    def state_spec(params: WildcatParams, dim: int, value_dim: int) -> dict[str, tuple[tuple[int, ...], str]]:
        return {
            "rows": bank_spec(params.rows, dim, value_dim, params.storage),  # [key, coefficients / factor]
            "factor": ((params.rows,), "f4"),  # a power of two
            "weight": ((params.rows,), "f4"),
            "counts": ((LEVELS,), "i4"),  # atoms of each level
        }

    def partial(self, q: np.ndarray, work: dict, out: Partial) -> int:
        """Answer a tile of queries (their scaled form is work["scaled"]) into `out`. No query is clipped: 0."""
        factor, weight = self.state["factor"], self.state["weight"]

        def weigh(first: int, c: np.ndarray) -> None:
            c[:, :-1] *= factor[first : first + len(c), None]
            c[:, -1] = weight[first : first + len(c)]

        self.bank.partial(int(self.state["counts"].sum()), work, out, weigh)
        return 0

    def _halve(self) -> bool:
        """Make room by halving one level; False when that cannot be."""
        s, counts = self.state, self.state["counts"]
        level = level_to_halve(counts, self.params.rows)
        if level is None:
            return False
        a, b = segment(counts, level)
        k, c = self.bank.load(a, b)
        c[:, :-1] *= s["factor"][a:b, None]
        c[:, -1] = s["weight"][a:b]
        index, c = halve(k, c, self.params.sharpness * self.scale, (b - a) // 2)
        end = a + len(index)
        top = np.abs(c[:, :-1]).max(axis=1, initial=0)
        factor = np.exp2(np.ceil(np.log2(np.maximum(top, 1e-30))))
        scaled = np.concatenate([c[:, :-1] / factor[:, None], np.ones((len(c), 1))], axis=1)
        self.bank.put(a, k[index], scaled)
        s["factor"][a:end], s["weight"][a:end] = factor, c[:, -1]
        total = int(counts.sum())
        for name in self.PARTS:
            s[name][end : end + total - b] = s[name][b:total].copy()
        counts[level] = 0
        counts[level + 1] += len(index)
        return True


def halve(k: np.ndarray, c: np.ndarray, sharpness: float, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Pivots of exp(sharpness k.k') of n atoms k (n, d) with coefficients c (n, dv + 1), and their new coefficients.

    Returns the survivors, ascending, at most `keep`, and (keep, dv + 1). The centre of the keys is taken out first.
    """
    x = k - k.mean(axis=0)
    half = (0.5 * sharpness) * np.einsum("ij,ij->i", x, x)
    gram = sharpness * (x @ x.T)
    gram -= half[:, None]
    gram -= half[None]
    np.exp(gram, out=gram)
    h = np.exp(np.maximum(half - half.max(), LOWEST))[:, None]
    w = c * h
    index = np.empty(keep, np.int64)
    size = _share(w[:, :-1]) + _share(w[:, -1:])
    found = kernel.pivots(gram, size, keep, index)
    index = np.sort(index[:found])
    chosen = gram[np.ix_(index, index)] + RIDGE * np.eye(found)
    return index, np.linalg.solve(chosen, gram[index] @ w + RIDGE * w[index]) / h[index]


def _share(w: np.ndarray) -> np.ndarray:
    """Each row's part of the sum of squares (n,)."""
    size = np.einsum("ij,ij->i", w, w)
    share: np.ndarray = size / max(size.sum(), 1e-300)
    return share


def _micros(load: Load) -> float:
    return load.keeping(load.params.history.rows, 1.7, 80, 0.015, 1.8e-5)


METHOD = Method(
    name="wildcat",
    settings=keeping("wildcat", WINDOW_SHARE, WildcatParams, seeded=False),
    options=BUDGETED,
    params=WildcatParams,
    history=WildcatHistory,
    micros=_micros,
)
