"""Inputs that once gave wrong numbers without a word: rows that nobody stored, files in both roles, numbers beyond floats."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from clirun import environment, refused, run

ROWS, DIM = 300, 8


def rows(seed=0, n=ROWS):
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype("f4")


def unfilled(path, stored=100, chunk=50, fill=None):
    """q, k, v in chunks of which only the first rows were ever written, never filled by the library."""
    with h5py.File(path, "w") as file:
        for seed, name in enumerate("qkv"):
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_chunk((chunk, DIM))
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER if fill is None else h5py.h5d.FILL_TIME_IFSET)
            if fill is not None:
                plist.set_fill_value(np.array(fill, "f4"))
            space = h5py.h5s.create_simple((ROWS, DIM))
            made = h5py.Dataset(h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, plist))
            made[:stored] = rows(seed)[:stored]


def virtual(path, lengths=(100, 100, 100), made=(0, 1, 2)):
    """q, k, v as views of files in a folder beside it, of which some are not there."""
    layouts = {name: h5py.VirtualLayout((sum(lengths), DIM), "f4") for name in "qkv"}
    for number, length in enumerate(lengths):
        source = path.parent / f"part{number}.h5"
        if number in made:
            with h5py.File(source, "w") as file:
                for seed, name in enumerate("qkv"):
                    file[name] = rows(seed)[100 * number : 100 * number + length]
        for name in "qkv":
            first = sum(lengths[:number])
            layouts[name][first : first + length] = h5py.VirtualSource(source.name, name, (length, DIM))
    with h5py.File(path, "w") as file:
        for name, layout in layouts.items():
            file.create_virtual_dataset(name, layout)


def half_written(path):
    """Views of parts whose second was preallocated, and written to its 60th row."""
    virtual(path)
    with h5py.File(path.parent / "part1.h5", "w") as file:
        for seed, name in enumerate("qkv"):
            file.create_dataset(name, (100, DIM), "f4", chunks=(20, DIM))[:60] = rows(seed)[100:160]


def late(path):
    """Datasets that were made and never written."""
    with h5py.File(path, "w") as file:
        for name in "qkv":
            file.create_dataset(name, (ROWS, DIM), "f4")


MAKERS = {
    "chunks": (unfilled, 200, 100),
    "chunks and a fill value": (lambda path: unfilled(path, fill=7.0), 200, 100),
    "one row short of a chunk": (lambda path: unfilled(path, 299, 60), 0, None),
    "sources": (lambda path: virtual(path, made=(0, 2)), 100, 100),
    "half a source": (half_written, 40, 160),
    "no source": (lambda path: virtual(path, made=()), 300, 0),
    "never written": (late, 300, 0),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_rows_that_are_not_stored_are_refused_or_zeros(tmp_path, kind):
    make, missing, first = MAKERS[kind]
    make(tmp_path / "in.h5")
    words = ("attend", "in.h5", "--full", "--method", "exact", "-o", "out.npy", "--quiet")
    if not missing:
        run(*words, cwd=tmp_path)
        return
    refused(*words, code=4, words=[f"{missing} rows are not stored", f"row {first} is the first"], cwd=tmp_path)
    found = []
    for number, size in enumerate((16, 64, 300)):
        out = f"o{number}.npy"
        done = run(*words[:-2], out, "--missing", "zeros", "--block-rows", str(size), cwd=tmp_path)
        assert f"{missing} rows are not stored" in done.err
        found.append((tmp_path / out).read_bytes())
    assert found[0] == found[1] == found[2]
    if kind == "chunks":
        q, k, v = (np.where(np.arange(ROWS)[:, None] < 100, rows(seed), 0).astype("f8") for seed in range(3))
        weights = np.exp(q @ k.T / np.sqrt(DIM))
        np.testing.assert_allclose(np.load(tmp_path / "o0.npy"), weights @ v / weights.sum(1)[:, None], atol=1e-5)


def test_rows_that_are_there_can_be_read(tmp_path):
    unfilled(tmp_path / "in.h5")
    words = ("attend", "in.h5", "--causal", "--method", "window", "-o", "out.npy", "--quiet")
    run(*words, "--rows", "0:100", cwd=tmp_path)
    words = ("attend", "in.h5", "--causal", "--method", "window", "-o", "o2.npy", "--quiet")
    refused(*words, "--rows", "50:150", code=4, words=["row 100 is the first"], cwd=tmp_path)
    assert not (tmp_path / "o2.npy").exists()


def test_a_complete_virtual_dataset_is_read(tmp_path):
    virtual(tmp_path / "in.h5")
    words = ("--full", "--method", "exact", "--quiet")
    run("attend", "in.h5", *words, "-o", "a.npy", cwd=tmp_path)
    for seed, name in enumerate("qkv"):
        np.save(tmp_path / f"{name}.npy", rows(seed))
    run("attend", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", *words, "-o", "b.npy", cwd=tmp_path)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


# --- attributes


@pytest.mark.parametrize(
    "value", [0.5, [0.5], np.array(0.5), b"0.5", "0.5", np.float32(0.5), np.bytes_("0.5"), [["0.5"]]], ids=repr
)
def test_a_scale_is_heard_in_every_form(tmp_path, value):
    with h5py.File(tmp_path / "in.h5", "w") as file:
        for seed, name in enumerate("qkv"):
            file[name] = rows(seed)
        file.attrs["scale"] = np.array(value, dtype=h5py.string_dtype()) if value == [["0.5"]] else value
        file.attrs["causal"] = np.array([True])
    done = run("attend", "in.h5", "--method", "exact", "--json", "-o", "o.npy", cwd=tmp_path).document
    assert done["facts"]["scale"] == 0.5 and done["facts"]["mode"] == "causal"


@pytest.mark.parametrize(
    ("name", "value"), [("scale", [0.5, 0.25]), ("scale", "wide"), ("scale", -1.0), ("scale", True), ("causal", "perhaps"),
    ("causal", [1, 0]), ("layout", "XY"), ("layout", h5py.Empty("f4"))],
    ids=repr,
)  # fmt: skip
def test_an_attribute_that_makes_no_sense_is_refused(tmp_path, name, value):
    with h5py.File(tmp_path / "in.h5", "w") as file:
        for seed, part in enumerate("qkv"):
            file[part] = rows(seed)
        file.attrs[name] = value
    refused("attend", "in.h5", "-o", "o.npy", code=4, words=[f"attribute {name}"], cwd=tmp_path)


@pytest.mark.parametrize("kind", ["u2", "i2"])
def test_halves_as_integers_beside_floats(tmp_path, kind):
    """What the note advises works on that very input."""
    np.save(tmp_path / "q.npy", rows(0))
    for seed, name in ((1, "k"), (2, "v")):
        np.save(tmp_path / f"{name}.npy", rows(seed).astype("f2").view(kind))
        np.save(tmp_path / f"{name}h.npy", rows(seed).astype("f2"))
    words = ("attend", "--q", "q.npy", "--full", "--method", "exact", "--quiet")
    told = run(*words[:-1], "--k", "k.npy", "--v", "v.npy", "-o", "n.npy", cwd=tmp_path).err
    assert "--dtype f16 if they are float16" in told
    run(*words, "--k", "k.npy", "--v", "v.npy", "--dtype", "f16", "-o", "a.npy", cwd=tmp_path)
    run(*words, "--k", "kh.npy", "--v", "vh.npy", "-o", "b.npy", cwd=tmp_path)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize("shape", ["(300L, 8L)", "(np.int64(300), np.int64(8))"], ids=["of Python 2", "of NumPy 2"])
def test_headers_that_show_numbers_in_other_ways(tmp_path, shape):
    for seed, name in enumerate("qkv"):
        np.save(tmp_path / f"{name}.npy", rows(seed))
        raw = (tmp_path / f"{name}.npy").read_bytes()
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        (tmp_path / f"{name}2.npy").write_bytes(raw[:8] + len(text).to_bytes(2, "little") + text + raw[128:])
    words = ("--full", "--method", "exact", "--quiet")
    run("attend", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", *words, "-o", "a.npy", cwd=tmp_path)
    run("attend", "--q", "q2.npy", "--k", "k2.npy", "--v", "v2.npy", *words, "-o", "b.npy", cwd=tmp_path)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


# --- files in both roles


def save_parts(folder):
    for seed, name in enumerate("qkv"):
        np.save(folder / f"{name}.npy", rows(seed))
    with h5py.File(folder / "in.h5", "w") as file:
        for seed, name in enumerate("qkv"):
            file[name] = rows(seed)
    os.symlink("in.h5", folder / "link.h5")
    os.link(folder / "v.npy", folder / "hard.npy")


FILES = ("--q", "q.npy", "--k", "k.npy", "--v", "v.npy")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder of inputs that no run may change."""
    folder = tmp_path_factory.mktemp("parts")
    save_parts(folder)
    run("sketch", "--k", "k.npy", "--v", "v.npy", "-o", "s.sattn", "--quiet", "--resident-rows", "128", cwd=folder)
    np.save(folder / "logits.npy", np.zeros((1, 1)))
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("attend", "in.h5", "-o", "in.h5"),
        ("attend", "in.h5", "-o", "link.h5"),
        ("attend", "link.h5", "-o", "./in.h5"),
        ("attend", *FILES, "-o", "./v.npy"),
        ("attend", *FILES, "-o", "hard.npy"),
        ("attend", "--q", "in.h5:/q", "--k", "in.h5:/k", "--v", "in.h5:/v", "-o", "in.h5"),
        ("attend", *FILES, "-o", "o.npy", "--checkpoint", "q.npy"),
        ("attend", *FILES, "-o", "v.npy", "--dry-run"),
        ("sketch", "--k", "k.npy", "--v", "v.npy", "-o", "k.npy", "--resume"),
        ("query", "s.sattn", "q.npy", "-o", "q.npy"),
        ("attend", *FILES, "--sink-logit", "logits.npy", "-o", "logits.npy", "--force"),
        ("attend", *FILES, "--causal", "--logit-bias", "logits.npy", "-o", "logits.npy", "--force"),
        ("attend", *FILES, "--starts", "in.h5:/starts", "-o", "o.npy", "--doubt", "in.h5", "--force"),
        ("attend", *FILES, "--method", "nystrom", "--query-model", "logits.npy", "-o", "logits.npy", "--force"),
    ],
    ids=" ".join,
)
def test_an_output_that_is_an_input_is_refused(parts, words):
    before = {path.name: path.read_bytes() for path in parts.iterdir()}
    done = run(*words, code=2, cwd=parts)
    assert "is the input" in done.err or "FILE.sattn" in done.err
    assert {path.name: path.read_bytes() for path in parts.iterdir()} == before


