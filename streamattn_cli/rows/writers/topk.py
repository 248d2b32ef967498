"""The largest entries of every column of a stream of rows, exactly, and how they compare with keeping nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamattn_cli.kernels import topk as kernel


@dataclass(frozen=True)
class Sparse:
    """Entries of the columns of one head: rows (j,) int64, columns (j,) int32, values (j,) float64, significant (j,)
    bool (above the noise of the sketch they were read from; always, where they are exact); by column, then by row.

    With a reference (dv,) the values are differences from it. rest, best, zero (dv,): norms of a column less these
    entries, less its own best k, and of the whole column (all less the reference).
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    significant: np.ndarray
    reference: np.ndarray | None
    rest: np.ndarray
    best: np.ndarray
    zero: np.ndarray


class BestRows:
    """The k largest |entries| of every column of rows (heads, dim) that are offered in order; with `deviation` those
    farthest from the column's mean, which is known only at the end: they are among the k largest and the k smallest."""

    def __init__(self, k: int, heads: int, dim: int, deviation: bool):
        self.k, self.heads, self.dim = k, heads, dim
        self.sides = (1, -1) if deviation else (0,)
        shape = (len(self.sides), heads * dim, k)
        self.keys = np.full(shape, -np.inf)
        self.rows = np.full(shape, -1, np.int64)
        self.values = np.zeros(shape)
        self.sums = np.zeros((3, heads * dim))

    @staticmethod
    def projected_bytes(k: int, heads: int, dim: int, deviation: bool) -> int:
        """Bytes of the heaps and of the arrays that reading them out takes."""
        return heads * dim * ((3 if deviation else 2) * k * 24 + 3 * 8)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that has been kept, by name; the arrays themselves."""
        return {"keys": self.keys, "rows": self.rows, "values": self.values, "sums": self.sums}

    def offer(self, start: int, block: np.ndarray) -> None:
        """Show rows start.. (n, heads, dim) of any float dtype."""
        flat = np.ascontiguousarray(block).reshape(len(block), -1)
        kernel.add_sums(flat, self.sums)
        for side, keys, rows, values in zip(self.sides, self.keys, self.rows, self.values, strict=True):
            kernel.offer(flat, start, side, keys, rows, values)

    @property
    def mean(self) -> np.ndarray:
        """The mean of the rows so far (heads, dim)."""
        found: np.ndarray = self.sums[1] / np.maximum(self.sums[0], 1)
        return found.reshape(self.heads, self.dim)

    def column(self, c: int, reference: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows (ascending) and values, less the reference, of the best entries of flat column c."""
        rows, values = self.rows[:, c].ravel(), self.values[:, c].ravel() - reference
        rows, first = np.unique(rows, return_index=True)  # few rows: an entry may be among the largest and the smallest
        values = values[first][rows >= 0]
        rows = rows[rows >= 0]
        chosen = np.sort(np.argsort(-np.abs(values), kind="stable")[: self.k])
        return rows[chosen], values[chosen]

    def norms(self, c: int, reference: float) -> tuple[float, float]:
        """Norm of flat column c less the reference; and what is left of it without its best k entries."""
        count, total, squares = self.sums[:, c]
        whole = max(squares - 2 * reference * total + count * reference**2, 0.0)
        return float(np.sqrt(whole)), float(np.sqrt(max(whole - (self.column(c, reference)[1] ** 2).sum(), 0.0)))

    def head(self, head: int) -> Sparse:
        """The result for one head."""
        reference = self.mean[head] if len(self.sides) == 2 else np.zeros(self.dim)
        found = [self.column(head * self.dim + c, reference[c]) for c in range(self.dim)]
        zero, best = np.array([self.norms(head * self.dim + c, reference[c]) for c in range(self.dim)]).T
        rows = np.concatenate([rows for rows, _ in found])
        return Sparse(
            rows=rows,
            columns=np.repeat(np.arange(self.dim, dtype=np.int32), [len(rows) for rows, _ in found]),
            values=np.concatenate([values for _, values in found]),
            significant=np.ones(len(rows), bool),
            reference=reference if len(self.sides) == 2 else None,
            rest=best,
            best=best,
            zero=zero,
        )


def ratio(part: np.ndarray, best: np.ndarray) -> np.ndarray:
    """part / best; 1 where both vanish."""
    return np.where(part > best, part / np.maximum(best, 1e-300), 1.0)
