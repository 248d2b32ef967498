"""Rows of k and v in twelve bits a number, turned, with a bfloat16 scale for each of the two (METHODS.md (N27))."""

import numpy as np
from numba import types
from numba.extending import overload

from streamattn_cli.kernels.atoms import nearest_levels, widened
from streamattn_cli.kernels.hadamard import turn_rows
from streamattn_cli.kernels.jit import kernel
from streamattn_cli.kernels.lanes import WIDE, contiguous, emitted
from streamattn_cli.kernels.rowstore import load

LIMIT = 2047  # levels are -LIMIT .. LIMIT
_LIMIT, _MIDDLE, _BYTE, _HIGH = np.float32(LIMIT), np.int32(2048), np.int32(255), np.int32(15)
_FOUR, _EIGHT, _DROPPED = np.int32(4), np.int32(8), np.uint8(255)


@kernel(cache=True)
def pack(levels, out):
    """Whole numbers -2047..2047 in levels (n,), floats, as out (n + ceil(n / 2),) uint8: the low eight bits of each, then the
    high four of the first half and beside them those of the second."""
    n = levels.shape[0]
    half = (n + 1) // 2
    high = out[n:]
    for j in range(half):
        code = np.int32(levels[j]) + _MIDDLE
        out[j], high[j] = np.uint8(code & _BYTE), np.uint8(code >> _EIGHT)
    for j in range(n - half):
        code = np.int32(levels[half + j]) + _MIDDLE
        out[half + j] = np.uint8(code & _BYTE)
        high[j] |= np.uint8(code >> _EIGHT << _FOUR)


@kernel(cache=True)
def unpack(packed, scale, out):
    """The numbers of `pack`, times scale, in out (n,)."""
    n = out.shape[0]
    half = (n + 1) // 2
    high, second, rest = packed[n:], packed[half:n], out[half:]
    wide = n == 2 * half and half >= WIDE
    for at in range(0, half if wide else 0, WIDE):
        _unpack_some(packed, min(at, half - WIDE), half, scale, out)
    if wide:
        return
    for j in range(half):
        code = np.int32(packed[j]) | (np.int32(high[j]) & _HIGH) << _EIGHT
        out[j] = np.float32(code - _MIDDLE) * scale
    for j in range(n - half):
        code = np.int32(second[j]) | np.int32(high[j]) >> _FOUR << _EIGHT
        rest[j] = np.float32(code - _MIDDLE) * scale


def _unpack_some(packed, at, half, scale, out):
    """WIDE numbers of each half, from `at` on: for rows that are not known to be contiguous, and when the JIT is disabled."""
    for j in range(at, at + WIDE):
        high = np.int32(packed[2 * half + j])
        for part in range(2):
            code = np.int32(packed[part * half + j]) | (high >> np.int32(4 * part) & _HIGH) << _EIGHT
            out[part * half + j] = np.float32(code - _MIDDLE) * scale


@emitted
def _unpack_lanes(lanes, packed, at, half, scale, out):
    b, same = lanes.builder, lanes.same
    high = lanes.load(packed, at, half, half)
    for part in range(2):
        four = b.and_(b.lshr(high, same(4 * part)), same(15))
        code = b.or_(lanes.load(packed, at, *[half] * part), b.shl(four, same(8)))
        lanes.store(lanes.times(b.sub(code, same(LIMIT + 1)), scale), out, at, *[half] * part)


@overload(_unpack_some, inline="always")
def _unpacker(packed, at, half, scale, out):
    if not contiguous(packed, out):
        return _unpack_some
    return lambda packed, at, half, scale, out: _unpack_lanes(packed, at, half, scale, out)


@kernel(cache=True)
def encode(k, c, centre, mean, rows):
    """Round k (n, d) and c (n, dv + 1) = [v, weight], which are spoilt, to rows (n, bytes) uint8: what they are more than centre (d,)
    and mean (dv,), packed, and the bits of two scales. Those of a row of weight 0 are all set, which is no number."""
    d, dv = centre.shape[0], mean.shape[0]
    ends = d + (d + 1) // 2, d + (d + 1) // 2 + dv + (dv + 1) // 2
    for i in range(rows.shape[0]):
        row = rows[i]
        if c[i, dv] == 0:
            row[:] = 0
            row[ends[1] :] = _DROPPED
            continue
        for j in range(d):
            k[i, j] -= centre[j]
        for j in range(dv):
            c[i, j] -= mean[j]
        turn_rows(k[i : i + 1], d, False)
        turn_rows(c[i : i + 1], dv, False)
        scales = nearest_levels(k[i], _LIMIT), nearest_levels(c[i, :dv], _LIMIT)
        pack(k[i], row[: ends[0]])
        pack(c[i, :dv], row[ends[0] : ends[1]])
        for j in range(2):
            at = ends[1] + 2 * j
            row[at], row[at + 1] = np.uint8(np.int32(scales[j]) & _BYTE), np.uint8(np.int32(scales[j]) >> _EIGHT)


@kernel(cache=True)
def decode(rows, centre, mean, k, c):
    """The rows of `encode` in k (>= n, d) and c (>= n, dv + 1)."""
    n, d, dv = rows.shape[0], centre.shape[0], mean.shape[0]
    ends = d + (d + 1) // 2, d + (d + 1) // 2 + dv + (dv + 1) // 2
    for i in range(n):
        row = rows[i]
        unpack(row[: ends[0]], _scale(row, ends[1]), k[i])
        unpack(row[ends[0] : ends[1]], _scale(row, ends[1] + 2), c[i, :dv])
    turn_rows(k[:n], d, True)
    turn_rows(c[:n], dv, True)
    for i in range(n):
        if rows[i, ends[1]] == _DROPPED and rows[i, ends[1] + 1] == _DROPPED:
            k[i], c[i] = 0, 0
            continue
        for j in range(d):
            k[i, j] += centre[j]
        for j in range(dv):
            c[i, j] += mean[j]
        c[i, dv] = 1


@kernel()
def _scale(row, at):
    """The scale whose bits are the bytes at, at + 1 of a row."""
    return widened(np.uint32(row[at]) | np.uint32(row[at + 1]) << np.uint32(_EIGHT))


def read(rows, first, end, kind, k, c):
    """Rows first..end as k (>= n, d) and c (>= n, dv + 1): of an array as `rowstore.load` does, of (rows, centre, mean) as `decode`.

    This body runs only when the JIT is disabled.
    """
    if isinstance(rows, tuple):
        decode(rows[0][first:end], rows[1], rows[2], k, c)
    else:
        load(rows[first:end], kind, k, c)


@overload(read, inline="always")
def _reader(rows, first, end, kind, k, c):
    if isinstance(rows, types.BaseTuple):
        return lambda rows, first, end, kind, k, c: decode(rows[0][first:end], rows[1], rows[2], k, c)
    return lambda rows, first, end, kind, k, c: load(rows[first:end], kind, k, c)
