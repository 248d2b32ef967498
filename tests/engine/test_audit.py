"""The audit: stratified samples, estimates by head and position, and intervals that hold what they promise."""

import json
import tracemalloc
from dataclasses import replace

import naive
import numpy as np
import pytest
from clirun import FILES, SAMPLE, run, save_heads

from streamattn_cli.engine.audit.audit import compare_answers
from streamattn_cli.engine.audit.estimate import (
    Design,
    Strata,
    by_position,
    draw_rows,
    estimate,
    estimate_bytes,
    worst_rows,
)


@pytest.mark.parametrize(
    "total, count", [(1, 1), (7, 7), (64, 64), (65, 64), (100, 16), (1000, 64), (8192, 257), (17, 16)]
)
def test_samples_are_drawn_evenly_from_strata(total, count):
    design, strata = draw_rows(total, count, seed=3), Strata.of(total, count)
    assert len(design.rows) == count == len(set(design.rows)) and design.rows.dtype == np.int64
    assert (np.diff(design.rows) > 0).all() and 0 <= design.rows[0] and design.rows[-1] < total == design.total
    assert strata.edges[0] == 0 and strata.edges[-1] == total and strata.counts.sum() == count
    assert (np.histogram(design.rows, strata.edges)[0] == strata.counts).all()
    assert (1 / design.chances).sum() == pytest.approx(total)
    assert np.ptp(design.chances) < 0.13 or len(strata.counts) == 1
    assert (draw_rows(total, count, seed=3).rows == design.rows).all()


def test_every_row_is_as_likely_as_any_other():
    hits = np.zeros(100)
    for seed in range(2000):
        hits[draw_rows(100, 32, seed).rows] += 1
    assert abs(hits / 2000 - 0.32).max() < 0.06  # 5.7 standard deviations


def test_the_estimate_is_the_ratio_of_the_totals():
    rng = np.random.default_rng(5)
    wrong, size = rng.random((40, 3)), 1 + rng.random((40, 3))
    everything = Design(np.arange(40), np.ones(40), 40)
    for column, found in enumerate(estimate(wrong, size, everything)):
        truth = np.sqrt(wrong[:, column].sum() / size[:, column].sum())
        assert (found.error, found.low, found.high) == pytest.approx((truth,) * 3)  # all rows seen: no doubt is left
        rows = np.sqrt(wrong[:, column] / size[:, column])
        assert (found.median_row, found.p95_row) == pytest.approx((np.median(rows), np.quantile(rows, 0.95)))
    weights = np.repeat([10 / 4, 30 / 6], [4, 6])
    some = Design(np.array([0, 1, 2, 3, 10, 11, 12, 13, 14, 15]), 1 / weights, 40)
    (found,) = estimate(wrong[:10, :1], size[:10, :1], some)
    assert found.error == pytest.approx(np.sqrt(weights @ wrong[:10, 0] / (weights @ size[:10, 0])))
    assert found.low < found.error < found.high


def test_no_error_of_large_answers_warns_of_nothing():
    """Beside a norm of 1e30 no error is nothing: its logarithm warned on the terminal."""
    (found,) = estimate(np.zeros((9, 1)), np.full((9, 1), 1e30), draw_rows(90, 9, 0))
    assert found.error == found.low == found.high == 0


@pytest.mark.parametrize("power", [-1000, -600, -300, 300, 600, 1000])
def test_the_size_of_float64_answers_changes_no_figure(rng, power):
    """Squares of answers beyond 1e154 were infinite, those of answers below 1e-162 were 0: exact, it was told."""
    exact, rows = rng.standard_normal((20, 2, 3)), draw_rows(500, 20, 0)
    approx, trivial = exact + 0.1 * rng.standard_normal(exact.shape), np.ones(exact.shape)
    usual, _ = compare_answers(exact, trivial, approx, rows)
    found, _ = compare_answers(*(x * 2.0**power for x in (exact, trivial, approx)), rows)
    assert found == replace(usual, norm=usual.norm * 2.0**power, norms=tuple(norm * 2.0**power for norm in usual.norms))


def test_no_error_has_a_certain_interval_and_few_rows_have_none():
    zero, one = np.zeros((20, 1)), np.ones((20, 1))
    (found,) = estimate(zero, one, Design(np.arange(20), np.full(20, 20 / 500), 500))
    assert (found.error, found.low, found.high) == (0, 0, 0)
    (found,) = estimate(one[:5], one[:5], Design(np.arange(5), np.full(5, 5 / 500), 500))
    assert (found.error, found.low, found.high) == (1, 0, np.inf)


