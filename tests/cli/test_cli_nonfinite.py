"""NaN and infinity in the input: refused with exit code 5, or left out and counted with --nan-policy drop."""

import naive
import numpy as np
import pytest
from clirun import FILES, refused, run, save_heads

ROWS, SCALE = 300, 0.4
BAD = {"q": (11, np.nan), "k": (7, np.inf), "v": (9, -np.inf)}


def spoil(folder, *parts, dtype=np.float32):
    """q, k, v of one head, with one value that is not finite in each of `parts`; returns the arrays."""
    arrays = save_heads(folder, ROWS, dtype=dtype)
    for part in parts:
        row, value = BAD[part]
        arrays[part][row, 3] = value
        np.save(folder / f"{part}.npy", arrays[part])
    return arrays


@pytest.mark.parametrize("part, method, mode", [("q", "exact", "--full"), ("k", "window", "--causal"),
                                                ("v", "poly", "--full")])  # fmt: skip
def test_refused_with_the_place(tmp_path, part, method, mode):
    spoil(tmp_path, part)
    words = [f"{part}.npy", f"not finite in {part}, row {BAD[part][0]}, head 0", "--nan-policy drop"]
    args = ["attend", *FILES, mode, "--method", method, "--scale", SCALE, "-o", "out.npy"]
    refused(*args, code=5, words=words, folder=tmp_path, cwd=tmp_path)


def test_the_first_block_that_is_bad_is_told_though_another_head_is_ahead(tmp_path):
    arrays = {part: np.random.default_rng(0).standard_normal((600, 2, 8)).astype("f4") for part in "qkv"}
    arrays["v"][[130, 70], [0, 1], 3] = np.nan  # head 0 may be in the next block before head 1 comes to its bad row
    for part, array in arrays.items():
        np.save(tmp_path / f"{part}.npy", array)
    for threads in (1, 2):
        args = [
            "attend",
            *FILES,
            "--layout",
            "THD",
            "--causal",
            "--method",
            "window",
            "--block-rows",
            "64",
            "--threads",
            threads,
        ]
        refused(*args, "-o", "out.npy", code=5, words=["row 70, head 1"], folder=tmp_path, cwd=tmp_path)


def test_an_overflow_of_half_precision_is_not_finite_either(tmp_path):
    arrays = spoil(tmp_path, dtype=np.float16)
    with np.errstate(over="ignore"):
        np.save(tmp_path / "k.npy", (arrays["k"].astype(np.float32) * 1e6).astype(np.float16))
    refused("attend", *FILES, "-o", "out.npy", code=5, words=["k.npy", "not finite"], folder=tmp_path, cwd=tmp_path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_that_a_window_passes_over_are_looked_at(tmp_path, dtype):
    """Row 700 of 2,000 is needed by nobody, and is refused, or counted, all the same."""
    rng = np.random.default_rng(0)
    k, v = (rng.standard_normal((2000, 8)).astype(dtype) for _ in range(2))
    v[700, 5] = np.inf
    np.save(tmp_path / "k.npy", k)
    np.save(tmp_path / "v.npy", v)
    files = ["sketch", "--k", "k.npy", "--v", "v.npy", "--method", "window", "--resident-rows", "64",
             "--block-rows", "500"]  # fmt: skip
    words = ["v.npy", "not finite in v, row 700, head 0"]
    refused(*files, "-o", "s.sattn", code=5, words=words, folder=tmp_path, cwd=tmp_path)
    done = run(*files, "--nan-policy", "drop", "--json", "-o", "s.sattn", cwd=tmp_path)
    assert done.document["counts"]["dropped_keys"] == 1


@pytest.mark.parametrize("mode", ["--full", "--causal"])
@pytest.mark.parametrize("method", ["exact", "window", "poly"])
def test_dropped_rows_are_counted_and_have_no_part(tmp_path, method, mode):
    arrays = spoil(tmp_path, *BAD)
    extra = {"exact": [], "window": ["--sinks", "4", "--window", "40"], "poly": ["--degree", "2", "--beta", "50"]}
    command = ["attend", *FILES, mode, "--method", method, *extra[method], "--scale", SCALE, "--nan-policy", "drop"]
    done = run(*command, "--json", "-o", "out.npy", cwd=tmp_path)
    counts = done.document["counts"]
    assert (counts["dropped_keys"], counts["dropped_queries"]) == (2, 1)
    found = np.load(tmp_path / "out.npy")
    assert np.flatnonzero(~np.isfinite(found).all(axis=1)).tolist() == [BAD["q"][0]]
    expected = _without(arrays, method, mode == "--causal")
    kept = np.arange(ROWS) != BAD["q"][0]
    tolerance = 0.02 if method == "poly" else 2e-6
    assert np.linalg.norm((found - expected)[kept]) <= tolerance * np.linalg.norm(expected[kept])


def _without(arrays, method, causal):
    """Exact attention in which the spoilt keys have no weight, over the rows that the method sees."""
    q, k, v = (np.where(np.isfinite(arrays[part]), arrays[part], 0).astype(np.float64) for part in "qkv")
    live = np.ones(ROWS)
    live[[BAD["k"][0], BAD["v"][0]]] = 0
    if method != "window":
        return naive.attention(q, k, v, SCALE, causal=causal, weights=live)
    out = np.zeros((ROWS, v.shape[1]))
    for i in range(ROWS):
        last = i if causal else ROWS - 1
        near = np.array([j < 4 or last - 40 < j <= last for j in range(ROWS)], float) * live
        out[i] = naive.attention(q[i : i + 1], k[: last + 1], v[: last + 1], SCALE, weights=near)[0]
    return out
