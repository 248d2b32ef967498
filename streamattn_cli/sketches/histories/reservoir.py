"""`reservoir`: a weighted sample of the history without replacement (Efraimidis and Spirakis; METHODS.md (B11)).

A row's weight is what attention a Gaussian of the queries (mean and spread of every number) expects on it, to a power, times
the length of its value. Its rank is an exponential
waiting time of that rate, by a hash of the seed and its global row, and the m least are kept, each divided by the chance
that it had to be among them. Rows and threshold of two shards make those of the union.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamattn_cli.kernels import coreset as kernel
from streamattn_cli.sketches.budget import BUDGETED, keeping
from streamattn_cli.sketches.histories.bank import RowHistory, bank_spec
from streamattn_cli.sketches.histories.querymodel import FORGET, LOOKBACK
from streamattn_cli.sketches.method import Load, Method, PlainParams
from streamattn_cli.sketches.partial import Partial

WINDOW_SHARE = 0.5  # of the rows; tuned on real heads
POWER = 0.35  # of what is expected of a row; tuned on real heads, where a Gaussian over-trusts keys far out


@dataclass(frozen=True)
class ReservoirParams(PlainParams):
    """How many rows are kept, and the seed of their choice."""

    rows: int
    seed: int = 0
    storage: str = "f4"


class ReservoirHistory(RowHistory):
    """The weighted sample of one key head. State arrays: see `state_spec`."""

    learns = True

    @property
    def kept(self) -> int:
        """How many rows it keeps."""
        return int(self.state["held"][0])

    @staticmethod
    def state_spec(params: ReservoirParams, dim: int, value_dim: int) -> dict[str, tuple[tuple[int, ...], str]]:
        return {
            "rows": bank_spec(params.rows, dim, value_dim, params.storage),
            "rank": ((params.rows,), "f8"),  # log
            "weight": ((params.rows,), "f4"),  # log
            "threshold": ((1,), "f8"),  # log rank of the least that was not kept, once there is one
            "centre": ((dim + 1,), "f4"),  # mean of the first group's keys, and of the lengths of its values
            "held": ((3,), "i8"),  # rows kept, 1 once a row was not kept, next global row
            "query.weight": ((1,), "f8"),
            "query.moments": ((2, dim), "f4"),  # mean and variance
        }

    @staticmethod
    def transient_bytes(params: ReservoirParams, dim: int, value_dim: int, group: int, queries: int) -> int:
        """Bound on the bytes that are held for a while: some copies of queries, or of a group's rows."""
        return 16 * queries * dim + 8 * group * (5 * dim + 2 * value_dim + 9) + 40 * params.rows

    def begin(self, row: int) -> None:
        """The first row to come has this global number: shards must know it, so that no two choose alike."""
        self.state["held"][2] = row

    def calibrate(self, k: np.ndarray, c: np.ndarray, q: np.ndarray | None) -> None:
        """Take the queries q (r, d) of full attention as the model of all queries."""
        if q is not None:
            self.learn(q, np.zeros(len(q), "f4"), 0, {})

    def learn(self, q: np.ndarray, share: np.ndarray, rows: float, work: dict) -> None:
        """Take in causal queries q (r, d) of `rows` rows, and the part of their mass (r,) that fell on this history."""
        weights = share.astype("f8") ** 2 + LOOKBACK
        mean = weights @ q / weights.sum()
        self.state["query.weight"] *= np.exp(-rows / FORGET)
        self._pool(weights.sum(), mean, weights @ np.square(q - mean) / weights.sum())

    def absorb(self, k: np.ndarray, c: np.ndarray, work: dict) -> int:
        """Take in one group of rows, k (n, d), c (n, dv + 1). Returns the number of keys clipped: none."""
        s, hashes = self.state, np.empty(len(k), np.uint64)
        with np.errstate(over="ignore"):  # unsigned products wrap around on purpose
            kernel.priorities(np.uint64(self.params.seed), np.uint64(s["held"][2]), hashes)
        s["held"][2] += len(k)
        alive = c[:, -1] != 0
        k, c, chance = k[alive], c[alive], np.empty(int(alive.sum()))
        kernel.uniform(hashes[alive], chance)
        weight = self._weigh(k, c)
        rank = np.log(-np.log1p(-np.maximum(chance, 2.0**-54))) - weight
        for i in range(len(k)):
            self._offer(rank[i], weight[i], k[i : i + 1], c[i : i + 1])
        return 0

    def merge(self, other: ReservoirHistory) -> None:
        """Take in the sample of other rows; the result is the weighted sample of all of them."""
        s, theirs = self.state, other.state
        if theirs["query.weight"][0] and not np.array_equal(s["query.moments"], theirs["query.moments"]):
            self._pool(theirs["query.weight"][0], *theirs["query.moments"].astype("f8"))
        if not (self.kept or s["held"][1]):
            s["centre"][:] = theirs["centre"]
        s["held"][2] += max(0, int(theirs["held"][2]) - int(s["held"][2]))
        if theirs["held"][1]:
            self._leave(theirs["threshold"][0])
        for i in range(other.kept):
            self._offer(theirs["rank"][i], theirs["weight"][i], *other.bank.load(i, i + 1))

    def partial(self, q: np.ndarray, work: dict, out: Partial) -> int:
        """Answer a tile of queries (their scaled form is work["scaled"]) into `out`. No query is clipped: 0."""
        s, count = self.state, self.kept
        stands = -1 / np.expm1(-np.exp(np.clip(s["weight"][:count] + s["threshold"][0], -60, 60)))

        def weigh(first: int, c: np.ndarray) -> None:
            c *= stands[first : first + len(c), None]

        self.bank.partial(count, work, out, weigh if s["held"][1] else None)
        return 0

    def _weigh(self, k: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Logs of the rows' weights (n,), float64."""
        s, centre, length = self.state, self.state["centre"], np.linalg.norm(c[:, :-1], axis=1)
        if not (self.kept or s["held"][1]) and len(k):
            centre[:-1], centre[-1] = k.mean(axis=0), length.mean()
        x, (mean, variance) = self.scale * (k - centre[:-1]), s["query.moments"].astype("f8")
        if not s["query.weight"][0]:
            variance[:] = 1
        expected = x @ mean + 0.5 * np.square(x) @ variance
        found: np.ndarray = POWER * expected + np.log(length + centre[-1] + 1e-30)
        return found

    def _pool(self, weight: float, mean: np.ndarray, variance: np.ndarray) -> None:
        """Queries of that weight, mean and variance (d,) are known, too."""
        (old, new), held = self.state["query.moments"].astype("f8"), self.state["query.weight"]
        part, step = weight / (held[0] + weight), mean - old
        self.state["query.moments"][0] = old + part * step
        self.state["query.moments"][1] = new + part * (variance - new) + part * (1 - part) * step**2
        held += weight

    def _offer(self, rank: float, weight: float, k: np.ndarray, c: np.ndarray) -> None:
        """Keep one row if there is room, or in place of the one of the largest rank."""
        s = self.state
        place = self.kept
        if place == len(s["rank"]):
            place = int(s["rank"].argmax()) if place else 0
            if not len(s["rank"]) or rank >= s["rank"][place]:
                self._leave(rank)
                return
            self._leave(s["rank"][place])
        else:
            s["held"][0] += 1
        s["rank"][place], s["weight"][place] = rank, weight
        self.bank.put(place, k, c)

    def _leave(self, rank: float) -> None:
        """A row of that rank is not kept: the threshold is the least of such."""
        held, threshold = self.state["held"], self.state["threshold"]
        threshold[0] = min(rank, threshold[0]) if held[1] else rank
        held[1] = 1


def _micros(load: Load) -> float:
    return load.keeping(load.params.history.rows, 1.23, 80, 0.0014, 1.9e-5)


METHOD = Method(
    name="reservoir",
    settings=keeping("reservoir", WINDOW_SHARE, ReservoirParams),
    options=BUDGETED,
    params=ReservoirParams,
    history=ReservoirHistory,
    micros=_micros,
)
