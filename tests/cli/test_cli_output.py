"""Where the answers go: nothing under the final name before the end, devices and fifos as they are, exit code 10."""

import json
import os
import stat
import subprocess
import threading

import h5py
import numpy as np
import pytest
from clirun import FILES, listing, records, refused, run, save_heads, start

TINY_DISK = 64 << 10  # bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """q, k, v of 3000 rows, and the answers that every output must hold."""
    folder = tmp_path_factory.mktemp("output")
    save_heads(folder, rows=3000)
    run("attend", *FILES, "--causal", "--method", "window", "-o", "answers.npy", cwd=folder)
    return folder


@pytest.fixture
def answers(folder):
    return np.load(folder / "answers.npy")


ATTEND = ["attend", *FILES, "--causal", "--method", "window", "--block-rows", "256"]


@pytest.mark.parametrize("target, code, words", [
    ("missing/out.npy", 10, ["missing/out.npy", "there is no folder", "mkdir -p"]),
    ("missing/out.h5", 10, ["missing/out.h5", "there is no folder"]),
    (".", 10, [".: is a folder"]),
    ("q.npy/out.npy", 10, ["q.npy/out.npy: cannot be written"]),
    ("/dev/full", 10, ["/dev/full: cannot be written: No space left", "write to another disk"]),
    ("out.txt", 2, ["out.txt", ".txt unknown", ".npy, .h5"]),
    ("out", 2, ["out: output extension (none)", ".npy, .h5"]),
])  # fmt: skip
def test_outputs_that_cannot_be(folder, target, code, words):
    refused(*ATTEND, "-o", target, code=code, words=words, folder=folder, cwd=folder)


def test_a_full_device_as_standard_output_is_10(folder):
    with open("/dev/full", "wb") as full:
        done = run(*ATTEND, "-o", "-", "--quiet", code=10, cwd=folder, stdout=full)
        assert done.err.startswith("streamattn: standard output: cannot be written: No space left on device")
        done = run(*ATTEND, "-o", "/dev/null", "--quiet", "--json", code=10, cwd=folder, stdout=full)
        assert done.err.startswith("streamattn: standard output: cannot be written: No space left on device")


@pytest.mark.parametrize("words", [["--help"], ["attend", "--help"], ["--version"]], ids=" ".join)
def test_help_for_a_full_device_is_10(words):
    with open("/dev/full", "wb") as full:
        done = run(*words, code=10, stdout=full)
    assert done.err.startswith("streamattn: standard output: cannot be written: No space left on device")


@pytest.mark.parametrize("target, more, code, words", [
    ("missing/out.npy", [], 10, ["missing/out.npy", "there is no folder", "mkdir -p"]),
    (".", [], 10, [".: is a folder"]),
    ("out.txt", [], 2, [".txt unknown"]),
    ("out.npy", ["--top-k", "3"], 2, ["--top-k writes sparse columns as HDF5"]),
    ("missing/out.h5", ["--top-k", "3"], 10, ["there is no folder"]),
])  # fmt: skip
def test_a_dry_run_refuses_outputs_that_cannot_be(folder, target, more, code, words):
    for extra in ([], ["--dry-run"]):
        refused(*ATTEND, *more, *extra, "-o", target, code=code, words=words, folder=folder, cwd=folder)


