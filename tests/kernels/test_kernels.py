"""The kernels of `exact` and `poly` against the oracle. test_nojit.py runs this once more without the compiler."""

import math
import os
from itertools import product

import naive
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamattn_cli.kernels.dense as dense  # itself: the compiler cannot look through a stand-in
import streamattn_cli.kernels.exponential as exponential
from streamattn_cli.kernels import blas, expansion, monomials, poly
from streamattn_cli.kernels.quadrature import SPARE
from streamattn_cli.sketches.histories.monomials import feature_count, low_count, table

COMPILED = not numba.config.DISABLE_JIT
EPS = {"f4": 2.0**-23, "f8": 2.0**-52}


def test_the_compiler_is_on_unless_asked_otherwise():
    assert COMPILED == (os.environ.get("NUMBA_DISABLE_JIT", "0") == "0")
    assert hasattr(dense.softmax_tile, "signatures") == COMPILED


# --- exp


@numba.njit
def all_exp(x, out):
    for i in range(x.size):
        out[i] = exponential.exp(x[i])


def test_exp32():
    """Relative error at most 1.2e-7 (one unit in the last place) down to -87, 0 below, exactly 1 at 0."""
    x = np.linspace(-87, 0, 400_001 if COMPILED else 2001).astype("f4")
    x = np.concatenate([x[x > -87], np.float32([-0.0, -1e-30, -1e-45, -86.99999])])
    out = np.empty_like(x)
    all_exp(x, out)
    true = np.exp(x.astype("f8"))
    assert np.abs(out / true - 1).max() <= 1.2e-7
    assert out[x == 0].min() == out[x == 0].max() == 1
    below = np.float32([-87, -87.00001, -100, -1e4, -3e38, -np.inf])
    rest = np.full_like(below, np.nan)
    all_exp(below, rest)
    assert (rest == 0).all()
    assert all(
        exponential.exp32(a) == b for a, b in zip(x[::97], out[::97], strict=True)
    )  # one result, compiled or not


def test_exp_of_doubles_is_the_library_function():
    x = np.array([0.0, -1e-9, -1.0, -87.0, -700.0, -1e4, -np.inf])
    out = np.empty_like(x)
    all_exp(x, out)
    np.testing.assert_allclose(out, [math.exp(a) for a in x], rtol=4e-16, atol=0)


# --- softmax_tile


