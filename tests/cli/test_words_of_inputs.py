"""What the command line says of inputs that are nearly right: the shapes it saw, and the words that mend it."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from clirun import record_bytes, refused, run

from streamattn_cli.kernels import jit

WINDOW = ("--method", "window", "--full", "-o", "out.npy")
PARTS = ("--q", "q.npy", "--k", "k.npy", "--v", "v.npy")


def rows(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("f4")


def save_fused(folder, q, kv):
    np.save(folder / "q.npy", rows(600, q))
    for part in "kv":
        np.save(folder / f"{part}.npy", rows(600, kv))


# --- heads


@pytest.mark.parametrize("q, kv, given, words, mended", [
    (128, 64, ("--heads", "4"), ["heads of 32 items", "heads of 16", "--kv-heads 2"], ("--heads", "4", "--kv-heads", "2")),
    (128, 64, ("--heads", "4", "--kv-heads", "1"), ["heads of 32 items", "heads of 64", "--kv-heads 2"],
     ("--heads", "4", "--kv-heads", "2")),
    (576, 192, ("--heads", "9"), ["192 items", "9 heads", "--kv-heads 3"], ("--heads", "9", "--kv-heads", "3")),
    (576, 192, (), ["heads of 576 items", "heads of 192", "--dim 64 for 9 query and 3 key heads"], ("--dim", "64")),
])  # fmt: skip
def test_heads_that_disagree_are_told_the_number_that_fits(tmp_path, q, kv, given, words, mended):
    save_fused(tmp_path, q, kv)
    refused("attend", *PARTS, *given, *WINDOW, code=4, words=words, folder=tmp_path, cwd=tmp_path)
    run("attend", *PARTS, *mended, *WINDOW, cwd=tmp_path)


def test_heads_that_fit_in_no_way_get_no_number(tmp_path):
    save_fused(tmp_path, 100, 192)
    said = refused("attend", *PARTS, *WINDOW, code=4, words=["100", "192"], cwd=tmp_path)
    assert "--dim 6" not in said and "--kv-heads" not in said


# --- records that take turns


@pytest.mark.parametrize("widths, words", [((64, 64, 64), ()), ((64, 64, 64), ("--dim", "64")), ((96, 96, 32), ())])
def test_records_of_q_k_and_v_in_turn_are_told_what_a_record_packs(tmp_path, widths, words):
    turns = record_bytes(*(rows(100, width) for _ in range(3) for width in widths))
    refused("attend", "-", *words, "--causal", "-o", "out.npy", code=4, input=turns, cwd=tmp_path, folder=tmp_path,
            words=["side by side", "take turns"])  # fmt: skip


# --- groups


def test_a_dataset_that_is_elsewhere_is_named_with_its_group(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for layer in range(2):
            for part in "qkv":
                file[f"layer{layer}/{part}"] = rows(600, 8)
    named = ("--q", "x.h5:/q", "--k", "x.h5:/k", "--v", "x.h5:/v")
    refused("attend", *named, *WINDOW, code=3, cwd=tmp_path,
            words=["x.h5: no dataset /q", "/layer0/q", "--group layer0 (or layer1)", "x.h5:/layer0/q"])  # fmt: skip
    refused("attend", "x.h5", "--group", "layer", *WINDOW, code=3, cwd=tmp_path, words=["--group layer0 (or layer1)"])
    refused("attend", "x.h5", "--layout", "TD", *WINDOW, code=4, cwd=tmp_path, words=["--group layer0"])
    run("attend", "x.h5", "--group", "layer0", *WINDOW, cwd=tmp_path)


def test_a_tensor_that_is_elsewhere_is_named_with_its_group(tmp_path):
    np.savez(tmp_path / "x.npz", **{f"layers.3.{part}": rows(600, 8) for part in "qkv"})
    refused("attend", "x.npz", "--group", "layers.2", *WINDOW, code=3, cwd=tmp_path, words=["--group layers.3"])


# --- names


@pytest.mark.parametrize("option", ["--q=~/", "--q="])
def test_the_home_folder_is_meant_after_an_equals_sign(tmp_path, option):
    save_fused(tmp_path, 8, 8)
    name = option + "q.npy"
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    if "~" in option:
        home.mkdir()
        os.rename(tmp_path / "q.npy", home / "q.npy")
    else:
        os.rename(tmp_path / "q.npy", here / "q.npy")
    words = (name, f"--k={tmp_path / 'k.npy'}", f"--v={tmp_path / 'v.npy'}", "--method", "window", "--full")
    output = "--output=~/out.npy" if "~" in option else "--output=out.npy"
    run("attend", *words, output, cwd=here, env={"HOME": str(home), "NUMBA_CACHE_DIR": str(Path(jit.folder()).parent)})
    assert (home if "~" in option else here).joinpath("out.npy").exists()


def test_a_name_with_spaces_wants_quotes(tmp_path):
    with h5py.File(tmp_path / "my big dump.h5", "w") as file:
        for part in "qkv":
            file[part] = rows(600, 8)
    for words in (("attend", "my", "big", "dump.h5", *WINDOW), ("inspect", "my", "big", "dump.h5")):
        said = run(*words, code=2, cwd=tmp_path).err.splitlines()[-1]
        assert said.startswith("streamattn: several words found") and "'my big dump.h5'" in said
    refused("sketch", "my", "big", "dump.h5", "-o", "x.sattn", code=3, words=["'my big dump.h5'"], cwd=tmp_path)
    run("attend", "my big dump.h5", *WINDOW, cwd=tmp_path)
    said = run("inspect", "a.h5", "b.h5", code=2, cwd=tmp_path).err.splitlines()[-1]
    assert "several words found where one is expected" in said and "a.h5 b.h5" not in said


# --- layouts


def ambiguous(folder):
    """As many rows as heads nearly: k and v alone could be read in two ways."""
    with h5py.File(folder / "x.h5", "w") as file:
        file["q"], file["k"], file["v"] = rows(16, 20, 8), rows(8, 20, 8), rows(8, 20, 8)


@pytest.mark.parametrize("words", [("--blind",), ("--method", "poly", "--degree", "2")])
def test_a_sketch_reads_the_layout_of_its_keys_off_the_queries_beside_them(tmp_path, words):
    ambiguous(tmp_path)
    run("sketch", "x.h5", *words, "-o", "a.sattn", cwd=tmp_path)
    run("sketch", "x.h5", *words, "--layout", "HTD", "-o", "b.sattn", cwd=tmp_path)
    assert (tmp_path / "a.sattn").read_bytes() == (tmp_path / "b.sattn").read_bytes()
    apart = ("--k", "x.h5:/k", "--v", "x.h5:/v")
    refused("sketch", *apart, *words, "-o", "c.sattn", code=2, words=["THD or HTD"], cwd=tmp_path)


def test_queries_with_many_rows_are_read_as_rows(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["q"], file["k"], file["v"] = rows(600, 6, 8), rows(600, 3, 8), rows(600, 3, 8)
    run("sketch", "x.h5", "-o", "x.sattn", cwd=tmp_path)
    run("query", "x.sattn", "x.h5:/q", "-o", "a.npy", cwd=tmp_path)
    run("query", "x.sattn", "x.h5:/q", "--layout", "THD", "-o", "b.npy", cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


@pytest.mark.parametrize("layout", ["THD", "HTD"])
def test_queries_that_could_be_read_in_two_ways_are_read_as_the_keys_were(tmp_path, layout):
    k = rows(600, 4, 8)
    np.save(tmp_path / "q.npy", rows(8, 8, 8))
    for part in "kv":
        np.save(tmp_path / f"{part}.npy", k if layout == "THD" else k.transpose(1, 0, 2).copy())
    run("sketch", "--k", "k.npy", "--v", "v.npy", "-o", "x.sattn", cwd=tmp_path)
    run("query", "x.sattn", "q.npy", "-o", "a.npy", cwd=tmp_path)
    run("query", "x.sattn", "q.npy", "--layout", layout, "-o", "b.npy", cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
