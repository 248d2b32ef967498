"""Outputs that are there already: refused by every command, replaced with --force, and datasets added to HDF5 files."""

import os
import threading

import h5py
import numpy as np
import pytest
from clirun import SAMPLE, record_bytes, refused, run, start, wait_until

HEADS = SAMPLE / "heads.h5"
WINDOW = ("attend", HEADS, "--rows", "0:600", "--causal", "--method", "window", "--window", "64")
POLY = ("--rows", "0:1200", "--scale", "d", "--method", "poly", "--degree", "2")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two sketches, queries, and the JSON of a run."""
    folder = tmp_path_factory.mktemp("made")
    run("sketch", HEADS, *POLY, "-o", folder / "a.sattn")
    run("sketch", HEADS, *POLY, "--rows", "1200:2400", "-o", folder / "b.sattn")
    done = run(*WINDOW, "--audit", "8", "--json", "-o", folder / "out.npy")
    (folder / "run.json").write_bytes(done.out)
    return folder


COMMANDS = {
    "attend": (*WINDOW, "-o", "x.npy"),
    "attend to HDF5": (*WINDOW, "-o", "x.h5"),
    "attend, sparse": (*WINDOW, "--top-k", "2", "-o", "x.h5"),
    "attend --doubt": (*WINDOW, "-o", "other.npy", "--doubt", "x.npy"),
    "attend, the side file": (*WINDOW, "-o", "side.npy"),
    "attend, the side file of --doubt": (*WINDOW, "-o", "other.npy", "--doubt", "side.npy"),
    "attend --checkpoint": (*WINDOW, "-o", "other.npy", "--checkpoint", "x.sattn"),
    "query": ("query", "{made}/a.sattn", f"{HEADS}:/q", "-o", "x.npy"),
    "sketch": ("sketch", HEADS, *POLY, "-o", "x.sattn"),
    "sketch --shards": ("sketch", HEADS, *POLY, "--shards", "2", "-o", "x.sattn"),
    "merge": ("merge", "{made}/a.sattn", "{made}/b.sattn", "-o", "x.sattn"),
    "report": ("report", "{made}/run.json", "-o", "x.html"),
    "generate": ("generate", "--rows", "10", "--dim", "4", "x.npy"),
    "generate to HDF5": ("generate", "--rows", "10", "--dim", "4", "x.h5"),
    "generate, a file each": ("generate", "--rows", "10", "--dim", "4", "{}.npy"),
    "generate, the side file": ("generate", "--rows", "10", "--dim", "4", "side.npy"),
    "generate --raw": ("generate", "--rows", "10", "--dim", "4", "--raw", "x.raw"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_is_there_is_replaced_only_with_force(made, tmp_path, name):
    words = [str(word).replace("{made}", str(made)) for word in COMMANDS[name]]
    there = "side.npy.json" if "side.npy" in words else "v.npy" if "{}.npy" in words else next(
        word for word in words if word.startswith("x.")
    )  # fmt: skip
    (tmp_path / there).write_bytes(b"mine")
    refused(*words, code=2, words=[there, "there is a", "already", "--force"], folder=tmp_path, cwd=tmp_path)
    run(*words, "--force", cwd=tmp_path)
    assert (tmp_path / there).read_bytes() != b"mine"
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    run(*words, cwd=fresh)
    if name != "generate to HDF5":  # which notes when its datasets were made
        assert (fresh / there).read_bytes() == (tmp_path / there).read_bytes()


@pytest.mark.parametrize("words", [WINDOW, ("generate", "--rows", "10", "--dim", "4")], ids=["attend", "generate"])
def test_a_side_file_whose_output_was_removed_is_replaced(tmp_path, words):
    output = ("-o", "x.npy") if words is WINDOW else ("x.npy",)
    run(*words, *output, cwd=tmp_path)
    first = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").unlink()
    run(*words, *output, cwd=tmp_path)
    assert (tmp_path / "x.npy").read_bytes() == first
    (tmp_path / "x.npy").unlink()
    (tmp_path / "x.npy.json").write_text('{"method": "mine"}')
    refused(*words, *output, code=2, words=["x.npy.json", "--force"], folder=tmp_path, cwd=tmp_path)


def test_a_dry_run_refuses_what_the_run_would(tmp_path):
    (tmp_path / "x.npy").touch()
    refused(*WINDOW, "-o", "x.npy", "--dry-run", code=2, words=["x.npy", "--force"], folder=tmp_path, cwd=tmp_path)


def test_devices_and_pipes_are_written_to_as_they_are(tmp_path):
    run(*WINDOW, "-o", "/dev/null")
    os.mkfifo(tmp_path / "fifo.npy")
    (tmp_path / "fifo.npy.json").write_text("{}")
    reader = threading.Thread(target=(tmp_path / "fifo.npy").read_bytes)
    reader.start()
    run(*WINDOW, "-o", tmp_path / "fifo.npy")
    reader.join()
    assert (tmp_path / "fifo.npy.json").read_text() == "{}"


def test_a_run_that_is_resumed_finds_its_own_output(tmp_path):
    """Going on is no replacing, but a first run with --resume replaces nothing that is there."""
    words = (*WINDOW, "-o", "x.npy", "--checkpoint", "x.sattn", "--resume")
    (tmp_path / "x.npy").write_bytes(b"mine")
    refused(*words, code=2, words=["x.npy", "--force"], folder=tmp_path, cwd=tmp_path)
    run(*words, "--force", cwd=tmp_path)
    before = (tmp_path / "x.npy").read_bytes()
    run(*words, cwd=tmp_path)
    assert (tmp_path / "x.npy").read_bytes() == before


def test_force_starts_a_checkpointed_run_again(tmp_path):
    words = ("-o", "x.npy", "--checkpoint", "x.sattn")
    run(*WINDOW, *words, cwd=tmp_path)
    refused(*WINDOW, "--window", "32", "-o", "y.npy", "--checkpoint", "x.sattn", code=2, folder=tmp_path, cwd=tmp_path,
            words=["x.sattn", "--resume", "--force"])  # fmt: skip
    before = (tmp_path / "x.npy").read_bytes()
    run(*WINDOW, "--window", "32", *words, "--force", cwd=tmp_path)
    assert (tmp_path / "x.npy").read_bytes() != before


def test_force_spares_what_is_read(made, tmp_path):
    run("merge", made / "a.sattn", made / "b.sattn", "-o", tmp_path / "a.npy", "--force", code=2)
    for words in (
        ("attend", "in.h5", "--causal", "-o", "in.h5"),
        ("attend", "in.h5", "--causal", "-o", "in.h5:/out"),
        ("sketch", "in.h5", "-o", "in.h5"),
    ):
        (tmp_path / "in.h5").write_bytes(HEADS.read_bytes())
        refused(*words, "--force", code=2, words=["in.h5"], folder=tmp_path, cwd=tmp_path)


def test_a_sketch_that_grows_by_a_merge_needs_force(made, tmp_path):
    (tmp_path / "a.sattn").write_bytes((made / "a.sattn").read_bytes())
    words = ("merge", "a.sattn", made / "b.sattn", "-o", "a.sattn")
    refused(*words, code=2, words=["a.sattn", "--force"], folder=tmp_path, cwd=tmp_path)
    run(*words, "--force", cwd=tmp_path)
    assert "rows 2400" in " ".join(run("info", "a.sattn", cwd=tmp_path).out.decode().split())


# --- FILE.h5:DATASET


def contents(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[:]}) if isinstance(item, h5py.Dataset) else None)
    return found


def test_datasets_are_added_to_a_file(made, tmp_path):
    run(*WINDOW, "-o", "alone.h5", cwd=tmp_path)
    answers = contents(tmp_path / "alone.h5")["out"]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["mine"] = np.arange(7)
        file.attrs["note"] = "mine"
    run(*WINDOW, "--audit", "8", "-o", "x.h5:/layer0/out", cwd=tmp_path)
    run(*WINDOW, "-o", "x.h5:layer1/out", "--doubt", "doubts.h5:/layer1", cwd=tmp_path)
    run("query", made / "a.sattn", f"{HEADS}:/q", "-o", "x.h5:/queried", cwd=tmp_path)
    found = contents(tmp_path / "x.h5")
    assert found.keys() == {"mine", "layer0/out", "layer1/out", "queried"}
    np.testing.assert_array_equal(found["mine"], np.arange(7))
    for name in ("layer0/out", "layer1/out"):
        np.testing.assert_array_equal(found[name], answers)
    with h5py.File(tmp_path / "x.h5") as file:
        assert dict(file.attrs) == {"note": "mine"}
        assert file["layer0/out"].attrs["method"] == "window" and "audit" in file["layer0/out"].attrs
    assert contents(tmp_path / "doubts.h5").keys() == {"layer1"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.h5", "doubts.h5", "x.h5"]


def test_a_pipe_of_unknown_length_is_added_too(tmp_path):
    rows = np.random.default_rng(0).standard_normal((300, 12)).astype("f4")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["mine"] = np.arange(7)
    words = ("attend", "-", "--record", "qkv", "--causal", "--method", "window")
    run(*words, "-o", "x.h5:/a/out", cwd=tmp_path, input=record_bytes(rows[:200], rows[200:]))
    run(*words, "-o", "y.npy", cwd=tmp_path, input=record_bytes(rows))
    found = contents(tmp_path / "x.h5")
    assert found.keys() == {"mine", "a/out"}
    np.testing.assert_array_equal(found["a/out"], np.load(tmp_path / "y.npy"))


def test_a_dataset_that_is_there_is_replaced_only_with_force(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["layer0/out"] = np.arange(7)
        file["other"] = np.arange(3)
    words = (*WINDOW, "-o", "x.h5:/layer0/out")
    refused(*words, code=2, words=["x.h5", "/layer0/out", "--force"], folder=tmp_path, cwd=tmp_path)
    run(*words, "--force", cwd=tmp_path)
    found = contents(tmp_path / "x.h5")
    assert found.keys() == {"layer0/out", "other"} and found["layer0/out"].shape == (600, 3, 64)
    size = (tmp_path / "x.h5").stat().st_size
    run(*words, "--force", cwd=tmp_path)
    assert (tmp_path / "x.h5").stat().st_size < 1.1 * size  # its room is used again


@pytest.mark.parametrize("target, words", [
    ("x.h5:/layer0", ["/layer0 is a group"]),
    ("x.h5:/layer0/out/more", ["/layer0/out is a dataset"]),
    ("text.h5:/out", ["text.h5", "no HDF5 file"]),
    ("x.npy:/out", ["extension"]),
    ("missing/x.h5:/out", ["there is no folder"]),
])  # fmt: skip
def test_what_cannot_be_added_is_refused(tmp_path, target, words):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["layer0/out"] = np.arange(7)
    (tmp_path / "text.h5").write_text("text")
    code = 10 if "missing" in target else 2
    refused(*WINDOW, "-o", target, "--force", code=code, words=words, folder=tmp_path, cwd=tmp_path)


def test_a_dataset_is_not_resumed_and_stands_not_beside_its_doubt(tmp_path):
    refused(*WINDOW, "-o", "x.h5:/a", "--checkpoint", "c.sattn", code=2, words=["x.h5", "--checkpoint"], cwd=tmp_path)
    refused(*WINDOW, "-o", "x.h5:/a", "--doubt", "x.h5:/b", code=2, words=["--doubt", "x.h5"], cwd=tmp_path)
    assert not (tmp_path / "x.h5").exists()


def test_what_others_add_meanwhile_is_not_lost(tmp_path):
    """The file is copied when the run begins; where it has changed at the end, the run adds nothing."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["mine"] = np.arange(7)
    os.mkfifo(tmp_path / "rows")
    words = ("attend", tmp_path / "rows", "--record", "qkv", "--dim", "4", "--causal", "--method", "window")
    process = start(*words, "-o", tmp_path / "x.h5:/out", "--quiet", stderr=-1)
    with open(tmp_path / "rows", "wb") as pipe:
        pipe.write(record_bytes(np.zeros((300, 12), "f4")))
        pipe.flush()
        wait_until(process, lambda: any(path.name.endswith(".tmp") for path in tmp_path.iterdir()))
        with h5py.File(tmp_path / "x.h5", "a") as file:
            file["theirs"] = np.arange(5)
    assert b"x.h5: changed while" in process.communicate(timeout=900)[1]
    assert process.returncode == 9
    assert contents(tmp_path / "x.h5").keys() == {"mine", "theirs"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows", "x.h5"]
