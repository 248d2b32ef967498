"""e^x, written so that it becomes vector code."""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import overload

from streamattn_cli.kernels.lanes import WIDE

_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_TERMS = tuple(
    np.float32(x)
    for x in (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
)


def exp32(x):
    """e^x in float32 by range reduction and a degree-6 polynomial (relative error 8e-8); below -87 it is 0.

    Written out because LLVM turns it into vector code, which it cannot do with a call to libm.
    """
    clamped = max(x, np.float32(-87.0))
    n = np.floor(clamped * _LOG2_E + np.float32(0.5))
    r = clamped - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = _TERMS[0]
    p = p * r + _TERMS[1]
    p = p * r + _TERMS[2]
    p = p * r + _TERMS[3]
    p = p * r + _TERMS[4]
    p = p * r + _TERMS[5]
    p = p * r * r + r + np.float32(1.0)
    bits = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))
    return p * bits.view(np.float32) if x > np.float32(-87.0) else np.float32(0.0)


def exp(x):
    """e^x for x <= 0 in the precision of x; this body runs only when the JIT is disabled."""
    return exp32(x) if isinstance(x, np.float32) else math.exp(x)


@overload(exp, inline="always", jit_options={"error_model": "numpy"})
def _exp(x):
    if x == types.float32:
        return exp32
    return lambda x: math.exp(x)


def exp_lanes(lanes, x):
    """`exp32` of a vector."""
    b, together = lanes.builder, ("contract",)

    def plus(product, term):  # in one instruction, where there is that
        return b.fadd(b.fmul(*product, flags=together), term, flags=together)

    def same(number):
        return ir.Constant(x.type, [number] * WIDE)

    inside = b.fcmp_ordered(">", x, same(-87.0))
    clamped = b.select(inside, x, same(-87.0))
    floor = cgutils.get_or_insert_function(b.module, ir.FunctionType(x.type, [x.type]), f"llvm.floor.v{WIDE}f32")
    n = b.call(floor, [plus((clamped, same(_LOG2_E)), same(0.5))])
    r = plus((n, same(-_LN2_HIGH)), clamped)
    r = plus((n, same(-_LN2_LOW)), r)
    p = same(_TERMS[0])
    for term in _TERMS[1:]:
        p = plus((p, r), same(term))
    p = b.fadd(plus((b.fmul(p, r), r), r), same(1.0))
    whole = b.fptosi(n, lanes.ints)
    bits = b.shl(b.add(whole, lanes.same(127)), lanes.same(23))
    return b.select(inside, b.fmul(p, b.bitcast(bits, x.type)), same(0.0))
