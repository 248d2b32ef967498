"""Numbers of six bits, four in three bytes (METHODS.md (N21)).

Of q = ceil(n / 4) numbers in each of four parts, the low four bits of the first and the third part share q bytes, those of the
second and the fourth the next q, and all high two bits the last q: whole vectors of bytes are taken apart at once.
"""

import numpy as np
from numba.extending import overload

from streamattn_cli.kernels.jit import kernel
from streamattn_cli.kernels.lanes import WIDE, contiguous, emitted

LIMIT = 31  # levels are -LIMIT .. LIMIT
_MIDDLE, _LOW, _HIGH, _FOUR = np.int32(32), np.int32(15), np.int32(3), np.int32(4)


@kernel(cache=True)
def pack(levels, out):
    """Whole numbers -31..31 in levels (n,), floats, as out (3 ceil(n / 4),) uint8."""
    n = levels.shape[0]
    q = out.shape[0] // 3
    out[:] = 0
    for part in range(4):
        low, high = out[part % 2 * q : part % 2 * q + q], out[2 * q :]
        up, along = np.int32(part // 2 * 4), np.int32(part * 2)
        some = levels[min(part * q, n) : min(part * q + q, n)]
        for j in range(some.shape[0]):
            code = np.int32(some[j]) + _MIDDLE
            low[j] |= np.uint8((code & _LOW) << up)
            high[j] |= np.uint8((code >> _FOUR) << along)


@kernel(cache=True)
def unpack(packed, scale, out):
    """The numbers of `pack`, times scale, in out (n,)."""
    n, q = out.shape[0], packed.shape[0] // 3
    wide = n == 4 * q and q >= WIDE
    for at in range(0, q if wide else 0, WIDE):
        _unpack_some(packed, min(at, q - WIDE), q, scale, out)
    for part in range(0 if wide else 4):
        low, high = packed[part % 2 * q : part % 2 * q + q], packed[2 * q :]
        down, along = np.int32(part // 2 * 4), np.int32(part * 2)
        some = out[min(part * q, n) : min(part * q + q, n)]
        for j in range(some.shape[0]):
            code = np.int32(low[j]) >> down & _LOW | (np.int32(high[j]) >> along & _HIGH) << _FOUR
            some[j] = np.float32(code - _MIDDLE) * scale


def _unpack_some(packed, at, q, scale, out):
    """WIDE numbers of each part, from `at` on: for rows that are not known to be contiguous, and when the JIT is disabled."""
    for j in range(at, at + WIDE):
        high = np.int32(packed[2 * q + j])
        for part in range(4):
            low = np.int32(packed[part % 2 * q + j]) >> np.int32(part // 2 * 4) & _LOW
            code = low | (high >> np.int32(2 * part) & _HIGH) << _FOUR
            out[part * q + j] = np.float32(code - _MIDDLE) * scale


@emitted
def _unpack_lanes(lanes, packed, at, q, scale, out):
    b, same = lanes.builder, lanes.same
    low, high = (lanes.load(packed, at), lanes.load(packed, at, q)), lanes.load(packed, at, q, q)
    for part in range(4):
        four = b.and_(b.lshr(low[part % 2], same(part // 2 * 4)), same(15))
        two = b.and_(b.lshr(high, same(2 * part)), same(3))
        code = b.or_(four, b.shl(two, same(4)))
        lanes.store(lanes.times(b.sub(code, same(32)), scale), out, at, *[q] * part)


@overload(_unpack_some, inline="always")
def _unpacker(packed, at, q, scale, out):
    if not contiguous(packed, out):
        return _unpack_some
    return lambda packed, at, q, scale, out: _unpack_lanes(packed, at, q, scale, out)
