"""One compression of a weighted set of keys, with its scratch (the mathematics: kernels/compress.py)."""

from __future__ import annotations

import math

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
        return dim * (dim + 1) + removed * dim + atoms * (dim + width) + inside

    def room(self, count: int, new: int) -> tuple[np.ndarray, ...]:
        """Views of the scratch for `count` atoms, `new` of them new.

        Factor (d, d) and direction (d,) of the queries' model; the new keys (new, d); all keys (count, d), coefficients
        (count, dv + 1); and the rest.
        """
        d, w = self.dim, self.width
        shapes = ((d, d), (d,), (new, d), (count, d), (count, w))
        views, at = [], 0
        for shape in shapes:
            size = math.prod(shape)
            views.append(self.scratch[at : at + size].reshape(shape))
            at += size
        return *views, self.scratch[at:]

    def compress(self, views: tuple, scale: float, temper: float, keep: int, alive: np.ndarray) -> None:
        """Choose `keep` of the atoms in `room`: alive (count,) bool, and new coefficients in place; the keys are spoilt."""
        factor, direction, _, x, w, rest = views
        kernel.compress(x, w, factor, direction, scale, temper, keep, rest, alive)
