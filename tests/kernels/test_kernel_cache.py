"""Compiled kernels are kept between runs, and never those of other sources."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace

import pytest

from streamattn_cli.engine.passes import warm
from streamattn_cli.kernels import jit
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.sketches.histories.nystromparams import NystromParams

PACKAGE = Path(__file__).parents[2] / "streamattn_cli"
PROGRAM = """
import numpy as np
from streamattn_cli.kernels.rowstore import load
k, c = np.zeros((1, 1), "f4"), np.zeros((1, 2), "f4")
load(np.array([[3, 5]], "f4"), 2, k, c)
print(float(k[0, 0]), sum(load.stats.cache_hits.values()), sum(load.stats.cache_misses.values()))
"""


HOST = """
import os
import numba
import numpy as np
from numba import config

def kept():
    names = sorted(name for name in dir(config) if name.isupper())
    return dict(os.environ), numba.get_num_threads(), [repr(getattr(config, name)) for name in names]

before = kept()
@numba.njit(cache=True)
def early(x): return x + 1
import streamattn_cli
from streamattn_cli import api
assert kept() == before
@numba.njit(cache=True)
def between(x): return x + 2
rows = np.random.default_rng(0).standard_normal((300, 4)).astype("f4")
done = api.attend(rows, rows, rows, method="exact", causal=True)
import streamattn_cli.kernels.dense as dense
from streamattn_cli.kernels import jit
stats = [kernel.stats for kernel in vars(dense).values() if isinstance(kernel, numba.core.dispatcher.Dispatcher)]
assert kept() == before and any(one.cache_hits and jit.folder() in one.cache_path for one in stats)
@numba.njit(cache=True)
def late(x): return x + 3
assert (early(1), between(1), late(1)) == (2, 3, 4)
print({f.stats.cache_path for f in (early, between, late)})
"""


def run(folder):
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "NUMBA_DISABLE_JIT": "0",
    }
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


@pytest.mark.parametrize("named", [False, True])
def test_a_program_that_imports_us_keeps_its_environment_and_its_cache(tmp_path, named):
    """Numba's settings and the folder of its own functions are what they are without us, with NUMBA_CACHE_DIR or not."""
    (tmp_path / "host.py").write_text(HOST)
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "NUMBA_DISABLE_JIT": "0"}
    environment.pop("NUMBA_CACHE_DIR", None)
    if named:
        environment["NUMBA_CACHE_DIR"] = str(tmp_path / "named")
        (tmp_path / "named").mkdir()
        (tmp_path / "named" / Path(jit.folder()).name).symlink_to(jit.folder())  # compiled before
    done = subprocess.run([sys.executable, "host.py"], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = ast.literal_eval(done.stdout)
    assert Path(folder).parent == (tmp_path / "named" if named else tmp_path)
    assert len(list(Path(folder).glob("*.nbi"))) == 3


def test_what_another_process_compiles_is_what_nystrom_needs(tmp_path):
    """No part of `nystrom` is compiled once more for other types when the whole is."""
    program = """
import numpy as np
from dataclasses import replace
from streamattn_cli.engine.passes.warm import compile_compression, compile_others
from streamattn_cli.kernels import atoms, compress, dense, queries, rowstore
from streamattn_cli.sketches.headparams import allocate
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.sketches.histories.nystromparams import NystromParams
params = HeadParams(8, 8, 1.0, "f4", 1, 9, 8, NystromParams(24, 12, bits=6, storage="f2"), "f2")
compile_others(params)
compile_compression()
shared = (dense.exact, dense.attend, dense.softmax_tile, rowstore.load, queries.learn, queries.factor, compress.compress,
    atoms.gather, atoms.store)
before = [len(kernel.signatures) for kernel in shared]
rows, c = np.zeros((1, 40, 8), "f4"), np.ones((40, 9), "f4")
HeadAttention(params).step(rows, rows[0], c, np.empty_like(rows), allocate(params.work_spec()))
from streamattn_cli.kernels import nystrom
print(before, [len(kernel.signatures) for kernel in shared], len(nystrom.step.signatures))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_DISABLE_JIT": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{[2] + [1] * 8} {[2] + [1] * 8} 1"  # of rows as they are stored, and of coded ones


def test_the_other_process_imports_nothing_of_the_users_folder(tmp_path, monkeypatch):
    """A file there may be called as a package is."""
    (tmp_path / "numpy.py").write_text("open('imported', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warm, "default_threads", lambda: 2)
    params = HeadParams(8, 8, 1.0, "f4", 1, 9, 8, NystromParams(24, 12, storage="f2"), "f2")
    started = []
    monkeypatch.setattr(
        warm.subprocess, "Popen", lambda *words, **more: started.append(Popen(*words, **more)) or started[-1]
    )
    warm._on_two_processors(SimpleNamespace(params=params))
    assert [other.returncode for other in started] == [0]
    assert not (tmp_path / "imported").exists()
