"""A run that compiles its kernels writes what a run writes that finds them compiled, all of them or all but one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROFILE
from llvmlite.binding import Linkage

from streamattn_cli.kernels.jit import kernel

PROGRAM = """
import hashlib, sys
from streamattn_cli.engine.jobs.attend import attend
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.rows.spec import InputSpec

spec = InputSpec(**{name: f"{name}.npy" for name in "qkv"}, layout="THD")
runs = [("nystrom", {"effort": effort}) for effort in ("fast", "default", "best")]
runs += [(name, {}) for name in ("window", "evict", "sample", "reservoir", "balance", "wildcat", "exact")]
runs += [("poly", {"degree": 3, "max_error": 9.0}), ("poly", {"sketches": "paper", "max_error": 9.0, "top_k": 4, "degree": 2})]
for method, words in runs:
    for causal in (True, False)[len(words) > 2 :]:
        if method != "poly":
            words["resident_rows"] = 150
        out = sys.argv[1] + (".h5" if "top_k" in words else ".npy")
        request = AttendRequest(spec, out, method=method, causal=causal, threads=2, force=True, **words)
        attend(request, lambda event: None, Interrupts())
        print(method, *words.values(), causal, hashlib.sha256(open(out, "rb").read()).hexdigest()[:12])
"""


def digests(folder, cache):
    """What every method and effort writes, by a process whose compiled kernels are those in `cache`."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "NUMBA_DISABLE_JIT": "0"}
    environment.pop("NUMBA_CACHE_DIR", None)
    words = [sys.executable, "-c", PROGRAM, str(folder / "out")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def kernels(cache):
    """Names of the kernels that a cache holds."""
    return sorted({path.name.rsplit("-", 1)[0] for path in Path(cache).rglob("*.nbi")})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cold")
    generator = np.random.default_rng(3)
    for name, heads in (("q", 2), ("k", 1), ("v", 1)):
        np.save(folder / f"{name}.npy", generator.standard_normal((900, heads, 8)).astype("f4"))
    return folder


def test_cold_and_warm_and_all_but_one(folder):
    cache = folder / "cache"
    cold = digests(folder, cache)
    assert len(cold) == 23 and len(kernels(cache)) > 40
    assert digests(folder, cache) == cold
    # every kernel in the nightly run; else some, and those that call most others
    some = kernels(cache) if PROFILE == "nightly" else [*kernels(cache)[3::20], "nystrom.step", "compress.compress"]
    for name in some:
        shutil.rmtree(folder / "other", ignore_errors=True)
        shutil.copytree(cache, folder / "other")
        for path in (folder / "other").rglob(f"{name}-*"):
            path.unlink()
        assert digests(folder, folder / "other") == cold, name


def test_what_a_kernel_calls_is_its_own():
    """Were a callee a symbol that others define, too, the linker could take theirs."""

    @kernel()
    def add(x, y):
        for i in range(x.shape[0]):
            x[i] += y

    @kernel()
    def twice(x):
        add(x, 1.0)
        for i in range(x.shape[0]):
            add(x[i:], 2.0)
        add(x[1:], 3.0)

    x = np.zeros(3)
    twice(x)
    assert x.tolist() == [3, 8, 10]
    (compiled,) = twice.overloads.values()
    name = compiled.fndesc.mangled_name
    functions = [f for f in compiled.library._get_module_for_linking().functions if not f.is_declaration]
    entry = [f.name for f in functions if f.linkage != Linkage.internal]
    assert name in entry and all("twice" in found for found in entry)
