"""How accurate `poly` is where issue 2 says so: d = 8, logits of standard deviation 0.7 in every row, 2^14 keys."""

import numpy as np
import pytest

from streamattn_cli.sketches.exact import ExactQueries
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams, allocate
from streamattn_cli.sketches.histories.poly import PolyParams

KEYS, QUERIES, DIM, VALUE_DIM, STD = 1 << 14, 256, 8, 8, 0.7


@pytest.fixture(scope="module", params=[1, 2])
def made(request):
    """Queries of constant norm, normal keys, normal values of mean 0; and the exact answers in float64."""
    rng = np.random.default_rng(request.param)
    q = rng.standard_normal((1, QUERIES, DIM))
    q *= STD / np.linalg.norm(q, axis=2, keepdims=True)
    k = rng.standard_normal((KEYS, DIM))
    c = np.column_stack([rng.standard_normal((KEYS, VALUE_DIM)), np.ones(KEYS)])
    assert np.std(q[0] @ k.T, axis=1) == pytest.approx(STD, rel=0.05)
    exact = ExactQueries(q, None, VALUE_DIM, 1.0)
    work = allocate(exact.work_spec(VALUE_DIM))
    exact.absorb(k, c, work)
    exact.finish(work)
    truth = np.empty((1, QUERIES, VALUE_DIM))
    exact.outputs(truth)
    return q, k, c, truth


def error(made, degree, polynomial="hermite", dtype="f4"):
    """Relative Frobenius error of full attention."""
    q, k, c, truth = made
    q, k, c = (np.ascontiguousarray(array, dtype) for array in (q, k, c))
    p = HeadParams(DIM, VALUE_DIM, 1.0, dtype, history=PolyParams(degree, polynomial, max_error=np.inf))
    sketch, work = HeadAttention(p), allocate(p.work_spec())
    sketch.calibrate(k[:1024], c[:1024], q[0])
    sketch.absorb(k, c, work)
    sketch.finish(work)
    out = np.empty((1, QUERIES, VALUE_DIM), dtype)
    sketch.answer(q, 0, out, work)
    assert work["counts"].tolist() == [0, 0, 0] and sketch.state["counters"][3] == 0
    return np.linalg.norm(out - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize(("degree", "bound"), [(2, 0.2), (4, 0.02), (6, 0.004)])
def test_bounds(made, degree, bound):
    assert error(made, degree) <= bound


def test_precision_of_rows_is_not_what_limits(made):
    assert error(made, 4, dtype="f4") == pytest.approx(error(made, 4, dtype="f8"), rel=1e-3)


@pytest.mark.parametrize("degree", [4, 6])
def test_hermite_beats_taylor(made, degree):
    assert error(made, degree, "taylor") >= 1.5 * error(made, degree)


def test_error_falls_with_the_degree(made):
    errors = [error(made, degree) for degree in (1, 2, 3, 4, 5)]
    assert all(b < 0.6 * a for a, b in zip(errors, errors[1:], strict=False))
