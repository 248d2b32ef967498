"""`balance`: merge-and-reduce by the self-balancing walk (BalanceKV; METHODS.md (B5), (B6)).

When rows must go, a block of them is halved so that the two halves have nearly the same sums of exp(s k.k') (v.v' + c):
of each pair one row survives, with its weight doubled, by a coin that leans against the difference made so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamattn_cli.kernels import coreset as kernel
from streamattn_cli.sketches.budget import BUDGETED, keeping
from streamattn_cli.sketches.histories.bank import bank_spec
from streamattn_cli.sketches.histories.levels import LEVELS, LevelHistory, level_of, level_to_halve, segment
from streamattn_cli.sketches.method import Load, Method, PlainParams
from streamattn_cli.sketches.partial import Partial

WINDOW_SHARE = 0.35  # of the rows; tuned on real heads


@dataclass(frozen=True)
class BalanceParams(PlainParams):
    """How many rows are kept; gamma, how strongly the coin leans, and its seed; `sharpness` of the kernel's exponent.

    Other gammas and exponents make little difference on real heads.
    """

    rows: int
    gamma: float = 100.0
    sharpness: float = 0.5
    seed: int = 0
    storage: str = "f4"


class BalanceHistory(LevelHistory):
    """The kept rows of one key head. State arrays: see `state_spec`."""

    @staticmethod
    def state_spec(params: BalanceParams, dim: int, value_dim: int) -> dict[str, tuple[tuple[int, ...], str]]:
        return {
            "rows": bank_spec(params.rows, dim, value_dim, params.storage),
            "counts": ((LEVELS,), "i4"),  # rows of each level
            "halvings": ((1,), "i8"),
        }

    def partial(self, q: np.ndarray, work: dict, out: Partial) -> int:
        """Answer a tile of queries (their scaled form is work["scaled"]) into `out`. No query is clipped: 0."""
        weights = np.ldexp(1.0, level_of(self.state["counts"]))[:, None]

        def weigh(first: int, c: np.ndarray) -> None:
            c *= weights[first : first + len(c)]

        self.bank.partial(len(weights), work, out, weigh)
        return 0

    def _halve(self) -> bool:
        """Make room by halving one level; False when that cannot be."""
        s, counts = self.state, self.state["counts"]
        level = level_to_halve(counts, self.params.rows)
        if level is None:
            return False
        a, b = segment(counts, level)
        b -= (b - a) % 2  # the newest of an odd number waits
        keep, total = np.ones(int(counts.sum()), bool), int(counts.sum())
        keep[a:b] = self._survivors(a, b)
        kept = int(keep.sum())
        self.bank.rows[:kept] = self.bank.rows[:total][keep]
        counts[level] -= b - a
        counts[level + 1] += (b - a) // 2
        s["halvings"][0] += 1
        return True

    def _survivors(self, a: int, b: int) -> np.ndarray:
        """Which of the rows [a, b) survive (b - a,), half of them."""
        k, c = self.bank.load(a, b)
        x, v = k - k.mean(axis=0), c[:, :-1]
        gram = self.params.sharpness * self.scale * (x @ x.T)
        gram -= gram.diagonal().max()
        np.exp(gram, out=gram)
        values = v @ v.T
        gram *= values + (values.diagonal().mean() or 1.0)
        hashes, chance = np.empty((b - a) // 2, np.uint64), np.empty((b - a) // 2)
        with np.errstate(over="ignore"):  # unsigned products wrap around on purpose
            kernel.priorities(np.uint64(self.params.seed), np.uint64(self.state["halvings"][0] << 32), hashes)
        kernel.uniform(hashes, chance)
        keep = np.zeros(b - a, bool)
        kernel.walk(gram, self.params.gamma, chance, keep)
        return keep


def _micros(load: Load) -> float:
    return load.keeping(load.params.history.rows, 1.27, 72, 0.008, 4.8e-5)


METHOD = Method(
    name="balance",
    settings=keeping("balance", WINDOW_SHARE, BalanceParams),
    options=BUDGETED,
    params=BalanceParams,
    history=BalanceHistory,
    micros=_micros,
)
