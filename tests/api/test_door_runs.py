"""attend, audit and compare from Python do what the commands do."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from clirun import SAMPLE, run

from streamattn_cli import AttentionSketch, attend, audit, compare, open_sketch
from streamattn_cli.api_inputs import WrongSetting
from streamattn_cli.errors import InputMalformed, NonFinite, SourceChanged

HEADS = SAMPLE / "heads.h5"
ROWS = 900


@pytest.fixture(scope="module")
def arrays():
    with h5py.File(HEADS) as file:
        return tuple(file[part][:ROWS] for part in "qkv")


@pytest.mark.parametrize("mode", ["--causal", "--full"])
@pytest.mark.parametrize("words", [{"resident_rows": 128}, {"method": "window", "window": 64}, {"method": "exact"}])
def test_attend_answers_as_the_command_does(arrays, tmp_path, mode, words):
    found = attend(*arrays, causal=mode == "--causal", audit=64, **words)
    options = [word for name, value in words.items() for word in (f"--{name.replace('_', '-')}", value)]
    done = run("attend", HEADS, "--rows", f"0:{ROWS}", "--q-rows", f"0:{ROWS}", mode, "--audit", "64", *options, "--json",
               "-o", tmp_path / "o.npy").document  # fmt: skip
    np.testing.assert_array_equal(found.out, np.load(tmp_path / "o.npy"))
    assert found.facts["params"] == done["facts"]["params"]
    if done["audit"]:
        assert found.audit.method.error == pytest.approx(done["audit"]["method"]["error"])
        assert found.audit.rows == done["audit"]["rows"]
    else:
        assert found.audit is None and found.audit_reason == done["audit_reason"]


def test_names_of_files_are_taken_as_words(tmp_path):
    whole = attend(HEADS, causal=True, method="window")
    parts = attend(f"{HEADS}:/q", f"{HEADS}:/k", f"{HEADS}:/v", causal=True, method="window", scale=0.125)
    run("attend", HEADS, "--causal", "--method", "window", "-o", tmp_path / "o.npy")
    for found in (whole, parts):
        np.testing.assert_array_equal(found.out, np.load(tmp_path / "o.npy"))
    with pytest.raises(WrongSetting, match="three arrays, three names, or one file"):
        attend(HEADS, np.zeros((3, 4), "f4"), np.zeros((3, 4), "f4"))


def test_one_head_has_no_axis_of_heads():
    q, k, v = (np.random.default_rng(seed).standard_normal((700, 8)).astype("f4") for seed in range(3))
    found = attend(q, k, v, method="window", window=32, causal=True)
    assert found.out.shape == (700, 8)
    with pytest.raises(InputMalformed, match=r"give one sequence, array\[0\].swapaxes\(0, 1\)"):
        attend(*(np.zeros((1, 2, 700, 8), "f4") for _ in "qkv"), method="window")
    assert audit(found.out, q, k, v, causal=True, rows=700).method.error == pytest.approx(
        attend(q, k, v, method="window", window=32, causal=True, audit=700).audit.method.error, rel=1e-3
    )


def test_an_audit_of_answers_by_any_method(arrays):
    exact = attend(*arrays, causal=True, method="exact").out
    assert audit(exact, *arrays, causal=True).method.error < 1e-5
    wrong = exact.copy()
    wrong[:, 1] *= 1.1
    found = audit(wrong, *arrays, causal=True, rows=ROWS)
    expected = np.linalg.norm(wrong - exact) / np.linalg.norm(exact)
    assert found.rows == ROWS and found.method.error == pytest.approx(expected, rel=1e-3)
    assert [head.error == pytest.approx(0.1, rel=1e-3) for head in found.heads] == [False, True, False]
    with pytest.raises(InputMalformed, match="answers: shape"):
        audit(exact[:-1], *arrays, causal=True)


def test_compare_finds_what_the_command_finds(arrays):
    words = ("--rows", f"0:{ROWS}", "--q-rows", f"0:{ROWS}", "--causal", "--methods", "nystrom,window")
    done = run("compare", HEADS, *words, "--resident-rows", "96,128", "--audit", "64", "--json").document
    found = compare(*arrays, methods="nystrom,window", resident_rows=["10.667%", 128], causal=True, audit=64)
    errors = [(t.label, t.budget, t.audit.method.error) for t in found.trials]
    assert [(label, budget) for label, budget, _ in errors] == [(t["label"], t["budget"]) for t in done["trials"]]
    assert [error for *_, error in errors] == pytest.approx([t["audit"]["method"]["error"] for t in done["trials"]])


def test_a_sketch_tells_how_wrong_it_is(arrays, tmp_path):
    q, k, v = arrays
    sketch = AttentionSketch(queries=q, resident_rows=128)
    sketch.absorb(k, v)
    exact = attend(q, k, v, causal=False, method="exact").out
    error = np.linalg.norm(sketch.query(q) - exact) / np.linalg.norm(exact)
    assert sketch.audit(q, k, v, rows=ROWS).method.error == pytest.approx(error, rel=1e-3)
    sketch.save(tmp_path / "a.sattn")
    again = open_sketch(tmp_path / "a.sattn").audit(q, k, v, rows=64).method
    assert again.low <= error <= again.high
    with pytest.raises(InputMalformed, match="was made of"):
        sketch.audit(q, k[:-1], v[:-1])


def test_other_keys_of_a_file_are_refused(tmp_path):
    run("sketch", HEADS, "--method", "window", "-o", tmp_path / "a.sattn")
    sketch = open_sketch(tmp_path / "a.sattn")
    with pytest.raises(SourceChanged, match="keys and values that it was made of"):
        sketch.audit(f"{HEADS}:/q", f"{HEADS}:/v", f"{HEADS}:/k")


@pytest.mark.parametrize("words, said", [
    ({"causal": 3}, "causal=3 found, expected True or False"), ({"audit": "many"}, "audit='many'"),
    ({"method": "none"}, "--method none"), ({"output": "x.npy"}, "unknown setting output"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(arrays, words, said):
    with pytest.raises(WrongSetting, match=said):
        attend(*arrays, **words)


def test_what_does_not_fit_or_is_not_finite_is_refused(arrays):
    q, k, v = arrays
    with pytest.raises(InputMalformed, match="rows"):
        attend(q, k, v[:-1])
    bad = v.copy()
    bad[7] = np.nan
    with pytest.raises(NonFinite, match="row 7"):
        attend(q, k, bad, method="window")


def test_the_example_of_the_readme_works(tmp_path):
    text = (Path(SAMPLE).parent / "README.md").read_text()
    (block,) = (b for b in text.split("\n\n") if b.startswith("    done = attend("))
    code = "import numpy as np\nfrom streamattn_cli import attend, audit, compare\n"
    code += (
        "q, k, v = (np.random.default_rng(s).standard_normal((600, 2, 8)).astype('f4') for s in range(3))\nmine = q\n"
    )
    code += "\n".join(line[4:] for line in block.splitlines()).replace('"heads.h5"', repr(str(HEADS)))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
