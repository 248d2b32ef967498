"""The audit sees what is rare, counts what is written, and knows when it cannot tell."""

import json

import numpy as np
import pytest
from clirun import FILES, SAMPLE, run, save_heads

from streamattn_cli.engine.audit.audit import ANSWER, DOUBT, FACTS, compare_answers, facts_of_rows
from streamattn_cli.engine.audit.estimate import Design, draw_rows, estimate, weighted_quantile
from streamattn_cli.engine.audit.sample import SizeSample, uniform

ROWS = 4000


def rare_long_queries(folder):
    """Most queries are short; ten long ones meet keys with large values."""
    rng = np.random.default_rng(12)
    k, v = (rng.standard_normal((ROWS, 4)).astype("f4") for _ in "kv")
    k *= 0.4
    k[:16], v[:16] = 1.5, 30
    q = (rng.standard_normal((ROWS, 4)) * 0.05).astype("f4")
    hot = rng.choice(ROWS, 10, replace=False)
    q[hot] = 1.7
    for name, rows in (("q", q), ("k", k), ("v", v)):
        np.save(folder / f"{name}.npy", rows)
    return np.sort(hot)


def truth(folder, *words, out="out.npy"):
    """The relative error of all rows of an output, and those of single rows."""
    run("attend", *FILES, *words, "--method", "exact", "-o", "exact.npy", "--quiet", "--force", cwd=folder)
    exact, found = (np.load(folder / name).astype("f8").reshape(ROWS, -1) for name in ("exact.npy", out))
    wrong, size = ((x**2).sum(axis=1) for x in (found - exact, exact))
    return np.sqrt(wrong.sum() / size.sum()), np.sqrt(wrong / size)


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_a_method_clips_are_audited_and_reported_apart(tmp_path, seed):
    hot = rare_long_queries(tmp_path)
    words = ("--method", "poly", "--degree", "2", "--beta", "1", "--max-error", "99", "--full", "--seed", str(seed))
    done = run("attend", *FILES, *words, "--audit", "64", "-o", "out.npy", "--json", cwd=tmp_path)
    error, rows = truth(tmp_path, "--full")
    audit = done.document["audit"]
    assert error > 0.5 and audit["method"]["low"] <= error <= audit["method"]["high"]
    assert audit["method"]["error"] == pytest.approx(error, rel=0.1)
    flagged = audit["flagged"]
    assert flagged["rows"] == flagged["audited"] == len(hot)
    assert (
        flagged["error"]["error"] == pytest.approx(flagged["error"]["low"]) == flagged["error"]["high"]
    )  # all were met
    assert {w["row"] for w in audit["worst"]} == set(hot) or rows[hot].min() < np.sort(rows)[-10]
    text = run("attend", *FILES, *words, "--audit", "64", "-o", "out.npy", "--force", cwd=tmp_path).err
    assert f"{len(hot)} rows the method does not answer for, error" in text


def test_the_sample_is_the_same_for_any_blocks_threads_and_resume(tmp_path):
    rare_long_queries(tmp_path)
    words = (
        "attend",
        *FILES,
        "--causal",
        "--resident-rows",
        "96",
        "--audit",
        "64",
        "--json",
        "--force",
        "-o",
        "out.npy",
    )

    def audit(*more):
        return json.loads(run(*words, *more, cwd=tmp_path).out)["audit"]

    first = audit()
    assert first["rows"] > 40
    assert first == audit("--block-rows", "96", "--threads", "1") == audit("--threads", "2", "--block-rows", "512")


@pytest.mark.parametrize("factor, dtype", [(1e-6, "f16"), (1.0, "f16")])
def test_what_is_measured_is_what_is_written(tmp_path, factor, dtype):
    arrays = save_heads(tmp_path, rows=ROWS, dim=4, value_dim=4)
    np.save(tmp_path / "v.npy", (arrays["v"] * factor).astype("f4"))
    words = ("--full", "--method", "poly", "--degree", "12", "--max-error", "9")
    done = run(
        "attend", *FILES, *words, "--out-dtype", dtype, "--audit", "256", "--json", "-o", "out.npy", cwd=tmp_path
    )
    error, _ = truth(tmp_path, "--full", "--out-dtype", "f64")
    found = done.document["audit"]["method"]
    assert found["low"] <= error <= found["high"] and found["error"] == pytest.approx(error, rel=0.2)


def test_an_infinite_answer_is_infinitely_wrong():
    exact = np.ones((20, 1, 2))
    approx = exact.copy()
    approx[3, 0, 1] = np.inf
    design = Design(np.arange(20), np.full(20, 0.1), 200)
    audit, reason = compare_answers(exact, exact * 0, approx, design)
    assert reason is None and audit.method.error == audit.method.high == np.inf
    assert audit.rows == 20 and audit.worst[0].row == 3
    approx[4] = np.nan  # a query that was dropped
    assert compare_answers(exact, exact * 0, approx, design)[0].rows == 19


def test_one_row_that_stands_for_most_of_the_error_is_not_enough_to_tell():
    design = Design(np.arange(64), np.full(64, 0.01), 6400)
    wrong = np.full((64, 1), 1e-4)
    (found,) = estimate(wrong, np.ones((64, 1)), design)
    assert found.enough
    wrong[7] = 1.0
    (found,) = estimate(wrong, np.ones((64, 1)), design)
    assert not found.enough
    sure = Design(design.rows, np.where(np.arange(64) == 7, 1.0, 0.01), 6400)  # it stands for itself alone
    assert estimate(wrong, np.ones((64, 1)), sure)[0].enough