@pytest.fixture
def tiny_disk(tmp_path):
    """A tmpfs of 64 KiB."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={TINY_DISK}", "none", tmp_path]
    mounted = subprocess.run(mount, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("name", ["out.npy", "out.h5"])
def test_a_full_disk_is_10_and_leaves_the_old_file(folder, tiny_disk, name):
    (tiny_disk / name).write_bytes(b"an older answer")
    words = [name, "No space left on device", "free some room or write to another disk"]
    refused(*ATTEND, "--force", "-o", tiny_disk / name, code=10, words=words, folder=tiny_disk, cwd=folder)


@pytest.mark.parametrize("name", ["out.npy", "out.h5"])
def test_the_name_appears_at_the_end_only(folder, tmp_path, answers, name):
    """While rows are still to come the name holds what it held before; then it holds the answers."""
    (tmp_path / name).write_bytes(b"an older answer")
    q, k, v = (np.load(folder / f"{part}.npy") for part in "qkv")
    rows = np.concatenate([q, k, v], axis=1)
    command = ["attend", "-", "--raw", "f32", "--dim", "8", "--causal", "--method", "window", "--block-rows", "256"]
    command += ["--progress-every", "0", "--force", "-o", tmp_path / name]
    process = start(*command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        process.stdin.write(rows[:2000].tobytes())
        process.stdin.flush()
        while b"streamattn rows: rows 1792" not in process.stderr.readline():
            assert process.poll() is None
        assert (tmp_path / name).read_bytes() == b"an older answer"
        assert len([path for path in tmp_path.iterdir() if path.suffix == ".tmp"]) == 1
        process.stdin.write(rows[2000:].tobytes())
        process.communicate(timeout=900)
    assert process.returncode == 0
    assert np.array_equal(_load(tmp_path / name), answers)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def _load(path):
    if path.suffix == ".npy":
        return np.load(path)
    with h5py.File(path) as file:
        (name,) = file
        return file[name][:]


def test_input_that_fails_half_way_leaves_the_old_file(folder, tmp_path):
    (tmp_path / "out.npy").write_bytes(b"an older answer")
    before = listing(tmp_path)
    rows = np.ones((1000, 24), np.float32).tobytes()[:-1]
    command = [
        "attend",
        "-",
        "--raw",
        "f32",
        "--dim",
        "8",
        "--block-rows",
        "128",
        "--force",
        "-o",
        tmp_path / "out.npy",
    ]
    run(*command, code=4, input=rows)
    assert listing(tmp_path) == before


def test_metadata_goes_with_the_answers(folder, tmp_path):
    run(*ATTEND, "--audit", "16", "--seed", "3", "-o", tmp_path / "out.npy", cwd=folder)
    run(*ATTEND, "--audit", "16", "--seed", "3", "-o", tmp_path / "out.h5", cwd=folder)
    meta = json.loads((tmp_path / "out.npy.json").read_text())
    assert (meta["method"], meta["mode"], meta["seed"], meta["audit"]["rows"]) == ("window", "causal", 3, 16)
    assert set(meta["versions"]) == {"streamattn-cli", "numpy", "numba"}
    with h5py.File(tmp_path / "out.h5") as file:
        (name,) = file
        attributes = {**file.attrs, **file[name].attrs}
    assert attributes["method"] == "window"
    assert json.loads(attributes["audit"]) == meta["audit"]


def test_half_precision_output(folder, tmp_path, answers):
    run(*ATTEND, "--out-dtype", "f16", "-o", tmp_path / "out.npy", cwd=folder)
    found = np.load(tmp_path / "out.npy")
    assert found.dtype == np.float16 and np.array_equal(found, answers.astype(np.float16))


def test_a_link_stays_a_link(folder, tmp_path, answers):
    (tmp_path / "far").mkdir()
    (tmp_path / "out.npy").symlink_to(tmp_path / "far" / "real.npy")
    run(*ATTEND, "-o", tmp_path / "out.npy", cwd=folder)
    assert (tmp_path / "out.npy").is_symlink()
    assert np.array_equal(np.load(tmp_path / "far" / "real.npy"), answers)


def test_the_null_device_is_written_to_and_stays(folder):
    before = os.stat("/dev/null")
    run(*ATTEND, "-o", "/dev/null", cwd=folder)
    after = os.stat("/dev/null")
    assert stat.S_ISCHR(after.st_mode) and (after.st_ino, after.st_rdev) == (before.st_ino, before.st_rdev)


def test_a_fifo_is_written_to_and_stays(folder, tmp_path, answers):
    os.mkfifo(tmp_path / "fifo.npy")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "fifo.npy").read_bytes()))
    reader.start()
    run(*ATTEND, "-o", tmp_path / "fifo.npy", cwd=folder)
    reader.join(timeout=900)
    assert [path.name for path in tmp_path.iterdir()] == ["fifo.npy"]
    assert stat.S_ISFIFO(os.stat(tmp_path / "fifo.npy").st_mode)
    blocks = records(read[0])
    assert [len(block) for block in blocks[:2]] == [256, 256]
    assert np.array_equal(np.concatenate(blocks), answers)
