"""From the sketch of the outputs to sparse columns, and how good they are: as the sketch shows it, or exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log

import numpy as np

from streamattn_cli.engine.request.sketching import Sketching
from streamattn_cli.rows.writers.topk import BestRows, Sparse
from streamattn_cli.sketches.paper.countsketch import Recovered, noise_of, residual


def sparse_of(sketching: Sketching, z: np.ndarray, n: int, k: int, reference: np.ndarray | None) -> Sparse:
    """Decode z = Phi T (m2, dv) of n rows; the norms are the sketch's own estimates."""
    phi = sketching.recovering
    found = phi.recover(z, n, k, sketching.per_column)
    zero, rest = phi.tail(z), residual(phi, z, found)
    noise = noise_of(phi, rest)
    rows, columns, values, significant = [], [], [], []
    for part in found:
        stands_out = _above_noise(part, noise, n)
        for j in range(part.values.shape[1]):
            rows.append(part.rows)
            columns.append(np.full(len(part.rows), j if part.column is None else part.column, np.int32))
            values.append(part.values[:, j])
            significant.append(stands_out)
    flat = tuple(np.concatenate(parts) for parts in (rows, columns, values, significant))
    return Sparse(flat[0], flat[1], flat[2], flat[3], reference, *_norms(flat, zero, rest, noise), zero)


def _norms(
    flat: tuple[np.ndarray, ...], zero: np.ndarray, rest: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates of what a column keeps without the entries found, and without its best ones. An entry above the noise
    errs by the noise; one below it is taken for noise altogether, so that its whole value is error."""
    _, columns, values, significant = flat
    dim = len(zero)
    sure = np.bincount(columns[significant], minlength=dim)
    wrong = np.bincount(columns[~significant], values[~significant] ** 2, minlength=dim)
    best = np.where(sure == 0, zero, rest)
    return np.sqrt(best**2 + sure * noise**2 + wrong), best


def _above_noise(part: Recovered, noise: np.ndarray, n: int) -> np.ndarray:
    """Which rows (j,) could not be the largest noise among n rows: by chance, that is about sqrt(2 ln n) times a
    column's noise, and sqrt(c) times as much in norm over c columns, which may all be alike."""
    columns = part.values.shape[1]
    level = np.sqrt((noise**2).mean()) if part.column is None else noise[part.column]
    noisy = level * np.sqrt(columns) * (1 + np.sqrt(2 * log(max(n, 2))))
    found: np.ndarray = np.linalg.norm(part.values, axis=1) > noisy
    return found


@dataclass
class Entries:
    """Collects the true values at the places of a sparse result while rows pass."""

    sparse: Sparse

    def __post_init__(self) -> None:
        self.true = np.zeros(len(self.sparse.rows))

    def see(self, start: int, rows: np.ndarray) -> None:
        """Rows start.. of the head (n, dv)."""
        here = (self.sparse.rows >= start) & (self.sparse.rows < start + len(rows))
        self.true[here] = rows[self.sparse.rows[here] - start, self.sparse.columns[here]]


def exact_norms(sparse: Sparse, taken: Entries, best: BestRows, head: int) -> Sparse:
    """The same result with the norms that a pass over the produced rows has measured."""
    dim = best.dim
    reference = np.zeros(dim) if sparse.reference is None else sparse.reference
    rest, least, zero = np.empty(dim), np.empty(dim), np.empty(dim)
    for c in range(dim):
        zero[c], least[c] = best.norms(head * dim + c, reference[c])
        here = sparse.columns == c
        true = taken.true[here] - reference[c]
        left = zero[c] ** 2 - (true**2).sum() + ((true - sparse.values[here]) ** 2).sum()
        rest[c] = np.sqrt(max(left, 0.0))
    return replace(sparse, rest=rest, best=least, zero=zero)
