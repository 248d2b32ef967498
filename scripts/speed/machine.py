"""What every part of the benchmark shares: the machine's own speed, runs of the command, inputs, and timing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import h5py
import numpy as np

THREADS = len(os.sched_getaffinity(0))
COMMAND = [str(Path(sys.executable).with_name("streamattn"))]
TRIES = 3  # of what is compared, on either side: the least counts
FOLDER = Path(tempfile.mkdtemp(prefix="streamattn-bench-"))


def best(work: Callable[[], object], times: int = TRIES) -> float:
    """The least seconds of so many calls: what the machine takes when nothing else disturbs it."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def facts() -> dict:
    """What the numbers depend on."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown",
    )
    versions = {}
    for name in ("streamattn-cli", "numpy", "numba", "torch", "scikit-learn"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": cpu,
        "threads": THREADS,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
        "versions": versions,
    }


def gemm_rate(dtype: str = "f4", threads: int = 1) -> float:
    """FLOP/s of NumPy's matrix product of 1024 x 1024, on so many threads at once."""
    a = [np.ones((1024, 1024), dtype) for _ in range(threads)]
    out = [np.empty((1024, 1024), dtype) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = best(lambda: list(pool.map(lambda i: np.matmul(a[i], a[i], out=out[i]), range(threads))), 8)
    return threads * 2 * 1024**3 / seconds


def dump(rows: int, heads: int, kv_heads: int, dim: int, kind: str = "h5", parts: str = "qkv") -> list[str]:
    """A dump of normal float16 rows in layout THD, made once; the words by which the command is given it."""
    names = {p: heads if p == "q" else kv_heads for p in parts}
    path = FOLDER / f"{parts}-{rows}-{heads}-{kv_heads}-{dim}"
    rng = np.random.default_rng(0)
    if kind == "h5":
        target = path.with_suffix(".h5")
        if not target.exists():
            with h5py.File(target, "w") as file:
                sets = {p: file.create_dataset(p, (rows, count, dim), "f2") for p, count in names.items()}
                _fill(sets, rows, rng)
        return [str(target), "--layout", "THD"]
    words = []
    for p, count in names.items():
        target = Path(f"{path}-{p}.npy")
        if not target.exists():
            _fill({p: np.lib.format.open_memmap(target, "w+", "f2", (rows, count, dim))}, rows, rng)
        words += [f"--{p}", str(target)]
    return [*words, "--layout", "THD"]


def _fill(sets: dict, rows: int, rng: np.random.Generator) -> None:
    for array in sets.values():
        for a in range(0, rows, 65536):
            part = (min(rows, a + 65536) - a, *array.shape[1:])
            array[a : a + part[0]] = rng.standard_normal(part, dtype="f4")


def run(*words: object, environment: dict | None = None) -> dict:
    """The outcome of a run of the command, and its wall-clock seconds from start to end as `whole`."""
    out = FOLDER / "out"
    words = [str(word).replace("OUT", str(out)) for word in words]
    began = time.perf_counter()
    done = subprocess.run([*COMMAND, *words, "--json"], capture_output=True, text=True, env=environment)
    whole = time.perf_counter() - began
    for left in FOLDER.glob("out*"):
        left.unlink()
    if done.returncode:
        raise SystemExit(f"streamattn {' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout) | {"whole": whole}


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """The slope of log seconds over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
