"""Atoms of six bits once more: the orthogonal map as a matrix, bytes bit by bit, rounding number by number."""

import math

import numpy as np

MASK = 0xFFFFFFFF
KEPT = 0.6


def mixed(x):
    """Wellons' lowbias32, in Python integers."""
    x = (x ^ x >> 16) * 0x7FEB352D & MASK
    x = (x ^ x >> 15) * 0x846CA68B & MASK
    return x ^ x >> 16


def orthogonal(d):
    """The matrix H S (d, d) of METHODS.md (N20)."""
    out, first = np.zeros((d, d)), 0
    while first < d:
        size = 1 << int(math.log2(d - first))
        for i in range(size):
            for j in range(size):
                out[first + i, first + j] = (-1) ** bin(i & j).count("1") / math.sqrt(size)
        first += size
    return out * [1 if mixed((j % 1024) * 0x9E3779B9 & MASK) & 1 else -1 for j in range(d)]


def packed(levels):
    """Bytes of whole numbers -31..31: METHODS.md (N21)."""
    q = -(-len(levels) // 4)
    out = [0] * (3 * q)
    for i, level in enumerate(levels):
        part, j = divmod(i, q)
        code = int(level) + 32
        out[(part % 2) * q + j] |= (code % 16) << (0 if part < 2 else 4)
        out[2 * q + j] |= (code // 16) << 2 * part
    return np.array(out, "u1")


def scale(top):
    """Bits of the bfloat16 scale, rounded up, with which `top` is at most 31 levels."""
    return (int(np.float32(max(np.float32(top) / np.float32(31), np.float32(1e-30))).view("u4")) + 0xFFFF) >> 16


def wide(bits):
    """The number that the bits of a bfloat16 stand for."""
    return np.uint32(bits << 16).view("f4")


def key(row):
    """Bits of the scale, and levels, of a new key that has been turned."""
    bits = scale(np.abs(row).max())
    return bits, [int(np.rint(x / wide(bits))) for x in row]


def carry(counter, count):
    """What the first row of a compression is rounded with: METHODS.md (N22)."""
    seed = mixed(counter * 0x9E3779B9 & MASK)
    return [(mixed((seed + j * 0x9E3779B9) & MASK) >> 8) / 2**24 - 0.5 for j in range(count)]


def coefficients(rows, befores, counter):
    """Bits of the scale, and levels, of one row of coefficients after the other; befores: bits of their scales, or None."""
    left, out = carry(counter, len(rows[0])), []
    for row, before in zip(rows, befores, strict=True):
        top = np.abs(row).max()
        stays = before and KEPT * 31 * wide(before) <= top <= 31 * wide(before) * (1 + 1e-6)
        bits, levels = before if stays else scale(top), []
        for j, x in enumerate(row):
            wanted = float(x) / float(wide(bits)) + left[j]
            levels.append(int(min(max(np.rint(wanted), -31), 31)))
            left[j] = wanted - levels[-1]
        out.append((bits, levels))
    return out


def packed_twelve(levels):
    """Bytes of whole numbers -2047..2047: METHODS.md (N27)."""
    n = len(levels)
    half = -(-n // 2)
    out = [0] * (n + half)
    for i, level in enumerate(levels):
        code = int(level) + 2048
        out[i] = code % 256
        out[n + i % half] |= (code // 256) << (0 if i < half else 4)
    return np.array(out, "u1")


def twelve(rows, centre):
    """Rows (n, d) as twelve bits hold them: METHODS.md (N27)."""
    matrix, out = orthogonal(rows.shape[1]), []
    for x in (rows.astype("f8") - centre) @ matrix.T:
        top = np.float32(max(np.float32(np.abs(x).max()) / np.float32(2047), np.float32(1e-30)))
        step = float(wide((int(top.view("u4")) + 0xFFFF) >> 16))
        out.append([step * round(y / step) for y in x])
    return np.array(out) @ matrix + centre
