"""The made-up streams of the experiments: Gaussian q, k, v with logits of a given spread, in blocks keyed by their
number."""

from __future__ import annotations

import numpy as np

from streamattn_cli.sketches.headparams import allocate
from streamattn_cli.sketches.paper.sketched import SketchedHead, SketchParams

BLOCK = 1 << 12


def block(number: int, dim: int, logit_std: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [number, number + 1) * BLOCK of q, k, v (float32), for the scale 1/sqrt(dim)."""
    rng = np.random.default_rng([seed, number])
    factor = np.sqrt(logit_std)
    q, k = (factor * rng.standard_normal((BLOCK, dim)) for _ in range(2))
    v = rng.standard_normal((BLOCK, dim))
    return tuple(x.astype(np.float32) for x in (q, k, v))


def fresh_head(params: SketchParams, k: np.ndarray, v: np.ndarray, q: np.ndarray) -> tuple[SketchedHead, dict]:
    """A sketch calibrated on first rows, and scratch for it."""
    head = SketchedHead(params)
    head.calibrate(k[:1024], np.column_stack([v, np.ones(len(v))])[:1024], q[:1024])
    return head, allocate(params.work_spec())


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """Exact attention in float64, a few queries at a time."""
    out = np.empty((len(q), v.shape[1]))
    for a in range(0, len(q), 256):
        logits = scale * q[a : a + 256].astype(np.float64) @ k.T.astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        out[a : a + 256] = shares @ v / shares.sum(axis=1, keepdims=True)
    return out