def softmax(tiles, dtype):
    """Run tiles [(logits, low, high, values, weights)] through the kernel, the n-th as tokens from 100 n on, with its
    first n columns always seen: m (r,), y (r, 2) with z last."""
    rows = len(tiles[0][0])
    m, y = np.full(rows, -np.inf, dtype), np.zeros((rows, 2))
    for n, (logits, low, high, values, weights) in enumerate(tiles):
        tile, c = np.array(logits.T, dtype, order="C"), np.column_stack([values, weights]).astype(dtype)
        dense.softmax_tile(tile, c, 100 * n, n, low + 100 * n, high + 100 * n, np.empty_like(m), m, y)
        y += tile.T.astype("f8") @ np.column_stack([values, np.ones(len(values))])
    return m, y


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_softmax_tile(rng, dtype, size):
    """Three tiles, ranges that are empty, out of bounds or everything: the softmax over the union, row by row."""
    rows, columns = 9, 7
    tiles = []
    for _ in range(3):
        logits = (size * rng.standard_normal((rows, columns))).astype(dtype)
        low, high = rng.integers(-4, columns + 3, (2, rows))
        low[0], high[0] = 0, columns
        low[1], high[1] = 5, 2
        low[2], high[2] = -9, 99
        tiles.append((logits, low, high, rng.standard_normal(columns), rng.random(columns) < 0.7))
    m, y = softmax(tiles, dtype)
    for i in range(rows):
        seen = [
            (float(logits[i, j]), values[j])
            for n, (logits, low, high, values, weights) in enumerate(tiles)
            for j in range(columns)
            if (low[i] <= j or j < n) and j < high[i] and weights[j]
        ]
        if not seen:
            assert m[i] == -np.inf and (y[i] == 0).all()
            continue
        top = max(x for x, _ in seen)
        z = sum(math.exp(x - top) for x, _ in seen)
        mean = sum(math.exp(x - top) * v for x, v in seen) / z
        assert m[i] == top
        assert y[i, 1] == pytest.approx(z, rel=60 * EPS[dtype])
        assert y[i, 0] / y[i, 1] == pytest.approx(mean, rel=60 * EPS[dtype], abs=60 * EPS[dtype])
    alone, _ = softmax(tiles[:1], dtype)
    assert alone[1] == -np.inf  # the rows that saw nothing were not left out by chance


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_softmax_tile_writes_zeros_where_nothing_is_seen(dtype):
    tile = np.full((6, 2), np.nan, dtype)
    tile[2:4, 0] = [1, 3]
    m, y = np.full(2, -np.inf, dtype), np.ones((2, 1))
    dense.softmax_tile(tile, np.ones((6, 1), dtype), 0, 0, np.array([2, 3]), np.array([4, 3]), np.empty_like(m), m, y)
    np.testing.assert_allclose(tile.T, [[0, 0, math.exp(-2), 1, 0, 0], [0] * 6], rtol=1e-7)
    assert (m == [3, -np.inf]).all() and (y == [[0], [1]]).all()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_softmax_tile_with_logits_of_minus_infinity(dtype):
    """A token that is not there: alone, before anything was seen and after; among others."""
    inf = np.inf
    tile = np.array([[-inf, -inf, -inf], [-inf, -inf, -2e4]], dtype)
    m, y = np.array([-inf, 5, -inf], dtype), np.array([[0.0], [3.0], [0.0]])
    dense.softmax_tile(tile, np.ones((2, 1), dtype), 0, 0, np.zeros(3, np.int64), np.full(3, 2), np.empty_like(m), m, y)
    assert (tile == [[0, 0, 0], [0, 0, 1]]).all()
    assert (m == [-inf, 5, -2e4]).all() and (y == [[0], [3], [0]]).all()


# --- combine, guard, finish

exponents = st.floats(-1e4, 1e4, width=32)
numbers = st.floats(-1e3, 1e3).map(lambda x: x if abs(x) > 1e-3 else 0.0)  # no underflow in what is compared
masses = st.floats(1e-3, 1e3)


@st.composite
def parts(draw, count):
    """`count` partial answers to one query: (m, y (1, 3)), some of them empty."""
    found = []
    for _ in range(count):
        if draw(st.integers(0, 4)) == 0:
            found.append((np.array([-np.inf]), np.zeros((1, 3))))
        else:
            found.append((np.array([draw(exponents)]), np.array([[draw(numbers), draw(numbers), draw(masses)]])))
    return found


def combined(first, *others):
    m, y = first[0].copy(), first[1].copy()
    for other_m, other_y in others:
        dense.combine(m, y, other_m, other_y)
    return m, y


def assert_same_answer(one, two):
    assert one[0][0] == two[0][0]
    np.testing.assert_allclose(one[1], two[1], rtol=0, atol=1e-12 * np.abs(two[1]).max())


@given(parts(3))
def test_combine_is_associative_and_commutative(three):
    a, b, c = three
    left = combined(combined(a, b), c)
    assert_same_answer(combined(a, combined(b, c)), left)
    assert_same_answer(combined(c, b, a), left)


@given(parts(1))
def test_the_empty_part_is_neutral(one):
    empty = (np.array([-np.inf]), np.zeros((1, 3)))
    for found in (combined(one[0], empty), combined(empty, one[0])):
        assert found[0][0] == one[0][0] and (found[1] == one[0][1]).all()


