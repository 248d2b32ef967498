"""Streams that cannot show every character: what they have not becomes "?", and nothing is lost by it."""

import json
import subprocess

import numpy as np
import pytest
from clirun import COMMAND, SAMPLE, environment, run, save_heads

ENCODINGS = ("ascii", "latin-1")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_plots_of_compare_are_drawn_in_ascii(encoding):
    words = ("compare", SAMPLE / "heads.h5", "--rows", "0:600", "--methods", "window,evict", "--resident-rows", "96")
    text = run(*words, "--audit", "16", env={"PYTHONIOENCODING": encoding}).out.decode(encoding)
    assert "window" in text and "evict" in text and "?" not in text
    assert "error against" in text and " |" in text and text.isascii()
    assert " \u2502" in run(*words, "--audit", "16", env={"PYTHONIOENCODING": "utf-8"}).out.decode()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", ["inspect", "attend", "plan", "info"])
def test_names_with_other_letters(tmp_path, encoding, command):
    arrays = save_heads(tmp_path, rows=300, dim=4, value_dim=4)
    for name, rows in arrays.items():
        np.save(tmp_path / f"schlüssel→{name}.npy", rows)
    files = [word for name in "qkv" for word in (f"--{name}", f"schlüssel→{name}.npy")]
    words = {
        "inspect": ("inspect", *files), "plan": ("plan", *files),
        "attend": ("attend", *files, "--resident-rows", "64", "-o", "aus→gabe.npy"), "info": ("info", "é→.sattn"),
    }  # fmt: skip
    if command == "info":
        run("sketch", *files[2:], "--resident-rows", "64", "-o", "é→.sattn", cwd=tmp_path)
    env = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    line = [*COMMAND, *words[command]]
    done = subprocess.run(line, cwd=tmp_path, env=environment(**env), capture_output=True, timeout=900)
    shown = (done.stdout + done.stderr).decode(encoding)
    assert done.returncode == 0 and "?" in shown and "Traceback" not in shown
    if command in ("inspect", "info"):
        found = json.loads(
            subprocess.run([*line, "--json"], cwd=tmp_path, env=environment(**env), capture_output=True).stdout
        )
        assert "→" in json.dumps(found, ensure_ascii=False)