@pytest.mark.parametrize("total, low", [(20, np.inf), (500, 0)])
def test_what_should_be_0_and_is_not_is_infinitely_wrong(total, low):
    """Told were 1e150 and limits of 1e130, since divisors had a least value."""
    wrong, size = np.array([[0.0, 1.0, 0.0]] * 20), np.zeros((20, 3))
    zero, one, _ = estimate(wrong, size, draw_rows(total, 20, 0))
    assert (zero.error, zero.low, zero.high) == (0, 0, 0) and zero.enough
    assert (one.error, one.low, one.high, one.median_row, one.p95_row) == (np.inf, low, np.inf, np.inf, np.inf)
    assert one.enough == (total == 20)


@pytest.mark.parametrize("skew, least", [(0.5, 0.93), (1.0, 0.90)])
def test_intervals_cover_the_truth_of_skewed_rows(skew, least):
    rng = np.random.default_rng(11)
    wrong, size = np.exp(skew * 2 * rng.standard_normal((4000, 1))), np.exp(0.3 * rng.standard_normal((4000, 1)))
    wrong *= np.linspace(0.2, 2, 4000)[:, None]  # errors grow along the stream
    assert covered(wrong, size, rows=128, trials=200) >= least


def covered(wrong, size, rows, trials):
    """The share of trials whose interval holds the truth."""
    truth = np.sqrt(wrong.sum() / size.sum())
    hits = 0
    for seed in range(trials):
        design = draw_rows(len(wrong), rows, seed)
        (found,) = estimate(wrong[design.rows], size[design.rows], design)
        hits += found.low <= truth <= found.high
    return hits / trials


def test_intervals_cover_the_truth_of_a_real_head(tmp_path):
    heads = [SAMPLE / "heads.h5", "--rows", "0:2500", "--quiet"]
    run("attend", *heads, "--method", "exact", "-o", tmp_path / "exact.npy")
    run("attend", *heads, "--method", "window", "--resident-rows", "128", "-o", tmp_path / "window.npy")
    exact, window = (np.load(tmp_path / f"{name}.npy").astype(np.float64) for name in ("exact", "window"))
    wrong, size = ((x**2).sum(axis=(1, 2))[:, None] for x in (window - exact, exact))
    assert covered(wrong, size, rows=96, trials=150) >= 0.93


def test_errors_by_position_and_the_worst_rows():
    rows = np.arange(0, 400, 5)
    wrong = np.zeros((80, 2))
    wrong[rows >= 200, 1] = 4.0
    wrong[7, 0] = 81.0
    size = np.ones((80, 2))
    edges, found = by_position(wrong, size, Design(rows, np.full(80, 0.2), 400))
    assert edges == list(range(0, 401, 25)) and [len(head) for head in found] == [16, 16]
    assert found[1] == [0.0] * 8 + [2.0] * 8 and found[0][1] == pytest.approx(np.sqrt(81 / 5), rel=1e-3)
    worst = worst_rows(wrong, size, rows)
    assert (worst[0].row, worst[0].head, worst[0].error) == (35, 0, 9.0)
    assert all(w.head == 1 and w.row >= 200 and w.error == 2.0 for w in worst[1:])


def test_a_piece_without_rows_is_empty():
    edges, found = by_position(np.ones((8, 1)), np.ones((8, 1)), Design(np.arange(8), np.full(8, 0.08), 100))
    assert edges == [0, 50, 100] and found == [[1.0, None]]


