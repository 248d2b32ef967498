"""How far the logits of an input spread, and what that does to `poly`: asked by `inspect`, `plan` and `--method auto`."""

from __future__ import annotations

import math

import numpy as np

from streamattn_cli.rows.convert import numbers
from streamattn_cli.rows.inputs.open import Inputs
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.sample import spread_rows

QUERIES, KEYS = 128, 1024  # rows sampled for the logits


SHORT = 16384  # rows up to which exact attention costs little


def sample_rows(inputs: Inputs) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """q (heads, a, d), k (kv_heads, b, d), float64, and their rows; None without queries."""
    if inputs.q is None or inputs.k is None:
        return None
    q, q_rows = _some_rows(inputs.q, QUERIES)
    k, k_rows = _some_rows(inputs.k, KEYS)
    return q, k, q_rows, k_rows


def _some_rows(heads: Heads, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows spread over the tensor as (heads, n, d) float64, and their numbers."""
    tensor = heads.tensor
    block, rows = spread_rows(tensor, count)
    parts = [block[o, :, c : c + heads.dim] for o, c in zip(heads.outer, heads.column, strict=True)]
    found = np.stack([numbers(part, tensor.dtype) for part in parts])
    if heads.factors:
        found *= np.array(heads.factors)[:, None, None]
    return np.where(np.isfinite(found), found, 0.0), rows


def logit_spread(
    q: np.ndarray, k: np.ndarray, q_rows: np.ndarray, k_rows: np.ndarray, scale: float, causal: bool
) -> dict:  # fmt: skip
    """Spread of the logits: per query head the median over rows of their standard deviation, and the extremes."""
    group = len(q) // len(k)
    seen = k_rows[None] <= q_rows[:, None] if causal else np.ones((len(q_rows), len(k_rows)), bool)
    enough = seen.sum(axis=1) >= 2
    spread, low, high = [], math.inf, -math.inf
    for head in range(len(q)):
        logits = np.where(seen, scale * q[head] @ k[head // group].T, np.nan)[enough]
        if not len(logits):
            continue
        spread.append(np.nanstd(logits, axis=1))
        low, high = min(low, np.nanmin(logits)), max(high, np.nanmax(logits))
    if not spread:
        return {
            "scale": scale, "causal": causal, "row_std": [], "row_std_rms": 0.0,
            "row_std_p95": 0.0, "lowest": 0.0, "highest": 0.0,
        }  # fmt: skip
    return {
        "scale": scale,
        "causal": causal,
        "row_std": [float(np.median(s)) for s in spread],
        "row_std_rms": float(np.sqrt(np.mean(np.concatenate(spread) ** 2))),
        "row_std_p95": float(np.quantile(np.concatenate(spread), 0.95)),
        "lowest": float(low),
        "highest": float(high),
    }


def predicted_poly_error(degree: int, std: float) -> float:
    """Relative error of poly for logits N(., std^2) and values without structure: sqrt(P[Poisson(std^2) > degree]).

    e^x has Hermite weights std^2l / l!, a Poisson law; the polynomial keeps those up to its degree.
    """
    term, kept = math.exp(-(std**2)), 0.0
    for level in range(degree + 1):
        kept += term
        term *= std**2 / (level + 1)
    return math.sqrt(max(0.0, 1 - kept))
