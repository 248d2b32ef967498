"""Psi: the sketch that joins keys and values by row number alone."""

import naive_sketches as naive
import numpy as np
import pytest

from streamattn_cli.errors import CannotMeet, InputMalformed
from streamattn_cli.sketches.headparams import allocate
from streamattn_cli.sketches.histories.poly import PolyHistory, PolyParams
from streamattn_cli.sketches.paper.sketched import SketchedHead, SketchParams, require_psi

SMALL = SketchParams(3, 2, 0.5, PolyParams(3, max_error=np.inf), m1=16, seed=5)


def _rows(rng, n, params=SMALL, mean=0.0):
    k = rng.standard_normal((n, params.dim))
    return k, rng.standard_normal((n, params.value_dim)) + mean, rng.standard_normal((1, n, params.dim))


def _head(params, k, v, q):
    head = SketchedHead(params)
    head.calibrate(k[:512], np.column_stack([v, np.ones(len(v))])[:512], q[0, :512])
    return head


def _absorb(head, k, v, cuts=(None,), start=0):
    work = allocate(head.params.work_spec())
    at = 0
    for cut in cuts:
        part = slice(at, None if cut is None else at + cut)
        head.absorb_keys(k[part], start + at, work)
        head.absorb_values(v[part], start + at, work)
        at += cut or 0
    return work


def test_places_are_those_of_the_explicit_matrix(rng):
    k, v, q = _rows(rng, 150)
    head = _head(SMALL, k, v, q)
    _absorb(head, k, v)
    psi = naive.count_sketch(5, 0, 1, 16, 150)
    np.testing.assert_allclose(head.state["sk_v"], psi @ v, rtol=1e-12, atol=1e-12)
    columns, _ = naive.features(np.sqrt(0.5) * (k - head.state["mu"]), 3)
    expected = sorted((psi @ column).tolist() for column in columns.values())
    np.testing.assert_allclose(sorted(head.state["sk_k"].T.tolist()), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        sorted(head.state["prod"]), sorted(c.sum() for c in columns.values()), rtol=1e-9, atol=1e-9
    )


def test_any_cut_gives_the_same_bytes(rng):
    k, v, q = (x.astype(np.float32) for x in _rows(rng, 400))
    whole, pieces = _head(SMALL, k, v, q), _head(SMALL, k, v, q)
    _absorb(whole, k, v)
    _absorb(pieces, k, v, (1, 130, 7, 256, None))
    for name, array in whole.state.items():
        assert array.tobytes() == pieces.state[name].tobytes(), name


def test_with_one_bucket_for_every_row_psi_is_exact(rng):
    """Where no two rows share a bucket, W is U2^T V, and the answers are those of exact accumulators."""
    n = 40
    seed, m1 = next((s, m) for m in (4096, 1 << 14) for s in range(50)
                    if len({naive.place(s, 0, m, row)[0] for row in range(n)}) == n)  # fmt: skip
    params = SketchParams(3, 2, 0.5, PolyParams(4), m1=m1, seed=seed)
    k, v, q = _rows(rng, n, params)
    head = _head(params, k, v, q)
    _absorb(head, k, v)
    exact = PolyHistory(params.poly, 3, 2, 0.5, "f8", allocate(PolyHistory.state_spec(params.poly, 3, 2)))
    for name in ("mu", "radius"):
        exact.state[name][:] = head.state[name]
    exact.absorb(k, np.column_stack([v, np.ones(n)]), allocate(PolyHistory.work_spec(params.poly, 3, 2, 64, 64, "f8")))
    np.testing.assert_allclose(head.moments(), exact.state["moments"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("centred", [False, True])
def test_the_error_follows_the_formula(rng, centred):
    """rms error = sqrt((rms(v)^2 n / n_eff + rms(T)^2) / m1) within 20%, rms over 24 hashes; the second term is that
    of a mean. Centred, only the spread of v counts."""
    n, m1 = 4096, 64
    params = SketchParams(4, 3, 0.5, PolyParams(6), m1=m1, centred=centred)
    k, v, q = _rows(rng, n, params, mean=1.0)
    exact = np.exp(0.5 * q[0, :128] @ k.T)
    shares = exact / exact.sum(axis=1, keepdims=True)
    spread = v - v.mean(axis=0) if centred else v
    expected = np.sqrt(((spread**2).mean() * n * (shares**2).sum(axis=1).mean() + ((shares @ spread) ** 2).mean()) / m1)
    errors = []
    for seed in range(24):
        head = _head(SketchParams(4, 3, 0.5, PolyParams(6), m1=m1, seed=seed, centred=centred), k, v, q)
        work, out = _absorb(head, k, v), np.empty((1, 128, 3))
        head.answer(q[:, :128], 0, head.moments(), out, work, False)
        errors.append(((out[0] - shares @ v) ** 2).mean())
    assert np.sqrt(np.mean(errors)) == pytest.approx(expected, rel=0.2)


def test_values_that_end_early_are_noticed(rng):
    k, v, q = _rows(rng, 300)
    head = _head(SMALL, k, v, q)
    work = allocate(SMALL.work_spec())
    head.absorb_keys(k, 0, work)
    head.absorb_values(v[:299], 0, work)
    with pytest.raises(InputMalformed, match="v.npy has 299 rows and k.npy 300"):
        head.check_values("k.npy", "v.npy")


def test_a_psi_that_drowns_is_refused(rng):
    """Values without a mean average away in the outputs, and Psi's noise does not."""
    k, v, q = _rows(rng, 5000)
    for mean, enough in ((0.0, False), (30.0, True)):
        params = SketchParams(3, 2, 0.5, PolyParams(3, max_error=np.inf), m1=64, centred=True)
        head = _head(params, k, v + mean, q)
        work = _absorb(head, k, v + mean)
        error = head.psi_error(head.moments(), work)
        if enough:
            require_psi(error, params, 0.25)
        else:
            with pytest.raises(CannotMeet, match="--m1 64 is too small"):
                require_psi(error, params, 0.25)
