"""Rows of 4, 6 or 8 bits a number, with a bfloat16 scale each (METHODS.md (B9))."""

import numpy as np

from streamattn_cli.kernels.atoms import nearest_levels, widened
from streamattn_cli.kernels.jit import kernel
from streamattn_cli.kernels.sixbits import pack, unpack

_FOUR, _EIGHT = np.int32(8), np.int32(128)  # what is added to a level of so many bits
_LOW, _UP = np.int32(15), np.int32(4)


@kernel(cache=True)
def encode(x, bits, rows, scales):
    """Round x (n, d), which is spoilt, to levels in rows (n, bytes) uint8 and the bits of their scales (n,) uint16."""
    limit = np.float32((1 << (bits - 1)) - 1)
    for i in range(x.shape[0]):
        row, out = x[i], rows[i]
        scales[i] = nearest_levels(row, limit)
        if bits == 6:
            pack(row, out)
        elif bits == 8:
            for j in range(row.shape[0]):
                out[j] = np.uint8(np.int32(row[j]) + _EIGHT)
        else:
            half = out.shape[0]
            for j in range(half):
                out[j] = np.uint8(np.int32(row[j]) + _FOUR)
            for j in range(half, row.shape[0]):
                out[j - half] |= np.uint8((np.int32(row[j]) + _FOUR) << _UP)


@kernel(cache=True)
def decode(rows, scales, bits, out):
    """The numbers of `encode` in out (n, d)."""
    for i in range(rows.shape[0]):
        row, x, scale = rows[i], out[i], widened(scales[i])
        if bits == 6:
            unpack(row, scale, x)
        elif bits == 8:
            for j in range(x.shape[0]):
                x[j] = np.float32(np.int32(row[j]) - _EIGHT) * scale
        else:
            half = row.shape[0]
            for j in range(half):
                x[j] = np.float32((np.int32(row[j]) & _LOW) - _FOUR) * scale
            for j in range(half, x.shape[0]):
                x[j] = np.float32((np.int32(row[j - half]) >> _UP) - _FOUR) * scale
