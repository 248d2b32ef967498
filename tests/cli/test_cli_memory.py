"""A memory budget that cannot be met is exit code 6; the setting that the message names works in that very budget."""

import re

import numpy as np
import pytest
from clirun import FILES, refused, run, save_heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    save_heads(folder, rows=3000, dim=16, value_dim=16, factor=0.2)
    return folder


@pytest.mark.parametrize("mode, args, budget, option", [
    ("--full", ["--method", "poly", "--degree", "9"], "24MiB", "--degree"),
    ("--causal", ["--method", "poly", "--degree", "12"], "24MiB", "--degree"),
    ("--causal", ["--method", "window", "--window", "100000"], "12MiB", "--window"),
    ("--full", ["--method", "window", "--block-rows", "100000"], "24MiB", "--block-rows"),
    ("--causal", ["--method", "exact"], "2500KiB", "--memory"),
    ("--full", ["--method", "poly", "--degree", "1"], "3MiB", "--memory"),
])  # fmt: skip
def test_the_setting_that_is_named_works_and_is_the_largest(folder, tmp_path, mode, args, budget, option):
    command = ["attend", *FILES, mode, *args]
    out = ["-o", str(tmp_path / "out.npy")]
    line = refused(*command, "--memory", budget, *out, code=6, words=["npy: this run needs", option], cwd=folder)
    assert not (tmp_path / "out.npy").exists()
    named = re.search(rf"{option} (\d+)(MiB)?", line)
    assert named, line
    if option == "--memory":
        done = run(*command, option, named[1] + named[2], *out, "--json", "--quiet", cwd=folder)
    else:
        done = run(*command, "--memory", budget, option, named[1], *out, "--json", "--quiet", cwd=folder)
        larger = str(int(named[1]) + 1)
        run(*command, "--memory", budget, option, larger, *out, "--force", code=6, cwd=folder)
    memory = done.document["memory"]
    assert memory["peak"] <= memory["projected"] <= memory["allowed"]
    assert np.load(tmp_path / "out.npy").shape == (3000, 16)


def test_a_smaller_budget_changes_the_plan_and_not_a_byte(folder, tmp_path):
    answers = []
    for name, budget in (("wide.npy", "1GiB"), ("tight.npy", "5MiB")):
        done = run("attend", *FILES, "--full", "--method", "exact", "--memory", budget, "--json", "-o", tmp_path / name,
                   cwd=folder)  # fmt: skip
        answers.append((tmp_path / name).read_bytes())
        assert done.document["memory"]["allowed"] == {"1GiB": 1 << 30, "5MiB": 5 << 20}[budget]
    assert answers[0] == answers[1]


def test_a_dry_run_shows_the_projection_and_touches_nothing(folder, tmp_path):
    done = run("attend", *FILES, "--memory", "64MiB", "--dry-run", "--json", "-o", tmp_path / "out.npy", cwd=folder)
    plan = done.document
    assert plan["type"] == "plan" and plan["memory"]["allowed"] == 64 << 20
    assert plan["memory"]["projected"] == sum(plan["memory"]["parts"].values())
    assert list(tmp_path.iterdir()) == []
    done = run("attend", *FILES, "--memory", "64MiB", "--dry-run", "-o", tmp_path / "out.npy", cwd=folder)
    assert done.out == b"" and "allowed 64.0 MiB, projected" in done.err and "nothing has been written" in done.err
    assert list(tmp_path.iterdir()) == []
