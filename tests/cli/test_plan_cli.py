"""`plan` and `--method auto`: projections that hold, commands that run, decisions that are the same every time."""

import shlex
import tracemalloc

import numpy as np
import pytest
from clirun import FILES, SAMPLE, refused, run, save_heads

from streamattn_cli.engine.planning.speed import calibrate

HEADS = SAMPLE / "heads.h5"
NUMBERS = ("--rows", "1e9", "--dim", "128", "--heads", "32", "--kv-heads", "8")


@pytest.fixture(scope="module")
def from_numbers():
    return run("plan", *NUMBERS, "--memory", "512MiB", "--json").document


def test_numbers_are_enough(from_numbers):
    found = from_numbers
    assert found["type"] == "forecast" and found["shapes"] == {
        "queries": 10**9, "keys": 10**9, "heads": 32, "kv_heads": 8, "dim": 128, "value_dim": 128
    }  # fmt: skip
    fitting = [o for o in found["options"] if not o["refused"]]
    assert len(fitting) >= 5 and all(0 < o["projected"] <= 512 << 20 and o["seconds"] > 0 for o in fitting)
    exact = next(o for o in fitting if o["method"] == "exact")
    assert exact["error"] == "none" and exact["seconds"] > 1000 * min(o["seconds"] for o in fitting)
    assert found["recommended"]["method"] == "nystrom" and "--memory 512MiB" in found["recommended"]["command"]


def test_the_measure_of_a_machine_allocates_nothing_as_it_goes():
    """What each round allocated was given back to the system and came again, page by page: a plan was 1.4 times too long."""
    calibrate()  # imports
    tracemalloc.start()
    try:
        assert calibrate() > 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    operands = 4 * (256 * 64 + 512 * 64 + 256 * 512)
    assert peak < operands + 200_000


def test_a_larger_setting_than_the_one_named_would_not_fit(from_numbers):
    small = run("plan", *NUMBERS, "--memory", "48MiB", "--json").document
    before, after = ({o["method"]: o["settings"].get("resident_rows") for o in found["options"] if not o["refused"]}
                     for found in (small, from_numbers))  # fmt: skip
    assert before["nystrom"] < after["nystrom"] and before["window"] <= after["window"]
    refused_ones = [o for o in small["options"] if o["refused"]]
    assert all("48.0 MiB are allowed by --memory" in o["refused"] for o in refused_ones)


def test_the_recommended_command_runs_within_its_projection(tmp_path):
    found = run("plan", HEADS, "--rows", "0:3000", "--memory", "32MiB", "--json").document
    words = shlex.split(found["recommended"]["command"])
    assert words[:2] == ["streamattn", "attend"] and found["recommended"]["method"] == "exact"
    outcome = run(*words[1:], "--json", cwd=tmp_path).document
    option = next(o for o in found["options"] if o["method"] == "exact")
    assert outcome["memory"]["peak"] <= option["projected"] and outcome["rows"] == 3000


@pytest.mark.parametrize("factor, expected", [(0.3, "poly"), (2.5, "nystrom")])
def test_auto_decides_by_the_spread_of_the_logits(tmp_path, factor, expected):
    save_heads(tmp_path, rows=2000, dim=8, factor=factor)
    words = [*FILES, "--full", "--method", "auto", "--resident-rows", "700", "--audit", "64"]
    first = run("attend", *words, "--json", "-o", "a.npy", cwd=tmp_path)
    cut = ("--threads", "1", "--block-rows", "512", "--quiet")
    again = run("attend", *words, *cut, "--json", "-o", "b.npy", cwd=tmp_path)
    assert first.document["facts"]["method"] == again.document["facts"]["method"] == expected
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert f"note: --method auto takes {expected}" in first.err and "standard deviation" in first.err
    audit = first.document["audit"]
    assert audit["method"]["error"] < 0.3 * audit["trivial"]["error"]


def test_auto_takes_exact_for_short_inputs_and_never_for_a_sketch(tmp_path):
    save_heads(tmp_path)
    done = run("attend", *FILES, "--method", "auto", "--full", "--json", "-o", "out.npy", cwd=tmp_path)
    assert done.document["facts"]["method"] == "exact" and "50 rows are few enough" in done.err
    done = run("sketch", "--k", "k.npy", "--v", "v.npy", "--method", "auto", "--json", "-o", "s.sattn", cwd=tmp_path)
    assert done.document["facts"]["method"] == "nystrom" and "the logits are not known beforehand" in done.err


def test_plan_and_attend_decide_alike(tmp_path):
    save_heads(tmp_path, rows=20000, dim=8, factor=0.4)
    found = run("plan", *FILES, "--full", "--json", cwd=tmp_path).document
    assert found["recommended"]["method"] == "poly" and found["logits"]["row_std_p95"] < 1
    done = run("attend", *FILES, "--full", "--method", "auto", "--dry-run", "--json", cwd=tmp_path).document
    assert (done["method"], done["params"]["degree"]) == ("poly", found["recommended"]["settings"]["degree"])


def test_the_text_names_methods_and_the_command():
    for width in ("30", "100"):
        text = run("plan", HEADS, env={"COLUMNS": width}).out.decode()
        lines = text.splitlines()
        assert lines[-1].startswith("    streamattn attend ") and "--method exact" in lines[-1]
        assert (
            max(map(len, lines[:-1])) <= int(width)
            and "nystrom" in text
            and "guess" in text
            and "expected error" in text
        )


