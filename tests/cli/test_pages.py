"""Man pages and shell completion: as the commands are now, readable, and at work in real shells."""

import shutil
import subprocess
import sys
import tomllib
from contextlib import chdir
from pathlib import Path

import h5py
import numpy as np
import pytest
from clirun import environment
from shells import INSTALLED, completed
from typer.testing import CliRunner

from streamattn_cli.cli.completion import arrays
from streamattn_cli.cli.main import app

TOP = Path(__file__).resolve().parents[2]
SHARE = TOP / "share"
PAGES = sorted((SHARE / "man").glob("*.1"))


def test_the_pages_are_those_of_the_commands():
    done = subprocess.run([sys.executable, "scripts/pages.py", "--check"], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(PAGES) == 15


@pytest.mark.parametrize("name", ["share/man/streamattn-plan.1", "streamattn_cli/report/JSON.md"])
def test_a_page_that_is_out_of_date_is_named(tmp_path, name):
    shutil.copytree(SHARE, tmp_path / "share")
    shutil.copytree(TOP / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("paper", "accuracy"))
    shutil.copytree(TOP / "streamattn_cli" / "report", tmp_path / "streamattn_cli" / "report")
    page = tmp_path / name
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
    with h5py.File(tmp_path / "dump.h5", "w") as file:
        for name in ("layer0/keys", "layer0/values", "queries"):
            file[name] = np.zeros((3, 4), "f4")
    (tmp_path / "a dump.h5").symlink_to("dump.h5")
    return tmp_path


LINES = {
    "streamattn comp": "compare",
    "streamattn attend --resident": "--resident-rows",
    "streamattn attend --method nys": "nystrom",
    "streamattn attend --effort be": "best",
    "streamattn attend --effort=be": "--effort=best",
    "streamattn attend --layout BTH": "BTHD",
    "streamattn attend --scale sq": "sqrt",
    "streamattn sketch --engine dask=lo": "dask=local",
    "streamattn compare --methods nystrom,wi": "nystrom,wi",  # window or wildcat
    "streamattn compare --methods nystrom,win": "nystrom,window",
    "streamattn attend dum": "dump.h5",
    "streamattn attend dump.h5:/layer0/ke": "dump.h5:/layer0/keys",
    "streamattn attend --k dump.h5:layer0/v": "dump.h5:layer0/values",
    "streamattn attend --k=dump.h5:/layer0/v": "--k=dump.h5:/layer0/values",
    "streamattn query s.sattn dump.h5:/q": "dump.h5:/queries",
    "streamattn inspect dump.h5:/nothing": "dump.h5:/nothing",
    "streamattn help comp": "compare",
    "streamattn plan --dtype bf": "bf16",
    "streamattn attend a\\ dump.h5:/layer0/ke": "a dump.h5:/layer0/keys",
    "streamattn attend 'a dump.h5:/layer0/ke": "a dump.h5:/layer0/keys",
}


@pytest.mark.parametrize("shell", INSTALLED)
@pytest.mark.parametrize("line", LINES)
def test_a_shell_completes(folder, shell, line):
    words = environment(PATH=f"{folder / 'bin'}:/usr/local/bin:/usr/bin:/bin", HOME=str(folder))
    assert completed(shell, line, folder, words)[-1] == LINES[line]


@pytest.mark.parametrize("words, expected", [
    ("attend heads.npz --select ", ["0", "1", "2"]), ("attend heads.npz --select 0,", ["0,1", "0,2"]),
    ("sketch --k heads.npz:k --v heads.npz:v --layout THD --select ", ["0", "1", "2"]), ("attend --select ", []),
    ("attend nowhere.npz --select ", []),
])  # fmt: skip
def test_heads_of_a_file_are_completed(folder, words, expected):
    np.savez(folder / "heads.npz", **{part: np.zeros((900, 3, 4), "f4") for part in "qkv"})
    environment = {"_STREAMATTN_COMPLETE": "complete_bash", "COMP_WORDS": f"streamattn {words}"}
    at = len(words.split(" "))  # of the word under the cursor
    with chdir(folder):
        told = CliRunner().invoke(app, env=environment | {"COMP_CWORD": str(at)}, prog_name="streamattn").output
    assert told.split() == expected


def test_a_file_that_names_no_arrays_is_completed_by_nothing(folder):
    (folder / "broken.h5").write_text("no HDF5 file")
    np.save(folder / "k.npy", np.zeros((3, 4), "f4"))
    with chdir(folder):
        assert arrays("broken.h5:") == arrays("k.npy:") == arrays("absent.h5:") == arrays("dump.h5") == []
        assert arrays("dump.h5:") == ["dump.h5:/layer0/keys", "dump.h5:/layer0/values", "dump.h5:/queries"]
