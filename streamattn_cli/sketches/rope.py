"""Rotary positions of queries and keys: 'THETA:half' or 'THETA:interleaved', and what kernels are given for it."""

from __future__ import annotations

import math

import numpy as np

PAIRS = ("half", "interleaved")  # numbers i and i + d/2 turn together, or 2i and 2i + 1


def rope_word(theta: float, pairs: str) -> str:
    """The rotation as one word; ValueError where there is no such rotation."""
    if not (math.isfinite(theta) and theta > 1) or pairs not in PAIRS:
        raise ValueError(f"{theta!r}, {pairs!r}")
    return f"{float(theta)!r}:{pairs}"


def read_rope(word: str) -> str:
    """'THETA', 'THETA:PAIRS' or 'none' as `rope_word` gives it, empty for none; ValueError for anything else."""
    if word == "none":
        return ""
    theta, _, pairs = word.partition(":")
    return rope_word(float(theta), pairs if ":" in word else PAIRS[0])


def rotation(word: str, dim: int) -> tuple[np.ndarray, int, int]:
    """Frequencies (dim / 2,) float64, step and gap (see kernels.rotary.turn); no frequencies for an empty word."""
    if not word:
        return np.empty(0), 1, 1
    theta, _, pairs = word.partition(":")
    frequencies = float(theta) ** (-np.arange(0, dim - 1, 2) / dim)
    return (frequencies, 2, 1) if pairs == "interleaved" else (frequencies, 1, len(frequencies))
