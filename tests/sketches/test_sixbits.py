"""Atoms of six bits: the map, the bytes and the rounding against the loops, and what they are for, on streams."""

from dataclasses import replace

import naive_sixbits as naive
import numpy as np
import pytest
from naive_nystrom import turned
from test_nystrom import HEAD, causal, relative

from streamattn_cli.errors import CheckpointIncompatible
from streamattn_cli.kernels import atoms, hadamard, sixbits
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams, allocate, spec_bytes
from streamattn_cli.sketches.histories.nystromparams import NystromParams, atom_bytes, nystrom_params
from streamattn_cli.testing.streams import Stream, attention

DIMS = [1, 2, 3, 5, 16, 64, 80, 100, 1030]


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_rows_and_columns_are_turned_by_the_matrix_and_back(rng, d, dtype):
    matrix, x = naive.orthogonal(d), rng.standard_normal((5, d + 1)).astype(dtype)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(d), atol=1e-12)
    atol, rows, columns = 1e-5 if dtype == "f4" else 1e-12, x.copy(), np.ascontiguousarray(x[:, :d].T)
    hadamard.turn_rows(rows, d, False)
    hadamard.turn_columns(columns, False)
    np.testing.assert_allclose(rows[:, :d], x[:, :d] @ matrix.T, atol=atol)
    np.testing.assert_allclose(columns, matrix @ x[:, :d].T, atol=atol)
    np.testing.assert_array_equal(rows[:, d], x[:, d])
    hadamard.turn_rows(rows, d, True)
    hadamard.turn_columns(columns, True)
    np.testing.assert_allclose(rows, x, atol=atol)
    np.testing.assert_allclose(columns, x[:, :d].T, atol=atol)


def test_one_loud_channel_is_spread_over_all(rng):
    x = np.zeros((1, 64), "f4")
    x[0, 17] = 1
    hadamard.turn_rows(x, 64, False)
    np.testing.assert_allclose(np.abs(x), 1 / 8, rtol=1e-6)