def test_too_few_rows_are_told(tmp_path):
    text = run("attend", SAMPLE / "heads.h5", "--resident-rows", "128", "--audit", "5", "-o", tmp_path / "o.npy").err
    assert "not enough rows to tell; use --audit 64" in " ".join(text.split())


def test_a_sample_that_meets_no_row_that_is_doubted_cannot_tell(tmp_path):
    """The first rows of a causal run are exact, and eight rows may all be of them."""
    save_heads(tmp_path, rows=405)
    words = ("attend", *FILES, "--causal", "--method", "window", "--resident-rows", "400", "-o", "out.npy", "--force")
    told = []
    for seed in (0, 5):
        method = run(*words, "--audit", "8", "--seed", seed, "--json", cwd=tmp_path).document["audit"]["method"]
        told += [(seed, method["enough"])] if method["error"] < 1e-6 else []
    assert told == [(0, False), (5, False)]
    text = run(*words, "--audit", "8", "--seed", told[0][0], cwd=tmp_path).err
    assert "not enough rows to tell; use --audit 64" in " ".join(text.split())
    assert run(*words, "--audit", "405", "--json", cwd=tmp_path).document["audit"]["method"]["enough"]


@pytest.mark.parametrize("blocks", [[1] * 300, [300], [7, 200, 93]])
def test_a_sample_by_size_is_the_same_for_any_blocks(blocks):
    sizes = np.random.default_rng(3).pareto(1.5, 300)
    sizes[40:60] = 0
    sample, at = SizeSample(20, 9, 2, 3, 1, 0, "f4"), 0
    for n in blocks:
        rows = np.arange(at, at + n)
        answers = np.broadcast_to(rows[:, None, None], (n, 2, 3)).astype("f4")
        sample.offer(at, sizes[rows], sizes[rows, None], answers)
        at += n
    chosen = sample.rows[sample.chosen]
    with np.errstate(divide="ignore"):
        keys = uniform(np.arange(300, dtype=np.uint64), 9) / sizes
    assert (chosen == np.argsort(keys)[:20]).all() and (sample.answers[sample.chosen, 1, 2] == chosen).all()
    assert (sample.facts[sample.chosen, 0] == sizes[chosen]).all()
    inside = sample.chances(chosen, sizes[chosen])
    assert (inside == np.minimum(1, sizes[chosen] * np.sort(keys)[20])).all()


def test_totals_from_samples_by_size_are_unbiased():
    """Horvitz-Thompson over the union of an even sample and one by size: the mean of many is the total."""
    rng = np.random.default_rng(1)
    sizes = rng.pareto(1.2, 500)
    values = sizes * rng.random(500)
    found = []
    for seed in range(600):
        even, chosen = draw_rows(500, 20, seed), SizeSample(20, seed, 1, 1, 1, 0, "f4")
        chosen.offer(0, sizes, sizes[:, None], np.zeros((500, 1, 1)))
        rows = np.union1d(even.rows, chosen.rows[chosen.chosen])
        missed = (1 - 20 / 500) * (1 - chosen.chances(rows, sizes[rows]))
        found.append((values[rows] / (1 - missed)).sum())
    assert np.mean(found) == pytest.approx(values.sum(), rel=4 * np.std(found) / np.sqrt(600) / values.sum())
    assert np.std(found) < 0.25 * values.sum()


def test_all_rows_are_kept_where_there_are_fewer_than_asked_for():
    sample = SizeSample(20, 0, 1, 1, 1, 0, "f4")
    sizes = np.array([0.0, 1.0, 2.0, 0.0, 5.0])
    sample.offer(0, sizes, sizes[:, None], np.zeros((5, 1, 1)))
    assert sorted(sample.rows[sample.chosen]) == [1, 2, 4]
    assert sample.chances(np.arange(5), sizes).tolist() == [0, 1, 1, 0, 1]


def test_facts_of_rows_are_sums_over_heads():
    rng = np.random.default_rng(2)
    answers, doubt = rng.standard_normal((5, 3, 6)).astype("f4"), rng.random((5, 3)).astype("f4")
    answers[1], doubt[1], doubt[2, 1], doubt[3, 2] = np.nan, np.inf, np.inf, 0.99
    facts = facts_of_rows(answers, doubt)
    norms = (answers.astype("f8") ** 2).sum(axis=2)
    assert facts.shape == (5, FACTS) and (facts[1] == 0).all() and facts[[0, 2, 3, 4], 3].tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(facts[0, ANSWER], norms[0].sum(), rtol=1e-12)
    np.testing.assert_allclose(facts[2, DOUBT], (norms[2] * np.minimum(doubt[2], 4) ** 2).sum(), rtol=1e-6)


def test_weighted_quantiles_are_those_of_rows_that_are_repeated():
    rng = np.random.default_rng(4)
    values = rng.random((9, 2))
    for share in (0, 0.3, 0.5, 0.95, 1):
        np.testing.assert_allclose(weighted_quantile(values, np.ones(9), share), np.quantile(values, share, axis=0))
    heavy = np.ones(9)
    heavy[values[:, 0].argmax()] = 1000.0
    assert weighted_quantile(values[:, :1], heavy, 0.95)[0] == values[:, 0].max()


@pytest.mark.parametrize("rows", [600, 2500])
def test_an_audit_of_many_rows_stays_within_its_projection(tmp_path, rows):
    words = (
        "attend",
        SAMPLE / "heads.h5",
        "--rows",
        "0:2500",
        "--resident-rows",
        "128",
        "--audit",
        str(rows),
        "--json",
    )
    run(*words, "-o", tmp_path / "o.npy")  # kernels are compiled
    memory = run(*words, "-o", tmp_path / "o.npy", "--force").document["memory"]
    assert 0.5 * memory["projected"] <= memory["peak"] <= memory["projected"]
