"""What queries will look like: an exponentially forgotten Gaussian, kept in a few bytes (METHODS.md (N2) to (N4))."""

from __future__ import annotations

import math

import numpy as np

from streamattn_cli.kernels import blas
from streamattn_cli.kernels import queries as kernel

FORGET = 256.0  # rows after which a query counts 1/e
LOOKBACK = 0.003  # weight of a query that never looks at the history: u = share^2 + LOOKBACK


class QueryModel:
    """Weighted mean, standard deviations (float32) and correlations (int16, upper triangle) of queries.

    State arrays as in `state_spec`; each is updated in place.
    """

    def __init__(self, state: dict[str, np.ndarray]):
        self.arrays = tuple(state[f"query.{name}"] for name in ("weight", "mean", "std", "corr"))

    @staticmethod
    def state_spec(dim: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype)."""
        return {
            "query.weight": ((1,), "f8"),
            "query.mean": ((dim,), "f4"),
            "query.std": ((dim,), "f4"),
            "query.corr": ((dim * (dim - 1) // 2,), "i2"),
        }

    @staticmethod
    def scratch_size(dim: int, queries: int) -> int:
        """Numbers of float32 scratch that `learn` takes for so many queries."""
        return (queries + 1 + dim) * dim

    def learn(self, q: np.ndarray, share: np.ndarray, rows: float, scratch: np.ndarray) -> None:
        """Take in queries q (r, d) of `rows` rows; share (r,) is the part of their mass that fell on the history."""
        weights, forget = share * share + LOOKBACK, math.exp(-rows / FORGET)
        kernel.learn(blas.address("f4"), q, weights, forget, *self.arrays, scratch)

    def merge(self, other: QueryModel) -> None:
        """Become the model of the queries of both."""
        (weight, mean, std, corr), (new, their_mean, *_) = self.arrays, other.arrays
        old, new = float(weight[0]), float(new[0])
        if new == 0:
            return
        step = their_mean.astype(np.float64) - mean
        covariance = (old * self.covariance() + new * other.covariance()) / (old + new)
        covariance += (old * new / (old + new) ** 2) * np.outer(step, step)
        weight[0] = old + new
        mean += step * (new / (old + new))
        kernel.pack(covariance, 1.0, std, corr)

    def factor(self, out: np.ndarray, direction: np.ndarray) -> None:
        """U upper (d, d) with U^T U the regularised covariance, and direction (d,) = U^-T mean. No query: the unit Gaussian."""
        kernel.factor(*self.arrays, out, direction)

    def covariance(self) -> np.ndarray:
        """The plain covariance (d, d), float64."""
        _, mean, std, corr = self.arrays
        upper = np.empty((len(mean), len(mean)))
        kernel.unpack(std, corr, 1.0, upper)
        return upper + np.triu(upper, 1).T