@pytest.mark.parametrize(
    "words",
    [
        ("-o", "new.npy", "--checkpoint", "new.npy"),
        ("-o", "new.npy", "--checkpoint", "new.npy.json"),
        ("-o", "new.npy", "--doubt", "d.npy", "--checkpoint", "./d.npy"),
        ("-o", "new.h5:/out", "--doubt", "new.h5"),
    ],
    ids=" ".join,
)
def test_two_outputs_in_one_file_are_refused(parts, words):
    refused("attend", *FILES, *words, code=2, words=["is also where"], cwd=parts)
    assert not list(parts.glob("new*"))


PROGRAM = """
import sys
import numpy as np
from streamattn_cli.engine.jobs import attend as module
from streamattn_cli.engine.passes.output import Output

write = Output.write
def changing(self, start, answers):
    write(self, start, answers)
    file = np.load("k.npy", mmap_mode="r+")
    file[100] = 1
    file.flush()
Output.write = changing
from streamattn_cli.cli.main import main
sys.argv = ["streamattn", *sys.argv[1:]]
main()
"""


def test_an_input_that_changes_while_it_is_read_is_9(tmp_path):
    save_parts(tmp_path)
    words = [sys.executable, "-c", PROGRAM, "attend", *FILES, "--full", "--method", "exact", "-o", "out.npy"]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 9 and "k.npy: changed while it was being read" in done.stderr
    assert not (tmp_path / "out.npy").exists() and not list(tmp_path.glob("*.part*"))


