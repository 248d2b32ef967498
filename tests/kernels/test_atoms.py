"""Kernels of `nystrom` on small things: linear algebra, the quantised bank; also without the compiler."""

import numpy as np
import pytest

from streamattn_cli.kernels import atoms, blas, linear
from streamattn_cli.sketches.coding.rowstore import get as get_rows
from streamattn_cli.sketches.coding.rowstore import put as put_rows
from streamattn_cli.sketches.histories import nystrom

SIZES = [1, 2, 3, 5, 15, 16, 17, 33, 50]


def positive(rng, n, dtype):
    a = rng.standard_normal((n, n + 3))
    return (a @ a.T + 0.1 * np.eye(n)).astype(dtype)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_linear_algebra(rng, n, dtype):
    eps = 200 * n * np.finfo(dtype).eps
    h = positive(rng, n, dtype)
    upper = np.where(np.tri(n, k=-1), 7, h).astype(dtype)  # below the diagonal nothing is read
    assert linear.cholesky(upper, 1e-6)
    factor = np.triu(upper).astype("f8")
    np.testing.assert_allclose(factor.T @ factor, h, rtol=eps, atol=eps * np.abs(h).max())
    both = np.concatenate([np.where(np.tri(n, k=-1), 7, h), np.eye(n)], axis=1).astype(dtype)
    assert linear.cholesky(both, 1e-6)
    np.testing.assert_allclose(np.triu(both[:, :n]), factor, rtol=eps, atol=eps * np.abs(factor).max())
    assert (np.triu(both[:, n:], 1) == 0).all()
    np.testing.assert_allclose(both[:, n:].astype("f8") @ factor.T, np.eye(n), atol=100 * eps)


@pytest.mark.parametrize("n", [*SIZES, 64, 65, 66, 128, 150, 200])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_inverse_of_a_factor(rng, n, dtype):
    """By blocks, with and without BLAS; zeros above the diagonal, and nothing read below that of what is given."""
    h = positive(rng, n, "f8") + n * np.eye(n)
    scratch = np.full(2 * min(n, linear.BLOCK) ** 2, np.nan, dtype)
    for gemm in (blas.address(dtype), None):
        a, inverse = np.where(np.tri(n, k=-1), np.nan, h).astype(dtype), np.full((n, n), np.nan, dtype)
        assert linear.invert_factor(gemm, a, 1e-6, inverse, scratch)
        assert (np.triu(inverse, 1) == 0).all()
        expected = np.linalg.inv(np.linalg.cholesky(h))
        np.testing.assert_allclose(inverse, expected, atol=30 * n * np.finfo(dtype).eps * np.abs(expected).max())


def test_scratch_is_counted_in_the_blocks_of_the_kernel():
    """The sizes of a sketch are needed where no kernel is imported, so the number is written twice."""
    assert nystrom.BLOCK == linear.BLOCK


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("at", [17, 99])
def test_what_has_no_factor_is_refused(bad, at):
    a, out, scratch = np.eye(100, dtype="f4"), np.empty((100, 100), "f4"), np.full(2 * linear.BLOCK**2, np.nan, "f4")
    a[at, at] = bad
    assert not linear.invert_factor(blas.address("f4"), a, 1e-9, out, scratch)
    assert not linear.cholesky(a, 1e-9)


def bank(m, d, dv, bits):
    parts = np.zeros((m, d), "i1"), np.zeros((m, dv), f"i{bits // 8}"), np.zeros((m, 2), "u2"), np.zeros(m, "f4")
    return *parts, np.empty(0, "f4")


def put(places, k, c, alive, first, taken, size, counter=0):
    with np.errstate(over="ignore"):
        atoms.store(
            k.copy(), c.copy(), alive, first, taken, size, np.uint64(counter), places, np.empty(c.shape[1] - 1, "f4")
        )


def get(places, first, size, n):
    k, c = np.empty((n, places[0].shape[1]), "f4"), np.empty((n, places[1].shape[1] + 1), "f4")
    atoms.load(places, first, size, k, c)
    return k, c


@pytest.mark.parametrize("bits, limit", [(8, 127), (16, 32767)])
def test_what_is_stored_comes_back(rng, bits, limit):
    """To half a step of its row in eight bits, a step in sixteen; a row of zeros exactly; weights exactly."""
    k, c = rng.standard_normal((9, 5)).astype("f4") * 30, rng.standard_normal((9, 4)).astype("f4")
    k[3], c[4, :3] = 0, 0
    places = bank(9, 5, 3, bits)
    put(places, k, c, np.ones(9, bool), 0, 0, 0)
    found_k, found_c = get(places, 0, 9, 9)
    step = np.abs(k).max(axis=1, keepdims=True) / 127 * (1 + 2**-7)
    assert (np.abs(found_k - k) <= 0.5001 * step).all()
    step = np.abs(c[:, :3]).max(axis=1, keepdims=True) / limit * (1 + 2**-7)
    assert (np.abs(found_c - c)[:, :3] <= (0.5001 if bits == 8 else 1.0001) * step).all()
    assert (found_c[:, 3] == c[:, 3]).all() and (found_k[3] == 0).all() and (found_c[4, :3] == 0).all()
    assert np.abs(places[0]).max() <= 127 and np.abs(places[1]).max() <= limit


