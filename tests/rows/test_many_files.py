"""Many files as one stream: in the order of their numbers, alike in what they say, and more than may be open."""

import resource
import subprocess
import sys

import h5py
import numpy as np
import pytest
from clirun import COMMAND, environment, refused, run

FILES = 90


def write(folder, number, rows=40, **attrs):
    rng = np.random.default_rng(number)
    with h5py.File(folder / f"d{number}.h5", "w") as file:
        for name in "qkv":
            file[name] = rng.standard_normal((rows, 2, 4)).astype("f4")
        file.attrs.update(attrs)


def joined(folder, count):
    """The same rows as one file."""
    with h5py.File(folder / "one.h5", "w") as file:
        for name in "qkv":
            parts = []
            for number in range(count):
                with h5py.File(folder / f"d{number}.h5") as part:
                    parts.append(part[name][:])
            file[name] = np.concatenate(parts)
        file.attrs["scale"] = 0.5


def test_files_come_in_the_order_of_their_numbers(tmp_path):
    for number in range(12):
        write(tmp_path, number, scale=0.5)
    joined(tmp_path, 12)
    for word, out in (("d*.h5", "a.sattn"), ("one.h5", "b.sattn")):
        done = run("sketch", word, "--layout", "THD", "--resident-rows", "64", "-o", out, cwd=tmp_path)
        assert word == "one.h5" or "in this order: d0.h5, d1.h5, ..., d11.h5" in done.err
    answers = []
    for out in ("a", "b"):
        run("query", f"{out}.sattn", "d0.h5:/q", "--layout", "THD", "-o", f"{out}.npy", cwd=tmp_path)
        answers.append((tmp_path / f"{out}.npy").read_bytes())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("more", [(), ("--shards", "2")])
def test_more_files_than_may_be_open(tmp_path, more):
    for number in range(FILES):
        write(tmp_path, number, scale=0.5)
    joined(tmp_path, FILES)

    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    outs = {"d*.h5": "a", "one.h5": "b"}
    for word, out in outs.items():
        words = ("sketch", word, "--layout", "THD", "--resident-rows", "64", *more, "-o", f"{out}.sattn", "--quiet")
        done = subprocess.run(
            [*COMMAND, *words], cwd=tmp_path, env=environment(), preexec_fn=few, capture_output=True, timeout=900
        )
        assert done.returncode == 0, done.stderr.decode()
        run("query", f"{out}.sattn", "d0.h5:/q", "--layout", "THD", "-o", f"{out}.npy", cwd=tmp_path)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_every_file_is_asked_what_it_says(tmp_path):
    for number in range(4):
        write(tmp_path, number, scale=0.5 if number < 3 else 0.25)
    line = refused(
        "sketch", "d*.h5", "--layout", "THD", "-o", "a.sattn", cwd=tmp_path, code=4, words=["d3.h5", "scale"]
    )
    assert "0.25" in line and "d0.h5" in line


def test_a_cache_of_two_batches_needs_no_queries(tmp_path):
    rng = np.random.default_rng(0)
    for name, heads in (("k", 3), ("v", 3), ("q", 6)):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((2, heads, 400, 8)).astype("f4"))
    words = ("--layout", "BHTD", "--method", "poly", "--degree", "8", "--max-error", "9", "--scale", "0.1")
    run("sketch", "--k", "k.npy", "--v", "v.npy", *words, "-o", "s.sattn", cwd=tmp_path)
    run("query", "s.sattn", "q.npy", "--layout", "BHTD", "-o", "a.npy", cwd=tmp_path)
    files = ("--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "--layout", "BHTD", "--scale", "0.1", "--full")
    run("attend", *files, "--method", "exact", "-o", "e.npy", cwd=tmp_path)
    found, exact = np.load(tmp_path / "a.npy"), np.load(tmp_path / "e.npy")
    assert found.shape == exact.shape == (2, 6, 400, 8)
    assert np.linalg.norm(found - exact) < 1e-4 * np.linalg.norm(exact)


def test_hdf5_files_are_read_where_nothing_can_be_locked(tmp_path, monkeypatch):
    """A file system without locks: HDF5 fails with ENOLCK unless it is told to do without."""
    write(tmp_path, 0)
    program = (
        "import errno, h5py, sys\n"
        "whole = h5py.File\n"
        "class File(whole):\n"
        "    def __init__(self, *args, locking=None, **words):\n"
        "        if locking is not False: raise OSError(errno.ENOLCK, 'unable to lock file')\n"
        "        super().__init__(*args, locking=locking, **words)\n"
        "h5py.File = File\n"
        "from streamattn_cli.rows.inputs.open import open_inputs\n"
        "from streamattn_cli.rows.spec import InputSpec\n"
        "with open_inputs(InputSpec(input='d0.h5', layout='THD')) as inputs: print(inputs.k.rows)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, env=environment())
    assert done.stdout.split() == [b"40"], done.stderr.decode()
