"""A sketch of every method, as an earlier version wrote it: it opens, says what it is, and answers as it did.

tests/golden/*.sattn hold 600 rows of two key heads of 8 (method defaults, 128 resident rows; poly of degree 2), answers.npz
some queries and the answers of that version. nystrom.sattn has atoms of eight bits, nystrom-six-bits.sattn, of 56 resident
rows, of six; their answers are those since METHODS.md (N25), by which rows that are still exact are compressed for a query (0.006
and 0.022 from those before). A change that makes one of these unreadable needs another SCHEMA and a line in CHANGELOG.md; the
files stay, and are then refused with exit code 8.
"""

from pathlib import Path

import numpy as np
import pytest
from clirun import run

from streamattn_cli.engine.jobs.sketch import open_sketch_file
from streamattn_cli.sketches import registry

GOLDEN = Path(__file__).parents[1] / "golden"
SKETCHES = {name: name for name in registry.BUILT_IN if name != "exact"} | {"nystrom-six-bits": "nystrom"}
LITTLE = {"nystrom-six-bits": "56"}  # resident rows, so that the 600 are no short stream


def test_every_method_has_one():
    assert {path.stem for path in GOLDEN.glob("*.sattn")} - {"container-1"} == set(SKETCHES)


@pytest.mark.parametrize("name", SKETCHES)
def test_it_answers_as_it_did(tmp_path, name):
    with np.load(GOLDEN / "answers.npz") as answers:
        np.save(tmp_path / "q.npy", answers["queries"])
        expected = answers[name]
    run("query", GOLDEN / f"{name}.sattn", tmp_path / "q.npy", "--layout", "THD", "-o", tmp_path / "a.npy")
    found = np.load(tmp_path / "a.npy")
    # nystrom compresses what is still exact, and rounding decides between atoms that are equally good: with the products of
    # five kinds of processors (OPENBLAS_CORETYPE) its answers differ by 0.001 to 0.002 in norm
    if name.startswith("nystrom"):
        assert np.linalg.norm(found - expected) < 0.005 * np.linalg.norm(expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name, method", SKETCHES.items())
def test_it_takes_further_rows_and_others_like_it(tmp_path, name, method):
    """Its state is complete: rows are added, and a sketch of today is merged with it."""
    rng = np.random.default_rng(5)
    for part in "kv":
        np.save(tmp_path / f"{part}.npy", rng.standard_normal((1100, 2, 8)).astype("f2"))
    (tmp_path / "s.sattn").write_bytes((GOLDEN / f"{name}.sattn").read_bytes())
    budget = (
        ("--degree", "2", "--max-error", "inf") if method == "poly" else ("--resident-rows", LITTLE.get(name, "128"))
    )
    words = ("--k", tmp_path / "k.npy", "--v", tmp_path / "v.npy", "--layout", "THD", "--method", method, *budget)
    run("sketch", *words, "--append", "-o", tmp_path / "s.sattn")
    assert open_sketch_file(str(tmp_path / "s.sattn")).rows == 1700
    run("sketch", *words, "-o", tmp_path / "new.sattn")
    run("merge", GOLDEN / f"{name}.sattn", tmp_path / "new.sattn", "-o", tmp_path / "all.sattn")
    assert open_sketch_file(str(tmp_path / "all.sattn")).rows == 1700
