"""--first-query: causal attention of fewer queries than keys, as in chunked prefill and decoding."""

import contextlib

import clirun
import naive
import naive_variants
import numpy as np
import pytest
from keptruns import METHODS, run, save_stream
from keptruns import not_warmed as not_warmed

from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import CannotMeet, CheckpointIncompatible, InputMalformed, Interrupted, UsageError
from streamattn_cli.rows.spec import InputSpec

pytestmark = pytest.mark.usefixtures("not_warmed")
ROWS, HEADS = 700, 2
SEES_NO_QUERIES = ("window", "sample", "balance", "wildcat")  # what they keep does not depend on queries


def _spec(folder, first, count, heads=HEADS):
    """Queries of key rows first.. of a stream; returns the words of the whole one, too."""
    whole = save_stream(folder, ROWS, heads)
    q = np.load(folder / "q.npy")[first : first + count]
    np.save(folder / "some.npy", q)
    return whole, InputSpec(q=str(folder / "some.npy"), k=whole.k, v=whole.v, layout="THD")


def _expected(spec, first, count, scale=0.5):
    q, k, v = (np.load(getattr(spec, part)).astype("f8") for part in "qkv")
    heads = [
        naive.attention(
            np.concatenate([np.zeros((first, k.shape[2])), q[first : first + count, h]]), k[:, h], v[:, h], scale, True
        )[first:]
        for h in range(q.shape[1])
    ]
    return np.stack(heads, axis=1)


@pytest.mark.parametrize("method", ["exact", "window"])
@pytest.mark.parametrize("first, count", [(690, 10), (699, 1), (200, 77), (512, 188)])
def test_exact_methods_against_the_loops(tmp_path, method, first, count):
    whole, some = _spec(tmp_path, first, count, 1)
    words = {"window": 700} if method == "window" else {}
    run(some, output=str(tmp_path / "o.npy"), method=method, causal=True, first_query=str(first), **words)
    expected = _expected(whole, first, count)
    assert np.linalg.norm(np.load(tmp_path / "o.npy") - expected) <= 2e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("method", SEES_NO_QUERIES)
@pytest.mark.parametrize("first, count", [(690, 10), (301, 255)])
def test_the_same_bytes_as_all_queries_give(tmp_path, method, first, count):
    whole, some = _spec(tmp_path, first, count)
    words = METHODS[method] | {"causal": True}
    run(whole, output=str(tmp_path / "all.npy"), **words)
    run(some, output=str(tmp_path / "o.npy"), first_query=str(first), **words)
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), np.load(tmp_path / "all.npy")[first : first + count])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("first", [413, 512])
def test_every_method_is_audited_repaired_and_doubted(tmp_path, name, first):
    """All rows are audited: the error told is that of the answers, and repaired rows are exact."""
    count = ROWS - first
    whole, some = _spec(tmp_path, first, count)
    words = METHODS[name] | {"causal": True, "audit": count, "doubt": str(tmp_path / "d.npy"), "repair": "20"}
    outcome = run(some, output=str(tmp_path / "o.npy"), **words)
    expected, found = _expected(whole, first, count), np.load(tmp_path / "o.npy")
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert outcome.audit.method.error == pytest.approx(error, rel=1e-3, abs=1e-6)
    sizes = np.linalg.norm(
        expected, axis=2
    )  # small answers are sums that cancel: single precision rounds what is summed
    exact = np.linalg.norm(found - expected, axis=2) <= 1e-5 * sizes.mean()
    assert exact.sum() >= 20 * HEADS and outcome.counts["repaired_answers"] == 20 * HEADS
    assert (np.load(tmp_path / "d.npy")[exact] == 0).mean() > 0.5
    assert any("the last query sees the last key" in note for note in outcome.notes)


@pytest.mark.parametrize("name", METHODS)
def test_any_block_size_and_resume_give_the_same_bytes(tmp_path, name, monkeypatch):
    _, some = _spec(tmp_path, 301, 255)
    words = METHODS[name] | {"causal": True, "first_query": "301", "audit": 30}
    expected = run(some, output=str(tmp_path / "all.npy"), **words)
    out, kept = tmp_path / "o.npy", tmp_path / "c.sattn"
    for stops in (1, 3, 6, 8):
        kept.unlink(missing_ok=True)
        seen = []

        def check(self, seen=seen, stops=stops):
            seen.append(1)
            if len(seen) == stops:
                raise Interrupted(2)

        kw = {"output": str(out), "checkpoint": str(kept), "block_rows": 64, "force": True, **words}
        with monkeypatch.context() as patch:
            patch.setattr(Interrupts, "check", check)
            with contextlib.suppress(Interrupted):
                run(some, checkpoint_every="1rows", **kw)
        done = run(some, resume=True, **kw)
        np.testing.assert_array_equal(np.load(out), np.load(tmp_path / "all.npy"))
        if done.audit:
            assert done.audit.method.error == expected.audit.method.error


