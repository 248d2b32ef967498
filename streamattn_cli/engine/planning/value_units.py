"""Powers of two that values near the ends of float32's range are counted in, so that their sums and squares stay within it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamattn_cli.rows.convert import numbers
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.tensors.heads import Heads

ROWS, ITEMS = 64, 1 << 15  # rows that are looked at, and about how many numbers at most
SAFE, MOST = (
    60,
    120,
)  # exponents of two: within SAFE, sums of squares are; of a unit, of which the inverse is a float32, too


def in_units(v: Heads) -> Heads:
    """Values with the units that their first rows ask for, one for each head; as they are where these are ordinary.

    Only of input that can be read again: of a pipe the first rows may come late. float16 has no such numbers, and float64 is
    not narrowed.
    """
    tensor, row = v.tensor, v.tensor.outer * v.tensor.width
    if not (tensor.seekable and row and (v.factors or DTYPES[tensor.dtype].exponent == 8)):
        return v
    block = tensor.peek(max(1, min(ROWS, ITEMS // row)))
    units = []
    for head, (outer, column) in enumerate(zip(v.outer, v.column, strict=True)):
        found = np.abs(numbers(block[outer, :, column : column + v.dim], tensor.dtype))
        largest = found[np.isfinite(found)].max(initial=0.0) * (v.factors[head] if v.factors else 1.0)
        exponent = int(np.frexp(largest)[1]) if largest else 0
        units.append(2.0 ** min(max(exponent, -MOST), MOST) if abs(exponent) > SAFE else 1.0)
    return v if set(units) == {1.0} else replace(v, units=tuple(units))
