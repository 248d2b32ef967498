"""Atoms of a coreset: int8 keys, int8 or int16 coefficients, a bfloat16 scale for each, and the weight in float32."""

import numpy as np

from streamattn_cli.kernels.jit import kernel
from streamattn_cli.kernels.linear import largest

_ROUND_UP = np.uint32(0xFFFF)
_ODD, _MIX1, _MIX2 = np.uint32(0x9E3779B9), np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_S8, _S15, _S16 = np.uint32(8), np.uint32(15), np.uint32(16)
_GRAIN = np.float32(2.0**-24)  # of what is left of a random number after _S8
_LIMIT8, _LIMIT16, _TINY = np.float32(127), np.float32(32767), np.float32(1e-30)
_ONE = np.float32(1)


@kernel()
def _scale(top, limit):
    """Bits of the bfloat16 scale that brings `top` to `limit`; rounded away from zero, so that nothing exceeds it."""
    wide = np.float32(max(top / limit, _TINY)).view(np.uint32)
    return np.uint32(np.uint32(wide + _ROUND_UP) >> _S16)


@kernel()
def _widened(bits):
    return np.uint32(np.uint32(bits) << _S16).view(np.float32)


@kernel(cache=True)
def load(keys, coefs, scales, weights, centre, about, first, size, k, c):
    """Atoms first, first + 1, ... (mod `size`) as k (n, d) and c (n, dv + 1).

    keys (m, d) int8, relative to centre (d,), of which `about` times (1 or 0) is added; coefs (m, dv) int8 or int16; scales (m, 2) bfloat16 bits; weights (m,)
    float32.
    """
    d, dv = keys.shape[1], coefs.shape[1]
    for i in range(k.shape[0]):
        a = (first + i) % size
        scale, row, atom = _widened(scales[a, 0]), k[i], keys[a]
        for j in range(d):
            row[j] = atom[j] * scale + about * centre[j]
        scale, row, part = _widened(scales[a, 1]), c[i], coefs[a]
        for j in range(dv):
            row[j] = part[j] * scale
        row[dv] = weights[a]


@kernel(cache=True)
def gather(keys, coefs, scales, weights, centre, first, size, k, c, x, w, new, alive):
    """The atoms of a compression, all alive (n,): of a bank those from `first` on (see `load`), then new ones k, c.

    x (n, d), w (n, dv + 1): all of them; new (., d): the new keys. Both relative to the centre.
    """
    taken = x.shape[0] - k.shape[0]
    load(keys, coefs, scales, weights, centre, np.float32(0), first, size, x[:taken], w[:taken])
    alive[:] = True
    for i in range(k.shape[0]):
        for j in range(k.shape[1]):
            new[i, j] = x[taken + i, j] = k[i, j] - centre[j]
        for j in range(c.shape[1]):
            w[taken + i, j] = c[i, j]


@kernel(cache=True)
def store(k, c, alive, first, taken, size, counter, keys, coefs, scales, weights):
    """Put those of n atoms that are alive (n,) into a bank of `size` atoms; c (n, dv + 1): their coefficients.

    The first `taken` of the n are the atoms first, first + 1, ... (mod `size`) of the bank, whose keys are moved as
    they are; the others are new, with keys k (n - taken, d) relative to the centre. They get these places in turn, and then
    those from `size` on.
    Coefficients of sixteen bits are rounded up or down at random so that their mean is right: rounding to the nearest
    would lose every increment below half a step, and on long streams all of them are. The random numbers are a hash
    of (counter, place), so that the same stream always rounds the same way.
    """
    done = 0
    for i in range(c.shape[0]):
        if not alive[i]:
            continue
        at = (first + done) % size if done < taken else size + done - taken
        if i < taken:
            a = (first + i) % size
            for j in range(keys.shape[1]):
                keys[at, j] = keys[a, j]
            scales[at, 0] = scales[a, 0]
        else:
            scales[at, 0] = _quantise(k[i - taken], keys[at])
        scales[at, 1] = _quantise_coefs(
            c[i], _mixed(np.uint32(np.uint32(np.uint32(counter) * _ODD) + np.uint32(done))), coefs[at]
        )
        weights[at] = c[i, coefs.shape[1]]
        done += 1


@kernel()
def _quantise(row, out):
    """out (d,) int8 ~ row (d,) / scale; returns the bits of the scale."""
    bits = _scale(largest(row[: out.shape[0]]), _LIMIT8)
    step = _ONE / _widened(bits)
    for j in range(out.shape[0]):
        out[j] = np.int8(np.rint(row[j] * step))
    return bits


@kernel()
def _quantise_coefs(row, seed, out):
    """The same for coefficients (dv + 1,), the weight aside, in eight bits; in sixteen, rounded at random."""
    if out.itemsize == 1:
        return _quantise(row, out)
    bits = _scale(largest(row[: out.shape[0]]), _LIMIT16)
    step = _ONE / _widened(bits)
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
