"""Caches that keep every row, in few bits: what the methods of fixed size are to be measured against, at more memory."""

from __future__ import annotations

import numpy as np
from heads import Head

from streamattn_cli.kernels import hadamard

BITS = (2, 3, 4, 6, 8)


def rounded_cache(head: Head, bits: int) -> tuple[np.ndarray, np.ndarray, float]:
    """k (n, d) and c (n, dv + 1) of a head with all rows in so many bits, and the share of float16's bytes that they take.

    Rows are centred, turned and rounded with a scale for each key and value as `evict --bits` does it (METHODS.md (B9)); the
    scales, of two bytes each, count.
    """
    d, dv = head.k.shape[1], head.c.shape[1] - 1
    c = head.c.copy()
    k, c[:, :-1] = _rounded(head.k, bits), _rounded(head.c[:, :-1], bits)
    return k, c, (bits * (d + dv) / 8 + 4) / (2 * (d + dv))


def _rounded(x: np.ndarray, bits: int) -> np.ndarray:
    mean, limit = x.mean(axis=0), 2 ** (bits - 1) - 1
    turned = np.ascontiguousarray(x - mean)
    hadamard.turn_rows(turned, x.shape[1], False)
    step = np.maximum(np.abs(turned).max(axis=1, keepdims=True), 1e-30) / limit
    turned = np.ascontiguousarray(np.rint(turned / step) * step, x.dtype)
    hadamard.turn_rows(turned, x.shape[1], True)
    return turned + mean
