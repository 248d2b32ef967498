"""`info`: what a checkpoint is, said so that somebody who did not make it knows how it was made."""

import numpy as np
import pytest
from clirun import SAMPLE, record_bytes, run

HEADS = SAMPLE / "heads.h5"
GOLDEN = SAMPLE.parent / "tests" / "golden"


def told(name, **kwargs):
    return " ".join(run("info", name, **kwargs).out.decode().split())


def test_a_sketch_tells_what_it_was_made_of(tmp_path):
    done = run("sketch", HEADS, "--resident-rows", "256", "--rows", "0:2000", "--json", "-o", "a.sattn", cwd=tmp_path)
    params = done.document["facts"]["params"]
    text = told("a.sattn", cwd=tmp_path)
    assert f"atoms compressed at a time {params['active']}" in text
    assert (
        f"settings sinks 4, window 1, buffer {params['group']}, rows kept as float16" in text
        and f"atoms {params['atoms']}" in text
    )
    assert f"resident {params['resident_rows']} rows of k and v for each key head" in text
    assert "layout THD" in text and "queries learnt from heads.h5:/q" in text
    assert "sources heads.h5:/k and heads.h5:/v, rows 0:2000 of 4096" in text
    found = run("info", "a.sattn", "--json", cwd=tmp_path).document
    assert (found["resident_rows"], found["resident_bytes"]) == (params["resident_rows"], params["resident_bytes"])
    assert (found["layout"], found["queries"]) == ("THD", "heads.h5:/q")
    assert str(tmp_path) not in str(found["meta"])  # a sketch that is given away tells of no folder


@pytest.mark.parametrize("words, queries", [
    (("--blind",), "queries none: it knew no queries"),
    (("--query-model", f"{HEADS}:/q"), "queries learnt from heads.h5:/q"),
    (("--method", "window"), None),
])  # fmt: skip
def test_a_sketch_tells_which_queries_it_learnt_from(tmp_path, words, queries):
    run("sketch", HEADS, "--resident-rows", "128", "--rows", "0:1500", *words, "-o", tmp_path / "a.sattn")
    text = told(tmp_path / "a.sattn")
    assert queries in text if queries else "queries" not in text


def test_what_is_merged_and_added_names_all_its_sources(tmp_path):
    for name in ("first", "second", "third"):
        rows = np.random.default_rng(len(name)).standard_normal((2, 700, 8)).astype("f4")
        for part in "kv":
            np.save(tmp_path / f"{name}_{part}.npy", rows)
    sketch = ("sketch", "--method", "window", "--layout", "HTD")

    def files(name):
        return ("--k", f"{name}_k.npy", "--v", f"{name}_v.npy")

    run(*sketch, *files("first"), "-o", "a.sattn", cwd=tmp_path)
    run(*sketch, *files("second"), "-o", "b.sattn", cwd=tmp_path)
    run("merge", "a.sattn", "b.sattn", "-o", "all.sattn", cwd=tmp_path)
    run(*sketch, *files("third"), "--append", "-o", "all.sattn", cwd=tmp_path)
    text = told("all.sattn", cwd=tmp_path)
    expected = "; ".join(f"{name}_k.npy and {name}_v.npy, 700 rows" for name in ("first", "second", "third"))
    assert f"sources {expected}" in text and "layout HTD" in text


def test_a_pipe_has_no_name(tmp_path):
    rows = record_bytes(np.random.default_rng(0).standard_normal((300, 16)).astype("f4"))
    run("sketch", "-", "--method", "window", "-o", tmp_path / "a.sattn", input=rows)
    assert "sources a pipe" in told(tmp_path / "a.sattn")


def test_a_run_tells_its_settings_once(tmp_path):
    run("attend", HEADS, "--causal", "--rows", "0:900", "--method", "window", "--window", "64", "-o", tmp_path / "o.npy",
        "--checkpoint", tmp_path / "a.sattn")  # fmt: skip
    text = told(tmp_path / "a.sattn")
    assert text.count("window 64") == 1 and "layout THD" in text
    assert "sources heads.h5:/q and heads.h5:/k and heads.h5:/v, rows 0:900 of 4096" in text


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.sattn")), ids=lambda path: path.stem)
def test_what_older_versions_wrote_is_told_as_far_as_it_goes(path):
    text = told(path)  # names of sources are told since sketches have them
    assert any(word in text for word in ("sources a file", "sources gm_k.npy and gm_v.npy")) or "sources" not in text
