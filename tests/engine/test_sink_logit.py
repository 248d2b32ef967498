"""--sink-logit: a learned logit of each query head in the denominator, against the loops."""

import h5py
import naive_variants
import numpy as np
import pytest
from keptruns import METHODS, ask, make_sketch, run, save_stream
from keptruns import not_warmed as not_warmed

from streamattn_cli import CausalAttention
from streamattn_cli.engine.jobs.merge import merge
from streamattn_cli.engine.jobs.pieces import Piece, narrow
from streamattn_cli.engine.jobs.shares import tried
from streamattn_cli.engine.planning.parameters import head_params
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.errors import CannotMeet, CheckpointIncompatible, InputMalformed, InputMissing
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.sketches.exact import ExactQueries
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams, allocate

pytestmark = pytest.mark.usefixtures("not_warmed")
ROWS, SINKS = 500, (1.5, -0.5, 0.0, 4.0)
WORD = ",".join(map(str, SINKS))


def _spec(folder, rows=ROWS):
    """Four query heads on two key heads."""
    spec = save_stream(folder, rows, 2)
    np.save(spec.q, np.random.default_rng(9).standard_normal((rows, 4, 4)).astype("f4"))
    return spec


def _expected(spec, causal, window=None, sinks=SINKS):
    q, k, v = (np.load(getattr(spec, part)) for part in "qkv")
    rows = range(len(q)) if causal else None
    heads = [
        naive_variants.attention(q[:, h], k[:, h // 2], v[:, h // 2], 0.5, rows, window, sinks[h]) for h in range(4)
    ]
    return np.stack(heads, axis=1)


def _error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("words", [{"method": "exact"}, {"method": "window", "window": 500}, {"method": "nystrom"}])
def test_exact_answers_against_the_loops(tmp_path, causal, words):
    spec = _spec(tmp_path)
    run(spec, output=str(tmp_path / "o.npy"), causal=causal, sink_logit=WORD, **words)
    assert _error(np.load(tmp_path / "o.npy"), _expected(spec, causal)) < 2e-6


@pytest.mark.parametrize("method", ["exact", "window"])
def test_local_windows_with_sinks(tmp_path, method):
    spec = _spec(tmp_path)
    outcome = run(
        spec, output=str(tmp_path / "o.npy"), causal=True, local="33", sink_logit=WORD, method=method, audit=ROWS
    )
    assert _error(np.load(tmp_path / "o.npy"), _expected(spec, True, 33)) < 2e-6
    assert method == "exact" or outcome.audit.method.error < 2e-6


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_audited_and_repaired(tmp_path, name, causal):
    """All rows are audited: the error told is that against the loops; and without the sinks it is another attention."""
    spec = _spec(tmp_path)
    words = METHODS[name] | {"causal": causal, "audit": ROWS, "repair": "20"}
    outcome = run(spec, output=str(tmp_path / "o.npy"), sink_logit=WORD, **words)
    found, expected = np.load(tmp_path / "o.npy"), _expected(spec, causal)
    assert outcome.audit.method.error == pytest.approx(_error(found, expected), rel=1e-3, abs=1e-6)
    exact = np.linalg.norm(found - expected, axis=2) <= 1e-5 * np.linalg.norm(expected, axis=2)
    assert exact.sum() >= 20 * found.shape[1]
    if name == "nystrom":
        without = _error(
            found, _expected(spec, causal, sinks=(None,) * 4)
        )  # of all keys a sink takes less than of the first
        assert 2 * _error(found, expected) < without and without > (0.1 if causal else 0.03)


@pytest.mark.parametrize("name", METHODS)
def test_a_sink_takes_its_part_of_what_the_method_answers_without_it(name):
    """y / z becomes y / (z + e^(sink - m)): the answers shrink by the share that the sink takes, for full attention by any
    method with the same state."""
    rng = np.random.default_rng(2)
    request = AttendRequest(InputSpec(), **METHODS[name])
    params = head_params(request, request.method, HeadParams(4, 3, 0.5, "f8"), False, 400)
    k, v, q = (rng.standard_normal((400, n)) for n in (4, 3, 4))
    c = np.column_stack([v, np.ones(400)])
    outs = []
    for sinks in ((), (2.0,), (200.0,), (-2000.0,)):
        sketch, work = HeadAttention(params, sink_logits=np.array(sinks)), allocate(params.work_spec())
        sketch.calibrate(k, c, q)
        sketch.absorb(k, c, work)
        sketch.finish(work)
        outs.append(np.empty((1, 400, 3)))
        sketch.answer(q[None], 0, outs[-1], work)
    plain, some, all_of_it, nothing = outs
    ratio = (some / plain)[0]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-6)
    assert (0 < ratio).all() and (ratio < 1).all()
    assert np.abs(all_of_it).max() < 1e-60
    np.testing.assert_allclose(nothing, plain, rtol=1e-9)


def test_a_query_without_keys_gets_nothing_from_a_sink():
    held = ExactQueries(np.ones((1, 2, 3), "f4"), np.array([0, 1]), 2, 1.0, sink_logits=np.array([3.0]))
    out = np.full((1, 2, 2), np.nan, "f4")
    assert held.outputs(out) == 0
    assert (out == 0).all()


@pytest.mark.parametrize("name", ["window", "nystrom", "poly"])
def test_resume_gives_the_same_bytes_and_refuses_other_sinks(tmp_path, name):
    spec = _spec(tmp_path)
    words = METHODS[name] | {"causal": True, "output": str(tmp_path / "o.npy"), "force": True}
    run(spec, sink_logit=WORD, **words)
    expected = np.load(tmp_path / "o.npy")
    words |= {"checkpoint": str(tmp_path / "c.sattn"), "block_rows": 64}
    run(spec, sink_logit=WORD, **words)
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), expected)
    with pytest.raises(CheckpointIncompatible, match="sink_logits"):
        run(spec, sink_logit="1,1,1,1", resume=True, **words)


