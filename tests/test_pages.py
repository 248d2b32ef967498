"""Man pages and shell completion: as the commands are now, readable, and at work in real shells."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from clirun import environment

TOP = Path(__file__).resolve().parent.parent
SHARE = TOP / "streamattn_cli" / "cli" / "share"
PAGES = sorted((SHARE / "man").glob("*.1"))


def test_the_pages_are_those_of_the_commands():
    done = subprocess.run([sys.executable, "scripts/pages.py", "--check"], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(PAGES) == 13


@pytest.mark.parametrize("name", ["cli/share/man/streamattn-plan.1", "report/JSON.md"])
def test_a_page_that_is_out_of_date_is_named(tmp_path, name):
    shutil.copytree(SHARE, tmp_path / "streamattn_cli" / "cli" / "share")
    shutil.copytree(TOP / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("paper", "accuracy"))
    shutil.copytree(TOP / "streamattn_cli" / "report", tmp_path / "streamattn_cli" / "report")
    page = tmp_path / "streamattn_cli" / name
    page.write_text(page.read_text().replace("dim", "din"))
    scripts = str(tmp_path / "scripts")
    code = f"""
import runpy, sys
sys.path[0], sys.argv = {str(TOP)!r}, ["x", "--check"]
sys.path.append({scripts!r})
runpy.run_path({scripts!r} + "/pages.py", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and f"{Path(name).name}: out of date, run scripts/make_pages" in done.stderr


def test_the_wheel_takes_every_page_to_its_place():
    places = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    taken = {path for patterns in places.values() for pattern in patterns for path in TOP.glob(pattern)}
    assert taken == {path for path in SHARE.rglob("*") if path.is_file()}


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_proper_troff(page):
    done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", "-P-cbou", str(page)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "ENVIRONMENT", "EXIT STATUS", "SEE ALSO"):
        assert section in done.stdout


@pytest.fixture
def folder(tmp_path):
    """Where a file may be completed, and `streamattn` is on the path."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "streamattn"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c '
                       '"from streamattn_cli.cli.main import app; app(prog_name=\'streamattn\')"\n')  # fmt: skip
    program.chmod(0o755)
    (tmp_path / "dump.h5").touch()
    return tmp_path


def in_shell(folder, *command):
    """What a shell that runs a script in `folder` prints."""
    words = environment(PATH=f"{folder / 'bin'}:/usr/local/bin:/usr/bin:/bin", HOME=str(folder))
    done = subprocess.run(command, cwd=folder, env=words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize("line, expected", [
    ("streamattn comp", ["compare"]),
    ("streamattn attend --resident", ["--resident-rows"]),
    ("streamattn attend dum", []),
])  # fmt: skip
def test_bash_completes(folder, line, expected):
    words = line.split()
    script = f"""
source {SHARE / "completion" / "streamattn"}
COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}
complete -p streamattn | grep -q -e '-o default' || exit 1   # nothing of ours: a file name
_streamattn_completion streamattn
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    assert in_shell(folder, "bash", "--norc", "-c", script) == expected


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish")
@pytest.mark.parametrize("line, expected", [("streamattn comp", "compare"), ("streamattn attend dum", "dump.h5")])
def test_fish_completes(folder, line, expected):
    script = f"source {SHARE / 'completion' / 'streamattn.fish'}; complete --do-complete '{line}'"
    assert expected in in_shell(folder, "fish", "--no-config", "-c", script)
