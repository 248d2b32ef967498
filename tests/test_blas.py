"""NumPy's BLAS called from inside kernels."""

import os

import numpy as np
import pytest
from numba.core.errors import TypingError

from streamattn_cli.kernels import blas
from streamattn_cli.sketches import partial
from streamattn_cli.sketches.partial import Partial

COMPILED = os.environ.get("NUMBA_DISABLE_JIT") != "1"


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (32, 64, 100), (96, 490, 65), (0, 3, 4), (3, 3, 0)])
def test_products_are_those_of_numpy(rng, dtype, shape):
    m, k, n = shape
    where = blas.address(dtype)
    assert where  # NumPy's wheels have it; without it everything works too, but threads hold one another up
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    for right, transposed in ((b, False), (np.ascontiguousarray(b.T), True)):
        out = np.full((m, n), np.nan, dtype)
        blas.multiply(where, a, right, transposed, out)
        np.testing.assert_allclose(out, a @ b, rtol=0, atol=50 * k * np.finfo(dtype).eps)


@pytest.mark.skipif(not COMPILED, reason="the compiler is what refuses")
def test_gaps_between_rows_and_mixed_dtypes_are_refused():
    """Their addresses would be read as if there were none."""
    a, out, where = np.ones((4, 4), "f4"), np.ones((4, 4), "f4"), blas.address("f4")
    for left, right in ((a[:, :2], a[:2]), (a, a.T), (a, a.astype("f8"))):
        with pytest.raises(TypingError, match="C order"):
            blas.multiply(where, left, right, False, out)


def test_without_it_the_answers_are_the_same(rng, monkeypatch):
    """To rounding."""
    q, k, c = (rng.standard_normal(shape).astype("f4") for shape in ((40, 8), (300, 8), (300, 5)))
    found = []
    for address in (blas.address, lambda dtype: 0):
        monkeypatch.setattr(partial, "_address", address)
        part = Partial.empty(40, 5, np.dtype("f4"))
        scratch = np.empty((40, 300), "f4"), np.empty((40, 5), "f4")
        part.attend(q, k, c, np.zeros(40, int), np.arange(40) + 200, *scratch)
        found.append((part.m, part.y))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)
