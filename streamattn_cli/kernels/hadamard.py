"""A fixed orthogonal map that makes the numbers of a row alike in size, and its inverse (METHODS.md (N20)).

Row x becomes H S x: S flips signs, H is the Hadamard transform of blocks whose sizes are the powers of two that add up to the
length, the largest first.
"""

import math

import numpy as np
from llvmlite import ir
from numba.extending import overload

from streamattn_cli.kernels.jit import kernel
from streamattn_cli.kernels.lanes import WIDE, contiguous, emitted

PERIOD = 1024  # numbers after which the signs begin again


def _signs(count):
    """Signs (count,) float32 by a hash of the place (Wellons' lowbias32)."""
    signs = np.empty(count, np.float32)
    for i in range(count):
        x = i * 0x9E3779B9 & 0xFFFFFFFF
        x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
        signs[i] = 1 if (x ^ x >> 16) & 1 else -1
    return signs


SIGNS = _signs(PERIOD)


@kernel(cache=True)
def turn_rows(x, width, back):
    """Turn the first `width` numbers of every row of x (n, >= width) in place, or back."""
    for i in range(x.shape[0]):
        row, first = x[i, :width], 0
        if not back:
            _sign(row)
        while first < width:
            size = 1
            while 2 * size <= width - first:
                size *= 2
            _mix(row[first : first + size])
            first += size
        if back:
            _sign(row)


@kernel()
def _sign(row):
    for first in range(0, row.shape[0], PERIOD):
        some = row[first : first + PERIOD]
        whole = some.shape[0] - some.shape[0] % WIDE
        for j in range(0, whole, WIDE):
            _sign_some(some, j, SIGNS)
        for j in range(whole, some.shape[0]):
            some[j] *= SIGNS[j]


@kernel()
def _mix(row):
    """The orthonormal Hadamard transform of row (a power of two,), in place."""
    size, half = row.shape[0], 1
    root = row.dtype.type(1 / math.sqrt(size))
    if size >= WIDE:
        for first in range(0, size, WIDE):
            _mix_within(row, first, root)
        half = WIDE
    else:
        for j in range(size):
            row[j] *= root
    while 2 * half <= size:
        for first in range(0, size, 2 * half):
            if half >= WIDE:
                for j in range(first, first + half, WIDE):
                    _mix_across(row, j, half)
                continue
            for j in range(first, first + half):
                a, b = row[j], row[j + half]
                row[j], row[j + half] = a + b, a - b
        half *= 2


def _sign_some(row, first, signs):
    """WIDE numbers from `first` on, times the signs. This body, and those of the two below, are for rows that are not known to be
    contiguous, and run when the JIT is disabled."""
    for j in range(first, first + WIDE):
        row[j] *= signs[j]


def _mix_within(row, first, root):
    """The transform of WIDE numbers from `first` on, times root."""
    half = 1
    for j in range(first, first + WIDE):
        row[j] *= root
    while half < WIDE:
        for start in range(first, first + WIDE, 2 * half):
            for j in range(start, start + half):
                a, b = row[j], row[j + half]
                row[j], row[j + half] = a + b, a - b
        half *= 2


def _mix_across(row, first, half):
    """Sums and differences of WIDE numbers from `first` on with those `half` further on."""
    for j in range(first, first + WIDE):
        a, b = row[j], row[j + half]
        row[j], row[j + half] = a + b, a - b


@emitted
def _sign_lanes(lanes, row, first, signs):
    x = lanes.load(row, first)
    lanes.store(lanes.builder.fmul(x, lanes.wide(lanes.load(signs, first), x.type)), row, first)


@emitted
def _within_lanes(lanes, row, first, root):
    x, half = lanes.load(row, first), 1
    x = lanes.builder.fmul(x, lanes.same(root))
    while half < WIDE:
        signs = ir.Constant(x.type, [-1.0 if i & half else 1.0 for i in range(WIDE)])
        others = lanes.shuffled(x, [i ^ half for i in range(WIDE)])
        x = lanes.builder.fadd(others, lanes.builder.fmul(x, signs))
        half *= 2
    lanes.store(x, row, first)


@emitted
def _across_lanes(lanes, row, first, half):
    a, b = lanes.load(row, first), lanes.load(row, first, half)
    lanes.store(lanes.builder.fadd(a, b), row, first)
    lanes.store(lanes.builder.fsub(a, b), row, first, half)


@overload(_sign_some, inline="always")
def _signer(row, first, signs):
    if not contiguous(row):
        return _sign_some
    return lambda row, first, signs: _sign_lanes(row, first, signs)


@overload(_mix_within, inline="always")
def _mixer_within(row, first, root):
    if not contiguous(row):
        return _mix_within
    return lambda row, first, root: _within_lanes(row, first, root)


@overload(_mix_across, inline="always")
def _mixer_across(row, first, half):
    if not contiguous(row):
        return _mix_across
    return lambda row, first, half: _across_lanes(row, first, half)


@kernel(cache=True)
def turn_columns(x, back):
    """Turn every column of x (d, r) in place, or back."""
    d, r = x.shape
    if not back:
        _flip(x)
    first = 0
    while first < d:
        size, half = 1, 1
        while 2 * size <= d - first:
            size *= 2
        root = x.dtype.type(1 / math.sqrt(size))
        for j in range(first, first + size):
            row = x[j]
            for i in range(r):
                row[i] *= root
        while half < size:
            for start in range(first, first + size, 2 * half):
                for j in range(start, start + half):
                    one, two = x[j], x[j + half]
                    for i in range(r):
                        a, b = one[i], two[i]
                        one[i], two[i] = a + b, a - b
            half *= 2
        first += size
    if back:
        _flip(x)


@kernel()
def _flip(x):
    for j in range(x.shape[0]):
        row = x[j]
        for i in range(x.shape[1]):
            row[i] *= SIGNS[j % PERIOD]
