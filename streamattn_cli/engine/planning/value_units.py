"""Powers of two that values near the ends of the range of floats are counted in: their sums and squares stay within it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from streamattn_cli.rows.convert import numbers
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.sample import spread_rows

ROWS, ITEMS = 64, 1 << 15  # rows that are looked at, and about how many numbers at most
# by the bits of an exponent: exponents of two within which sums of squares are, and of a unit, whose inverse is a number, too
RANGES = {8: (60, 120), 11: (480, 1020)}


def in_units(v: Heads, beside: Sequence[Heads]) -> Heads:
    """Values with the units that some rows ask for, the first and others spread over them, one for each head; as they are where
    these are ordinary.

    Of a pipe the first row decides. Where another pipe is `beside` it (q, k), values stay as they are: who sends both may be
    waiting until that one is read. float16 has no such numbers.
    """
    tensor, row = v.tensor, v.tensor.outer * v.tensor.width
    bits = 8 if v.factors else DTYPES[tensor.dtype].exponent
    if not row or bits not in RANGES:
        return v
    safe, most = RANGES[bits]
    if tensor.seekable:
        count = max(1, min(ROWS, ITEMS // row))
        block = np.concatenate([tensor.peek(count), spread_rows(tensor, count)[0]], axis=1)
    elif all(heads.tensor is tensor or heads.tensor.seekable for heads in beside):
        block = tensor.peek(1)
    else:
        return v
    units = []
    for head, (outer, column) in enumerate(zip(v.outer, v.column, strict=True)):
        found = np.abs(numbers(block[outer, :, column : column + v.dim], tensor.dtype))
        largest = found[np.isfinite(found)].max(initial=0.0) * (v.factors[head] if v.factors else 1.0)
        exponent = int(np.frexp(largest)[1]) if largest else 0
        units.append(2.0 ** min(max(exponent, -most), most) if abs(exponent) > safe else 1.0)
    return v if set(units) == {1.0} else replace(v, units=tuple(units))
