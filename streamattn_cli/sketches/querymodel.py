"""What queries will look like: an exponentially forgotten Gaussian, kept in a few bytes (methods.md 3.1)."""

from __future__ import annotations

import numpy as np

FORGET = 256.0  # rows after which a query counts 1/e
LOOKBACK = 0.003  # weight of a query that never looks at the history: u = share^2 + LOOKBACK
RIDGE = 1e-2  # Sigma += RIDGE tr(Sigma)/d I
_FULL = 32767.0  # correlation 1 in int16


class QueryModel:
    """Weighted mean, standard deviations (float32) and correlations (int16, upper triangle) of queries.

    State arrays as in `state_spec`; each is updated in place.
    """

    def __init__(self, state: dict[str, np.ndarray]):
        self.state = state
        self.upper = np.triu_indices(len(state["query.mean"]), 1)

    @staticmethod
    def state_spec(dim: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype)."""
        return {
            "query.weight": ((1,), "f8"),
            "query.mean": ((dim,), "f4"),
            "query.std": ((dim,), "f4"),
            "query.corr": ((dim * (dim - 1) // 2,), "i2"),
        }

    def learn(self, q: np.ndarray, share: np.ndarray, rows: float) -> None:
        """Take in queries q (r, d) of `rows` rows; share (r,) is the part of their mass that fell on the history."""
        s = self.state
        q, u = q.astype(np.float64), share.astype(np.float64) ** 2 + LOOKBACK
        old, new = s["query.weight"][0] * np.exp(-rows / FORGET), u.sum()
        total = old + new
        mean = (u @ q) / new
        centred = q - mean
        step = mean - s["query.mean"]
        covariance = old * self._covariance() + (centred * u[:, None]).T @ centred
        covariance = (covariance + (old * new / total) * np.outer(step, step)) / total
        self._set(total, step * (new / total), covariance)

    def merge(self, other: QueryModel) -> None:
        """Become the model of the queries of both."""
        s, theirs = self.state, other.state
        old, new = s["query.weight"][0], theirs["query.weight"][0]
        if new == 0:
            return
        step = theirs["query.mean"].astype(np.float64) - s["query.mean"]
        covariance = (old * self._covariance() + new * other._covariance()) / (old + new)
        covariance += (old * new / (old + new) ** 2) * np.outer(step, step)
        self._set(old + new, step * (new / (old + new)), covariance)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (d,) and regularised covariance (d, d), float64. Without any query: the unit Gaussian."""
        d = len(self.state["query.mean"])
        if self.state["query.weight"][0] == 0:
            return np.zeros(d), np.eye(d)
        covariance = self._covariance()
        ridge = RIDGE * np.trace(covariance) / d + 1e-12
        return self.state["query.mean"].astype(np.float64), covariance + ridge * np.eye(d)

    def _set(self, weight: float, step: np.ndarray, covariance: np.ndarray) -> None:
        s, std = self.state, np.sqrt(np.maximum(np.diag(covariance), 1e-30))
        s["query.weight"][0] = weight
        s["query.mean"][:] = s["query.mean"] + step
        s["query.std"][:] = std
        s["query.corr"][:] = np.rint((covariance / np.outer(std, std))[self.upper] * _FULL)

    def _covariance(self) -> np.ndarray:
        s = self.state
        std = s["query.std"].astype(np.float64)
        corr = np.zeros((len(std), len(std)))
        corr[self.upper] = s["query.corr"] / _FULL
        return (corr + corr.T + np.eye(len(std))) * np.outer(std, std)
