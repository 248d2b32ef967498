"""Words on the command line and in the environment, the version, and what starting up may cost."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from clirun import COMMAND, FILES, SAMPLE, environment, refused, run, save_heads

from streamattn_cli.errors import exit_code_table

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    save_heads(folder)
    return folder


@pytest.mark.parametrize("args, words", [
    ([], ["no input for q, k, v", "--q FILE"]),
    (["--q", "q.npy"], ["no input for k, v", "--k FILE"]),
    ([*FILES, "more.npy"], ["more.npy: nothing is left to read from it"]),
    (["-", "--q", "-"], ["only one of the inputs can be standard input"]),
    ([*FILES, "--method", "magic"], ["--method magic", "exact", "poly", "window"]),
    ([*FILES, "--method", "poly", "--degree", "13"], ["--degree 13", "1 to 12"]),
    ([*FILES, "--method", "poly", "--degree", "0"], ["--degree 0", "1 to 12"]),
    ([*FILES, "--method", "poly", "--polynomial", "odd"], ["--polynomial odd", "hermite or taylor"]),
    ([*FILES, "--method", "poly", "--beta", "0"], ["--beta 0", "above 0"]),
    ([*FILES, "--method", "poly", "--max-error", "-1"], ["--max-error -1", "0 or more"]),
    ([*FILES, "--method", "poly", "--max-error", "nan"], ["--max-error nan", "0 or more"]),
    ([*FILES, "--method", "window", "--window", "0"], ["--window 0"]),
    ([*FILES, "--method", "window", "--window", "-1"], ["--window -1"]),
    ([*FILES, "--method", "window", "--sinks", "-1"], ["--sinks -1"]),
    ([*FILES, "--scale", "0"], ["--scale is '0'", "sqrt", "above 0"]),
    ([*FILES, "--scale", "root"], ["--scale is 'root'", "sqrt"]),
    ([*FILES, "--memory", "lots"], ["'lots' is not a size", "512MiB"]),
    ([*FILES, "--threads", "0"], ["--threads 0", "at least 1"]),
    ([*FILES, "--block-rows", "0"], ["--block-rows 0", "at least 1"]),
    ([*FILES, "--audit", "-1"], ["--audit -1", "0 or more"]),
    ([*FILES, "--seed", "-1"], ["--seed -1", "0 or more"]),
    ([*FILES, "--nan-policy", "keep"], ["--nan-policy keep", "error or drop"]),
    ([*FILES, "--out-dtype", "bf16"], ["--out-dtype bf16", "f16, f32 or f64"]),
    ([*FILES, "--out-dtype", "i4"], ["--out-dtype i4", "f32"]),
    ([*FILES, "--layout", "XYZ"], ["layout XYZ", "THD"]),
    ([*FILES, "--rows", "5"], ["--rows 5", "A:B"]),
    ([*FILES, "--rows", "40:20"], ["40:20", "50 rows"]),
    ([*FILES, "--select", "a"], ["--select a", "0,2"]),
    ([*FILES, "--select", "3"], ["selection 3", "0 to 0"]),
    ([*FILES, "--progress-every", "-1"], ["--progress-every", "0 or more"]),
    ([*FILES, "--resume"], ["--resume needs --checkpoint"]),
    ([*FILES, "--checkpoint-every", "5s"], ["--checkpoint-every 5s needs --checkpoint"]),
])  # fmt: skip
def test_words_that_make_no_sense_are_2(folder, args, words):
    done = run("attend", *args, "-o", "out.npy", code=2, cwd=folder)
    line = done.err.splitlines()[-1]
    assert line.startswith("streamattn: ") and not [word for word in words if word not in line], done.err
    assert not (folder / "out.npy").exists()


def test_what_newcomers_tried(tmp_path):
    """Natural mistakes, which once gave a bug, a sketch under a wrong name, or no hint of what to do."""
    save_heads(tmp_path, rows=700, dim=16, value_dim=16, factor=0.1)
    keys = ("sketch", "--k", "k.npy", "--v", "v.npy")
    run(*keys, "--resident-rows", "128", "-o", "a.sattn", cwd=tmp_path)
    run(*keys, "--method", "poly", "--degree", "1", "-o", "b.sattn", cwd=tmp_path)
    for pair in (("a.sattn", "b.sattn"), ("b.sattn", "a.sattn")):
        refused(
            "merge", *pair, "-o", "c.sattn", code=8, words=["by nystrom", "by poly", "same parameters"], cwd=tmp_path
        )
    refused(*keys, "-o", "a.sattn", code=2, words=["--append", "--resume", "--force"], cwd=tmp_path)
    refused(*keys, "-o", "s.npy", code=2, words=["s.npy", "FILE.sattn"], cwd=tmp_path)
    refused("attend", "q.npy", "-o", "o.npy", code=4, words=["--q FILE --k FILE --v FILE"], cwd=tmp_path)
    run("attend", *FILES, "-o", "o.npy", "--quiet", cwd=tmp_path)
    refused("report", "o.npy.json", code=4, words=["attend, compare or perplexity, --json > run.json"], cwd=tmp_path)
    refused("report", "run.json", code=3, words=["check the path"], cwd=tmp_path)
    run("generate", "--rows", "1e3", "--dim", "4", "g.npy", "--quiet", cwd=tmp_path)
    assert np.load(tmp_path / "g.npy").shape == (1000, 12)
    refused("generate", "--rows", "1.5", "g.npy", code=2, words=["--rows 1.5", "1e9"], cwd=tmp_path)


@pytest.mark.parametrize("args, word", [
    (["bogus"], "No such command 'bogus'"),
    (["attend", "--bogus"], "No such option: --bogus"),
    (["attend", "--threads", "two"], "Invalid value for '--threads'"),
])  # fmt: skip
def test_words_that_do_not_parse_are_2(args, word):
    done = run(*args, code=2)
    assert done.out == b"" and word in done.err


def test_options_come_from_the_environment_and_the_command_line_wins(folder, tmp_path):
    env = {
        "STREAMATTN_ATTEND_METHOD": "window",
        "STREAMATTN_ATTEND_WINDOW": "9",
        "STREAMATTN_ATTEND_CAUSAL": "1",
        "STREAMATTN_ATTEND_OUTPUT": str(tmp_path / "out.npy"),
        "STREAMATTN_ATTEND_JSON": "1",
        "STREAMATTN_ATTEND_QUIET": "1",
    }
    facts = run("attend", *FILES, "--window", "11", env=env, cwd=folder).document["facts"]
    assert (facts["method"], facts["mode"], facts["params"]["window"]) == ("window", "causal", 11)
    assert np.load(tmp_path / "out.npy").shape == (50, 8)


@pytest.mark.parametrize(("words", "said"), [
    (("--window", "1x"), "--window"), (("--progress-every", "soon"), "--progress-every"), (("--window", "-x"), "--window"),
    (("--window", ""), "--window"), (("--progress-every", "1e1", "--window", "zwölf"), "--window"), (("--dry-run=1",), "dry-run"),
])  # fmt: skip
def test_words_that_are_no_numbers_are_refused_as_ever(words, said):
    line = [*COMMAND, "attend", *FILES, "-o", "out.npy", *words]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=900)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_version():
    assert run("--version").out.decode() == f"streamattn {version('streamattn-cli')}\n"


def test_debug_adds_the_traceback_and_changes_no_code():
    done = subprocess.run([sys.executable, "-m", "streamattn_cli", "--debug", "attend", "nowhere.h5", "-o", "out.npy"],
                          env=environment(), capture_output=True, timeout=900)  # fmt: skip
    assert done.returncode == 3 and b"Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"streamattn: nowhere.h5: No such file")


STARTED = """
import sys
sys.argv = ["streamattn", *{args!r}]
from streamattn_cli.cli.main import main
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
print(*(name for name in ("numpy", "numba", "h5py", "rich.progress") if name in sys.modules), file=sys.stderr)
"""


def imported(args, cwd):
    """Which of the costly packages a command imports."""
    done = subprocess.run([sys.executable, "-c", STARTED.format(args=args)], env=environment(), cwd=cwd, check=True,
                          capture_output=True, text=True, timeout=900)  # fmt: skip
    return done.stderr.splitlines()[-1].split()


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["attend", "--help"], ["generate", "-h"]])
def test_help_imports_nothing_costly(tmp_path, args):
    assert imported(args, tmp_path) == []


@pytest.mark.parametrize("file, allowed", [("tiny_k.npy", {"numpy"}), ("tiny.h5", {"numpy", "h5py"})])
def test_inspect_needs_no_kernels(tmp_path, file, allowed):
    assert set(imported(["inspect", str(SAMPLE / file)], tmp_path)) <= allowed


def test_the_exit_codes_in_the_readme_are_those_of_the_program():
    _, _, rest = README.read_text().partition("<!-- exit codes -->\n")
    table, end, _ = rest.partition("\n<!-- /exit codes -->")
    assert end and table == exit_code_table()


@pytest.mark.parametrize(
    ("method", "words", "told"),
    [
        ("window", ("--degree", 3), ["--degree has no meaning for --method window"]),
        ("exact", ("--window", 5, "--resident-rows", 9), ["--window has no", "--resident-rows has no"]),
        ("poly", ("--degree", 3, "--sinks", 2, "--max-error", 9), []),
        ("window", ("--window", 5, "--sinks", 2), []),
    ],
)
def test_words_of_another_method_are_told(method, words, told, tmp_path):
    done = run("attend", SAMPLE / "tiny.h5", "--full", "--method", method, *words, "-o", tmp_path / "o.npy")
    notes = [line for line in done.err.splitlines() if "has no meaning" in line]
    assert len(notes) == len(told) and all(any(part in line for line in notes) for part in told)