@given(st.lists(st.tuples(st.floats(-1e4, 1e4, width=32), st.floats(-10, 10)), min_size=1, max_size=12), st.data())
def test_combine_of_parts_is_the_union(tokens, data):
    """Tokens (logit, value) in any number of parts: the softmax over all of them."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=3)))
    m, y = np.array([-np.inf]), np.zeros((1, 2))
    for a, b in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        piece = tokens[a:b]
        top = max((x for x, _ in piece), default=-np.inf)
        sums = [[math.exp(x - top) * v for x, v in piece], [math.exp(x - top) for x, _ in piece]]
        dense.combine(m, y, np.array([top]), np.array([[sum(s) for s in sums]]))
    top = max(x for x, _ in tokens)
    weights = [(v, math.exp(x - top)) for x, v in tokens]
    expected = sum(w * v for v, w in weights) / sum(w for _, w in weights)
    assert y[0, 0] / y[0, 1] == pytest.approx(expected, rel=1e-12, abs=1e-12)


@settings(max_examples=40)
@given(st.lists(st.tuples(numbers, st.floats(-5, 5) | st.sampled_from([0.0, -0.0, np.inf, np.nan])), min_size=1))
def test_guard_drops_bad_masses_and_clips_the_others(rows):
    """z <= 0, infinite or not a number: dropped and counted; elsewhere y/z ends in the range, untouched inside it."""
    low, high = np.array([-2.0]), np.array([1.5])
    m, y = np.zeros(len(rows)), np.array(rows)
    bad = dense.guard(m, y, low, high)
    assert bad == sum(not (0 < z < np.inf) for _, z in rows)
    for i, (value, z) in enumerate(rows):
        if not 0 < z < np.inf:
            assert m[i] == -np.inf and (y[i] == 0).all()
            continue
        assert m[i] == 0 and y[i, 1] == z
        if -2 * z <= value <= 1.5 * z:
            assert y[i, 0] == value
        else:
            assert y[i, 0] == (1.5 if value > 0 else -2.0) * z


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_finish(dtype):
    m = np.array([0, -np.inf, 1e4, -1e4, 0], dtype)
    y = np.array([[6, 2, 2], [1, 1, 1], [3, -3, 0.5], [1e-300, 0, 1e-300], [5, 5, 0]], "f8")
    out = np.full((5, 2), np.nan, dtype)
    assert dense.finish(m, y, np.array([7.0, 8.0]), out) == 2
    np.testing.assert_allclose(out, [[3, 1], [7, 8], [6, -6], [1, 0], [7, 8]])


# --- the polynomial kernels


@pytest.mark.parametrize(("dim", "degree"), [(1, 0), (1, 5), (2, 3), (3, 4), (4, 2), (5, 1)])
def test_table_of_monomials(dim, degree):
    """Each multi-index once, in graded order, with l!/a!."""
    t = table(dim, degree)
    exponents = [(0,) * dim]
    for parent, var in zip(t.parent[1:], t.var[1:], strict=True):
        grown = list(exponents[parent])
        grown[var] += 1
        exponents.append(tuple(grown))
    every = [a for a in product(range(degree + 1), repeat=dim) if sum(a) <= degree]
    assert sorted(exponents) == sorted(every) and len(every) == feature_count(dim, degree)
    assert [sum(a) for a in exponents] == sorted(sum(a) for a in every)
    for a, many in zip(exponents, t.multinomial, strict=True):
        assert many == math.factorial(sum(a)) / math.prod(math.factorial(e) for e in a)
    for level in range(degree + 1):
        assert {sum(a) for a in exponents[t.start[level] : t.start[level + 1]]} == {level}
    assert t.start[-1] == len(exponents)
    assert sorted(t.order) == list(range(len(exponents)))
    for level in range(degree):
        known, grown = (t.order[t.start[l] : t.start[l + 1]] for l in (level, level + 1))
        made = [(m, v) for v in range(dim) for m in known[: t.run[level, v]]]
        assert made == [(t.parent[m], t.var[m]) for m in grown]


def test_centre(rng):
    """Rows move to mu, scale, and shrink to the radius; they are counted; columns without a row are 0."""
    rows, mu = rng.standard_normal((5, 3)), rng.standard_normal(3)
    moved = 0.7 * (rows - mu)
    radius = float(np.sort(np.linalg.norm(moved, axis=1))[2])  # two are longer
    out = np.full((3, 8), 9.0)
    for first in (0, 2, 3):
        clipped, longest = monomials.centre(rows, mu, 0.7, radius * (1 + 1e-12), first, out)
        assert clipped == 2 and longest == pytest.approx(np.linalg.norm(moved, axis=1).max())
        np.testing.assert_allclose(
            out[:, first : first + 5].T, [naive.shrink(row, radius) for row in moved], rtol=1e-11
        )
        assert (out[:, :first] == 0).all() and (out[:, first + 5 :] == 0).all()
    assert monomials.centre(rows, mu, 0.7, np.inf, 0, out)[0] == 0
    assert monomials.centre(rows[:0], mu, 0.7, 1.0, 0, out) == (0, 0) and (out == 0).all()


def spoilt(dtype, *shape):
    """Scratch with what another head may have left in it."""
    return np.full(shape, np.nan, dtype)


def addresses(dtype):
    """Products by BLAS, and by plain loops."""
    return [None] if blas.address(dtype) is None else [None, blas.address(dtype)]


def absorbed(x, c, degree, dtype, block=16, where=None):
    """Moments (t, w) of rows x (n, d), c (n, w) by the kernel, in groups of 8 rows."""
    (n, dim), width, t = x.shape, c.shape[1], table(x.shape[1], degree)
    moments = np.zeros((len(t.parent), width))
    for a in range(0, n, 8):
        rows, values = x[a : a + 8].astype(dtype), c[a : a + 8].astype(dtype)
        scratch = spoilt(dtype, dim, 9), spoilt(dtype, low_count(dim, degree), 9), spoilt(dtype, 2, 8 * width)
        rest = t.start, t.order, t.run, *scratch, spoilt(dtype, block, width), moments
        clipped, longest = monomials.absorb(where, rows, np.zeros(dim), 1.0, np.inf, values, *rest)
        assert clipped == 0 and longest == pytest.approx(np.linalg.norm(rows.astype("f8"), axis=1).max(), rel=1e-6)
    return moments


# dim, degree, columns (few, and more than monomials.NARROW), monomials that are multiplied at a time
SIZES = [
    (1, 1, 1, 16), (1, 6, 2, 16), (2, 4, 3, 16), (3, 3, 4, 3), (3, 2, 13, 4), (4, 1, 1, 2), (5, 4, 12, 16), (5, 4, 20, 16),
    (9, 4, 2, 128),  # 165 monomials of degree 3: more than monomials.TOGETHER
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("dim", "degree", "width", "block"), SIZES)
def test_absorb(rng, dim, degree, width, block, dtype):
    """Moments are sums over the rows of monomial times value."""
    x, c = rng.standard_normal((13, dim)).astype(dtype), rng.standard_normal((13, width)).astype(dtype)
    each = [naive.monomials(row, degree) for row in x]
    index = [(0,) * dim]
    t = table(dim, degree)
    for parent, var in zip(t.parent[1:], t.var[1:], strict=True):
        index.append(tuple(e + (i == var) for i, e in enumerate(index[parent])))
    expected = np.array([sum(e[a] * row.astype("f8") for e, row in zip(each, c, strict=True)) for a in index])
    for where in addresses(dtype):
        moments = absorbed(x, c, degree, dtype, block, where)
        np.testing.assert_allclose(moments, expected, rtol=0, atol=30 * EPS[dtype] * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("dim", "degree", "width", "block"), SIZES)
def test_power_sums(rng, dim, degree, width, block, dtype):
    """For every query and level l: the sum over the rows of (query . row)^l times value."""
    x, c = rng.standard_normal((13, dim)), rng.standard_normal((13, width))
    queries = rng.standard_normal((5, dim)).astype(dtype)
    t = table(dim, degree)
    weighed = spoilt(dtype, len(t.parent), width)
    monomials.weigh(absorbed(x, c, degree, "f8"), t.multinomial, t.order, weighed)
    for where in addresses(dtype):
        low, part = spoilt(dtype, low_count(dim, degree), 5), spoilt(dtype, width, 5)
        sums = spoilt(dtype, degree + 1, width, 5)
        monomials.power_sums(where, np.ascontiguousarray(queries.T), weighed, t.start, t.run, low, part, sums)
        check_power_sums(sums, queries, x, c, dtype)


def check_power_sums(sums, queries, x, c, dtype):
    logits = queries.astype("f8") @ x.T
    for level in range(len(sums)):
        expected = (logits**level @ c).T
        slack = 40 * EPS[dtype] * (np.abs(queries).astype("f8") @ np.abs(x.T)).max() ** level * 13
        np.testing.assert_allclose(sums[level], expected, rtol=0, atol=slack)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_answer(rng, dtype):
    """Queries are answered some at a time, the last fewer; what scratch holds has no influence."""
    dim, degree, width, scale = 3, 3, 4, 0.4
    t, count = table(dim, degree), low_count(dim, degree)
    k, q = rng.standard_normal((13, dim)), rng.standard_normal((11, dim)).astype(dtype)
    c = np.column_stack([rng.standard_normal((13, width - 1)), np.ones(13)])
    mu = k.mean(axis=0)
    weighed = spoilt(dtype, len(t.parent), width)
    monomials.weigh(absorbed(math.sqrt(scale) * (k - mu), c, degree, "f8"), t.multinomial, t.order, weighed)
    radius = float(math.sqrt(scale) * np.linalg.norm(q, axis=1).max() * 0.99)  # the longest query is shortened
    short = np.array([naive.shrink(row, radius / math.sqrt(scale)) for row in q.astype("f8")])
    for where in addresses(dtype):
        m, y, doubt = spoilt(dtype, 11), spoilt("f8", 11, width), spoilt("f4", 11)
        rows = (spoilt(dtype, *shape) for shape in ((dim, 9), (count, 9), (width, 4), (degree + 1, width, 4)))
        scratch = poly.Scratch(*rows, spoilt("f8", degree + 6, 4), spoilt("f8", *SPARE))
        rest = t.start, t.run, scratch, m, y, doubt
        bounds = np.array([10.0, radius])
        assert poly.answer(where, q, mu, np.zeros(dim), scale, bounds, False, weighed, *rest) == 1
        assert doubt[np.linalg.norm(q, axis=1).argmax()] >= 1 and (doubt < 1).sum() > 3
        logits = scale * short @ (k - mu).T
        for i, row in enumerate(logits):
            weights = [naive.hermite(degree, x, row.mean(), row.var()) for x in row]
            np.testing.assert_allclose(y[i], weights @ c, rtol=0, atol=300 * EPS[dtype] * 13)
        expected = scale * q.astype("f8") @ mu + logits.mean(axis=1) + logits.var(axis=1) / 2
        np.testing.assert_allclose(m, expected, rtol=0, atol=40 * EPS[dtype])


@settings(max_examples=30)
@given(st.integers(0, 8), st.floats(-3, 3), st.one_of(st.just(0.0), st.floats(1e-6, 4)), st.floats(-4, 4))
def test_hermite(degree, mean, variance, x):
    """The kernel's powers of x are the expansion in Hermite polynomials, term by term."""
    coefficients = np.full((degree + 1, 3), np.nan)
    expansion.hermite(np.array([7.0, mean, 0.0]), np.array([1.0, variance, 0.0]), coefficients)
    found = sum(a * x**l for l, a in enumerate(coefficients[:, 1]))
    size = sum(abs(a * x**l) for l, a in enumerate(coefficients[:, 1]))
    assert found == pytest.approx(naive.hermite(degree, x, mean, variance), rel=1e-11, abs=1e-13 * max(size, 1))


