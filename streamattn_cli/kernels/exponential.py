"""e^x, written so that it becomes vector code."""

import math

import numpy as np
from numba import types
from numba.extending import overload


def exp32(x):
    """e^x in float32 by range reduction and a degree-6 polynomial (relative error 8e-8); below -87 it is 0.

    Written out because LLVM turns it into vector code, which it cannot do with a call to libm.
    """
    clamped = max(x, np.float32(-87.0))
    n = np.floor(clamped * np.float32(1.44269504) + np.float32(0.5))
    r = clamped - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
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
