"""Matrix products inside kernels: NumPy's own BLAS, called without going back to the interpreter.

Between two products of a few dozen queries there is too little work to hand the interpreter's lock to another thread and
get it back: with NumPy calls in between, two threads were hardly faster than one. Numba itself can call BLAS only
through SciPy. So the address of cblas_?gemm is looked up in the library that NumPy has loaded, and handed to kernels
as a number. Where it has another name `address` gives None, and kernels are compiled with plain loops instead.
"""

import ctypes
from functools import cache

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload

from streamattn_cli.kernels.jit import kernel

PLAIN, LEFT, RIGHT = 0, 1, 2  # a b, a^T b, a b^T
SMALL = 1_000_000  # m n k up to which OpenBLAS packs nothing: a fifth faster, but twice as slow for `RIGHT`
_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED = 101, 111, 112
_NAME = "scipy_cblas_{}gemm64_"  # OpenBLAS as NumPy's wheels carry it, with 64-bit sizes


@cache
def address(dtype: str) -> int | None:
    """Where the product for float32 ("f4") or float64 ("f8") lies; None where it cannot be found."""
    try:
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)
        found = library[_NAME.format("s" if dtype == "f4" else "d")]
    except (AttributeError, OSError):
        return None
    return ctypes.cast(found, ctypes.c_void_p).value or None


def _caller(kind: type):
    """An intrinsic that calls cblas_sgemm or cblas_dgemm at an address."""

    @intrinsic
    def call(typing, where, left, right, m, n, k, alpha, a, lda, b, ldb, beta, out, ldout):
        whole, real = types.int64, types.float64
        signature = types.void(*[whole] * 6, real, *[whole] * 4, real, *[whole] * 2)

        def generate(context, builder, _, given):
            word, long, number = ir.IntType(32), ir.IntType(64), kind()
            form = [word] * 3 + [long] * 3 + [number, long, long, long, long, number, long, long]
            function = builder.inttoptr(given[0], ir.FunctionType(ir.VoidType(), form).as_pointer())
            turned = [builder.trunc(flag, word) for flag in given[1:3]]
            alpha, beta = (
                factor if kind is ir.DoubleType else builder.fptrunc(factor, number) for factor in (given[6], given[11])
            )
            head = [ir.Constant(word, _ROW_MAJOR), *turned]
            builder.call(function, [*head, *given[3:6], alpha, *given[7:11], beta, *given[12:14]])
            return context.get_dummy_value()

        return signature, generate

    return call


@intrinsic
def _address_of(typing, array):
    """Where the first item of an array lies."""

    def generate(context, builder, signature, given):
        data = context.make_array(array)(context, builder, given[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), generate


_single, _double = _caller(ir.FloatType), _caller(ir.DoubleType)


def product(where, form, a, b, out, alpha=1.0, beta=0.0):
    """out (m, n) = alpha a (m, k) b (k, n) + beta out, or a^T b with a (k, m), or a b^T with b (n, k), as `form` says.

    All of one dtype, that of `where`, and every row contiguous: C order, or whole columns cut from it. With beta = 0 it does
    not matter what out was. This body runs only when the JIT is disabled.
    """
    found = alpha * ((a.T if form == LEFT else a) @ (b.T if form == RIGHT else b))
    out[:] = found + beta * out if beta else found


@overload(product, jit_options={"_nrt": False})
def _product(where, form, a, b, out, alpha=1.0, beta=0.0):
    if not a.dtype == b.dtype == out.dtype or not {a.layout, b.layout, out.layout} <= {"C", "A"}:
        raise TypingError(f"one dtype and C order expected, found {a}, {b}, {out}")
    if where == types.none:
        return _loops
    call = _single if a.dtype == types.float32 else _double

    def run(where, form, a, b, out, alpha=1.0, beta=0.0):
        m, n = out.shape
        k = a.shape[0] if form == LEFT else a.shape[1]
        left = np.int64(_TRANSPOSED if form == LEFT else _AS_IT_IS)
        right = np.int64(_TRANSPOSED if form == RIGHT else _AS_IT_IS)
        if m and n and k:
            if not (_dense(a) and _dense(b) and _dense(out)):
                raise ValueError("every row must be contiguous")
            addresses = _address_of(a), _address_of(b), _address_of(out)
            rows = a.strides[0] // a.itemsize, b.strides[0] // b.itemsize, out.strides[0] // out.itemsize
            call(
                np.int64(where), left, right, m, n, k, float(alpha), addresses[0], rows[0], addresses[1], rows[1],
                float(beta), addresses[2], rows[2],
            )  # fmt: skip

    return run


@kernel(inline="always")
def _dense(a):
    return a.shape[1] < 2 or a.strides[1] == a.itemsize


def _loops(where, form, a, b, out, alpha=1.0, beta=0.0):
    m, n = out.shape
    for i in range(m):
        row = out[i]
        for j in range(n):
            row[j] = beta * row[j] if beta != 0 else 0
        for t in range(a.shape[0] if form == LEFT else a.shape[1]):
            f = alpha * (a[t, i] if form == LEFT else a[i, t])
            for j in range(n):
                row[j] += f * (b[j, t] if form == RIGHT else b[t, j])


@kernel(cache=True)
def multiply(where, form, a, b, out, alpha=1.0, beta=0.0):
    """`product` for callers outside kernels."""
    product(where, form, a, b, out, alpha, beta)