@settings(max_examples=40)
@given(st.floats(0.01, 1.2), st.floats(-1, 1))
def test_the_hermite_polynomial_is_the_nearest_to_exp(sigma, mean):
    """Under N(mean, sigma^2) its squared error is the tail of the series, and any nearby polynomial is worse."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    x, weights = mean + sigma * nodes, weights / weights.sum()
    true = np.exp(x - mean - sigma**2 / 2)
    a = np.empty((4, 1))
    expansion.hermite(np.array([mean]), np.array([sigma**2]), a)
    a = a[:, 0]

    def error(coefficients):
        return weights @ (true - np.polynomial.polynomial.polyval(x, coefficients)) ** 2

    tail = sum(sigma ** (2 * l) / math.factorial(l) for l in range(4, 40))
    assert error(a) == pytest.approx(tail, rel=1e-6, abs=1e-26)
    for i in range(4):
        step = np.zeros(4)
        step[i] = 1e-3
        assert min(error(a + step), error(a - step)) > error(a)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("taylor", [True, False])
@pytest.mark.parametrize("degree", [0, 1, 2, 5])
def test_blend(rng, degree, taylor, dtype):
    """Power sums become sum_j P(x_j) c_j, up to the factor that is added to m."""
    x, c = 0.2 + 0.5 * rng.standard_normal((4, 11)), rng.standard_normal((11, 3))
    c[:, -1] = 1
    sums = np.stack([(x**l @ c).T for l in range(degree + 1)]).astype(dtype)
    m, y = np.full(4, 0.25, dtype), np.full((4, 3), np.nan)
    work = spoilt("f8", degree + 6, 4)
    work[degree + 3] = np.abs(x).max(axis=1)
    poly.blend(sums, taylor, work, spoilt("f8", *SPARE), m, y)
    for i in range(4):
        weights = naive.logit_weights(x[i], degree, taylor, np.abs(x[i]).max())
        expected = sum(w * row for w, row in zip(weights, c, strict=True))
        scale = math.exp(float(m[i]) - 0.25)
        np.testing.assert_allclose(y[i] * scale, expected, rtol=0, atol=300 * EPS[dtype] * 11)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("degree", [4, 5, 6, 9, 12])
def test_a_polynomial_follows_logits_that_are_no_gaussian(rng, degree, dtype):
    """Its answers are those of the osculating polynomial at the nodes of the logits' own quadrature, and its doubt is no
    smaller than what it misses of the normaliser."""
    far = rng.choice(400, 3, replace=False)
    x = 0.4 * rng.standard_normal((3, 400))
    x[0, far], x[1, far], x[2] = 5.0, -4.0, np.where(rng.random(400) < 0.3, 1.6, -0.2) + 0.05 * x[2]
    c = np.column_stack([rng.standard_normal((400, 2)), np.ones(400)])
    sums = np.stack([(x**l @ c).T for l in range(degree + 1)]).astype(dtype)
    m, y, work = np.zeros(3, dtype), np.empty((3, 3)), spoilt("f8", degree + 6, 3)
    work[degree + 3] = np.abs(x).max(axis=1)
    poly.blend(sums, False, work, spoilt("f8", *SPARE), m, y)
    for i in range(3):
        found = y[i] * math.exp(float(m[i]))
        weights = naive.logit_weights(x[i], degree)
        slack = 1e-3 if dtype == "f4" else 1e-7
        np.testing.assert_allclose(found, weights @ c, rtol=0, atol=slack * found[-1])
        true = np.exp(x[i])
        assert abs(found[-1] - true.sum()) <= (2 * work[degree + 3, i] + slack) * true.sum()


def test_blend_without_any_token_is_nothing():
    m, y = np.zeros(2), np.full((2, 3), np.nan)
    poly.blend(np.zeros((5, 3, 2)), False, spoilt("f8", 10, 2), spoilt("f8", *SPARE), m, y)
    assert (m == 0).all() and (y == 0).all()