@pytest.mark.parametrize("shards", [None, 2])
@pytest.mark.parametrize("name", ["window", "nystrom", "poly"])
def test_sketches_remember_them(tmp_path, name, shards):
    spec = _spec(tmp_path, 1200)
    kept = tmp_path / "s.sattn"
    make_sketch(spec, kept, shards, sink_logit=WORD, **METHODS[name])
    found = ask(kept, spec, tmp_path / "o.npy", audit=1200, k=spec.k, v=spec.v).audit.method.error
    assert found == pytest.approx(_error(np.load(tmp_path / "o.npy"), _expected(spec, False)), rel=1e-3)
    make_sketch(spec, tmp_path / "plain.sattn", shards, **METHODS[name])
    ask(tmp_path / "plain.sattn", spec, tmp_path / "p.npy")
    assert _error(np.load(tmp_path / "o.npy"), np.load(tmp_path / "p.npy")) > 0.01
    with pytest.raises(CheckpointIncompatible, match="other --sink-logit"):
        merge([str(kept), str(tmp_path / "plain.sattn")], str(tmp_path / "m.sattn"))


def test_where_they_come_from(tmp_path):
    """A file, a dataset beside the input, an attribute; of selected heads their own."""
    spec = _spec(tmp_path)
    np.save(tmp_path / "sinks.npy", np.array(SINKS, "f4"))
    (tmp_path / "sinks.txt").write_text("1.5, -0.5\n0 4\n")
    with h5py.File(tmp_path / "dump.h5", "w") as file:
        for part in "qkv":
            file[part] = np.load(getattr(spec, part))
        file["learned"] = np.array(SINKS)
    dump, expected = InputSpec(str(tmp_path / "dump.h5"), layout="THD"), _expected(spec, True)
    out = {"output": str(tmp_path / "o.npy"), "causal": True, "method": "exact", "force": True}
    for word in (tmp_path / "sinks.npy", tmp_path / "sinks.txt", "learned", f"{tmp_path / 'dump.h5'}:learned"):
        run(dump, sink_logit=str(word), **out)
        assert _error(np.load(tmp_path / "o.npy"), expected) < 2e-6
    with h5py.File(tmp_path / "dump.h5", "a") as file:
        file.attrs["sink_logit"] = np.array(SINKS)
    assert "sink_logit is taken from the file" in run(dump, **out).notes
    with pytest.raises(
        InputMissing,
        match=r"gone\.npy: there is no such file; and as a name in the input, .*dump\.h5: no array gone\.npy",
    ):
        run(dump, sink_logit="gone.npy", **out)
    with pytest.raises(InputMissing, match="gone.txt: no such file|gone.txt: No such file"):
        run(InputSpec(spec.q, layout="THD", record="q", k=spec.k, v=spec.v), sink_logit="gone.txt", **out)
    assert _error(np.load(tmp_path / "o.npy"), expected) < 2e-6
    run(InputSpec(str(tmp_path / "dump.h5"), layout="THD", select=(1,)), **out)
    assert _error(np.load(tmp_path / "o.npy"), expected[:, 2:]) < 2e-6
    run(dump, sink_logit="none", **out)
    assert _error(np.load(tmp_path / "o.npy"), expected) > 0.05


