"""How kernels are compiled."""

from numba import njit


def kernel(**options):
    """A decorator as `numba.njit` with what every kernel has: no interpreter lock, no exceptions of arithmetic, no allocation.

    That nothing is allocated lets Numba leave out the count of references, atomic operations for every row that is cut out
    of an array, which took more time than short rows themselves. `_nrt=True` for a kernel that does allocate.
    """
    return njit(**{"nogil": True, "error_model": "numpy", "_nrt": False} | options)
