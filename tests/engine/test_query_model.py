"""`--query-model`: queries of a file that stand for those to come, and what merging makes of different ones."""

import numpy as np
import pytest
from clirun import SAMPLE, refused, run

HEADS = str(SAMPLE / "heads.h5")


def error(answers, exact):
    return np.linalg.norm(np.load(answers) - np.load(exact)) / np.linalg.norm(np.load(exact))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Sketches of the sample in two halves and as a whole, with a model, and of the second half without one."""
    folder = tmp_path_factory.mktemp("models")
    model = ("--resident-rows", 256, "--query-model", HEADS + ":/q")
    for name, rows, words in (("a", "0:2048", model), ("b", "2048:4096", model), ("all", "0:4096", model),
                              ("blind", "0:4096", (*model[:2], "--blind")),
                              ("other", "2048:4096", (*model[:2], "--blind"))):  # fmt: skip
        run("sketch", HEADS, "--rows", rows, *words, "-o", folder / f"{name}.sattn", "--quiet")
    run("attend", HEADS, "--full", "--method", "exact", "-o", folder / "exact.npy", "--quiet")
    return folder


def answered(folder, name):
    out = folder / f"{name}.npy"
    run("query", folder / f"{name}.sattn", HEADS + ":/q", "-o", out, "--quiet", "--force")
    return error(out, folder / "exact.npy")


def test_knowing_the_queries_pays(made):
    assert answered(made, "all") < 0.8 * answered(made, "blind")


def test_halves_that_were_fitted_to_the_same_queries_merge(made):
    run("merge", made / "a.sattn", made / "b.sattn", "-o", made / "merged.sattn")
    assert answered(made, "merged") < 1.15 * answered(made, "all")


def test_different_queries_are_refused_unless_pooled(made):
    words = (made / "a.sattn", made / "other.sattn", "-o", made / "pooled.sattn")
    refused("merge", *words, code=8, words=["different queries", "--query-model", "--pool-queries"])
    assert not (made / "pooled.sattn").exists()
    run("merge", *words, "--pool-queries")
    assert answered(made, "pooled") < 0.5


def test_a_model_of_other_heads_is_4(made, tmp_path):
    np.save(tmp_path / "q.npy", np.ones((10, 32), "f4"))
    words = ("sketch", HEADS, "--query-model", tmp_path / "q.npy", "-o", tmp_path / "x.sattn", "--quiet")
    line = refused(*words, code=4, words=["q.npy"])
    assert "dim" in line or "items" in line


def test_a_missing_model_is_3(tmp_path):
    refused("sketch", HEADS, "--query-model", "no.npy", "-o", tmp_path / "x.sattn", "--quiet", code=3, words=["no.npy"])
