"""What queries will look like: an exponentially forgotten Gaussian, kept in a few bytes (METHODS.md (N2) to (N4))."""

from __future__ import annotations

import math

import numpy as np

from streamattn_cli.kernels import blas, rotary
from streamattn_cli.kernels import queries as kernel

FORGET = 256.0  # rows after which a query counts 1/e, if nothing else is said
LOOKBACK = 0.003  # weight of a query that never looks at the history: u = share^2 + LOOKBACK


class QueryModel:
    """Weighted mean, standard deviations (float32) and correlations (int16 or int8, upper triangle) of queries.

    State arrays as in `state_spec`; each is updated in place. With a rotation it is the model of queries turned back by
    their positions (METHODS.md (N17)).
    """

    def __init__(self, state: dict[str, np.ndarray], rope: tuple | None = None):
        self.rope = rope
        at = state.get("query.at", np.zeros(1, np.int64))
        corr = state["query.corr"].view(np.uint8)
        self.arrays = (*(state[f"query.{name}"] for name in ("weight", "mean", "std")), corr, at)

    @staticmethod
    def state_spec(dim: int, rotates: bool = False, bits: int = 16) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype); bits: of a correlation."""
        spec: dict[str, tuple[tuple[int, ...], str]] = {
            "query.weight": ((1,), "f8"),
            "query.mean": ((dim,), "f4"),
            "query.std": ((dim,), "f4"),
            "query.corr": ((dim * (dim - 1) // 2,), f"i{bits // 8}"),
        }
        return spec | ({"query.at": ((1,), "i8")} if rotates else {})  # rows whose queries have passed

    @staticmethod
    def scratch_size(dim: int, queries: int) -> int:
        """Numbers of float32 scratch that `learn` takes for so many queries."""
        return (queries + 1 + dim) * dim

    def learn(self, q: np.ndarray, share: np.ndarray, rows: float, scratch: np.ndarray, forget: float = FORGET) -> None:
        """Take in queries q (r, d) of `rows` rows; share (r,) is the part of their mass that fell on the history."""
        weights, old = share * share + LOOKBACK, math.exp(-rows / forget)
        kernel.learn(blas.address("f4"), q, weights, old, *self.arrays[:4], scratch)

    def merge(self, other: QueryModel) -> None:
        """Become the model of the queries of both; the other's rows follow this one's. Equal models are of the same queries,
        which shards of one stream have learnt from: they stay as they are."""
        (weight, mean, std, corr, at), (their_weight, *_, passed) = self.arrays, other.arrays
        old, new, before = float(weight[0]), float(their_weight[0]), int(at[0])
        at += passed
        if new == 0 or all(map(np.array_equal, self.arrays[:4], other.arrays[:4])):
            return
        their_mean, theirs = other._moments(-before)
        step = their_mean - mean
        covariance = (old * self.covariance() + new * theirs) / (old + new)
        covariance += (old * new / (old + new) ** 2) * np.outer(step, step)
        weight[0] = old + new
        mean += step * (new / (old + new))
        kernel.pack(covariance, 1.0, std, corr)

    def factor(self, out: np.ndarray, direction: np.ndarray) -> None:
        """U upper (d, d) with U^T U the regularised covariance, and direction (d,) = U^-T mean. No query: the unit Gaussian."""
        kernel.factor(*self.arrays[:4], out, direction)

    def typical(self, scale: float) -> np.ndarray:
        """scale times the mean query (d,), as new keys of six bits are turned: METHODS.md (N24)."""
        mean, at = self.arrays[1], float(self.arrays[4][0])
        rope = self.rope or (np.empty(0), 1, 1, 0)
        out, scratch = np.empty(len(mean), "f4"), np.empty(max(3 * len(mean), 4), "f4")
        kernel.typical(mean, scale, rope, at, out, scratch)
        return out

    def covariance(self) -> np.ndarray:
        """The plain covariance (d, d), float64."""
        _, mean, std, corr, _ = self.arrays
        upper = np.empty((len(mean), len(mean)))
        kernel.unpack(std, corr, 1.0, upper)
        return upper + np.triu(upper, 1).T

    def _moments(self, by: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean (d,) and covariance (d, d), float64, of the queries turned by so many positions."""
        mean, covariance = self.arrays[1].astype(np.float64), self.covariance()
        if self.rope and len(self.rope[0]) and by:
            scratch = np.empty(4 * len(self.rope[0]))
            rotary.turn(mean[None], self.rope, float(by), 0.0, scratch)
            for _ in range(2):
                rotary.turn(covariance, self.rope, float(by), 0.0, scratch)
                covariance = np.ascontiguousarray(covariance.T)
        return mean, covariance
