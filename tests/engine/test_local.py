"""--local: sliding-window layers, answered exactly by their window, against the loops."""

import clirun
import h5py
import naive_variants
import numpy as np
import pytest
from keptruns import METHODS, ask, make_sketch, run, save_stream
from keptruns import not_warmed as not_warmed

from streamattn_cli.errors import CannotMeet, CheckpointIncompatible, InputMalformed, UsageError
from streamattn_cli.rows.spec import InputSpec

pytestmark = pytest.mark.usefixtures("not_warmed")
ROWS = 600


def _expected(spec, window, rows=range(ROWS)):
    q, k, v = (np.load(getattr(spec, part)) for part in "qkv")
    return np.stack([naive_variants.attention(q[:, 0], k[:, 0], v[:, 0], 0.5, rows, window)], axis=1)


def _near(found, expected, tolerance=2e-6):
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("method", ["exact", "window", "nystrom"])
@pytest.mark.parametrize("window", [1, 2, 31, 250, 599, 4000])
def test_against_the_loops(tmp_path, method, window):
    """Nothing older leaks in, wherever groups begin."""
    spec = save_stream(tmp_path, ROWS)
    outcome = run(spec, output=str(tmp_path / "o.npy"), method=method, causal=True, local=str(window))
    _near(np.load(tmp_path / "o.npy"), _expected(spec, window))
    assert outcome.facts["method"] == ("exact" if method == "exact" else "window")


def test_a_row_that_dominates_is_forgotten_when_the_window_has_passed(tmp_path):
    spec = save_stream(tmp_path, ROWS)
    k, q = np.load(spec.k), np.load(spec.q)
    k[100], q[:] = 30, 1
    np.save(spec.k, k), np.save(spec.q, q)
    run(spec, output=str(tmp_path / "o.npy"), causal=True, local="50", method="poly")
    found, v = np.load(tmp_path / "o.npy"), np.load(spec.v)
    np.testing.assert_allclose(found[100:150], np.broadcast_to(v[100], found[100:150].shape), rtol=1e-5)
    assert np.abs(found[150] - v[100]).max() > 0.1


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_answered_exactly_and_audited_against_local_attention(tmp_path, name):
    spec = save_stream(tmp_path, ROWS)
    words = METHODS[name] | {"causal": True, "audit": 40, "local": "70", "doubt": str(tmp_path / "d.npy")}
    outcome = run(spec, output=str(tmp_path / "o.npy"), repair="5", **words)
    assert outcome.audit.method.error < 2e-6 < 0.1 < outcome.audit.trivial.error
    assert not np.load(tmp_path / "d.npy").any()
    assert any("a row sees itself and the 69 before it" in note for note in outcome.notes)


def test_it_takes_the_window_and_no_more_memory(tmp_path):
    spec = save_stream(tmp_path, ROWS)
    outcome = run(spec, output=str(tmp_path / "o.npy"), causal=True, local="64", resident_rows=500)
    assert 64 <= outcome.facts["params"]["resident_rows"] <= 64 + 2 * 8 + 2


def test_sequences_and_fewer_queries(tmp_path):
    spec = save_stream(tmp_path, ROWS)
    packed = InputSpec(q=spec.q, k=spec.k, v=spec.v, layout="THD", starts="0,250,600")
    q, k, v = (np.load(getattr(spec, part))[:, 0] for part in "qkv")
    parts = [naive_variants.attention(q[a:b], k[a:b], v[a:b], 0.5, range(b - a), 40) for a, b in ((0, 250), (250, 600))]
    for method in ("window", "exact"):
        out = tmp_path / f"{method}.npy"
        found = run(packed, output=str(out), causal=True, local="40", method=method, audit=50)
        _near(np.load(out)[:, 0], np.concatenate(parts))
        assert method == "exact" or found.audit.method.error < 2e-6
    np.save(tmp_path / "q.npy", np.load(spec.q)[-30:])
    run(spec, output=str(tmp_path / "o.npy"), causal=True, local="40", audit=10)
    _near(np.load(tmp_path / "o.npy"), _expected(spec, 40, range(ROWS - 30, ROWS)))


def test_resume_refuses_another_window(tmp_path):
    spec = save_stream(tmp_path, ROWS)
    words = {"output": str(tmp_path / "o.npy"), "checkpoint": str(tmp_path / "c.sattn"), "causal": True}
    run(spec, local="40", **words)
    with pytest.raises(CheckpointIncompatible, match="local"):
        run(spec, local="41", resume=True, **words)
    with pytest.raises(CheckpointIncompatible, match="local"):
        run(spec, method="window", window=40, sinks=0, resume=True, **words)


@pytest.mark.parametrize("shards", [None, 2])
def test_a_sketch_keeps_its_last_rows_and_query_knows_it(tmp_path, shards):
    spec = save_stream(tmp_path, 1200)
    kept = tmp_path / "s.sattn"
    make_sketch(spec, kept, shards, local="90")
    outcome = ask(kept, spec, tmp_path / "o.npy", audit=20, k=spec.k, v=spec.v)
    _near(np.load(tmp_path / "o.npy"), _expected(spec, 90, [1199] * 1200))
    assert outcome.audit.method.error < 2e-6


def test_the_file_says_it_and_layers_differ(tmp_path):
    spec = save_stream(tmp_path, ROWS)
    with h5py.File(tmp_path / "dump.h5", "w") as file:
        for layer in range(3):
            for part in "qkv":
                file[f"layers.{layer}/{part}"] = np.load(getattr(spec, part))
    out = tmp_path / "out.h5"
    clirun.run(
        "attend", tmp_path / "dump.h5", "--layer", "all", "--layout", "THD", "--causal", "--local", "32:0,2", "-o", out
    )
    with h5py.File(out) as file:
        found = [file[f"layers/{layer}/out"][()] for layer in range(3)]
    for layer, window in enumerate((32, None, 32)):
        _near(found[layer], _expected(spec, window))
    with h5py.File(tmp_path / "dump.h5", "a") as file:
        file["layers.1"].attrs["local"] = 7
    clirun.run(
        "attend", tmp_path / "dump.h5", "--group", "layers.1", "--layout", "THD", "--causal", "-o", tmp_path / "o.npy"
    )
    _near(np.load(tmp_path / "o.npy"), _expected(spec, 7))


def test_what_cannot_be_is_refused(tmp_path):
    spec = save_stream(tmp_path, ROWS)
    out = {"output": str(tmp_path / "o.npy")}
    for word in ("0", "-3", "many"):
        with pytest.raises(UsageError, match=f"--local {word}: give the rows"):
            run(spec, local=word, causal=True, **out)
    with pytest.raises(UsageError, match="--layer must say"):
        run(spec, local="5:0", causal=True, **out)
    with pytest.raises(UsageError, match="local attention is causal"):
        run(spec, local="5", causal=False, **out)
    with pytest.raises(CannotMeet, match="--sketches: with --local"):
        run(spec, local="5", causal=True, method="poly", sketches="psi", **out)
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        for part in "qkv":
            file[part] = np.load(getattr(spec, part))
        file.attrs["local"] = "wide"
    with pytest.raises(InputMalformed, match="attribute local is 'wide'"):
        run(InputSpec(str(tmp_path / "bad.h5"), layout="THD"), causal=True, **out)
