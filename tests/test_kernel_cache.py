"""Compiled kernels are kept between runs, and never those of other sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "streamattn_cli"
PROGRAM = """
import numpy as np
from streamattn_cli.kernels.rowstore import load
k, c = np.zeros((1, 1), "f4"), np.zeros((1, 2), "f4")
load(np.array([[3, 5]], "f4"), 2, k, c)
print(float(k[0, 0]), sum(load.stats.cache_hits.values()), sum(load.stats.cache_misses.values()))
"""


def run(folder):
    environment = {**os.environ, "PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "NUMBA_DISABLE_JIT": "0"}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_changed_callee_in_another_file_is_compiled_anew(tmp_path):
    """`load` calls what kernels/widen.py defines: Numba's own cache would not see a change there."""
    shutil.copytree(PACKAGE, tmp_path / "streamattn_cli", ignore=shutil.ignore_patterns("__pycache__"))
    assert run(tmp_path) == ["3.0", "0", "1"]
    assert run(tmp_path) == ["3.0", "1", "0"]
    source = tmp_path / "streamattn_cli" / "kernels" / "widen.py"
    text = source.read_text()
    changed = text.replace("        dst[d] = src[d]\n    return bad", "        dst[d] = 2 * src[d]\n    return bad")
    assert changed != text
    source.write_text(changed)
    assert run(tmp_path) == ["6.0", "0", "1"]
    source.write_text(text)
    assert run(tmp_path) == ["3.0", "1", "0"]