def test_rounding_at_random_has_the_right_mean():
    """A coefficient of a third of a step is 1 in a third of the stores; the same counter rounds the same way."""
    c = np.array([[32767.0, 1 / 3, 0.0]], "f4")
    found = []
    for counter in range(3000):
        places = bank(1, 1, 2, 16)
        put(places, np.ones((1, 1), "f4"), c, np.ones(1, bool), 0, 0, 0, counter)
        found.append(get(places, 0, 1, 1)[1][0, 1])
    step = found[0] or max(found)
    assert abs(np.mean(found) - 1 / 3) < 4 * step * np.sqrt(2 / 9 / 3000)
    again = bank(1, 1, 2, 16)
    put(again, np.ones((1, 1), "f4"), c, np.ones(1, bool), 0, 0, 0, 2999)
    assert get(again, 0, 1, 1)[1][0, 1] == found[-1]


@pytest.mark.parametrize("size", [0.25, -0.75, 300.5, 20000.25, -32766.25])
def test_rounding_at_random_has_the_right_mean_at_any_size(size):
    """Where single precision has few bits left behind the point as well; and nothing leaves the range."""
    c = np.array([[32767.0, *[size] * 4000, -32767.0, 1.0]], "f4")  # a step is 1
    places = bank(1, 1, 4002, 16)
    put(places, np.ones((1, 1), "f4"), c, np.ones(1, bool), 0, 0, 0)
    found, part = places[1][0, 1:-1].astype("f8"), size - np.floor(size)
    assert set(found) == {np.floor(size), np.floor(size) + 1}
    assert abs(found.mean() - size) < 4 * np.sqrt(part * (1 - part) / 4000)
    assert places[1][0, 0] == 32767 and places[1][0, -1] == -32767


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_largest_and_smallest(dtype):
    x = np.array([3, -7, 0, 1e-30, 6.5], dtype)
    assert linear.largest(x) == 7 and linear.largest(x[2:3]) == 0 and linear.largest(x[:0]) == 0
    assert np.isnan(linear.largest(np.array([np.nan, 1], dtype)))
    assert linear.smallest(np.abs(x[[0, 1, 4]])) == 3 and linear.smallest(x[:0]) == np.inf
    assert linear.smallest(np.array([np.nan, np.inf, 2, 5], dtype)) == 2


def test_survivors_close_ranks_round_the_ring(rng):
    """Atoms 6, 7, 0, 1 of eight and two new ones: those alive take these places in turn, and then new places."""
    places = bank(9, 3, 2, 8)
    k, c = rng.integers(-127, 128, (8, 3)).astype("f4"), np.ones((8, 3), "f4")
    k[:, 0] = 127
    put(places, k, c, np.ones(8, bool), 0, 0, 0)
    keys = get(places, 0, 8, 8)[0]
    new, coefs = np.array([[1, 2, 127], [3, 4, 127]], "f4"), np.arange(18, dtype="f4").reshape(6, 3)
    put(places, new, coefs, np.array([1, 0, 1, 1, 1, 1], bool), 6, 4, 8)
    found_k, found_c = get(places, 0, 9, 9)
    expected = {6: (keys[6], 2), 7: (keys[0], 8), 0: (keys[1], 11), 1: (new[0], 14), 8: (new[1], 17)}
    for place, (key, weight) in expected.items():
        np.testing.assert_allclose(found_k[place], key, atol=0.6)
        assert found_c[place, 2] == weight
    np.testing.assert_array_equal(found_k[[6, 7, 0]], keys[[6, 0, 1]])  # moved, not rounded again
    np.testing.assert_array_equal(found_k[2:6], keys[2:6])


def test_every_half_is_kept_and_others_are_rounded_as_numpy_does(rng):
    """All finite float16 numbers, and floats between, at and beyond them."""
    halves = np.arange(1 << 16, dtype="u2")
    halves = halves[np.isfinite(halves.view("f2"))].view("f2").astype("f4")
    middles = (halves + np.nextafter(halves, np.inf).astype("f2").astype("f4")) / 2
    others = rng.standard_normal(4000).astype("f4") * np.exp2(rng.integers(-30, 18, 4000)).astype("f4")
    for numbers in (
        halves,
        middles,
        np.nextafter(halves, np.float32(np.inf)),
        others,
        np.float32([65519.9, 65520, 1e9]),
    ):
        n = len(numbers)
        rows, c = np.zeros((n, 2), "u2"), np.column_stack([-numbers, np.ones(n)]).astype("f4")
        put_rows(rows, numbers[:, None], c, "f2")
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(rows[:, 0], numbers.astype("f2").view("u2"))
            np.testing.assert_array_equal(rows[:, 1], (-numbers).astype("f2").view("u2"))


@pytest.mark.parametrize("storage", ["f2", "bf16", "f4", "f8"])
def test_rows_come_back_and_dropped_ones_are_none(storage):
    dtype = "f8" if storage == "f8" else "f4"
    k, c = np.array([[1.5, -2], [0.25, 3], [7, 0]], dtype), np.array([[-1, 1], [4, 0], [0.5, 1]], dtype)
    rows = np.zeros((3, 3), {"f4": "f4", "f8": "f8"}.get(storage, "u2"))
    put_rows(rows, k, c, storage)
    found = get_rows(rows, storage, np.empty((3, 2), dtype), np.empty((3, 2), dtype))
    k[1], c[1] = 0, 0
    np.testing.assert_array_equal(found[0], k)
    np.testing.assert_array_equal(found[1], c)
