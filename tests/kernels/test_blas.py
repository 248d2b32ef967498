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
    turned = [np.ascontiguousarray(x.T) for x in (a, b)]
    for address in (where, None):  # and the plain loops that do without
        for form, left, right in ((blas.PLAIN, a, b), (blas.LEFT, turned[0], b), (blas.RIGHT, a, turned[1])):
            out = np.full((m, n), np.nan, dtype)
            blas.multiply(address, form, left, right, out)
            np.testing.assert_allclose(out, a @ b, rtol=0, atol=50 * k * np.finfo(dtype).eps)


@pytest.mark.parametrize("where", [blas.address("f4"), None], ids=["BLAS", "loops"])
def test_products_of_parts_are_added_where_they_are(rng, where):
    a, b, out = (rng.standard_normal((9, 9)).astype("f4") for _ in range(3))
    before = out.copy()
    blas.multiply(where, blas.PLAIN, a[1:4, 2:7], b[3:8, 1:5], out[5:8, 4:8], -2.0, 0.5)
    before[5:8, 4:8] = -2 * a[1:4, 2:7] @ b[3:8, 1:5] + 0.5 * before[5:8, 4:8]
    blas.multiply(where, blas.LEFT, a[1:4, 2:7], b[3:6, 1:5], out[:5, :4])
    before[:5, :4] = a[1:4, 2:7].T @ b[3:6, 1:5]
    np.testing.assert_allclose(out, before, atol=1e-5)


@pytest.mark.skipif(not COMPILED, reason="the compiler is what refuses")
def test_columns_first_and_mixed_dtypes_are_refused():
    """Their addresses would be read as if they were rows of that dtype."""
    a, out, where = np.ones((4, 4), "f4"), np.ones((4, 4), "f4"), blas.address("f4")
    for left, right in ((a, a.T), (a, a.astype("f8"))):
        with pytest.raises(TypingError, match="C order"):
            blas.multiply(where, blas.PLAIN, left, right, out)
    for operands in ((a[:, ::2], a[:2], out), (a, a, np.ones((4, 8), "f4")[:, ::2])):
        with pytest.raises(ValueError, match="contiguous"):
            blas.multiply(where, blas.PLAIN, *operands)


def test_without_it_the_answers_are_the_same(rng, monkeypatch):
    """To rounding: of logits of up to 15, sums of eight terms in float32, and so of their exponentials."""
    q, k, c = (rng.standard_normal(shape).astype("f4") for shape in ((40, 8), (300, 8), (300, 5)))
    found = []
    for address in (blas.address, lambda dtype: None):
        monkeypatch.setattr(partial.blas, "address", address)
        part = Partial.empty(40, 5, np.dtype("f4"))
        scratch = np.empty((301, 40), "f4"), np.empty((40, 5), "f4")
        part.attend(np.ascontiguousarray(q.T), k, c, np.zeros(40, int), np.arange(40) + 200, *scratch)
        found.append((part.m, part.y))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=0, atol=8 * 15 * 1.2e-7)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=0, atol=8 * 15 * 1.2e-7 * np.abs(found[0][1]).max())
