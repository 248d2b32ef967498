"""`streamattn generate`, the real program in a process of its own."""

import io
import json
import os
import pty
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest

from streamattn_cli.engine.request.scale import scale_value
from streamattn_cli.errors import UsageError
from streamattn_cli.rows.synthetic.generated import SyntheticSpec, SyntheticTensor

COMMAND = [sys.executable, "-m", "streamattn_cli", "generate"]
HOLDERS = {"f2": np.uint16, "bf16": np.uint16, "f4": np.float32, "f8": np.float64}
SHAPE = ["--rows", "700", "--dim", "4", "--value-dim", "3", "--heads", "4", "--kv-heads", "2", "--seed", "9"]


def _run(*args, code=0, **kwargs):
    done = subprocess.run([*COMMAND, *args], capture_output=True, timeout=900, **kwargs)
    assert done.returncode == code, done.stderr.decode()
    return done


def _expected(emit, **words):
    shape = {"rows": 700, "dim": 4, "value_dim": 3, "heads": 4, "kv_heads": 2}
    spec = SyntheticSpec(**shape | {"seed": 9, "scale": 0.5} | words)
    tensor = SyntheticTensor(spec, emit)
    buf = np.empty((1, spec.rows, tensor.width), HOLDERS[spec.dtype])
    tensor.read_into(buf, 0)
    return buf[0]


def _records(data):
    """The arrays of concatenated .npy records."""
    stream, arrays = io.BytesIO(data), []
    while stream.tell() < len(data):
        arrays.append(np.load(stream))
    return arrays


def test_standard_output_is_records_of_packed_rows():
    done = _run(*SHAPE, "--emit", "kv", "--block-rows", "256", "-")
    records = _records(done.stdout)
    assert [r.shape for r in records] == [(256, 14), (256, 14), (188, 14)]
    assert np.array_equal(np.concatenate(records), _expected("kv"))


@pytest.mark.parametrize("block_rows", ["1", "333"])
def test_the_cut_into_blocks_changes_no_raw_byte(block_rows):
    done = _run(*SHAPE, "--raw", "--dtype", "bf16", "--block-rows", block_rows)
    assert done.stdout == _expected("qkv", dtype="bf16").tobytes()


@pytest.mark.parametrize("word, dtype, kind", [("f16", "f2", np.float16), ("f64", "f8", np.float64)])
def test_one_packed_npy_file(tmp_path, word, dtype, kind):
    _run(*SHAPE, "--dtype", word, "--quiet", str(tmp_path / "all.npy"))
    found = np.load(tmp_path / "all.npy")
    assert found.shape == (700, 30) and found.dtype == kind
    assert found.tobytes() == _expected("qkv", dtype=dtype).tobytes()


def test_one_npy_file_per_tensor(tmp_path):
    _run(*SHAPE, "--quiet", str(tmp_path / "dump_{}.npy"))
    shapes = {part: np.load(tmp_path / f"dump_{part}.npy").shape for part in "qkv"}
    assert shapes == {"q": (700, 4, 4), "k": (700, 2, 4), "v": (700, 2, 3)}
    assert np.array_equal(np.load(tmp_path / "dump_v.npy").reshape(700, 6), _expected("v"))


def test_one_head_has_no_head_axis(tmp_path):
    _run("--rows", "5", "--dim", "4", "--emit", "k", "--quiet", str(tmp_path / "{}.npy"))
    assert np.load(tmp_path / "k.npy").shape == (5, 4)


@pytest.mark.parametrize("word, dtype", [("f16", "f2"), ("f32", "f4")])
def test_an_hdf5_file(tmp_path, word, dtype):
    words = ["--heavy", "3", "--scale", "d", "--value-mean", "2"]
    _run(*SHAPE, *words, "--dtype", word, "--quiet", str(tmp_path / "x.h5"))
    with h5py.File(tmp_path / "x.h5") as file:
        for part, width in (("q", 16), ("k", 8), ("v", 6)):
            expected = _expected(part, dtype=dtype, heavy=3, scale=0.25, value_mean=2.0)
            assert file[part].shape[::2] == (700, 3 if part == "v" else 4)
            assert file[part][:].reshape(700, width).tobytes() == expected.tobytes()
        assert (file.attrs["scale"], file.attrs["seed"], file.attrs["heavy"]) == (0.25, 9, 3)
        assert "causal" not in file.attrs