# --- numbers beyond floats


@pytest.mark.parametrize("method", ["exact", "window", "nystrom", "evict", "sample", "reservoir", "balance", "wildcat"])
def test_answers_that_the_output_cannot_hold_are_5(tmp_path, method):
    save_parts(tmp_path)
    np.save(tmp_path / "v.npy", np.abs(rows(2)) * 1e5 + 1e5)
    words = ("attend", *FILES, "--causal", "--method", method, "--out-dtype", "f16")
    words += ("--quiet",) if method == "exact" else ("--quiet", "--resident-rows", "96")
    refused(*words, "-o", "o.npy", code=5, words=["300 answers are not finite", "--nan-policy drop"], cwd=tmp_path)
    assert not (tmp_path / "o.npy").exists()
    piped = run(*words, "-o", "-", code=5, cwd=tmp_path).err
    assert "standard output: 300 answers" in piped and "written already" in piped and "nothing" not in piped
    done = run(*words, "-o", "o.npy", "--nan-policy", "drop", "--json", cwd=tmp_path).document
    assert done["counts"]["not_finite_answers"] == 300


BEYOND = {"window": ("--window", "600"), "exact": ()} | dict.fromkeys(
    ("nystrom", "evict", "sample", "wildcat"), ("--resident-rows", "96")
)


@pytest.mark.parametrize("mode", ["--full", "--causal"])
@pytest.mark.parametrize("method", sorted(BEYOND))
def test_logits_beyond_floats_leave_queries_unanswered_and_end_the_run(tmp_path, method, mode):
    for seed, name in enumerate("qkv"):
        np.save(tmp_path / f"{name}.npy", rows(seed) * np.float32(1 if name == "v" else 1e30))
    words = ("attend", *FILES, mode, "--method", method, *BEYOND[method], "-o", "o.npy")
    refused(*words, cwd=tmp_path, code=5, words=["answers are not finite"])
    assert not (tmp_path / "o.npy").exists()


@pytest.mark.parametrize("factor", [1e38, 3e37])
@pytest.mark.parametrize("method", ["nystrom", "window", "evict", "sample", "reservoir", "balance", "wildcat", "poly"])
def test_no_warning_of_a_library_leaks(tmp_path, method, factor):
    for seed, name in enumerate("qkv"):
        np.save(tmp_path / f"{name}.npy", rows(seed) * np.float32(factor if name == "v" else 1))
    files = ("--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "--causal", "--audit", "32", "-o", "o.npy")
    budget = ("--resident-rows", "96") if method != "poly" else ("--max-error", "inf")
    done = subprocess.run(
        [sys.executable, "-m", "streamattn_cli", "attend", *files, "--method", method, *budget],
        cwd=tmp_path, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 5, 11) and "Warning" not in done.stderr, done.stderr
