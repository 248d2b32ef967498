"""Half precision numbers, which arrive as uint16 bit patterns, from and to single precision.

Processors convert a vector of them in one instruction, which Numba does not know; without it, integer operations that
LLVM vectorises move the bits, six times slower.
"""

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import codegen, config
from numba.extending import intrinsic, overload

_SIGN = np.uint32(0x8000)
_BODY = np.uint32(0x7FFF)
_EXPONENT = np.uint32(0x7C00)
_SMALLEST_NORMAL = np.uint32(0x0400)
_REBIAS = np.uint32(112 << 23)  # float32 bias 127 - float16 bias 15
_REBIAS_SUBNORMAL = np.uint32(113 << 23)
_TINY = np.float32(2.0**-14)  # the float32 whose bits are _REBIAS_SUBNORMAL
_QUIET = np.uint32(1 << 22)  # a signalling NaN would warn when it is converted once more
_SINGLE_BODY, _BELOW_TIE, _ONE = np.uint32(0x7FFFFFFF), np.uint32(0xFFF), np.uint32(1)
_HALF, _HALF_BITS = np.float32(0.5), np.float32(0.5).view(np.uint32)
_S13, _S16, _ZERO = np.uint32(13), np.uint32(16), np.uint32(0)


def half_to_single(bits):
    """One float16 bit pattern (uint16) as float32: exact; a NaN comes out quiet."""
    bits = np.uint32(bits)
    body = np.uint32((bits & _BODY) << _S13)
    extra = _REBIAS if (bits & _EXPONENT) == _EXPONENT else _ZERO  # inf and nan: exponent 255
    quiet = _QUIET if (bits & _BODY) > _EXPONENT else _ZERO
    normal = np.uint32((body + _REBIAS + extra) | quiet)
    # a subnormal's mantissa, put behind the exponent of 2^-14, is 2^-14 too large
    small = np.float32(np.uint32(body + _REBIAS_SUBNORMAL).view(np.float32) - _TINY)
    magnitude = np.float32(small).view(np.uint32) if (bits & _BODY) < _SMALLEST_NORMAL else normal
    return np.uint32(magnitude | np.uint32((bits & _SIGN) << _S16)).view(np.float32)


def single_to_half(x):
    """A finite float32 as float16 bits (uint16), rounded to the nearest, ties to even; infinite where it is too large."""
    bits = np.float32(x).view(np.uint32)
    sign = np.uint32(np.uint32(bits >> _S16) & _SIGN)
    size = np.uint32(bits & _SINGLE_BODY)
    # adding a half puts a subnormal's mantissa, rounded, at the end of the sum's
    small = np.uint32(np.float32(size.view(np.float32) + _HALF).view(np.uint32) - _HALF_BITS)
    odd = np.uint32(np.uint32(size >> _S13) & _ONE)
    normal = np.uint32(np.uint32(max(size, _REBIAS) - _REBIAS + _BELOW_TIE + odd) >> _S13)
    body = small if size < _REBIAS_SUBNORMAL else normal
    return np.uint16(sign | (body if body < _EXPONENT else _EXPONENT))


def in_hardware() -> bool:
    """Whether kernels are compiled for a processor that converts halves."""
    if binding.get_process_triple().startswith(("aarch64", "arm64")):
        return True
    features = config.CPU_FEATURES if config.CPU_FEATURES is not None else codegen.get_host_cpu_features()
    return "+f16c" in features.split(",")


@intrinsic
def _extend(typing, bits):
    def generate(context, builder, signature, given):
        return builder.fpext(builder.bitcast(given[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _shorten(typing, x):
    def generate(context, builder, signature, given):
        return builder.bitcast(builder.fptrunc(given[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@overload(half_to_single, inline="always")
def _half_to_single(bits):
    return (lambda bits: _extend(np.uint16(bits))) if in_hardware() else half_to_single


@overload(single_to_half, inline="always")
def _single_to_half(x):
    return (lambda x: _shorten(np.float32(x))) if in_hardware() else single_to_half
