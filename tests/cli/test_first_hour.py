"""What the natural command does: queries that are there are used, a share of the keys is a size, and help is found."""

import h5py
import numpy as np
import pytest
from clirun import SAMPLE, refused, run

HEADS = SAMPLE / "heads.h5"
SMALL = ("--resident-rows", "128", "--rows", "0:2048")


def told(done):
    return [line for line in done.err.splitlines() if line.startswith("note: ")]


# --- the queries of the input


@pytest.mark.parametrize("shards", [(), ("--shards", "2")])
def test_a_sketch_learns_from_the_queries_of_its_file(tmp_path, shards):
    """It is the sketch that --q makes, and several times less wrong than one that knows no query."""
    made = {}
    for name, words in {"own": (), "named": ("--q", f"{HEADS}:/q"), "blind": ("--blind",)}.items():
        done = run("sketch", HEADS, *SMALL, *shards, *words, "-o", tmp_path / f"{name}.sattn")
        said = [line for line in told(done) if "--blind" in line]
        assert len(said) == (name != "blind")
        run("query", tmp_path / f"{name}.sattn", f"{HEADS}:/q", "-o", tmp_path / f"{name}.npy")
        made[name] = np.load(tmp_path / f"{name}.npy")
    np.testing.assert_array_equal(made["own"], made["named"])
    run(
        "attend",
        HEADS,
        "--full",
        "--method",
        "exact",
        "--q-rows",
        "0:4096",
        "--rows",
        "0:2048",
        "-o",
        tmp_path / "x.npy",
    )
    exact = np.load(tmp_path / "x.npy")
    own, blind = (np.linalg.norm(made[name] - exact) / np.linalg.norm(exact) for name in ("own", "blind"))
    assert 2 * own < blind


def test_parts_of_a_file_merge_however_they_were_made(tmp_path):
    """In shards, alone, and merged before: all learnt from the same queries."""
    for name, words in {"a": ("--shards", "2"), "b": (), "c": ()}.items():
        first = 1024 * "abc".index(name)
        run(
            "sketch",
            HEADS,
            "--resident-rows",
            "128",
            "--rows",
            f"{first}:{first + 1024}",
            *words,
            "-o",
            tmp_path / f"{name}.sattn",
        )
    run("merge", tmp_path / "a.sattn", tmp_path / "b.sattn", "-o", tmp_path / "ab.sattn")
    run("merge", tmp_path / "ab.sattn", tmp_path / "c.sattn", "-o", tmp_path / "abc.sattn")
    run("query", tmp_path / "abc.sattn", f"{HEADS}:/q", "-o", tmp_path / "o.npy")
    assert np.isfinite(np.load(tmp_path / "o.npy")).all()


@pytest.mark.parametrize("words", [("--method", "poly", "--degree", "2", "--scale", "d"), ("--method", "window")])
def test_a_method_that_learns_nothing_reads_no_queries(tmp_path, words):
    done = run("sketch", HEADS, "--rows", "0:1500", *words, "-o", tmp_path / "a.sattn")
    run("sketch", HEADS, "--rows", "0:1500", *words, "--blind", "-o", tmp_path / "b.sattn")
    assert (tmp_path / "a.sattn").read_bytes() == (tmp_path / "b.sattn").read_bytes()
    assert not any("--blind" in line for line in told(done))


def test_a_file_without_queries_is_sketched_as_before(tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "kv.h5", "w") as file:
        for part in "kv":
            file[part] = rng.standard_normal((1500, 8)).astype("f4")
    done = run("sketch", tmp_path / "kv.h5", "--resident-rows", "128", "-o", tmp_path / "a.sattn")
    assert any("no queries are known" in line for line in told(done))


def test_blind_and_queries_contradict_each_other(tmp_path):
    refused("sketch", HEADS, "--blind", "--q", f"{HEADS}:/q", "-o", tmp_path / "a.sattn", code=2, words=["--blind"])


# --- notes on which the result depends


def test_quiet_does_not_hide_what_decides_the_result(tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((300, 12)).astype("f4"))
    words = (
        "attend",
        tmp_path / "rows.npy",
        "--record",
        "qkv",
        "--dim",
        "4",
        "--method",
        "window",
        "--force",
        "-o",
        tmp_path / "o.npy",
    )
    said = run(*words, "--quiet").err.splitlines()
    assert said == ["note: attention is full (the default; --causal or --full decides)"]
    assert run(*words, "--quiet", "--full").err == ""
    loud = run(*words).err.splitlines()
    assert loud.count(said[0]) == 1
    logged = run(*words, "--log-json").log
    assert sum(line.get("text", "") == said[0].removeprefix("note: ") for line in logged) == 1


# --- sizes as a share


