"""What is written for vectors, against the same in plain loops."""

import numpy as np
import pytest
from numba.core.errors import TypingError

from streamattn_cli.kernels import hadamard, signed, sixbits, twelvebits
from streamattn_cli.kernels.exponential import exp32, exp_lanes
from streamattn_cli.kernels.jit import kernel
from streamattn_cli.kernels.lanes import WIDE, emitted

compiled = pytest.mark.skipif(
    not hasattr(sixbits.unpack, "py_func"), reason="without the compiler there are no vectors"
)


@emitted
def _exponentials(lanes, x):
    lanes.store(exp_lanes(lanes, lanes.load(x, 0)), x, 0)


@kernel()
def exponentials(x):
    _exponentials(x)


@compiled
def test_the_exponential_of_a_vector_is_that_of_each_number(rng):
    given = np.concatenate([-np.logspace(-6, 2, 10 * WIDE - 6), [0, -86.9, -87, -87.1, -np.inf, np.nan]]).astype("f4")
    for x in given.reshape(-1, WIDE):
        with np.errstate(invalid="ignore"):
            expected, found = [exp32(number) for number in x], x.copy()
        exponentials(found)
        np.testing.assert_allclose(found, expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("queries", [1, 8, 16, 40, 64])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_weights_and_their_squares(rng, queries, dtype):
    """Of queries that fill vectors, and of those that do not."""
    logits, weights = rng.standard_normal((30, queries)).astype(dtype), rng.standard_normal(30).astype(dtype)
    top, squares = logits.max(axis=0), rng.random(queries).astype("f4")
    expected = np.exp(logits - top)
    all_squares = squares + ((weights[:, None] * expected) ** 2).sum(axis=0)
    signed.weigh(logits, weights, top, squares)
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
    np.testing.assert_allclose(squares, all_squares, rtol=1e-5)


@pytest.mark.parametrize("n", [64, 68, 80, 128, 132])
def test_numbers_of_few_bits_are_the_same_where_rows_are_not_contiguous(rng, n):
    for module, most in ((sixbits, 31), (twelvebits, 2047)):
        levels = rng.integers(-most, most + 1, n).astype("f4")
        size = 3 * -(-n // 4) if module is sixbits else n + -(-n // 2)
        packed, apart, out = np.zeros(size, "u1"), np.zeros((size, 2), "u1"), np.empty((n, 2), "f4")
        module.pack(levels, packed)
        apart[:, 0] = packed
        for rows, room in ((packed, np.empty(n, "f4")), (apart[:, 0], out[:, 0]), (packed, out[:, 1])):
            module.unpack(rows, np.float32(0.25), room)
            np.testing.assert_array_equal(room, levels / 4)


@pytest.mark.parametrize("d", [16, 64, 80, 100])
def test_rows_turn_the_same_where_they_are_not_contiguous(rng, d):
    x = rng.standard_normal((3, d)).astype("f4")
    apart = np.repeat(x, 2, axis=1)[:, ::2]
    hadamard.turn_rows(x, d, False)
    hadamard.turn_rows(apart, d, False)
    np.testing.assert_array_equal(apart, x)


@compiled
def test_vectors_of_what_is_not_contiguous_are_not_compiled():
    with pytest.raises(TypingError, match="contiguous"):
        exponentials(np.zeros((WIDE, 2), "f4")[:, 0])
