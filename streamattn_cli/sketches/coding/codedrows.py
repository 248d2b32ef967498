"""Rows kept in few bits: turned, rounded to the nearest, relative to the means of the first ones (METHODS.md (B9))."""

from __future__ import annotations

import numpy as np

from streamattn_cli.kernels import atoms, coded, hadamard
from streamattn_cli.kernels import nystrom as kernel
from streamattn_cli.sketches.partial import Partial

BITS = (4, 6, 8)


class CodedRows:
    """Rows of k and v as `spec` lays them out: codes of keys, then those of values; scales; means of keys and of values."""

    def __init__(self, state: dict[str, np.ndarray], dim: int, bits: int):
        self.bits, self.dim = bits, dim
        self.codes, self.scales, self.centre, self.mean = (state[n] for n in ("codes", "scales", "centre", "mean"))
        self.parts = slice(0, code_bytes(dim, bits)), slice(code_bytes(dim, bits), None)

    @staticmethod
    def spec(rows: int, dim: int, value_dim: int, bits: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of the state arrays of `rows` rows."""
        return {
            "codes": ((rows, code_bytes(dim, bits) + code_bytes(value_dim, bits)), "u1"),
            "scales": ((rows, 2), "u2"),
            "centre": ((dim,), "f4"),
            "mean": ((value_dim,), "f4"),
        }

    def put(self, at: int, k: np.ndarray, c: np.ndarray) -> None:
        """Round k (n, d) and c (n, dv + 1) of weight 1, and keep them from place `at` on."""
        k, c, end = k - self.centre, c.copy(), at + len(k)
        atoms.prepare(k, c, self.mean)
        for x, part, scales in zip((k, c[:, :-1]), self.parts, self.scales[at:end].T, strict=True):
            coded.encode(x, self.bits, self.codes[at:end, part], scales)

    def load(self, a: int, b: int, k: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows [a, b) as they were before they were rounded, in the first of k (., d) and c (., dv + 1), as views."""
        k, c = self._turned(a, b, k, c)
        atoms.restore(k, c, self.mean)
        k += self.centre
        return k, c

    def keep(self, stay: np.ndarray) -> None:
        """Move the rows that stay, of the first len(stay) ones, to the front."""
        left = int(stay.sum())
        for array in (self.codes, self.scales):
            array[:left] = array[: len(stay)][stay]

    def partial(self, count: int, work: dict, out: Partial) -> None:
        """Add the answer of the first `count` rows to `out`, for the queries in work["scaled"], which come back as they were but
        for rounding; `out` must be empty."""
        q, (low, high), tile = work["scaled"], work["everything"], len(work["tile_k"])
        hadamard.turn_columns(q, False)
        for first in range(0, count, tile):
            k, c = self._turned(first, min(first + tile, count), work["tile_k"], work["tile_c"])
            low[:], high[:] = 0, len(k)
            out.attend(q, k, c, low, high, work["logits"], work["product"])
        hadamard.turn_columns(q, True)
        hadamard.turn_rows(out.y, len(self.mean), True)
        kernel.shift(out.m, out.y, q, self.centre, self.mean)

    def _turned(self, a: int, b: int, k: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        k, c = k[: b - a], c[: b - a]
        c[:, -1] = 1
        for x, part, scales in zip((k, c[:, :-1]), self.parts, self.scales[a:b].T, strict=True):
            coded.decode(self.codes[a:b, part], scales, self.bits, x)
        return k, c


def code_bytes(dim: int, bits: int) -> int:
    """Bytes of so many numbers."""
    return {4: -(-dim // 2), 6: 3 * -(-dim // 4), 8: dim}[bits]