def test_errors_that_are_told_as_the_same_are_in_the_order_of_rows():
    """Which of two is larger in the twelfth digit depends on how a run was cut."""
    wrong = np.full((30, 2), 1e-6)
    wrong[:12] *= 4 * (1 + 1e-9 * np.arange(24).reshape(12, 2))
    worst = worst_rows(wrong, np.ones((30, 2)), np.arange(100, 130))
    assert [(w.row, w.head) for w in worst] == [(100 + i // 2, i % 2) for i in range(10)]
    assert {w.error for w in worst} == {0.002}
    assert worst_rows(wrong[:0], wrong[:0], np.arange(0)) == ()
    exact = worst_rows(np.zeros((30, 2)), np.ones((30, 2)), np.arange(30))
    assert [(w.row, w.head, w.error) for w in exact] == [(i // 2, i % 2, 0) for i in range(10)]


def test_many_rows_that_are_equally_wrong_cost_no_memory():
    """All rows of a method that is exact are: none but the worst become objects."""
    wrong = np.zeros((100_000, 4))
    tracemalloc.start()
    try:
        assert len(worst_rows(wrong, np.ones_like(wrong), np.arange(100_000))) == 10
        assert tracemalloc.get_traced_memory()[1] < 12 * wrong.nbytes
    finally:
        tracemalloc.stop()


def test_an_outcome_tells_heads_positions_and_worst_rows(tmp_path):
    words = ("attend", SAMPLE / "heads.h5", "--rows", "0:1500", "--method", "window", "--window", "32", "--audit", "80")
    done = run(*words, "--json", "-o", tmp_path / "out.npy")
    audit = done.document["audit"]
    assert 70 <= audit["rows"] <= 80 and len(audit["heads"]) == len(audit["by_position"]) == 3
    assert audit["edges"][0] == 0 and audit["edges"][-1] == 1500
    assert audit["by_position"][0][0] < audit["by_position"][0][-1]  # the first rows lie within the window
    assert audit["worst"] == sorted(audit["worst"], key=lambda w: -w["error"]) and len(audit["worst"]) == 10
    total = np.sqrt(np.mean([h["error"] ** 2 for h in audit["heads"]]))
    assert 0.5 * total < audit["method"]["error"] < 2 * total
    kept = json.loads((tmp_path / "out.npy.json").read_text())["audit"]
    assert kept["method"] == audit["method"] and "by_position" not in kept  # attributes of a file must stay small
    text = run(*words, "--force", "-o", tmp_path / "out.npy").err
    assert "  heads  " in text and "  worst  " in text and "(head " in text


METHODS = {  # the words, and what they mean for the oracle: sinks, group, window
    "nystrom": ["--resident-rows", "150", "--buffer", "8", "--window", "20", "--sinks", "5"],
    "window": ["--window", "33", "--sinks", "2"],
    "poly": ["--degree", "1", "--max-error", "9", "--sinks", "3"],
    "evict": ["--resident-rows", "120", "--buffer", "4"],
}


@pytest.mark.parametrize("mode", ["--causal", "--full"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_history_mass_is_that_of_the_oracle(tmp_path, method, mode):
    arrays = save_heads(tmp_path, rows=700, dim=6, value_dim=4, factor=1.5)
    words = ("--method", method, *METHODS[method], mode, "--audit", "700", "--seed", "5", "--scale", "0.5")
    done = run("attend", *FILES, *words, "--json", "-o", "out.npy", cwd=tmp_path)
    params = done.document["facts"]["params"]
    group = None if method == "window" else params["group"]
    rows = np.arange(700)
    expected = naive.history_mass(
        arrays["q"], arrays["k"], 0.5, rows, params["sinks"], group, params["window"], mode == "--causal"
    )
    (found,) = done.document["audit"]["history_mass"]
    assert 0.05 < found < 1 and found == pytest.approx(np.mean(expected), rel=1e-5)
    text = run("attend", *FILES, *words, "--force", "-o", "out.npy", cwd=tmp_path).err
    assert f"  history  {100 * found:.3g}% of the exact attention" in text
    assert json.loads((tmp_path / "out.npy.json").read_text())["audit"]["history_mass"] == found


def test_each_head_has_its_history_mass_and_blocks_do_not_matter(tmp_path):
    words = ("attend", SAMPLE / "heads.h5", "--rows", "0:1500", "--resident-rows", "128", "--audit", "40", "--json")
    one = run(*words, "-o", tmp_path / "a.npy").document["audit"]["history_mass"]
    two = run(*words, "--block-rows", "96", "-o", tmp_path / "b.npy").document["audit"]["history_mass"]
    assert one == two and len(set(one)) == 3 and all(0 < share < 1 for share in one)


def test_the_history_mass_of_a_pipe_of_keys_is_not_known(tmp_path):
    arrays = save_heads(tmp_path, rows=900, dim=4, value_dim=4)
    keys = np.concatenate([arrays["k"], arrays["v"]], axis=1).tobytes()
    files = ("-", "--q", "q.npy", "--raw", "f32", "--dim", "4", "--full", "--resident-rows", "100", "--audit", "20")
    done = run("attend", *files, "--json", "-o", "out.npy", input=keys, cwd=tmp_path)
    assert done.document["audit"]["history_mass"] == [] and done.document["audit"]["rows"] == 20
    assert "history_mass" not in json.loads((tmp_path / "out.npy.json").read_text())["audit"]


def test_guarded_and_clipped_rows_are_told(tmp_path):
    arrays = save_heads(tmp_path, rows=3000, dim=4, value_dim=4, factor=0.3)
    arrays["k"][2000:2010] *= 40  # far outside what the first rows lead one to expect
    arrays["q"][2500:2503] *= 40
    for name in "kq":
        np.save(tmp_path / f"{name}.npy", arrays[name])
    words = ("--method", "poly", "--degree", "2", "--full", "--audit", "16", "--beta", "60", "-o", "out.npy")
    assert "clipped queries 3, doubted answers" in run("attend", *FILES, *words, cwd=tmp_path).err
    done = run("attend", *FILES, *words, "--json", "--force", cwd=tmp_path)
    (tmp_path / "run.json").write_bytes(done.out)
    counts = done.document["counts"]
    assert counts["clipped_keys"] == 0 and counts["clipped_queries"] == 3 and counts["doubted_answers"] >= 3
    run("report", "run.json", "-o", "run.html", cwd=tmp_path)
    page = (tmp_path / "run.html").read_text()
    assert "clipped keys 0, clipped queries 3, guarded queries" in page
    assert "History mass" in page


def test_a_sample_from_a_pipe_has_the_same_figures(tmp_path):
    arrays = save_heads(tmp_path, rows=900, dim=4, value_dim=4)
    files = ("--q", "-", "--k", "k.npy", "--v", "v.npy", "--raw", "f32", "--dim", "4", "--full")
    words = ("--method", "sample", "--resident-rows", "100", "--audit", "64", "--json", "-o", "out.npy")
    done = run("attend", *files, *words, input=arrays["q"].tobytes(), cwd=tmp_path)
    audit = done.document["audit"]
    assert 55 <= audit["rows"] <= 64 and audit["edges"][-1] == 900
    assert audit["method"]["low"] < audit["method"]["error"] < audit["method"]["high"]


def test_an_unknown_interval_is_null_in_json(tmp_path):
    words = ("--rows", "0:200", "--method", "window", "--window", "16", "--audit", "3", "--json")
    done = run("attend", SAMPLE / "heads.h5", *words, "-o", tmp_path / "out.npy")
    kept = (tmp_path / "out.npy.json").read_text()
    assert "Infinity" not in kept and json.loads(kept)["audit"]["method"]["high"] is None
    assert done.document["audit"]["method"]["high"] is None and done.document["audit"]["method"]["low"] == 0


def test_the_series_of_a_run_is_bounded(tmp_path):
    words = ("--method", "window", "--window", "16", "--block-rows", "16", "--json")
    done = run("attend", SAMPLE / "heads.h5", *words, "-o", tmp_path / "out.npy")
    series = done.document["series"]
    lengths = {len(column) for column in series.values()}
    assert len(lengths) == 1 and 8 <= lengths.pop() <= 120
    assert series["rows"] == sorted(series["rows"]) and series["seconds"] == sorted(series["seconds"])


@pytest.mark.parametrize("rows, columns", [(9, 3), (16, 18), (64, 6), (256, 3), (512, 66), (1024, 18), (4096, 258)])
def test_estimating_stays_within_its_bound(rows, columns):
    import tracemalloc

    rng = np.random.default_rng(0)
    wrong, size = rng.random((2, rows, columns))
    design = draw_rows(100000, rows, 0)
    peaks = []
    for _ in range(3):  # other threads of the process, such as those of pytest-xdist, may allocate meanwhile
        tracemalloc.start()
        estimate(wrong, size, design)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    peak = min(peaks)
    assert peak <= estimate_bytes(rows, columns) <= 3 * peak


@pytest.mark.parametrize(
    "words", [(), ("--method", "exact"), ("--method", "exact", "--engine", "threads"), ("--out-dtype", "f16")]
)
def test_rounding_is_a_part_of_the_error(tmp_path, words):
    """All rows fit, logits of thousands: float32 is wrong by 1e-5. An exact answer in float32 beside it told 5e-9, and of
    exact attention nothing was told."""
    arrays = save_heads(tmp_path, rows=300, factor=30)
    q, k, v = (arrays[part].astype("f8") for part in "qkv")
    logits = q @ k.T / np.sqrt(8)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    exact = weights @ v / weights.sum(axis=1, keepdims=True)
    done = run("attend", *FILES, "--full", *words, "--audit", "300", "--json", "-o", "out.npy", cwd=tmp_path)
    told = done.document["audit"]["method"]["error"]
    wrong = np.linalg.norm(np.load(tmp_path / "out.npy").astype("f8") - exact) / np.linalg.norm(exact)
    assert wrong > 1e-6 and told == pytest.approx(wrong, rel=1e-3)
