"""Recent rows in twelve bits: bytes and rounding against the loops, and when a sketch begins to keep its rows so."""

from dataclasses import replace

import naive_sixbits as naive
import numpy as np
import pytest
from test_nystrom import HEAD, causal, relative

from streamattn_cli.kernels import twelvebits
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams, allocate, spec_bytes
from streamattn_cli.sketches.histories.nystromparams import nystrom_params
from streamattn_cli.testing.streams import Stream, attention, make_stream

F2 = replace(HEAD, storage="f2")


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17, 64])
def test_levels_are_packed_bit_by_bit_and_come_back(rng, n):
    levels = rng.integers(-2047, 2048, n).astype("f4")
    levels[:2] = [-2047, 2047][:n]
    out, back = np.full(n + -(-n // 2), 255, "u1"), np.empty(n, "f4")
    twelvebits.pack(levels, out)
    np.testing.assert_array_equal(out, naive.packed_twelve(levels))
    twelvebits.unpack(out, np.float32(0.5), back)
    np.testing.assert_array_equal(back, 0.5 * levels)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_rows_are_rounded_as_the_loops_do(rng, dtype):
    """Turned, less their centres, with a scale of its own for each half; one that was dropped, and one that is the centre."""
    d, dv, n = 7, 5, 6
    centre, mean = rng.standard_normal(d).astype("f4"), rng.standard_normal(dv).astype("f4")
    k, v = rng.standard_normal((n, d)).astype(dtype) * 9, rng.standard_normal((n, dv)).astype(dtype)
    k[4], v[4] = centre, mean
    c = np.concatenate([v, np.ones((n, 1))], axis=1).astype(dtype)
    k[2], c[2] = 0, 0
    rows = np.full((n, 11 + 8 + 4), 7, "u1")
    twelvebits.encode(k.copy(), c.copy(), centre, mean, rows)
    found_k, found_c = np.full((n + 1, d), 5, dtype), np.full((n + 1, dv + 1), 5, dtype)
    twelvebits.decode(rows, centre, mean, found_k, found_c)
    assert (found_k[2] == 0).all() and (found_c[2] == 0).all() and (found_c[[0, 1, 3, 4, 5], -1] == 1).all()
    live = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(found_k[live], naive.twelve(k[live], centre), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found_c[live, :-1], naive.twelve(v[live], mean), rtol=1e-5, atol=1e-5)
    assert (found_k[n] == 5).all()
    np.testing.assert_allclose(found_k[live], k[live], atol=np.abs(k[live]).max() / 1000)


def test_a_sketch_is_exact_until_its_bank_is_full_and_then_keeps_more_recent_rows(rng):
    """As stored at first; from then on in as many bytes the whole window, rounded once."""
    params, stream = nystrom_params(F2, 200, "default"), storable_stream(1000)
    assert params.history.recent_bits == 12 and params.early_window < params.window
    sketch, work, row = HeadAttention(params), allocate(params.work_spec()), 0
    exact = attention(stream, HEAD.scale, causal=True)
    while not sketch.recent.coded:
        part = slice(row, row + params.group)
        out = np.empty((2, params.group, 64), "f4")
        sketch.step(stream.q[:, part], stream.k[part], stream.c[part], out, work)
        if not sketch.recent.coded:
            assert relative(out, exact[:, part]) < 1e-5
        row += params.group
    assert row > 100
    for part in (slice(row, row + 64), slice(row + 64, row + 133)):
        out = np.empty((2, part.stop - part.start, 64), "f4")
        sketch.step(stream.q[:, part], stream.k[part], stream.c[part], out, work)
    first, rows = int(sketch.state["counters"][1]), sketch.rows
    assert rows - first >= params.window
    k, c = sketch.recent.get(0, rows - first, np.empty((200, 64), "f4"), np.empty((200, 65), "f4"))
    centre, mean = sketch.history.centres
    for found, given, origin in ((k, stream.k, centre), (c[:, :-1], stream.v, mean)):
        expected = naive.twelve(given[first:rows], origin)
        apart = np.abs(found - expected).max(axis=1)
        assert (
            np.median(apart) < 1e-5 and apart.max() < 1e-3 * np.abs(expected).max()
        )  # where float32 falls the other way


def storable_stream(rows):
    stream = make_stream(rows, 64, 64, "f4", spread=8)
    return Stream(stream.q, *(x.astype("f2").astype("f4") for x in (stream.k, stream.c)))


@pytest.mark.parametrize("storage, rows", [("f2", 300), ("bf16", 300), ("f4", 100), ("f8", 60)])
def test_what_is_saved_goes_to_atoms_and_every_byte_counts(storage, rows):
    """Also where the bytes of the coded window hold less than one group of rows as they are stored."""
    params = nystrom_params(replace(HEAD, storage=storage), rows, "default")
    plain = replace(params, history=replace(params.history, recent_bits=0))
    saved = spec_bytes(plain.state_spec()) - spec_bytes(params.state_spec())
    assert saved > 0.2 * params.recent_rows * params.row_bytes or params.recent_rows <= 2 * params.group
    assert spec_bytes(params.state_spec()) <= rows * params.row_bytes
    assert params.early_window >= 1
    stream = storable_stream(700)
    out, sketch, _ = causal(params, stream)
    assert sketch.recent.coded and relative(out, attention(stream, HEAD.scale, causal=True)) < 0.5


def test_rows_that_are_small_as_they_are_stay_so():
    assert nystrom_params(HeadParams(3, 2, 1.0, "f4", storage="f2"), 400, "default").history.recent_bits == 0
    assert nystrom_params(HEAD, 400, "default", causal=False).history.recent_bits == 0
    assert nystrom_params(HEAD, 400, "default", stream=2000).history.recent_bits == 0


def test_absorbed_rows_are_the_same_bytes_however_they_come(rng):
    """Without queries, in pieces: the sketch that a whole stream makes."""
    params, stream = nystrom_params(F2, 100, "default"), storable_stream(900)
    states = []
    for cuts in ([0, 900], [0, 7, 8, 300, 555, 900]):
        sketch, work = HeadAttention(params), allocate(params.work_spec())
        for a, b in zip(cuts, cuts[1:], strict=False):
            sketch.absorb(stream.k[a:b], stream.c[a:b], work)
        sketch.finish(work)
        states.append({name: x.tobytes() for name, x in sketch.state.items()})
        assert sketch.recent.coded
    assert states[0] == states[1]
