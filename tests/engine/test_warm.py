"""`streamattn warm`: after it no run compiles anything, and a run that compiles says so."""

import subprocess
import sys

import numpy as np
import pytest
from clirun import environment, run, save_heads

from streamattn_cli.engine.jobs import warming
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import OutputFailed
from streamattn_cli.kernels import jit


@pytest.fixture(scope="module")
def warmed():
    return run("warm", timeout=900)


def test_it_says_what_it_did_and_has_nothing_to_do_twice(warmed):
    assert b" kernels compiled, for nystrom, poly, exact" in warmed.out
    again = run("warm", timeout=900)
    assert again.out.startswith(b"0 kernels compiled") and again.err == ""


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("words", [
    ("--method", "nystrom"), ("--method", "nystrom", "--rope", "1e4:half"), ("--method", "evict"), ("--method", "wildcat"),
    ("--method", "poly", "--degree", "2", "--max-error", "inf"), ("--method", "exact"),
], ids=" ".join)  # fmt: skip
def test_no_run_compiles_after_it(tmp_path, warmed, dtype, words):
    save_heads(tmp_path, rows=900, dtype=np.dtype(dtype))
    size = () if words[1] in ("poly", "exact") else ("--resident-rows", "200")
    for mode in ("--causal", "--full"):
        done = run("attend", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", mode, *words, *size, "--audit", "8", "-o",
                   "o.npy", "--force", cwd=tmp_path)  # fmt: skip
        assert "compil" not in done.err


def test_a_run_that_compiles_says_so_whatever_the_cache_holds(tmp_path):
    """Of `window` in a cache that holds the kernels of `exact`."""
    save_heads(tmp_path, rows=900)
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "NUMBA_CACHE_DIR": ""}
    words = ("attend", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "--full", "--force", "-o", "o.npy")
    told = []
    for method in ("exact", "window", "window"):
        done = run(*words, "--method", method, cwd=tmp_path, env=environment, timeout=900)
        told.append([line for line in done.err.splitlines() if "compil" in line])
    assert [len(lines) for lines in told] == [2, 2, 0]
    assert told[1][0].startswith("note: compiling kernels") and told[1][1].startswith("note: compiled ")
    for at, index in enumerate(sorted((tmp_path / "cache").rglob("*.nbi"))):  # an index is damaged, or what it names
        for path in [index] if at % 2 else index.parent.glob(f"{index.stem}.*.nbc"):
            path.write_bytes(path.read_bytes()[:50])
    told = [run(*words, "--method", "window", cwd=tmp_path, env=environment, timeout=900).err for _ in range(2)]
    assert "compiled " in told[0] and "compil" not in told[1]


def twice(x):
    return x + x


def test_a_cache_that_cannot_be_written_is_no_reason_not_to_compute(tmp_path, monkeypatch):
    """Whether the disk is full or the folder is another's: what is there is loaded, and what is not is compiled."""

    def full(*given, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jit, "folder", lambda: str(tmp_path))
    monkeypatch.setattr(jit._Cache, "unkept", [])
    told = []
    for number in (1, 2, 0.5):
        with jit.compilation(lambda: None) as count:
            assert jit.kernel(cache=True)(twice)(number) == 2 * number
        told.append(count.told)
        monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert told[:2] == ["compiled 1 kernels", "compiled 0 kernels"]
    assert told[2].startswith(
        "compiled 1 kernels, and cannot keep them ([Errno 28] No space left on device): set XDG_CACHE_HOME"
    )


def test_warm_fails_where_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(jit._Cache, "unkept", [OSError(30, "Read-only file system")])
    monkeypatch.setattr(warming, "warm", lambda plan, listener: None)
    with pytest.raises(OutputFailed, match="Read-only file system.*XDG_CACHE_HOME"):
        warming.warm_all(print, Interrupts())


def test_kernels_are_counted():
    calls = []
    twice = jit.kernel()(lambda x: x + x)
    with jit.compilation(lambda: calls.append(1)) as count:
        assert twice(2) == 4 and twice(3) == 6 and twice(0.5) == 1.0
    assert (count.kernels, calls) == (2, [1])
    with jit.compilation(lambda: calls.append(1)) as count:
        twice(5)
    assert count.kernels == 0


STARTED = """
import atexit, gc, sys
from streamattn_cli.kernels import jit
names, load = [], jit._Cache._load_overload
jit._Cache._load_overload = lambda self, *given: names.append(self._impl.filename_base) or load(self, *given)
jit.parse_bitcode = None  # of what is loaded, nothing is inlined
from streamattn_cli.cli.main import main
@atexit.register
def tell():
    mine = [name for name in sys.modules if name.startswith("streamattn_cli")]
    jobs = "streamattn_cli.engine.jobs."
    costly = "numba.np.linalg", "numba.np.random.generator_methods", "scipy", "pandas", jobs + "spread", jobs + "layers"
    left = len(gc.get_objects())  # for the interpreter to look through
    print(len(names), len(mine), left, *(name for name in costly if name in sys.modules))
main()
"""


def test_a_start_loads_few_kernels_and_nothing_that_only_compiles(tmp_path, warmed):
    save_heads(tmp_path, rows=900)
    files = [word for part in "qkv" for word in (f"--{part}", f"{part}.npy")]
    words = ["attend", *files, "--causal", "--rope", "none", "--resident-rows", "200", "-o", "o.npy", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", STARTED, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kernels, modules, left, *costly = done.stdout.split()
    assert 0 < int(kernels) <= 8 and int(modules) <= 200 and int(left) < 1000 and costly == []
