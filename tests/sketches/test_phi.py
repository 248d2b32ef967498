"""Phi: the sketch of outputs that are never produced, and its two decoders."""

import naive_sketches as naive
import numpy as np
import pytest

from streamattn_cli.sketches.headparams import allocate
from streamattn_cli.sketches.histories.poly import PolyParams
from streamattn_cli.sketches.paper.countsketch import (
    PHI,
    PeelSketch,
    ScanSketch,
    noise_of,
    peel_sketch,
    residual,
    scan_sketch,
    sketch_rows,
)
from streamattn_cli.sketches.paper.sketched import SketchedHead, SketchParams

N, K = 1 << 20, 64


def _sketch(sketch, x):
    step = 1 << 16
    return sum(
        sketch_rows(sketch, np.arange(a, min(a + step, len(x))), x[a : a + step]) for a in range(0, len(x), step)
    )


def _planted(rng, n, k, columns, mass=2.0):
    """A Gaussian tail of norm 1 and k spikes of norm `mass` in every column; and where the spikes are."""
    x = rng.standard_normal((n, columns))
    x /= np.linalg.norm(x, axis=0)
    rows = np.sort(rng.choice(n, k, replace=False))
    spikes = rng.choice([-1.0, 1.0], (k, columns)) * rng.uniform(0.75, 1.25, (k, columns))
    x[rows] = mass * spikes / np.linalg.norm(spikes, axis=0)
    return x, rows


def _ratio(x, found, k):
    y = np.zeros_like(x)
    for part in found:
        y[part.rows[:, None], range(x.shape[1]) if part.column is None else [part.column]] = part.values
    best = np.sqrt(np.sort(x**2, axis=0)[: len(x) - k].sum(axis=0))
    return np.linalg.norm(x - y, axis=0) / best


def test_both_sketches_are_their_explicit_matrices(rng):
    x = rng.standard_normal((50, 2))
    scan, peel = ScanSketch(5, 7, 3), PeelSketch(4, 6, 9, 3)
    phi = naive.count_sketch(3, PHI, 5, 7, 50)
    np.testing.assert_allclose(_sketch(scan, x), phi @ x, atol=1e-12)
    phi = np.vstack([naive.bit_tests(3, PHI + 5, 3, 4, 6, 50), naive.count_sketch(3, PHI, 5, 9, 50)])
    assert phi.shape[0] == peel.counters
    np.testing.assert_allclose(_sketch(peel, x), phi @ x, atol=1e-12)


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("make", [lambda m, joint: scan_sketch(m, joint, 1), lambda m, joint: peel_sketch(m, K, 20, 1)])
def test_planted_rows_are_recovered(rng, make, columns):
    """n = 2^20, k = 64, spikes twice the tail, 250,000 counters: ratio at most 1.02 and every spike found."""
    x, rows = _planted(rng, N, K, columns)
    sketch = make(250_000, columns > 1)
    assert sketch.counters <= 250_000
    z = _sketch(sketch, x)
    found = sketch.recover(z, N, K, False)
    assert _ratio(x, found, K).max() <= 1.02
    assert np.array_equal(found[0].rows, rows)
    np.testing.assert_allclose(sketch.tail(z), np.sqrt(5), rtol=0.05)
    np.testing.assert_allclose(residual(sketch, z, found), 1, rtol=0.05)
    errors = found[0].values - x[rows]
    assert np.sqrt((errors**2).mean()) == pytest.approx(noise_of(sketch, np.ones(1))[0], rel=0.35)


def test_columns_on_their_own_have_spikes_of_their_own(rng):
    x = np.column_stack([_planted(rng, 1 << 14, 8, 1)[0] for _ in range(3)])
    for sketch in (scan_sketch(40_000, False, 2), peel_sketch(40_000, 8, 14, 2)):
        found = sketch.recover(_sketch(sketch, x), 1 << 14, 8, True)
        assert [part.column for part in found] == [0, 1, 2]
        assert _ratio(x, found, 8).max() <= 1.05


def test_all_rows_are_found_when_k_is_all(rng):
    x = rng.standard_normal((10, 2))
    sketch = scan_sketch(4000, True, 0)
    found = sketch.recover(_sketch(sketch, x), 10, 10, False)
    np.testing.assert_allclose(found[0].values, x, atol=1e-9)


PARAMS = SketchParams(3, 2, 0.5, PolyParams(4), m1=32, phi=ScanSketch(5, 40, 1), heads=2)


def _filled(rng, params=PARAMS, n=600):
    k, v, q = rng.standard_normal((n, 3)), rng.standard_normal((n, 2)), rng.standard_normal((2, n, 3))
    head = SketchedHead(params)
    head.calibrate(k, np.column_stack([v, np.ones(n)]), q.reshape(-1, 3))
    work = allocate(params.work_spec())
    head.absorb_keys(k, 0, work)
    head.absorb_values(v, 0, work)
    return head, q, work


@pytest.mark.parametrize("phi", [ScanSketch(5, 40, 1), PeelSketch(4, 10, 16, 1)])
def test_phi_of_the_features_is_phi_of_the_outputs(rng, phi):
    """Phi(U1 / D) W = Phi((U1 W) / D) to rounding; so is the mean output."""
    head, q, work = _filled(rng, SketchParams(3, 2, 0.5, PolyParams(4), m1=32, phi=phi, heads=2))
    moments, rows = head.moments(), np.empty((2, 600, 2))
    head.answer(q, 0, moments, rows, work, False)
    head.absorb_queries(q, 0, work)
    for h in range(2):
        z, mean = head.outputs(moments, h)
        np.testing.assert_allclose(z, _sketch(phi, rows[h]), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(mean, rows[h].mean(axis=0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(head.state["sk_one"], _sketch(phi, np.ones((600, 1)))[:, 0], atol=1e-12)


def test_queries_in_any_cut_give_the_same_bytes(rng):
    head, q, work = _filled(rng)
    other = SketchedHead(PARAMS, {name: array.copy() for name, array in head.state.items()})
    head.absorb_queries(q, 0, work)
    for a, b in ((0, 1), (1, 130), (130, 137), (137, 600)):
        other.absorb_queries(q[:, a:b], a, work)
    for name, array in head.state.items():
        assert array.tobytes() == other.state[name].tobytes(), name
