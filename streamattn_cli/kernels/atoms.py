"""Atoms of a coreset: int8 keys, int8 or int16 coefficients, a bfloat16 scale for each, and the weight in float32."""

import math

import numpy as np

from streamattn_cli.kernels.jit import kernel

_S16 = np.uint32(16)
_ROUND_UP = np.uint32(0xFFFF)
_GOLDEN, _MIX1, _MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_U11, _U27, _U30, _U31, _U32 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)


@kernel()
def _scale(top, limit):
    """Bits of the bfloat16 scale that brings `top` to `limit`; rounded away from zero, so that nothing exceeds it."""
    wide = np.float32(max(top / limit, 1e-30)).view(np.uint32)
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
    would lose every increment below half a step, and on long streams all of them are. The random numbers are splitmix64
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
        scales[at, 1] = _quantise_coefs(c[i], (counter << _U32) + np.uint64(done * coefs.shape[1]), coefs[at])
        weights[at] = c[i, coefs.shape[1]]
        done += 1


@kernel()
def _quantise(row, out):
    """out (d,) int8 ~ row (d,) / scale; returns the bits of the scale."""
    top = row.dtype.type(0)
    for j in range(out.shape[0]):
        top = max(top, abs(row[j]))
    bits = _scale(top, 127.0)
    step = 1.0 / np.float64(_widened(bits))
    for j in range(out.shape[0]):
        out[j] = np.int8(np.rint(row[j] * step))
    return bits


@kernel()
def _quantise_coefs(row, counter, out):
    """The same for coefficients (dv + 1,), the weight aside, in eight bits; in sixteen, rounded at random."""
    if out.itemsize == 1:
        return _quantise(row, out)
    top = row.dtype.type(0)
    for j in range(out.shape[0]):
        top = max(top, abs(row[j]))
    bits = _scale(top, 32767.0)
    step = 1.0 / np.float64(_widened(bits))
    for j in range(out.shape[0]):
        x = (counter + np.uint64(j)) * _GOLDEN + _GOLDEN
        x = (x ^ (x >> _U30)) * _MIX1
        x = (x ^ (x >> _U27)) * _MIX2
        draw = np.float64((x ^ (x >> _U31)) >> _U11) * 2.0**-53
        out[j] = min(max(math.floor(row[j] * step + draw), -32767.0), 32767.0)
    return bits
