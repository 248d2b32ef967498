"""How a model turns its queries and keys by their positions: what `--rope` says of a dump."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from streamattn_cli.sketches.rope import rope_word


def rope_of(network: Any, dim: int) -> str | None:
    """'THETA:half' or 'THETA:interleaved' of a model that turns all `dim` items of a head by frequencies theta^(-2i/dim);
    None for one that does not, or of which that cannot be found out."""
    theta, pairs = _theta(network, dim), _pairs(network, dim)
    return rope_word(theta, pairs) if theta and pairs else None


def _theta(network: Any, dim: int) -> float | None:
    found = [module for name, module in network.named_modules() if name.endswith("rotary_emb")]
    frequencies = [
        np.asarray(m.inv_freq.float(), np.float64) for m in found if getattr(m, "inv_freq", None) is not None
    ]
    if len(frequencies) != 1 or len(frequencies[0]) * 2 != dim or dim < 4:
        return None
    theta = float(frequencies[0][1] ** (-dim / 2))
    usual = theta ** (-np.arange(0, dim, 2) / dim)
    return float(f"{theta:.6g}") if theta > 1 and np.allclose(frequencies[0], usual, rtol=1e-4) else None


def _pairs(network: Any, dim: int) -> str | None:
    """Which item is turned together with the first one, by a trial."""
    import torch

    apply = getattr(sys.modules.get(type(network).__module__), "apply_rotary_pos_emb", None)
    embedding = next((m for name, m in network.named_modules() if name.endswith("rotary_emb")), None)
    if apply is None or embedding is None:
        return None
    first = torch.zeros(1, 1, 1, dim)
    first[..., 0] = 1
    try:
        cos, sin = embedding(first[:, 0], torch.tensor([[1]]))
        turned, _ = apply(first, first, cos, sin)
    except Exception:  # of another form: then nobody knows
        return None
    others = torch.nonzero(turned[0, 0, 0, 1:].abs() > 1e-6).flatten().tolist()
    return {dim // 2 - 1: "half", 0: "interleaved"}.get(others[0]) if len(others) == 1 else None
