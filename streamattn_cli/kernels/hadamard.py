"""A fixed orthogonal map that makes the numbers of a row alike in size, and its inverse (METHODS.md (N20)).

Row x becomes H S x: S flips signs, H is the Hadamard transform of blocks whose sizes are the powers of two that add up to the
length, the largest first.
"""

import math

import numpy as np

from streamattn_cli.kernels.jit import kernel

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
        row, first = x[i], 0
        if not back:
            for j in range(width):
                row[j] *= SIGNS[j % PERIOD]
        while first < width:
            size = 1
            while 2 * size <= width - first:
                size *= 2
            _mix(row[first : first + size])
            first += size
        if back:
            for j in range(width):
                row[j] *= SIGNS[j % PERIOD]


@kernel()
def _mix(row):
    """The orthonormal Hadamard transform of row (a power of two,), in place."""
    size, half = row.shape[0], 1
    root = row.dtype.type(1 / math.sqrt(size))
    for j in range(size):
        row[j] *= root
    while 4 * half <= size:
        for first in range(0, size, 4 * half):
            for j in range(first, first + half):
                a, b, c, d = row[j], row[j + half], row[j + 2 * half], row[j + 3 * half]
                e, f, g, h = a + b, a - b, c + d, c - d
                row[j], row[j + half], row[j + 2 * half], row[j + 3 * half] = e + g, f + h, e - g, f - h
        half *= 4
    if half < size:
        for j in range(half):
            a, b = row[j], row[j + half]
            row[j], row[j + half] = a + b, a - b


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