@pytest.mark.parametrize("command", ["attend", "sketch"])
def test_resident_rows_as_a_share_of_the_keys(tmp_path, command):
    causal = ("--causal",) if command == "attend" else ("--blind",)
    ending = ".npy" if command == "attend" else ".sattn"
    done = run(command, HEADS, *causal, "--rows", "0:2000", "--resident-rows", "10%", "-o", tmp_path / f"a{ending}")
    run(command, HEADS, *causal, "--rows", "0:2000", "--resident-rows", "200", "-o", tmp_path / f"b{ending}")
    assert "note: --resident-rows 10% of 2000 keys: 200" in told(done)
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


def test_a_share_is_planned_for(tmp_path):
    assert "--resident-rows 410" in run("plan", HEADS, "--resident-rows", "10%").out.decode()


@pytest.mark.parametrize("word", ["0%", "101%", "x%", "ten", "%"])
def test_a_share_that_is_none_is_refused(tmp_path, word):
    refused("attend", HEADS, "--causal", "--resident-rows", word, "-o", tmp_path / "o.npy", code=2,
            words=["--resident-rows", "10%"], folder=tmp_path)  # fmt: skip


def test_a_share_of_an_unknown_number_is_refused(tmp_path):
    rows = np.random.default_rng(0).standard_normal((300, 12)).astype("f4").tobytes()
    refused("attend", "-", "--raw", "f32", "--dim", "4", "--causal", "--resident-rows", "10%", "-o", tmp_path / "o.npy",
            code=2, words=["10%", "give a number"], input=rows, folder=tmp_path)  # fmt: skip


# --- words


def test_help_is_a_command_too():
    assert run("help", "attend").out == run("attend", "--help").out
    assert b"compare" in run("help").out
    with open("/dev/full", "wb") as full:
        assert run("help", "attend", code=10, stdout=full).err.count("\n") == 1
    refused("help", "atend", code=2, words=["atend", "streamattn help"])


@pytest.mark.parametrize("names", [("Q", "K", "V"), ("layer0/q", "layer0/k", "layer0/v"), ("query", "key", "value")])
def test_datasets_of_other_names_are_found(tmp_path, names):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in names:
            file[name] = rng.standard_normal((300, 8)).astype("f4")
    run("attend", tmp_path / "x.h5", "--causal", "--method", "window", "-o", tmp_path / "o.npy")
    assert np.load(tmp_path / "o.npy").shape == (300, 8)


def test_several_layers_name_the_option_that_chooses(tmp_path):
    """And the advice, followed, works."""
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for layer in range(3):
            for part in "qkv":
                file[f"layer{layer}/{part}"] = rng.standard_normal((300, 8)).astype("f4")
    words = ("attend", tmp_path / "x.h5", "--causal", "--method", "window", "-o", tmp_path / "o.npy")
    refused(*words, code=4, words=["--group layer0", "know --layer 0 and --layer all"], folder=tmp_path)
    run(*words, "--group", "layer0")
    found = run("inspect", tmp_path / "x.h5", "--layer", "1:", "--json").document
    assert "x.h5 --layer 1:" in found["command"] and found["tensors"][0]["name"].endswith("/layer1/q")
    assert "2 layers; layer 1 is looked at" in found["notes"]
    assert "no layer 7" in run("inspect", tmp_path / "x.h5", "--layer", "7", code=3).err


def test_parts_of_a_file_learn_from_the_same_queries_and_merge(tmp_path):
    for name, rows in (("a", "0:2048"), ("b", "2048:4096")):
        run("sketch", HEADS, "--resident-rows", 256, "--rows", rows, "-o", tmp_path / f"{name}.sattn", "--quiet")
    run("merge", tmp_path / "a.sattn", tmp_path / "b.sattn", "-o", tmp_path / "all.sattn")


@pytest.mark.parametrize("words", [("d*.h5",), ("d0.h5", "d1.h5")])
def test_a_stream_of_files_learns_from_the_queries_of_all_of_them(tmp_path, words):
    rng = np.random.default_rng(0)
    for number in range(2):
        with h5py.File(tmp_path / f"d{number}.h5", "w") as file:
            for part in "qkv":
                file[part] = rng.standard_normal((800, 8)).astype("f4")
    done = run("sketch", *words, "--resident-rows", 64, "-o", "x.sattn", cwd=tmp_path)
    assert any("learns from the queries of d0.h5:/q ... d1.h5:/q" in line for line in told(done))
    with h5py.File(tmp_path / "d1.h5", "a") as file:
        del file["q"]
    done = run("sketch", *words, "--resident-rows", 64, "-o", "y.sattn", cwd=tmp_path)
    assert any("no queries are known" in line for line in told(done))


def test_packed_rows_bring_their_queries(tmp_path):
    np.save(tmp_path / "packed.npy", np.random.default_rng(0).standard_normal((1500, 24)).astype("f4"))
    done = run("sketch", "packed.npy", "--record", "qkv", "--resident-rows", 64, "-o", "x.sattn", cwd=tmp_path)
    assert any("learns from the queries of packed.npy" in line for line in told(done))
