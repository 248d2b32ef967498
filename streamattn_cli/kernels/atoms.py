"""Atoms of a coreset: keys and coefficients in few bits, a bfloat16 scale for each, and the weight in float32.

METHODS.md (N12), (N13), (N20) to (N24).
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from streamattn_cli.kernels.hadamard import turn_rows
from streamattn_cli.kernels.jit import kernel
from streamattn_cli.kernels.linear import largest
from streamattn_cli.kernels.sixbits import LIMIT, pack, unpack

KEPT = np.float32(0.6)  # of a scale's range: if the largest coefficient is not below, the scale stays

_ROUND_UP = np.uint32(0xFFFF)
_ODD, _MIX1, _MIX2 = np.uint32(0x9E3779B9), np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_S8, _S15, _S16 = np.uint32(8), np.uint32(15), np.uint32(16)
_GRAIN = np.float32(2.0**-24)  # of what is left of a random number after _S8
_LIMIT6, _LIMIT8, _LIMIT16, _TINY = np.float32(LIMIT), np.float32(127), np.float32(32767), np.float32(1e-30)
_NONE, _BARELY = np.uint32(0), np.float32(1 + 1e-6)  # no scale; what rounding in between may add
_ONE, _HALF = np.float32(1), np.float32(0.5)


@kernel()
def _scale(top, limit):
    """Bits of the bfloat16 scale that brings `top` to `limit`; rounded away from zero, so that nothing exceeds it."""
    wide = np.float32(max(top / limit, _TINY)).view(np.uint32)
    return np.uint32(np.uint32(wide + _ROUND_UP) >> _S16)


@kernel()
def widened(bits):
    """The number that the bits of a bfloat16 stand for."""
    return np.uint32(np.uint32(bits) << _S16).view(np.float32)


@kernel(cache=True)
def load(bank, first, size, k, c):
    """Atoms first, first + 1, ... (mod `size`) as k (n, d) and c (n, dv + 1), relative to the centres and turned as they are stored.

    bank: keys (m, d) int8, coefs (m, dv) int8 or int16; or both of six bits, packed in uint8 and turned (see sixbits.py and
    hadamard.py); scales (m, 2) bfloat16 bits; weights (m,) float32; and mean (dv,) float32, of which each atom's weight times
    is missing in its coefficients, (0,) where nothing is.
    """
    keys, coefs, scales, weights, _ = bank
    dv = c.shape[1] - 1
    for i in range(k.shape[0]):
        a = (first + i) % size
        _read(keys[a], widened(scales[a, 0]), k[i])
        _read(coefs[a], widened(scales[a, 1]), c[i, :dv])
        c[i, dv] = weights[a]


@kernel(cache=True)
def gather(bank, centre, asked, first, size, k, c, x, w, new, alive):
    """The atoms of a compression, all alive (n,): of a bank those from `first` on (see `load`), then new ones k, c.

    x (n, d): keys relative to the centre, not turned. w (n, dv + 1), and new (., d), the new keys: as they are to be stored.
    asked (d,): see `round_keys`; a bank of eight bits does not look at it.
    """
    taken, mean = x.shape[0] - k.shape[0], bank[4]
    load(bank, first, size, x[:taken], w[:taken])
    alive[:] = True
    for i in range(k.shape[0]):
        for j in range(k.shape[1]):
            new[i, j] = x[taken + i, j] = k[i, j] - centre[j]
        for j in range(c.shape[1]):
            w[taken + i, j] = c[i, j]
    if mean.shape[0]:
        prepare(new, w[taken:], mean)
        for i in range(k.shape[0]):
            round_key(new[i], w[taken + i], asked, x[taken + i])
            for j in range(k.shape[1]):
                x[taken + i, j] = new[i, j]
        turn_rows(x, x.shape[1], True)


@kernel(cache=True)
def round_keys(k, c, asked, was):
    """Round keys k (n, d), prepared, to what six bits hold of them, and make up for it in c (n, dv + 1), in place: METHODS.md (N24).

    asked (d,): the scale times what the queries to come are in the mean, turned as keys are. was (d,): scratch.
    """
    for i in range(k.shape[0]):
        round_key(k[i], c[i], asked, was)


@kernel()
def round_key(key, row, asked, was):
    """One row of `round_keys`."""
    for j in range(key.shape[0]):
        was[j] = key[j]
    scale, lost = widened(nearest_levels(key, _LIMIT6)), key.dtype.type(0)
    for j in range(key.shape[0]):
        key[j] *= scale
        lost += asked[j] * (was[j] - key[j])
    if lost == lost:  # of queries beyond all measure nothing follows
        factor = key.dtype.type(math.exp(min(max(lost, -_ONE), _ONE)))
        for j in range(row.shape[0]):
            row[j] *= factor


@kernel(cache=True)
def prepare(k, c, mean):
    """Turn keys k (n, d), relative to their centre, and c (n, dv + 1) into what a bank of six bits keeps (N22), in place."""
    dv = mean.shape[0]
    for i in range(c.shape[0]):
        for j in range(dv):
            c[i, j] -= c[i, dv] * mean[j]
    turn_rows(k, k.shape[1], False)
    turn_rows(c, dv, False)


@kernel(cache=True)
def restore(k, c, mean):
    """What `prepare` was given, in place."""
    dv = mean.shape[0]
    turn_rows(k, k.shape[1], True)
    turn_rows(c, dv, True)
    for i in range(c.shape[0]):
        for j in range(dv):
            c[i, j] += c[i, dv] * mean[j]


@kernel(cache=True)
def store(k, c, alive, first, taken, size, counter, bank, carry):
    """Put those of n atoms that are alive (n,) into a bank of `size` atoms; c (n, dv + 1): their coefficients. k and c are spoilt.

    The first `taken` of the n are the atoms first, first + 1, ... (mod `size`) of the bank, whose keys are moved as
    they are; the others are new, with keys k (n - taken, d). They get these places in turn, and then those from `size` on.
    Coefficients of six and of sixteen bits are rounded up or down so that their mean is right: rounding to the nearest would
    lose every increment below half a step, and on long streams all of them are. The random numbers are hashes of the
    counter, so that the same stream always rounds the same way. carry (dv,): scratch, of what rounding has left (N23).
    """
    keys, coefs, scales, weights, mean = bank
    done, dv = 0, c.shape[1] - 1
    if mean.shape[0]:
        draw_carry(np.uint32(counter), carry)
    for i in range(c.shape[0]):
        if not alive[i]:
            continue
        at, before = (first + done) % size if done < taken else size + done - taken, _NONE
        if i < taken:
            a = (first + i) % size
            for j in range(keys.shape[1]):
                keys[at, j] = keys[a, j]
            scales[at, 0], before = scales[a, 0], np.uint32(scales[a, 1])
        elif mean.shape[0]:
            scales[at, 0] = nearest_levels(k[i - taken], _LIMIT6)
            _write(k[i - taken], keys[at])
        else:
            scales[at, 0] = _quantise(k[i - taken], keys[at])
        if mean.shape[0]:
            scales[at, 1] = _carried_levels(c[i, :dv], before, carry)
            _write(c[i, :dv], coefs[at])
        else:
            seed = _mixed(np.uint32(np.uint32(np.uint32(counter) * _ODD) + np.uint32(done)))
            scales[at, 1] = _quantise_coefs(c[i], seed, coefs[at])
        weights[at] = c[i, dv]
        done += 1


@kernel()
def nearest_levels(row, limit):
    """row (n,) becomes row / scale, rounded to whole numbers -limit..limit; returns the bits of the scale."""
    bits = _scale(largest(row), limit)
    step = _ONE / widened(bits)
    for j in range(row.shape[0]):
        row[j] = np.rint(row[j] * step)
    return bits


@kernel()
def draw_carry(counter, carry):
    """Numbers in -1/2 .. 1/2 at random in carry (n,), the same for the same counter."""
    seed = _mixed(np.uint32(counter * _ODD))
    for j in range(carry.shape[0]):
        mixed = _mixed(np.uint32(seed + np.uint32(np.uint32(j) * _ODD)))
        carry[j] = np.float32(np.int32(mixed >> _S8)) * _GRAIN - _HALF


@kernel()
def _carried_levels(row, before, carry):
    """row (n,) becomes row / scale, rounded with what rounding left of the row before it, `carry` (n,) (METHODS.md (N23)); returns
    the bits of the scale. before: those of the scale that the row had, _NONE for a new one.
    """
    top = largest(row)
    reach = widened(before) * _LIMIT6
    stays = before != _NONE and KEPT * reach <= top and top <= reach * _BARELY
    bits = before if stays else _scale(top, _LIMIT6)
    step = _ONE / widened(bits)
    for j in range(row.shape[0]):
        x = row[j] * step + carry[j]
        level = min(max(np.rint(x), -_LIMIT6), _LIMIT6)
        row[j] = level
        carry[j] = x - level
    return bits


def _read(row, scale, out):
    """The numbers of a stored row times scale; this body runs only when the JIT is disabled."""
    if row.dtype == np.uint8:
        unpack(row, scale, out)
    else:
        _times(row, scale, out)


@overload(_read, inline="always")
def _reader(row, scale, out):
    if row.dtype == types.uint8:
        return lambda row, scale, out: unpack(row, scale, out)
    return lambda row, scale, out: _times(row, scale, out)


@kernel()
def _times(row, scale, out):
    for j in range(out.shape[0]):
        out[j] = row[j] * scale


def _write(levels, out):
    """Levels as they are stored in six bits; nothing for other banks. This body runs only when the JIT is disabled."""
    if out.dtype == np.uint8:
        pack(levels, out)


@overload(_write, inline="always")
def _writer(levels, out):
    if out.dtype == types.uint8:
        return lambda levels, out: pack(levels, out)
    return lambda levels, out: None


@kernel()
def _quantise(row, out):
    """out (d,) int8 ~ row (d,) / scale; returns the bits of the scale."""
    bits = _scale(largest(row[: out.shape[0]]), _LIMIT8)
    step = _ONE / widened(bits)
    for j in range(out.shape[0]):
        out[j] = np.int8(np.rint(row[j] * step))
    return bits


@kernel()
def _quantise_coefs(row, seed, out):
    """The same for coefficients (dv + 1,), the weight aside, in eight bits; in sixteen, rounded at random."""
    if out.itemsize == 1:
        return _quantise(row, out)
    bits = _scale(largest(row[: out.shape[0]]), _LIMIT16)
    step = _ONE / widened(bits)
    for j in range(out.shape[0]):
        mixed = _mixed(np.uint32(seed + np.uint32(np.uint32(j) * _ODD)))
        draw = np.float32(np.int32(mixed >> _S8)) * _GRAIN
        x = row[j] * step
        below = np.floor(x)
        x = below + _ONE if draw < x - below else below
        out[j] = np.int16(min(max(x, -_LIMIT16), _LIMIT16))
    return bits


@kernel()
def _mixed(x):
    """The bits of x, uint32, well mixed (Wellons' lowbias32)."""
    x = np.uint32(np.uint32(x ^ (x >> _S16)) * _MIX1)
    x = np.uint32(np.uint32(x ^ (x >> _S15)) * _MIX2)
    return np.uint32(x ^ (x >> _S16))
