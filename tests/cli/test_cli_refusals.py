"""What a method or a pipe cannot do is refused with exit code 11, the reason, and what to do instead; odd layouts with 2."""

import numpy as np
import pytest
from clirun import SAMPLE, record_bytes, refused, run, save_heads

PACKED = record_bytes(np.ones((40, 24), np.float32))
KEYS = record_bytes(np.ones((40, 16), np.float32))


def attend(folder, *args, words, **kwargs):
    return refused("attend", *args, "-o", "out.npy", code=11, words=words, folder=folder, cwd=folder, **kwargs)


def test_interleaved_full_attention_on_a_pipe(tmp_path):
    words = ["standard input", "interleaved", "all keys before the first query", "--causal", "--q FILE"]
    attend(tmp_path, "-", "--full", words=words, input=PACKED)


def test_exact_causal_attention_on_a_pipe(tmp_path):
    words = ["standard input", "several times", "a pipe passes once", "to a file first, or use --method "]
    attend(tmp_path, "-", "--causal", "--method", "exact", words=words, input=PACKED)


def test_exact_attention_of_queries_on_a_pipe(tmp_path):
    save_heads(tmp_path)
    words = ["standard input", "a pipe passes once"]
    attend(tmp_path, "--q", "-", "--k", "k.npy", "--v", "v.npy", "--full", "--method", "exact", words=words,
           input=record_bytes(np.ones((9, 8), np.float32)))  # fmt: skip


def test_exact_full_attention_with_keys_on_a_pipe_works_when_the_queries_fit_in_memory(tmp_path):
    save_heads(tmp_path)
    run("attend", "-", "--q", "q.npy", "--full", "--method", "exact", "-o", "out.npy", input=KEYS, cwd=tmp_path)
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.ones((50, 8), np.float32))


@pytest.mark.parametrize("mode", ["--full", "--causal"])
def test_poly_on_real_heads_at_the_usual_scale(tmp_path, mode):
    words = ["heads.h5:/k", "degree 4", "logits reach", "--method ", "--scale", "--degree", "--max-error"]
    attend(tmp_path, SAMPLE / "heads.h5", mode, "--method", "poly", "--scale", "sqrt", words=words)


def test_the_same_with_the_error_accepted(tmp_path):
    run("attend", SAMPLE / "heads.h5", "--full", "--method", "poly", "--scale", "sqrt", "--degree", "2", "--max-error",
        "1e9", "--rows", "0:1024", "--q-rows", "0:8", "-o", "out.npy", cwd=tmp_path)  # fmt: skip
    assert np.isfinite(np.load(tmp_path / "out.npy")).all()


def test_queries_whose_rows_are_taken_for_heads(tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in {"k": (96, 1, 4), "v": (96, 1, 4), "q": (96, 3, 4)}.items():
        np.save(tmp_path / f"{name}.npy", rng.standard_normal(shape).astype(np.float32))
    keys = ("--k", "k.npy", "--v", "v.npy", "--layout", "THD", "--quiet")
    run("sketch", *keys, "-o", "s.sattn", cwd=tmp_path)
    query = ("query", "s.sattn", "q.npy", "-o", "out.npy", "--quiet", "--layout")
    words = [
        "q.npy: read as layout HTD it has 96 heads of 3 rows",
        "s.sattn 1 of 96",
        "give --layout THD",
        "--heads 96",
    ]
    refused(*query, "HTD", code=2, words=words, cwd=tmp_path, folder=tmp_path)
    run(*query, "HTD", "--heads", "96", cwd=tmp_path)
    run(*query, "THD", "--force", cwd=tmp_path)
    assert np.load(tmp_path / "out.npy").shape == (96, 3, 4)
