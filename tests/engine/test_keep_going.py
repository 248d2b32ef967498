"""`--keep-going`: a layer that fails is reported, and the others finish."""

import h5py
import numpy as np
import pytest
from clirun import run

SMALL = ("--layer", "all", "--layout", "THD", "--causal", "--resident-rows", "64", "--quiet")
ENGINES = {
    "one by one": (),
    "threads": ("--engine", "threads"),
    "processes": ("--engine", "processes", "--threads", "2"),
}


def _save(folder, bad=(1,), malformed=()):
    """dump.h5 of three layers, of which some hold a value that is not finite, and others keys of another length."""
    rng = np.random.default_rng(0)
    with h5py.File(folder / "dump.h5", "w") as file:
        for layer in range(3):
            for part in "qkv":
                rows = rng.standard_normal((80 if layer in malformed and part == "v" else 200, 2, 8)).astype("f4")
                if layer in bad and part == "k":
                    rows[7, 1, 3] = np.nan
                file[f"layer{layer}/{part}"] = rows
    return folder / "dump.h5"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_others_finish_in_files_of_their_own(tmp_path, engine):
    dump = _save(tmp_path)
    words = ("attend", dump, *SMALL, *ENGINES[engine], "--keep-going", "--audit", "16", "--json")
    done = run(*words, "-o", tmp_path / "out-{layer}.npy", code=5)
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["out-0.npy", "out-2.npy"]
    assert not list(tmp_path.glob(".*"))
    layers = done.document["layers"]
    assert [layer["number"] for layer in layers] == [0, 1, 2]
    assert [layer["failed"] is None for layer in layers] == [True, False, True]
    assert layers[1]["failed"]["code"] == 5 and "row 7, head 1" in layers[1]["failed"]["message"]
    assert done.document["rows"] == 400 and done.document["audit"]["rows"] >= 20


@pytest.mark.parametrize("engine", ["one by one", "threads"])
def test_a_joint_file_holds_the_others(tmp_path, engine):
    dump = _save(tmp_path)
    words = [word for word in SMALL if word != "--quiet"]
    done = run("attend", dump, *words, *ENGINES[engine], "--keep-going", "-o", "out.h5", cwd=tmp_path, code=5)
    with h5py.File(tmp_path / "out.h5") as file:
        assert "layer0/out" in file and "layer2/out" in file and "layer1" not in file
        assert np.any(file["layer2/out"])
    told = " ".join(done.err.split())
    assert "out.h5 is complete without layers 1; the same command with --layer 1 -o 'out-{layer}.h5'" in told
    with h5py.File(dump, "r+") as file:  # mended
        file["layer1/k"][7, 1, 3] = 0
    run("attend", dump, *words, *ENGINES[engine], "--layer", "1", "-o", "out-{layer}.h5", cwd=tmp_path)
    with h5py.File(tmp_path / "out-1.h5") as file:
        assert np.isfinite(file["out"]).all()


@pytest.mark.parametrize("engine", ["one by one", "threads"])
def test_a_layer_that_cannot_be_planned_is_one_of_them_and_the_worst_code_counts(tmp_path, engine):
    dump = _save(tmp_path, bad=(0,), malformed=(2,))
    words = ("attend", dump, *SMALL, *ENGINES[engine], "--keep-going", "--json")
    done = run(*words, "-o", tmp_path / "out-{layer}.npy", code=5)
    codes = [layer["failed"] and layer["failed"]["code"] for layer in done.document["layers"]]
    assert codes == [5, None, 4]


@pytest.mark.parametrize("engine", ["one by one", "threads"])
def test_where_all_fail_nothing_is_written(tmp_path, engine):
    dump = _save(tmp_path, bad=(0, 1), malformed=(2,))
    run("attend", dump, *SMALL, *ENGINES[engine], "--keep-going", "-o", tmp_path / "out.h5", code=5)
    assert [path.name for path in tmp_path.iterdir()] == ["dump.h5"]


def test_the_text_names_what_failed(tmp_path):
    words = [word for word in SMALL if word != "--quiet"]
    done = run("attend", _save(tmp_path), *words, "--keep-going", "--audit", "16", "-o", tmp_path / "out.h5", code=5)
    assert "layer 1" in done.err and "failed: " in done.err and "row 7, head 1" in done.err
