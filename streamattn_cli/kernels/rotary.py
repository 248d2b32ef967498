"""Rotary positions: rows are turned by their position, pair of numbers by pair of numbers (METHODS.md (N17) to (N19))."""

import math

import numpy as np

from streamattn_cli.kernels.jit import FAST, kernel

NEAREST, FARTHER = 16.0, 512.0  # rows ahead for which atoms are fitted: the least, and the most for every turn
_ODD, _MIX1, _MIX2 = np.uint32(0x9E3779B9), np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_S8, _S15, _S16 = np.uint32(8), np.uint32(15), np.uint32(16)


@kernel(cache=True, fastmath=FAST)
def turn(x, rope, start, stride, scratch):
    """Turn row i of x (n, d) by the position start + i stride, in place.

    rope: (frequencies (r,) float64, step, gap, turns): numbers j step and j step + gap turn together by position *
    frequencies[j]; how many turns a compression makes is of no matter here. scratch (4 r,) of floats. Angles are float64 at the first row, and go on from there by products.
    """
    frequencies, step, gap, _ = rope
    r = frequencies.shape[0]
    cosine, sine, further, across = scratch[:r], scratch[r : 2 * r], scratch[2 * r : 3 * r], scratch[3 * r : 4 * r]
    for j in range(r):
        angle, more = start * frequencies[j], stride * frequencies[j]
        cosine[j], sine[j], further[j], across[j] = math.cos(angle), math.sin(angle), math.cos(more), math.sin(more)
    for i in range(x.shape[0]):
        row = x[i]
        for j in range(r):
            a, b = row[j * step], row[j * step + gap]
            row[j * step] = a * cosine[j] - b * sine[j]
            row[j * step + gap] = b * cosine[j] + a * sine[j]
        for j in range(r if stride != 0 else 0):
            c, s = cosine[j], sine[j]
            cosine[j] = c * further[j] - s * across[j]
            sine[j] = s * further[j] + c * across[j]


@kernel(inline="always")
def ahead(draw, t, turns):
    """How many rows ahead turn t of `turns` looks: the t-th stratum of log-uniform distances, at random by a hash of `draw`."""
    x = np.uint32(np.uint32(np.uint32(np.uint32(draw) * np.uint32(turns)) + np.uint32(t)) * _ODD)
    x = np.uint32(np.uint32(x ^ (x >> _S16)) * _MIX1)
    x = np.uint32(np.uint32(x ^ (x >> _S15)) * _MIX2)
    x = np.uint32(x ^ (x >> _S16))
    return _distance((t + np.float64(np.int64(x >> _S8)) * 2.0**-24) / turns, turns)


@kernel(inline="always")
def midway(t, turns):
    """The middle of what `ahead` draws from."""
    return _distance((t + 0.5) / turns, turns)


@kernel(inline="always")
def _distance(share, turns):
    return NEAREST * math.exp(share * math.log(FARTHER * turns / NEAREST))
