"""`query --audit`: how wrong a saved sketch is, measured against the keys and values that it was made of."""

import json

import numpy as np
import pytest
from clirun import SAMPLE, record_bytes, refused, run

HEADS = SAMPLE / "heads.h5"
KEYS = ("--k", HEADS, "--v", HEADS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sketch of all rows, two of halves and what they merge into, and the exact answers."""
    folder = tmp_path_factory.mktemp("audited")
    small = ("--resident-rows", "256", "--quiet", "-o")
    run("sketch", HEADS, *small, "all.sattn", cwd=folder)
    for name, rows in (("a", "0:2048"), ("b", "2048:4096")):
        run("sketch", HEADS, "--rows", rows, *small, f"{name}.sattn", cwd=folder)
    run("merge", "a.sattn", "b.sattn", "-o", "merged.sattn", cwd=folder)
    run("attend", HEADS, "--full", "--method", "exact", "-o", "exact.npy", cwd=folder)
    return folder


def relative(found, exact):
    found, exact = np.load(found).astype("f8"), np.load(exact).astype("f8")
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("name", ["all", "merged"])
def test_the_error_of_all_rows_is_that_of_the_answers(made, tmp_path, name):
    words = ("query", made / f"{name}.sattn", f"{HEADS}:/q", "--audit", "4096", *KEYS, "--json")
    audit = run(*words, "-o", tmp_path / "a.npy").document["audit"]
    assert audit["rows"] == 4096
    assert audit["method"]["error"] == pytest.approx(relative(tmp_path / "a.npy", made / "exact.npy"), rel=1e-4)
    kept = json.loads((tmp_path / "a.npy.json").read_text())["audit"]
    assert kept["method"] == audit["method"]


def test_a_sample_tells_it_too_and_changes_no_answer(made, tmp_path):
    words = ("query", made / "all.sattn", f"{HEADS}:/q", "-o")
    run(*words, tmp_path / "plain.npy")
    text = run(*words, tmp_path / "a.npy", "--audit", "256", *KEYS).err
    assert "(256 rows audited)" in " ".join(text.split()) or "rows audited" in text
    done = run(*words, tmp_path / "b.npy", "--audit", "256", *KEYS, "--json", "--block-rows", "100").document["audit"]
    error = relative(tmp_path / "a.npy", made / "exact.npy")
    assert done["method"]["low"] <= error <= done["method"]["high"]
    assert (
        (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes() == (tmp_path / "plain.npy").read_bytes()
    )


def test_queries_from_a_pipe_are_audited(made, tmp_path):
    q = np.random.default_rng(0).standard_normal((300, 3, 64)).astype("f2")
    np.save(tmp_path / "q.npy", q)
    words = ("--audit", "300", *KEYS, "--json", "-o")
    piped = run(
        "query", made / "all.sattn", "-", *words, tmp_path / "a.npy", input=record_bytes(q[:100], q[100:])
    ).document
    stored = run("query", made / "all.sattn", tmp_path / "q.npy", *words, tmp_path / "b.npy").document
    assert piped["audit"]["rows"] > 150 and stored["audit"]["rows"] == 300
    assert piped["audit"]["method"]["low"] <= stored["audit"]["method"]["error"] <= piped["audit"]["method"]["high"]


def test_of_part_of_a_file_the_rows_are_named(made, tmp_path):
    words = ("query", made / "a.sattn", f"{HEADS}:/q", "--audit", "64", *KEYS, "-o", tmp_path / "a.npy")
    refused(
        *words, code=4, words=["4096 rows found", "a.sattn was made of", "2048 rows", "--rows A:B"], folder=tmp_path
    )
    assert run(*words, "--rows", "0:2048", "--json").document["audit"]["rows"] > 0


def test_of_fused_rows_the_sketch_knows_how_long_values_are(tmp_path):
    rng = np.random.default_rng(0)
    for part, width in zip("qkv", (4, 4, 10), strict=True):
        np.save(tmp_path / f"{part}.npy", rng.standard_normal((50, 2 * width)).astype("f4"))
    fused = ("--layout", "TC", "--heads", "2", "--quiet", "-o")
    run("sketch", "--k", "k.npy", "--v", "v.npy", "--dim", "4", "--value-dim", "10", *fused, "s.sattn", cwd=tmp_path)
    words = ("query", "s.sattn", "q.npy", "--k", "k.npy", "--v", "v.npy", "--audit", "50", "--json", *fused, "o.npy")
    assert run(*words, cwd=tmp_path).document["audit"]["method"]["error"] < 1e-6


def test_other_keys_are_refused(made, tmp_path):
    words = ("query", made / "all.sattn", f"{HEADS}:/q", "--audit", "64", "-o", tmp_path / "a.npy")
    refused(*words, "--k", f"{HEADS}:/v", "--v", f"{HEADS}:/k", code=9, folder=tmp_path,
            words=["all.sattn", "first rows of k", "keys and values that it was made of"])  # fmt: skip


@pytest.mark.parametrize("more, words", [
    (("--audit", "64"), ["--audit 64", "--k FILE --v FILE"]), (("--audit", "64", "--k", HEADS), ["--v FILE"]),
    (KEYS, ["--audit N"]),
])  # fmt: skip
def test_one_without_the_other_is_refused(made, tmp_path, more, words):
    refused("query", made / "all.sattn", f"{HEADS}:/q", *more, "-o", tmp_path / "a.npy", code=2, words=words,
            folder=tmp_path)  # fmt: skip


def test_without_an_audit_the_words_for_one_are_told(made, tmp_path):
    text = " ".join(run("query", made / "all.sattn", f"{HEADS}:/q", "-o", tmp_path / "a.npy").err.split())
    assert "not asked for (--audit N --k FILE --v FILE)" in text
