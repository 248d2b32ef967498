"""One compression of a weighted set of keys, with its scratch (the mathematics: kernels/compress.py)."""

from __future__ import annotations

import numpy as np

from streamattn_cli.kernels import compress as kernel


class Fit:
    """Scratch for compressions of up to `atoms` atoms, of which up to `removed` go; carved from one array.

    `scratch` (size(...),) decides the precision.
    """

    def __init__(self, scratch: np.ndarray, dim: int, width: int):
        self.scratch, self.dim, self.width = scratch, dim, width

    @staticmethod
    def size(atoms: int, dim: int, width: int, removed: int) -> int:
        """Numbers of scratch; width = dv + 1."""
        inside = 2 * (atoms * (atoms + dim + 1) + dim * dim) + (removed + 3) * atoms + width
        return dim * (dim + 1) + atoms * (dim + width) + inside

    def model(self) -> tuple[np.ndarray, np.ndarray]:
        """Room for the factor (d, d) and the direction (d,) of the queries' model."""
        d = self.dim
        return self.scratch[: d * d].reshape(d, d), self.scratch[d * d : d * (d + 1)]

    def atoms(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Room for keys (count, d) and coefficients (count, dv + 1)."""
        d, w = self.dim, self.width
        at = d * (d + 1)
        return (
            self.scratch[at : at + count * d].reshape(count, d),
            self.scratch[at + count * d : at + count * (d + w)].reshape(count, w),
        )

    def compress(self, count: int, scale: float, temper: float, keep: int, alive: np.ndarray) -> None:
        """Choose `keep` of the atoms: alive (count,) bool, and new coefficients in place; the keys are spoilt."""
        x, w = self.atoms(count)
        factor, direction = self.model()
        rest = self.scratch[self.dim * (self.dim + 1) + count * (self.dim + self.width) :]
        kernel.compress(x, w, factor, direction, scale, temper, keep, rest, alive)