def test_resume_refuses_another_row(tmp_path):
    _, some = _spec(tmp_path, 301, 100)
    words = METHODS["window"] | {
        "causal": True,
        "output": str(tmp_path / "o.npy"),
        "checkpoint": str(tmp_path / "c.sattn"),
    }
    run(some, first_query="301", **words)
    with pytest.raises(CheckpointIncompatible, match="first_query"):
        run(some, first_query="300", resume=True, **words)


def test_nystrom_knows_the_queries_before_the_keys_pass(tmp_path):
    """One query beside the last key: what is kept for it suits it better than what would be kept for none."""
    rng = np.random.default_rng(3)
    k = rng.standard_normal((3000, 1, 8)).astype("f4") * 1.5
    np.save(tmp_path / "k.npy", k)
    np.save(tmp_path / "v.npy", rng.standard_normal((3000, 1, 8)).astype("f4"))
    q = rng.standard_normal((8, 1, 8)).astype("f4") * 0.1
    q[..., 0] = 4
    np.save(tmp_path / "q.npy", q)
    spec = InputSpec(**{part: str(tmp_path / f"{part}.npy") for part in "qkv"}, layout="THD")
    outcome = run(spec, output=str(tmp_path / "o.npy"), causal=True, method="nystrom", resident_rows=150, audit=8)
    assert outcome.audit.method.error < 0.3 * outcome.audit.trivial.error


def test_what_cannot_be_is_refused(tmp_path):
    whole, some = _spec(tmp_path, 0, 100)
    out = {"output": str(tmp_path / "o.npy"), "method": "window"}
    with pytest.raises(InputMalformed, match="stands beside a key, here from row 601 on"):
        run(some, causal=True, first_query="601", **out)
    with pytest.raises(UsageError, match="--first-query x: it must be a row"):
        run(some, causal=True, first_query="x", **out)
    np.save(tmp_path / "long.npy", np.zeros((ROWS + 1, HEADS, 4), "f4"))
    with pytest.raises(InputMalformed, match="every query stands beside a key"):
        run(InputSpec(q=str(tmp_path / "long.npy"), k=whole.k, v=whole.v, layout="THD"), causal=True, **out)
    with pytest.raises(CannotMeet, match="--first-query is for one sequence"):
        run(
            InputSpec(q=whole.q, k=whole.k, v=whole.v, layout="THD", starts="0,300,700"),
            causal=True,
            first_query="3",
            **out,
        )


def test_the_command_compare_and_plan(tmp_path):
    _, some = _spec(tmp_path, 0, 50)
    files = ["--q", some.q, "--k", some.k, "--v", some.v, "--layout", "THD"]
    done = clirun.run("attend", *files, "--causal", "--method", "window", "-o", tmp_path / "o.npy", "--json")
    assert done.document["facts"]["shapes"]["first_query"] == 650
    assert "the last query sees the last key, the first one keys up to row 650" in done.err
    planned = clirun.run(
        "attend", *files, "--causal", "--first-query", "7", "-o", tmp_path / "p.npy", "--dry-run", "--json"
    )
    assert planned.document["shapes"]["first_query"] == 7
    compared = clirun.run(
        "compare",
        *files,
        "--causal",
        "--methods",
        "window,nystrom",
        "--resident-rows",
        "160",
        "--audit",
        "50",
        "--json",
    ).document
    window, nystrom = (trial["audit"]["method"]["error"] for trial in compared["trials"])
    assert 0 < nystrom < 0.1 < window
    forecast = clirun.run("plan", *files, "--causal", "--json").document
    assert forecast["shapes"]["first_query"] == 650


def test_from_python():
    from streamattn_cli import attend, audit

    rng = np.random.default_rng(4)
    q, k, v = (rng.standard_normal((rows, 3)) for rows in (20, 90, 90))
    found = attend(q, k, v, causal=True, method="exact", local=30, sink_logit=[0.5], first_query=60).out
    expected = naive_variants.attention(q, k, v, 3**-0.5, range(60, 80), 30, 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert audit(found, q, k, v, causal=True, local=30, sink_logit=[0.5], first_query=60).method.error < 1e-10
    assert audit(found, q, k, v, causal=True, first_query=60).method.error > 0.1
    end = attend(q, k, v, causal=True, method="window", window=90).out
    np.testing.assert_allclose(end, naive_variants.attention(q, k, v, 3**-0.5, range(70, 90)), rtol=1e-10)