def test_an_error_that_nobody_can_know_is_unknown():
    options = {o["method"]: o["error"] for o in run("plan", HEADS, "--json").document["options"]}
    assert options.pop("exact") == "none" and set(options.values()) == {"unknown"}
    options = {o["method"]: o["error"] for o in run("plan", HEADS, "--scale", "0.02", "--json").document["options"]}
    assert options["poly"] == "up to 25%"
    few = run("plan", HEADS, "--rows", "0:300", "--json").document["options"]
    assert {o["error"] for o in few if not o["refused"]} == {"none"}


def test_what_is_larger_than_the_data_is_left_out(tmp_path):
    """The 5.66 TiB of a polynomial of degree 8 for a head of 1 MiB, say."""
    (poly,) = (o for o in run("plan", HEADS, "--rows", "0:300", "--json").document["options"] if o["method"] == "poly")
    assert "larger than the 300 rows of keys and values" in poly["refused"] and "from 393 rows on" in poly["refused"]
    found = run("inspect", HEADS, "--json").document
    assert found["methods"] == [] and "from degree 2 on larger than the keys" in run("inspect", HEADS).out.decode()
    save_heads(tmp_path, rows=3000, dim=8)
    found = run("inspect", *FILES, "--json", cwd=tmp_path).document["methods"]
    assert [m["degree"] for m in found] == [2, 4] and all(m["state_bytes"] <= 3000 * 16 * 4 for m in found)


@pytest.mark.parametrize("words, told", [
    (("--method", "poly", "--degree", "2", "--scale", "d"), "from 4618 rows on"),
    (("--resident-rows", "3000"), "from 3000 rows on"), (("--resident-rows", "256"), None),
])  # fmt: skip
def test_a_sketch_that_is_larger_than_its_data_says_so(tmp_path, words, told):
    done = run("sketch", HEADS, "--rows", "0:2048", *words, "-o", tmp_path / "a.sattn")
    said = [line for line in done.err.splitlines() if "is larger than the 2048 rows" in line]
    assert len(said) == (told is not None) and all(told in line for line in said)


def test_the_command_line_holds_no_defaults():
    command = run("plan", HEADS, "--layout", "THD", "--json").document["recommended"]["command"]
    assert "--layout THD" in command and "--missing" not in command


def test_a_budget_in_rows_is_planned_for(tmp_path):
    found = run("plan", HEADS, "--resident-rows", "300", "--json").document
    options = {o["method"]: o["settings"] for o in found["options"]}
    assert options["nystrom"] == options["window"] == {"resident_rows": 300}
    assert "--resident-rows 300" in found["recommended"]["command"]


def test_what_cannot_be_planned_is_refused(tmp_path):
    refused("plan", code=2, words=["no input", "--rows 1e9"])
    refused("plan", "--rows", "many", "--dim", "8", code=2, words=["--rows many", "1e9"])
    refused("plan", "--rows", "1e9", "--dim", "0", code=2, words=["--dim 0"])
    refused("plan", "nowhere.h5", code=3, words=["nowhere.h5"])
    refused("plan", *NUMBERS[:4], "--heads", "6", "--kv-heads", "4", code=4, words=["6", "4"])
    refused("plan", *NUMBERS, "--memory", "1MiB", code=6, words=["no method fits"])


def test_a_job_is_planned_over_its_layers(tmp_path):
    """What is projected holds for the recommended command, and times add up."""
    rng, sizes = np.random.default_rng(0), {0: 900, 3: 2600}
    parts = {f"layers.{n}.{part}": rng.standard_normal((rows, 2, 8)) for n, rows in sizes.items() for part in "qkv"}
    np.savez(tmp_path / "dump.npz", **{name: rows.astype("f4") for name, rows in parts.items()})
    words = ("--layer", "all", "--layout", "THD", "--causal", "--memory", "64MiB", "--threads", "2")
    found = run("plan", "dump.npz", *words, "--json", cwd=tmp_path).document
    assert found["shapes"]["keys"] == 2600
    job = found["job"]
    assert [(layer["number"], layer["rows"]) for layer in job["layers"]] == [(0, 900), (3, 2600)]
    assert job["seconds"] == pytest.approx(sum(layer["seconds"] for layer in job["layers"]))
    assert job["workers"] == 2 and job["projected"] == max(layer["projected"] for layer in job["layers"])
    assert job["workers_projected"] <= 64 << 20
    tight = run("plan", "dump.npz", *words, "--memory", f"{job['workers_projected'] * 3 // 4}", "--json", cwd=tmp_path)
    assert tight.document["job"]["workers"] == 1
    command = shlex.split(found["recommended"]["command"])
    assert {"--layer", "all", "--engine", "processes"} <= set(command)
    done = run(*command[1:], "--json", cwd=tmp_path).document
    assert [layer["rows"] for layer in done["layers"]] == [900, 2600]
    assert done["memory"]["projected"] <= job["workers_projected"]
    text = run("plan", "dump.npz", *words, cwd=tmp_path, env={"COLUMNS": "100"}).out.decode()
    assert "all 2 layers" in text and "2 at once" in text and "layer 3" in text