def test_batches_have_the_same_sinks(tmp_path):
    spec = _spec(tmp_path)
    batch = {part: str(tmp_path / f"b{part}.npy") for part in "qkv"}
    for part, name in batch.items():
        rows = np.load(getattr(spec, part))
        np.save(name, rows.reshape(2, 250, *rows.shape[1:]))
    run(InputSpec(**batch, layout="BTHD"), output=str(tmp_path / "o.npy"), causal=True, method="exact", sink_logit=WORD)
    first = _expected(spec, True)[:250]
    assert _error(np.load(tmp_path / "o.npy")[0], first) < 2e-6


def test_what_cannot_be_is_refused(tmp_path):
    spec = _spec(tmp_path)
    out = {"output": str(tmp_path / "o.npy"), "causal": True}
    with pytest.raises(InputMalformed, match="3 numbers found, .* has 4 query heads"):
        run(spec, sink_logit="1,2,3", **out)
    with pytest.raises(InputMalformed, match="expected one axis of finite numbers"):
        run(spec, sink_logit="1,2,3,nan", **out)
    with pytest.raises(CannotMeet, match="--sketches: with --local or --sink-logit"):
        run(spec, sink_logit=WORD, method="poly", sketches="psi", output=out["output"], causal=False)


def test_a_piece_of_some_heads_has_their_sinks(tmp_path):
    request = AttendRequest(_spec(tmp_path), causal=True, method="exact", sink_logit=WORD)
    with open_inputs(request.inputs) as inputs:
        problem = narrow(resolve(request, inputs), Piece(heads=(1, 2)))
    assert problem.sink_logits == SINKS[2:] and len(problem.q) == 2


@pytest.mark.parametrize("words", [{"method": "window", "window": 60}, {"method": "window", "local": 20}])
def test_steps_from_python(tmp_path, words):
    """Also after they were saved."""
    spec = _spec(tmp_path, 60)
    q, k, v = (np.load(getattr(spec, part)) for part in "qkv")
    layer = CausalAttention(sink_logit=SINKS, **words)
    found = [layer.step(q[:25], k[:25], v[:25])]
    layer.save(tmp_path / "layer.sattn")
    found.append(CausalAttention.load(tmp_path / "layer.sattn").step(q[25:], k[25:], v[25:]))
    assert _error(np.concatenate(found), _expected(spec, True, words.get("local"))) < 2e-6


@pytest.mark.parametrize("words", [{"local": "40"}, {"first_query": "end"}])
def test_adaptive_shares_are_refused_where_they_would_try_another_attention(tmp_path, words):
    spec = _spec(tmp_path, 300)
    np.save(spec.q, np.load(spec.q)[:200])
    request = AttendRequest(spec, causal=True, resident_rows=64, **words)
    with open_inputs(request.inputs) as inputs, pytest.raises(CannotMeet, match="omit --share"):
        tried(request, resolve(request, inputs))