@pytest.mark.parametrize("n", [*range(1, 20), 64, 80, 129])
def test_levels_are_packed_bit_by_bit_and_come_back(rng, n):
    levels = rng.integers(-31, 32, n).astype("f4")
    levels[:2] = [-31, 31][:n]
    out, back = np.full(3 * -(-n // 4), 255, "u1"), np.empty(n, "f4")
    sixbits.pack(levels, out)
    np.testing.assert_array_equal(out, naive.packed(levels))
    sixbits.unpack(out, np.float32(0.5), back)
    np.testing.assert_array_equal(back, 0.5 * levels)


def bank(m, d, dv, mean):
    """An empty bank of six bits."""
    keys, coefs = (np.zeros((m, 3 * -(-n // 4)), "u1") for n in (d, dv))
    return keys, coefs, np.zeros((m, 2), "u2"), np.zeros(m, "f4"), mean


def store(places, k, c, alive, first, taken, size, counter):
    with np.errstate(over="ignore"):
        carry = np.empty(c.shape[1] - 1, "f4")
        atoms.store(k.copy(), c.copy(), alive, first, taken, size, np.uint64(counter), places, carry)


def levels_of(packed, n):
    out = np.empty(n, "f4")
    sixbits.unpack(packed, np.float32(1), out)
    return out.astype(int).tolist()


def test_atoms_are_stored_as_the_loops_round_them(rng):
    """New ones and survivors of a slice that goes round the end; a row of zeros; a scale that stays and two that do not."""
    d, dv, m = 7, 6, 9
    places = bank(m, d, dv, np.zeros(dv, "f4"))
    k, c = rng.standard_normal((m, d)).astype("f4"), rng.standard_normal((m, dv + 1)).astype("f4") * 3
    k[3], c[5, :-1] = 0, 0
    store(places, k, c, np.ones(m, bool), 0, 0, 0, 1)
    expected = naive.coefficients(c[:, :-1], [None] * m, 1)
    for i in range(m):
        assert (int(places[2][i, 0]), levels_of(places[0][i], d)) == naive.key(k[i])
        assert (int(places[2][i, 1]), levels_of(places[1][i], dv)) == expected[i]
    np.testing.assert_array_equal(places[3], c[:, -1])
    keys, befores = places[0].copy(), [int(x) for x in places[2][[7, 8, 0, 1], 1]]
    later = c[[7, 8, 0, 1, 2]] * np.array([[0.9], [0.2], [0.7], [4], [1]], "f4")
    new, alive = rng.standard_normal((1, d)).astype("f4"), np.array([1, 1, 0, 1, 1], bool)
    store(places, new, later, alive, 7, 4, m, 2)
    expected = naive.coefficients(later[alive, :-1], [befores[0], befores[1], befores[3], None], 2)
    for place, before, (bits, levels) in zip((7, 8, 0), (7, 8, 1), expected[:3], strict=True):
        assert (int(places[2][place, 1]), levels_of(places[1][place], dv)) == (bits, levels)
        np.testing.assert_array_equal(places[0][place], keys[before])
    assert (int(places[2][1, 0]), levels_of(places[0][1], d)) == naive.key(new[0])
    assert (int(places[2][1, 1]), levels_of(places[1][1], dv)) == expected[3]


def test_a_compression_sees_new_keys_as_they_will_be_stored(rng):
    """Coefficients are fitted to keys that are rounded, not to those that were there before."""
    d, dv = 12, 5
    mean, centre = rng.standard_normal(dv).astype("f4"), rng.standard_normal(d).astype("f4")
    places = bank(8, d, dv, mean)
    k, c = rng.standard_normal((3, d)).astype("f4"), np.concatenate([rng.standard_normal((3, dv)), np.ones((3, 1))], 1)
    x, w, new = np.empty((3, d), "f4"), np.empty((3, dv + 1), "f4"), np.empty((3, d), "f4")
    atoms.gather(places, centre, np.zeros(d, "f4"), 0, 1, k, c.astype("f4"), x, w, new, np.zeros(3, bool))
    store(places, new, w, np.ones(3, bool), 0, 0, 0, 0)
    found_k, found_c = np.empty((3, d), "f4"), np.empty((3, dv + 1), "f4")
    atoms.load(places, 0, 8, found_k, found_c)
    atoms.restore(found_k, found_c, mean)
    np.testing.assert_allclose(found_k, x, atol=1e-5)
    np.testing.assert_allclose(x, k - centre, atol=0.1)
    np.testing.assert_allclose(found_c, c, atol=0.2)
    np.testing.assert_allclose(w[:, :-1], (c[:, :-1] - mean) @ naive.orthogonal(dv).T, atol=1e-5)


def test_what_rounding_takes_from_the_weight_of_a_key_its_coefficients_get(rng):
    """For a query that is the mean one nothing changes: METHODS.md (N24), with rotary positions ahead or without."""
    d, dv, scale = 12, 5, 0.3
    for word, turns in (("", 0), ("1e4:half", 1), ("1e4:half", 2)):
        params = HeadParams(d, dv, scale, "f4", group=8, history=NystromParams(40, 8, bits=6, rope=word, turns=turns))
        history = HeadAttention(params).history
        mean = 3 * rng.standard_normal(d).astype("f4")
        history.queries.arrays[1][:] = mean
        history.queries.arrays[4][:] = 500
        asked = history.queries.typical(scale)
        ahead = [16 * (512 * turns / 16) ** ((t + 0.5) / turns) for t in range(turns)]
        query = np.mean([turned(mean, 500 + rows, 1e4, "half") for rows in ahead], axis=0) if word else mean
        np.testing.assert_allclose(asked, naive.orthogonal(d) @ query * scale, atol=1e-5)
        k, c = 4 * rng.standard_normal((6, d)).astype("f4"), rng.standard_normal((6, dv + 1)).astype("f4")
        rounded, moved = k.copy(), c.copy()
        atoms.round_keys(rounded, moved, asked, np.empty(d, "f4"))
        for before, after in zip(k, rounded, strict=True):
            bits, levels = naive.key(before)
            np.testing.assert_array_equal(after, np.array(levels, "f4") * naive.wide(bits))
        weights = np.exp(k @ asked), np.exp(rounded @ asked)
        assert np.abs(weights[1] / weights[0] - 1).max() > 0.01
        np.testing.assert_allclose(weights[1][:, None] * moved, weights[0][:, None] * c, rtol=1e-4)


@pytest.mark.parametrize("size", [1e4, 1e30, np.inf, np.nan])
def test_a_mean_query_beyond_all_measure_spoils_nothing(rng, size):
    k, c = rng.standard_normal((9, 8)).astype("f4"), np.ones((9, 3), "f4")
    with np.errstate(invalid="ignore", over="ignore"):
        atoms.round_keys(k, c, np.full(8, size, "f4"), np.empty(8, "f4"))
    assert (c >= np.exp(-1.001)).all() and (c <= np.exp(1.001)).all()


def test_rounding_has_the_right_mean_and_keeps_the_sum_of_a_slice(rng):
    """Every number is rounded up as often as its fraction says; what one atom loses the next one gets."""
    dv, count, found = 3, 6, []
    c = np.concatenate([rng.random((count, dv)) * 20, np.ones((count, 1))], 1).astype("f4")
    c[:, 0] = 31
    for counter in range(2000):
        places = bank(count, 1, dv, np.zeros(dv, "f4"))
        store(places, np.ones((count, 1), "f4"), c, np.ones(count, bool), 0, 0, 0, counter)
        found.append([levels_of(row, dv) for row in places[1]])
    found = np.array(found)
    assert (places[2][:, 1] == np.float32(1).view("u4") >> 16).all()  # a step is 1
    np.testing.assert_allclose(found.mean(axis=0), c[:, :-1], atol=4 * 0.5 / np.sqrt(2000))
    assert np.abs(found.sum(axis=1) - c[:, :-1].sum(axis=0)).max() <= 1 + 1e-4
    assert found[:, :, 1:].std(axis=0).max() > 0.2


def test_what_does_not_change_is_not_rounded_again(rng):
    """A thousand stores of the same atoms, with what else happens to the carry, leave every byte as it is."""
    dv = 64
    places = bank(4, 1, dv, np.zeros(dv, "f4"))
    k, c = np.ones((4, 1), "f4"), rng.standard_normal((4, dv + 1)).astype("f4")
    store(places, k, c, np.ones(4, bool), 0, 0, 0, 0)
    before = places[1].copy(), places[2].copy()
    for counter in range(1, 1000):
        atoms.load(places, 0, 4, k, c)
        store(places, k[:0], c, np.ones(4, bool), 0, 4, 4, counter)
    np.testing.assert_array_equal(places[1], before[0])
    np.testing.assert_array_equal(places[2], before[1])


# --- streams


def stream(rng, rows, mean, size=0.3, d=16):
    """Queries that attend to everything about alike, over values round a mean."""
    q, k, v = (
        size * rng.standard_normal((1, rows, d)),
        rng.standard_normal((rows, d)),
        rng.standard_normal((rows, d)) + mean,
    )
    return Stream(*(x.astype("f4") for x in (q, k, np.concatenate([v, np.ones((rows, 1))], axis=1))))


def error(given, params):
    out, _, _ = causal(params, given)
    exact = attention(given, params.scale, True)
    half = given.rows // 2
    return relative(out[:, half:], exact[:, half:])


PARAMS = HeadParams(16, 16, 0.25, "f4", 4, 17, 16, NystromParams(80, 40, 6, storage="f4"), "f4")


def test_long_streams_do_not_drift(rng):
    """Hundreds of roundings of every atom, each of less than a step's change."""
    assert error(stream(rng, 12000, 1.0), PARAMS) < 0.03


def test_common_values_cost_nothing(rng):
    """Coefficients are relative to the mean value: a hundred times the spread, and no more error beside the spread."""
    errors = []
    for mean in (0.0, 100.0):
        given = stream(np.random.default_rng(4), 3000, mean)
        exact = attention(given, PARAMS.scale, True)
        out, _, _ = causal(PARAMS, given)
        errors.append(np.linalg.norm((out - exact)[:, 1500:]))
    assert errors[1] < 1.5 * errors[0]


@pytest.mark.parametrize("d, dv", [(64, 64), (80, 64), (3, 2), (128, 30)])
def test_a_budget_counts_every_byte_and_holds_more_atoms(d, dv):
    assert atom_bytes(64, 64, 6) == 104
    head = HeadParams(d, dv, 0.1, "f4", sinks=4, storage="f2")
    params = nystrom_params(head, 2048, "default")
    assert params.history.bits == 6
    assert 0 <= 2048 * 2 * (d + dv) - spec_bytes(params.state_spec()) < atom_bytes(d, dv, 6)
    assert sum(x.nbytes for x in HeadAttention(params).state.values()) == spec_bytes(params.state_spec())


@pytest.mark.parametrize("more", [{"bits": 8}, {"bits": 16}, {"model_bits": 8}, {"recent_bits": 12}])
def test_a_sketch_of_other_bits_merges_with_one_of_six_in_either_order(rng, more):
    """Whose parameters differ in nothing else; what comes out has the form of the first."""
    given, shards = stream(rng, 1200, 0.5, 1.0), []
    old = replace(PARAMS, history=replace(PARAMS.history, **more, atoms=60, active=30))
    exact = attention(given, PARAMS.scale, False)
    for first, second in ((PARAMS, old), (old, PARAMS)):
        work, shards = allocate(first.work_spec()), []
        for params, part in ((first, slice(0, 600)), (second, slice(600, 1200))):
            shards.append(HeadAttention(params))
            shards[-1].calibrate(given.k, given.c, given.q[0])
            shards[-1].absorb(given.k[part], given.c[part], allocate(params.work_spec()))
        shards[0].merge(shards[1], work)
        shards[0].finish(work)
        out = np.empty((1, 1200, 16), "f4")
        shards[0].answer(given.q, 0, out, work)
        assert shards[0].rows == 1200 and shards[0].params == first
        assert relative(out, exact) < 0.5
    with pytest.raises(CheckpointIncompatible, match="differ"):
        unlike = replace(old, history=replace(old.history, temper=0.5))
        HeadAttention(PARAMS).merge(HeadAttention(unlike), allocate(PARAMS.work_spec()))


def test_rotary_positions_with_six_bits_and_odd_dims(rng):
    given = stream(rng, 400, 0.0, 1.0, d=13)
    params = replace(
        nystrom_params(replace(HEAD, dim=13, value_dim=13, storage="f4"), 160, "default", rope="1e3:half"), sinks=4
    )
    assert error(given, params) < 0.7
