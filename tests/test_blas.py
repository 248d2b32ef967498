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


@pytest.mark.skipif(not COMPILED, reason="the compiler is what refuses")
def test_gaps_between_rows_and_mixed_dtypes_are_refused():
    """Their addresses would be read as if there were none."""
    a, out, where = np.ones((4, 4), "f4"), np.ones((4, 4), "f4"), blas.address("f4")
    for left, right in ((a[:, :2], a[:2]), (a, a.T), (a, a.astype("f8"))):
        with pytest.raises(TypingError, match="C order"):
            blas.multiply(where, blas.PLAIN, left, right, out)


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
