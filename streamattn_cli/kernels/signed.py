"""What rows with weights of either sign answer, and how much of it cancels."""

import math

import numpy as np
from numba import types
from numba.extending import overload

from streamattn_cli.kernels.blas import LEFT, PLAIN, product
from streamattn_cli.kernels.dense import tile_rows
from streamattn_cli.kernels.exponential import exp, exp_lanes
from streamattn_cli.kernels.jit import FAST, kernel
from streamattn_cli.kernels.lanes import WIDE, emitted


@kernel(cache=True)
def attend_signed(gemm, q, k, c, logits, gathered, m, y, squares):
    """As dense.attend where all is seen, and adds the squares of what the weights bring to squares (r,), which is rescaled as y is."""
    count, r, weight = k.shape[0], q.shape[1], c.shape[1] - 1
    step = tile_rows(r, max(k.shape[1], c.shape[1]), count)
    top = logits[:r]
    for first in range(0, count, step):
        n = min(step, count - first)
        tile, rows = logits[r : r + n * r].reshape(n, r), c[first : first + n]
        product(gemm, PLAIN, k[first : first + n], q, tile)
        raise_top(tile, rows[:, weight], top, m, y, squares)
        weigh(tile, rows[:, weight], top, squares)
        product(gemm, LEFT, tile, rows, gathered)
        for i in range(r):
            for j in range(y.shape[1]):
                y[i, j] += gathered[i, j]


@kernel(fastmath=FAST)
def raise_top(logits, weights, top, m, y, squares):
    """Raise the maxima m (r,) to those of a tile of logits (n, r), and rescale what was gathered relative to them; top (r,): the same,
    0 where nothing was seen. Rows of weight 0 are not there."""
    nothing = logits.dtype.type(-np.inf)
    for i in range(top.shape[0]):
        top[i] = m[i]
    for j in range(logits.shape[0]):
        row = logits[j]
        if weights[j] == 0:
            row[:] = nothing
            continue
        for i in range(top.shape[0]):
            top[i] = row[i] if row[i] > top[i] else top[i]
    for i in range(top.shape[0]):
        if top[i] > m[i]:
            shrink = math.exp(m[i] - top[i])
            squares[i] *= shrink * shrink
            for j in range(y.shape[1]):
                y[i, j] *= shrink
            m[i] = top[i]
        elif top[i] == nothing:
            top[i] = 0


@kernel(fastmath=FAST)
def weigh(logits, weights, top, squares):
    """Turn logits (n, r) into e^(logits - top), and add the squares of these times the weights (n,) to squares (r,)."""
    n, r = logits.shape
    whole = r - r % WIDE if logits.itemsize == 4 else 0
    for j in range(n):
        row, weight = logits[j], weights[j]
        for i in range(0, whole, WIDE):
            _weigh_some(row, i, weight, top, squares)
        for i in range(whole, r):
            row[i] = exp(row[i] - top[i])
            squares[i] += weight * row[i] * (weight * row[i])


def _weigh_some(row, first, weight, top, squares):
    """WIDE numbers of `weigh`. This body runs only when the JIT is disabled."""
    for i in range(first, first + WIDE):
        row[i] = exp(row[i] - top[i])
        squares[i] += weight * row[i] * (weight * row[i])


@emitted
def _weigh_lanes(lanes, row, first, weight, top, squares):
    b = lanes.builder
    e = exp_lanes(lanes, b.fsub(lanes.load(row, first), lanes.load(top, first)))
    lanes.store(e, row, first)
    part = b.fmul(e, lanes.same(weight))
    lanes.store(b.fadd(lanes.load(squares, first), b.fmul(part, part), flags=("contract",)), squares, first)


@overload(_weigh_some, inline="always")
def _weigher(row, first, weight, top, squares):
    if row.dtype != types.float32:
        return lambda row, first, weight, top, squares: None
    return lambda row, first, weight, top, squares: _weigh_lanes(row, first, weight, top, squares)
