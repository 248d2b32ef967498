"""Values near the ends of float32's range: answers are right, since values are counted in powers of two."""

import naive
import numpy as np
import pytest
from clirun import refused, run

from streamattn_cli import attend

ROWS, DIM = 300, 8
METHODS = ["exact", "window", "nystrom", "evict", "sample", "reservoir", "balance", "wildcat", "poly"]
BIG, SMALL = 6e37, 1e-37


def parts():
    random = np.random.default_rng(3)
    q, k, v = (random.standard_normal((ROWS, 2, DIM)).astype("f4") * np.float32(0.5) for _ in "qkv")
    return q, k, np.abs(2 * v)


def scaled(v):
    """Both ends in one tensor, one in each head."""
    return (v * np.array([BIG, SMALL])[:, None]).astype("f4")


def settings(method, causal):
    words = {"resident_rows": 96} if method not in ("exact", "poly") else {}
    return words | {"method": method, "causal": causal} | ({"max_error": np.inf} if method == "poly" else {})


def errors(out, v, causal):
    """Relative error of each head against float64."""
    q, k, _ = parts()
    truth = [naive.attention(*(x[:, h].astype("f8") for x in (q, k, v)), DIM**-0.5, causal) for h in range(2)]
    return [np.linalg.norm(out[:, h] - t) / np.linalg.norm(t) for h, t in enumerate(truth)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_values_near_the_ends_of_the_range_are_answered_as_others_are(method, causal):
    q, k, v = parts()
    plain = errors(attend(q, k, v, **settings(method, causal)).out, v, causal)
    done = attend(q, k, scaled(v), audit=32, **settings(method, causal))
    assert done.out.dtype == np.float32 and np.isfinite(done.out).all()
    for found, usual in zip(errors(done.out.astype("f8"), scaled(v).astype("f8"), causal), plain, strict=True):
        assert (
            found < (2 if method == "nystrom" else 1) * usual + 1e-6
        )  # which weighs values against weights, and chooses others
    if method != "exact":
        assert done.audit.method.error < 1.5 * max(plain) + 1e-6


def test_a_power_of_two_changes_no_digit():
    q, k, v = parts()
    for method in ("window", "evict", "exact"):
        plain = attend(q, k, v, **settings(method, True)).out
        far = attend(q, k, v * np.float32(2.0**125), **settings(method, True)).out
        assert np.array_equal(far, plain * np.float32(2.0**125))


def save(folder, v):
    for name, part in zip("qkv", (*parts()[:2], v), strict=True):
        np.save(folder / f"{name}.npy", part)


FILES = ("--q", "q.npy", "--k", "k.npy", "--v", "v.npy")


def test_the_bytes_do_not_depend_on_blocks_threads_or_engine(tmp_path):
    save(tmp_path, scaled(parts()[2]))
    cuts = [("--block-rows", "64", "--threads", "1"), ("--block-rows", "77", "--threads", "2"), ("--engine", "threads")]
    words = ("attend", *FILES, "--causal", "--resident-rows", "96", "--force", "-o")
    found = set()
    for cut in cuts:
        done = run(*words, "o.npy", *cut, cwd=tmp_path)
        assert "counted in powers of two" in done.err
        found.add((tmp_path / "o.npy").read_bytes())
    assert len(found) == 1


def test_a_sketch_remembers_what_its_values_are_counted_in(tmp_path):
    _, _, v = parts()
    save(tmp_path, scaled(v))
    some = (*FILES, "--resident-rows", "96", "--quiet", "--force", "-o")
    run("sketch", *some, "a.sattn", cwd=tmp_path)
    run("query", "a.sattn", "q.npy", "-o", "o.npy", "--quiet", cwd=tmp_path)
    whole = attend(*parts()[:2], scaled(v), **settings("nystrom", causal=False)).out
    assert np.array_equal(np.load(tmp_path / "o.npy"), whole)
    save(tmp_path, v)
    run("sketch", *some, "b.sattn", cwd=tmp_path)
    merged = ("merge", "a.sattn", "b.sattn", "-o", "c.sattn")
    refused(*merged, code=8, words=["other powers of two", "--append"], cwd=tmp_path)


def test_what_no_power_of_two_can_mend_is_counted(tmp_path):
    v = parts()[2]
    v[100:] = 3e38  # not in the first rows
    save(tmp_path, v)
    words = ("attend", *FILES, "--method", "exact", "--quiet", "-o", "o.npy")
    refused(*words, code=5, words=["answers are not finite"], cwd=tmp_path)
    assert not (tmp_path / "o.npy").exists()
