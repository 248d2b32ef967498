"""The same question gives the same bytes, whatever the block size, threads, source, cut of a pipe or storage type."""

import subprocess

import h5py
import numpy as np
import pytest
from clirun import records, run, start

ROWS, HEADS, KV_HEADS, DIM = 700, 4, 2, 8
METHODS = {
    "window": ["--method", "window", "--sinks", "3", "--window", "70"],
    "poly": ["--method", "poly", "--degree", "2", "--sinks", "3", "--window", "70"],
    "exact": ["--method", "exact"],
}
CUTS = [("1", "1"), ("7", "2"), ("256", "1"), ("4096", "2")]
FUSED = ["--heads", str(HEADS), "--kv-heads", str(KV_HEADS), "--dim", str(DIM)]


def stored(path, kind):
    """The numbers of rows.npy as a storage type, (rows, heads, dim) by part; bf16 as its bit patterns."""
    rows = np.load(path)
    if kind == "bf16":
        return (rows.view(np.uint32) >> 16).astype(np.uint16)
    return rows.astype(kind)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """rows.npy: packed q | k | v of every head; q.npy, k.npy, v.npy and all.h5 hold the same."""
    folder = tmp_path_factory.mktemp("same")
    rng = np.random.default_rng(0)
    parts = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
    arrays = {p: (0.5 * rng.standard_normal((ROWS, heads, DIM))).astype(np.float32) for p, heads in parts.items()}
    np.save(folder / "rows.npy", np.concatenate([a.reshape(ROWS, -1) for a in arrays.values()], axis=1))
    with h5py.File(folder / "all.h5", "w") as file:
        for part, array in arrays.items():
            np.save(folder / f"{part}.npy", array)
            file.create_dataset(part, data=array, chunks=(33, 1, DIM), compression="gzip")
    return folder


FILES = ["--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "--layout", "THD"]


def answer(folder, out, *args, **kwargs):
    run("attend", *args, "-o", out, "--quiet", "--force", cwd=folder, **kwargs)
    return np.load(out).tobytes()


@pytest.mark.parametrize("mode", ["--causal", "--full"])
@pytest.mark.parametrize("method", METHODS)
def test_block_rows_and_threads(folder, tmp_path, method, mode):
    command = [*FILES, mode, *METHODS[method]]
    answers = {
        cut: answer(folder, tmp_path / "out.npy", *command, "--block-rows", cut[0], "--threads", cut[1]) for cut in CUTS
    }
    assert len(answers[CUTS[0]]) == ROWS * HEADS * DIM * 4
    assert [cut for cut, found in answers.items() if found != answers[CUTS[0]]] == []


@pytest.mark.parametrize("method", ["window", "poly"])
def test_sources_of_causal_attention(folder, tmp_path, method):
    command = ["--causal", *METHODS[method]]
    rows = np.load(folder / "rows.npy")
    out = tmp_path / "out.npy"
    expected = answer(folder, out, *FILES, *command)
    assert answer(folder, out, "all.h5", "--layout", "THD", *command) == expected
    assert answer(folder, out, "rows.npy", *FUSED, *command) == expected
    assert answer(folder, out, "-", *FUSED, *command, input=(folder / "rows.npy").read_bytes()) == expected
    raw = ["-", "--raw", "f32", *FUSED, *command]
    assert answer(folder, out, *raw, input=rows.tobytes()) == expected
    done = run("attend", *raw, "--block-rows", "97", "-o", "-", "--quiet", input=rows.tobytes(), cwd=folder)
    assert np.concatenate(records(done.out)).tobytes() == expected


def test_the_chunks_of_a_pipe(folder, tmp_path):
    """Bytes that come in pieces of awkward sizes, cut inside items and rows."""
    rows = np.load(folder / "rows.npy")
    command = ["-", "--raw", "f32", *FUSED, "--causal", *METHODS["poly"]]
    expected = answer(folder, tmp_path / "one.npy", *command, input=rows.tobytes())
    with start("attend", *command, "-o", tmp_path / "out.npy", "--quiet", stdin=subprocess.PIPE) as process:
        data, at, size = rows.tobytes(), 0, 1
        while at < len(data):
            process.stdin.write(data[at : at + size])
            process.stdin.flush()
            at, size = at + size, size * 3 % 20011 + 1
        process.stdin.close()
    assert process.returncode == 0 and np.load(tmp_path / "out.npy").tobytes() == expected


@pytest.mark.parametrize("method", ["window", "poly", "exact"])
def test_keys_on_a_pipe_and_queries_in_a_file(folder, tmp_path, method):
    command = ["--full", *METHODS[method]]
    expected = answer(folder, tmp_path / "out.npy", *FILES, *command)
    keys = np.load(folder / "rows.npy")[:, HEADS * DIM :]
    piped = ["-", "--raw", "f32", "--q", "q.npy", "--layout", "THD", *FUSED]
    assert answer(folder, tmp_path / "out.npy", *piped, *command, input=keys.tobytes()) == expected


@pytest.mark.parametrize("word, kind", [("f16", np.float16), ("bf16", "bf16")])
def test_half_precision_gives_what_its_exact_values_give(folder, tmp_path, word, kind):
    """Halves are widened without loss, so float32 files of the very same numbers have the same answers."""
    halves = stored(folder / "rows.npy", kind)
    wide = (halves.astype(np.uint32) << 16).view(np.float32) if word == "bf16" else halves.astype(np.float32)
    command = [*FUSED, "--causal", *METHODS["poly"]]
    np.save(tmp_path / "half.npy", halves)
    np.save(tmp_path / "wide.npy", wide)
    expected = answer(tmp_path, tmp_path / "out.npy", "wide.npy", *command)
    assert answer(tmp_path, tmp_path / "out.npy", "half.npy", *command) == expected
    raw = ["-", "--raw", word, *command]
    assert answer(tmp_path, tmp_path / "out.npy", *raw, input=halves.tobytes()) == expected


def test_double_precision_stays_double(folder, tmp_path):
    np.save(tmp_path / "rows.npy", stored(folder / "rows.npy", np.float64))
    command = ["rows.npy", *FUSED, "--causal", "--method", "exact"]
    answer(tmp_path, tmp_path / "out.npy", *command)
    found = np.load(tmp_path / "out.npy")
    assert found.dtype == np.float64
    single = np.load(folder / "rows.npy")
    np.save(tmp_path / "rows.npy", single)
    answer(tmp_path, tmp_path / "out.npy", *command)
    error = np.abs(np.load(tmp_path / "out.npy") - found).max()
    assert 0 < error < 2e-6
