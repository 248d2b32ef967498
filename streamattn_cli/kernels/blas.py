"""Matrix products inside kernels: NumPy's own BLAS, called without going back to the interpreter.

Between two products of a few dozen queries there is too little work to hand the interpreter's lock to another thread and
get it back: with NumPy calls in between, two threads were hardly faster than one. Numba itself can call BLAS only
through SciPy. So the address of cblas_?gemm is looked up in the library that NumPy has loaded, and handed to kernels
as a number. Where it has another name, `address` gives 0 and callers fall back on NumPy (sketches/partial.py).
"""

import ctypes

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload

_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112
_NAME = "scipy_cblas_{}gemm64_"  # OpenBLAS as NumPy's wheels carry it, with 64-bit sizes


def address(dtype: str) -> int:
    """Where the product for float32 ("f4") or float64 ("f8") lies; 0 where it cannot be found."""
    try:
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)
        found = library[_NAME.format("s" if dtype == "f4" else "d")]
    except (AttributeError, OSError):
        return 0
    return ctypes.cast(found, ctypes.c_void_p).value or 0


def _caller(kind: type):
    """An intrinsic that calls cblas_sgemm or cblas_dgemm at an address."""

    @intrinsic
    def call(typing, where, transposed, m, n, k, a, lda, b, ldb, out, ldout):
        whole = types.int64
        signature = types.void(*[whole] * 11)

        def generate(context, builder, _, given):
            word, long, number = ir.IntType(32), ir.IntType(64), kind()
            form = [word] * 3 + [long] * 3 + [number, long, long, long, long, number, long, long]
            function = builder.inttoptr(given[0], ir.FunctionType(ir.VoidType(), form).as_pointer())
            flip = builder.trunc(given[1], word)
            one, zero = ir.Constant(number, 1.0), ir.Constant(number, 0.0)
            head = [ir.Constant(word, _ROW_MAJOR), ir.Constant(word, _PLAIN), flip]
            builder.call(function, [*head, *given[2:5], one, *given[5:9], zero, *given[9:11]])
            return context.get_dummy_value()

        return signature, generate

    return call


_single, _double = _caller(ir.FloatType), _caller(ir.DoubleType)


def product(where, a, b, transposed, out):
    """out (m, n) = a (m, k) b (k, n), or a b^T with b (n, k); all C-contiguous and of one dtype, that of `where`.

    This body runs only when the JIT is disabled.
    """
    out[:] = a @ (b.T if transposed else b)


@overload(product)
def _product(where, a, b, transposed, out):
    if not a.dtype == b.dtype == out.dtype or not a.layout == b.layout == out.layout == "C":
        raise TypingError(f"one dtype and C order expected, found {a}, {b}, {out}")
    call = _single if a.dtype == types.float32 else _double

    def run(where, a, b, transposed, out):
        m, k = a.shape
        n = out.shape[1]
        if m and n and k:
            flag = np.int64(_TRANSPOSED if transposed else _PLAIN)
            addresses = np.int64(a.ctypes.data), np.int64(b.ctypes.data), np.int64(out.ctypes.data)
            call(np.int64(where), flag, m, n, k, addresses[0], k, addresses[1], b.shape[1], addresses[2], n)

    return run


@njit(cache=True, nogil=True)
def multiply(where, a, b, transposed, out):
    """`product` for callers outside kernels."""
    product(where, a, b, transposed, out)