def test_bfloat16_in_hdf5_is_a_float_that_the_library_understands(tmp_path):
    _run(*SHAPE, "--dtype", "bf16", "--emit", "kv", "--quiet", str(tmp_path / "x.h5"))
    with h5py.File(tmp_path / "x.h5") as file:
        assert sorted(file) == ["k", "v"]
        wide = (_expected("k", dtype="bf16").astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(file["k"][:].reshape(700, 8), wide)


def test_the_memory_does_not_grow_with_the_rows(tmp_path):
    peaks = []
    for rows in ("100000", "3000000"):
        with open(os.devnull, "wb") as sink:
            done = subprocess.run([*COMMAND, "--rows", rows, "--dim", "8", "--emit", "kv", "--log-json"], stdout=sink,
                                  stderr=subprocess.PIPE, timeout=900, check=True)  # fmt: skip
        outcome = json.loads(done.stderr.splitlines()[-1])
        assert outcome["type"] == "outcome" and outcome["rows"] == int(rows)
        assert outcome["memory"]["peak"] <= outcome["memory"]["projected"]
        peaks.append(outcome["memory"]["peak"])
    assert abs(peaks[0] - peaks[1]) < 2 << 20


def test_outcome_as_text_and_as_json(tmp_path):
    done = _run(*SHAPE, str(tmp_path / "x.npy"))
    assert done.stdout == b"" and b"seed 9" in done.stderr and b"x.npy" in done.stderr
    document = json.loads(_run(*SHAPE, "--json", "--quiet", "--force", str(tmp_path / "x.npy")).stdout)
    assert document["type"] == "outcome" and document["facts"]["params"]["kv_heads"] == 2


def test_progress_lines_have_the_phase():
    done = _run("--rows", "200000", "--dim", "8", "--progress-every", "0", "--raw")
    lines = [line for line in done.stderr.decode().splitlines() if line.startswith("streamattn generate: rows")]
    assert len(lines) > 3 and "of 200000 (100.0%)" in lines[-1]


def test_a_terminal_is_refused():
    master, slave = pty.openpty()
    done = subprocess.run([*COMMAND, "--rows", "5"], stdout=slave, stderr=subprocess.PIPE, timeout=900)
    os.close(slave)
    os.close(master)
    assert done.returncode == 2 and b"terminal" in done.stderr


@pytest.mark.parametrize(
    "args, code, words",
    [
        (["--rows", "0"], 2, "--rows 0: give a whole number"),
        (["--emit", "vk"], 2, "--emit"),
        (["--dtype", "f12"], 2, "--dtype f12"),
        (["--scale", "none"], 2, "--scale is 'none'"),
        (["--block-rows", "0"], 2, "--block-rows is 0"),
        (["--dtype", "bf16", "x.npy"], 2, ".npy has no bfloat16"),
        (["--json", "-"], 2, "--json needs standard output"),
        (["x.txt"], 2, "x.txt"),
        (["missing/x.h5"], 10, "missing/x.h5"),
        (["missing/x.npy"], 10, "missing/x.npy"),
        (["--raw", "missing/x.raw"], 10, "missing/x.raw"),
        (["--raw", "."], 10, "is a folder"),
    ],
)
def test_what_is_refused_and_how(tmp_path, args, code, words):
    done = _run(*args, code=code, cwd=tmp_path)
    assert words in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def _endless(**kwargs):
    args = ["--rows", str(10**12), "--dim", "8", "--quiet", *kwargs.pop("args", ())]
    return subprocess.Popen([*COMMAND, *args], **kwargs)


def test_a_reader_that_leaves_ends_it_as_a_closed_pipe_does():
    process = _endless(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1 << 20)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=900) in (141, -signal.SIGPIPE)
    assert b"Traceback" not in err


def test_a_signal_leaves_no_file(tmp_path):
    process = _endless(args=[str(tmp_path / "x.npy")], stderr=subprocess.PIPE)
    while not list(tmp_path.iterdir()):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=900)
    assert process.returncode in (143, -signal.SIGTERM) and b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word, dim, expected", [("sqrt", 16, 0.25), ("d", 16, 0.0625), ("1e-3", 1, 1e-3)])
def test_scale_words(word, dim, expected):
    assert scale_value(word, dim) == expected


@pytest.mark.parametrize("word, dim", [("", 4), ("0", 4), ("-1", 4), ("nan", 4), ("inf", 4), ("root", 4), ("d", 0)])
def test_what_is_no_scale(word, dim):
    with pytest.raises(UsageError, match="must be"):
        scale_value(word, dim)
