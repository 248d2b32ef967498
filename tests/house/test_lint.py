"""scripts/lint says what is wrong, and .ci/run does not pass without it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
# Elsewhere the script would first make .venv, which is not what these tests are about.
pytestmark = pytest.mark.skipif(Path(sys.prefix).resolve() != TOP / ".venv", reason="not run by scripts/test")
GOOD = '"""A file."""\n\nimport os\n\nprint(os.name)\n'


def lint(*words):
    """(exit code, what was printed) of scripts/lint."""
    done = subprocess.run([TOP / "scripts" / "lint", *map(str, words)], capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path):
    """A folder with the settings of this repository."""
    (tmp_path / "pyproject.toml").write_text((TOP / "pyproject.toml").read_text())
    return tmp_path


def test_a_file_without_fault_is_passed_over_in_silence(folder):
    (folder / "good.py").write_text(GOOD)
    assert lint(folder / "good.py") == (0, "")


@pytest.mark.parametrize(("text", "code"), [
    ("import os\n", "F401"), ("import sys\nimport os\n\nprint(os, sys)\n", "I001"),
    ("print(dict())\n", "C408"), ("def f(x=[]):\n    return x\n", "B006"), ("x = 1 \n", "W291"),
    (f"# {'x' * 130}\n", "E501"), ("if 1:\n    if 2:\n        print()\n", "SIM102"),
])  # fmt: skip
def test_a_mistake_is_named(folder, text, code):
    (folder / "bad.py").write_text(text)
    failed, said = lint(folder / "bad.py")
    assert failed and code in said


def test_a_file_in_another_format_is_found_and_put_right(folder):
    (folder / "odd.py").write_text(GOOD.replace('"', "'"))
    assert lint(folder / "odd.py")[0]
    assert lint("--fix", folder / "odd.py") == (0, "")
    assert (folder / "odd.py").read_text() == GOOD


def test_types_are_checked_as_pyproject_says(folder):
    (folder / "bad.py").write_text("def f(x: int) -> str:\n    return x\n\n\ndef g(x):\n    return x\n")
    command = [sys.executable, "-m", "mypy", "--config-file", folder / "pyproject.toml", "--cache-dir", folder / "c"]
    done = subprocess.run([*command, folder / "bad.py"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 1 and "[return-value]" in done.stdout and "[no-untyped-def]" in done.stdout
    settings = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["strict"] and settings["files"] == ["streamattn_cli"]
    left_out = [name for part in settings["overrides"] if part.get("ignore_errors") for name in part["module"]]
    for name in left_out:
        place = TOP / name.removesuffix(".*").replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), name


def test_the_script_reads_the_pinned_ruff_and_ci_runs_it():
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    pins = (TOP / "scripts" / "constraints.txt").read_text()
    assert (
        {"ruff", "mypy"} <= set(project["optional-dependencies"]["test"]) and "\nruff==" in pins and "\nmypy==" in pins
    )
    assert "scripts/lint || exit" in (TOP / ".ci" / "run").read_text()
