"""Several layers in one run: each has the bytes of a run of its own, and all of them are told as one."""

import json

import h5py
import numpy as np
import pytest
from clirun import records, refused, run

LAYERS, SMALL = (0, 3, 11), ("--causal", "--resident-rows", "64", "--layout", "BHTD", "--quiet")


def _parts(layer):
    rng = np.random.default_rng(layer)
    return {part: rng.standard_normal((2, heads, 90, 8)).astype("f4") for part, heads in (("q", 4), ("k", 2), ("v", 2))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dump of three layers in every form, and the outputs of a run for each of them."""
    folder = tmp_path_factory.mktemp("layers")
    with h5py.File(folder / "dump.h5", "w") as file:
        for layer in LAYERS:
            for part, rows in _parts(layer).items():
                file[f"model/layer{layer}/{part}"] = rows
    np.savez(folder / "dump.npz", **{f"layers.{n}.{part}": rows for n in LAYERS for part, rows in _parts(n).items()})
    for layer in LAYERS:
        np.savez(folder / f"one-{layer:02}.npz", **_parts(layer))
        run("attend", folder / f"one-{layer:02}.npz", *SMALL, "-o", folder / f"alone-{layer}.npy")
    return folder


def _alone(folder, layer):
    return np.load(folder / f"alone-{layer}.npy")


@pytest.mark.parametrize("name", ["dump.h5", "dump.npz", "one-{layer}.npz"])
def test_every_layer_has_the_bytes_of_its_own_run(folder, tmp_path, name):
    run("attend", folder / name, "--layer", "all", *SMALL, "-o", tmp_path / "out-{layer}.npy")
    for layer in LAYERS:
        assert np.array_equal(np.load(tmp_path / f"out-{layer}.npy"), _alone(folder, layer))
    assert len(list(tmp_path.iterdir())) == 2 * len(LAYERS)


@pytest.mark.parametrize("word, chosen", [("3", [3]), ("0:4", [0, 3]), ("3:", [3, 11]), ("11,0", [0, 11]), (":1", [0])])
def test_layers_are_chosen_by_their_numbers(folder, tmp_path, word, chosen):
    run("attend", folder / "dump.h5", "--layer", word, *SMALL, "-o", tmp_path / "out-{layer}.npy")
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == sorted(f"out-{layer}.npy" for layer in chosen)


def test_one_file_has_a_group_for_each(folder, tmp_path):
    done = run(
        "attend", folder / "dump.h5", "--layer", "all", *SMALL, "--json", "--audit", "32", "-o", tmp_path / "out.h5"
    )
    with h5py.File(tmp_path / "out.h5") as file:
        for layer in LAYERS:
            found = file[f"model/layer{layer}/out"]
            assert np.array_equal(found, _alone(folder, layer)) and found.attrs["method"] == "nystrom"
    outcome = done.document
    assert outcome["rows"] == len(LAYERS) * 180 and 85 <= outcome["audit"]["rows"] <= len(LAYERS) * 32
    assert [layer["number"] for layer in outcome["layers"]] == list(LAYERS)
    assert all(len(layer["heads"]) == 4 and layer["rows"] == 180 for layer in outcome["layers"])


def test_the_error_of_all_layers_is_that_of_their_files(folder, tmp_path):
    """With every row audited nothing is left to chance."""
    words = ("attend", folder / "dump.h5", "--layer", "all", *SMALL)
    run(*words, "--method", "exact", "-o", tmp_path / "exact.h5")
    outcome = run(*words, "--json", "--audit", "1000", "-o", tmp_path / "out.h5").document
    with h5py.File(tmp_path / "exact.h5") as exact, h5py.File(tmp_path / "out.h5") as out:
        true, found = (np.float64([file[f"model/layer{n}/out"][()] for n in LAYERS]) for file in (exact, out))
    error = np.linalg.norm(found - true) / np.linalg.norm(true)
    assert outcome["audit"]["method"]["error"] == pytest.approx(error, rel=1e-4)
    assert outcome["audit"]["norm"] == pytest.approx(np.linalg.norm(true), rel=1e-4)


def test_a_pipe_gets_one_layer_after_the_other(folder):
    done = run("attend", folder / "dump.npz", "--layer", "all", *SMALL, "-o", "-")
    wanted = [_alone(folder, layer).transpose(0, 2, 1, 3).reshape(-1, 4, 8) for layer in LAYERS]
    assert np.array_equal(np.concatenate(records(done.out)), np.concatenate(wanted))


def test_layers_that_were_complete_are_not_done_again(folder, tmp_path):
    words = (
        "attend",
        folder / "dump.h5",
        *SMALL,
        "--checkpoint",
        tmp_path / "{layer}.sattn",
        "-o",
        tmp_path / "out-{layer}.npy",
    )
    run(*words, "--layer", "0:4")
    before = (tmp_path / "out-3.npy").stat().st_mtime_ns
    outcome = run(*words, "--layer", "all", "--resume", "--json").document
    assert outcome["rows"] == 3 * 180 and outcome["rows_before"] == 2 * 180
    assert (tmp_path / "out-3.npy").stat().st_mtime_ns == before
    assert np.array_equal(np.load(tmp_path / "out-11.npy"), _alone(folder, 11))


def test_nothing_is_left_of_a_joint_file_when_a_layer_fails(folder, tmp_path):
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        for layer in (0, 1):
            for part, rows in _parts(layer).items():
                file[f"layer{layer}/{part}"] = np.where(layer == 1, np.nan, rows)
    run("attend", tmp_path / "bad.h5", "--layer", "all", *SMALL, "-o", tmp_path / "out.h5", code=5)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.h5"]


REFUSED = {
    "no such layer": (("--layer", "7", "-o", "o-{layer}.npy"), 3, ["no layer 7", "there are: 0, 3, 11"]),
    "no number": (("--layer", "x", "-o", "o-{layer}.npy"), 2, ["--layer x", "give numbers such as 3"]),
    "one name for all": (("--layer", "all", "-o", "o.npy"), 2, ["3 layers need a file each", "{layer}", "-o FILE.h5"]),
    "a checkpoint each": (("--layer", "all", "-o", "o.h5", "--checkpoint", "{layer}.sattn"), 2, ["omit {layer}"]),
    "one file of entries": (("--layer", "all", "--top-k", "2", "-o", "o.h5"), 2, ["--top-k", "{layer}"]),
    "a group too": (("--layer", "3", "--group", "x", "-o", "o.npy"), 2, ["--layer", "--group", "give one"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(folder, tmp_path, case):
    words, code, told = REFUSED[case]
    refused(
        "attend", folder / "dump.h5", "--causal", "--layout", "BHTD", *words, code=code, words=told, folder=tmp_path
    )


def test_the_text_tells_the_error_of_each(folder, tmp_path):
    words = [word for word in SMALL if word != "--quiet"]
    done = run("attend", folder / "dump.h5", "--layer", "all", *words, "--audit", "32", "-o", tmp_path / "out.h5")
    assert all(f"layer {layer}" in done.err for layer in LAYERS) and "worst head" in done.err
    assert "layer 3 (model/layer3), 2 of 3" in done.err


def test_a_dry_run_is_that_of_the_largest_layer(folder, tmp_path):
    done = run("attend", folder / "dump.h5", "--layer", "all", *SMALL, "--dry-run", "--json", "-o", tmp_path / "out.h5")
    assert json.loads(done.out)["type"] == "plan" and not list(tmp_path.iterdir())
