"""Does `--method auto` choose well? Its choice against the best method at the same memory, real heads and made-up ones.

    .venv/bin/python scripts/choices.py FILE.h5 ... --resident-rows 512

One case per key head of every file (causal), and 20 made-up inputs: bounded small-d, flat, peaky, sink-heavy, drifting
(full and causal). Prints error of the choice, of the best, and their ratio; `exact` is left out, as it has no error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

ROWS = 6000
LEAST = 1e-5  # errors below are rounding, and all alike
KINDS = ("bounded", "flat", "peaky", "sinks", "drifting")


def made_up(folder: Path, kind: str, number: int) -> tuple[str, bool]:
    """A file of one made-up head, and whether it is causal."""
    rng = np.random.default_rng([number, KINDS.index(kind)])
    dim = {
        "bounded": (2, 4, 8, 8),
        "flat": (16, 32, 64, 64),
        "peaky": (16, 32, 64, 64),
        "sinks": (16, 32, 64, 64),
        "drifting": (16, 32, 64, 64),
    }[kind][number]
    std = {"bounded": 0.4, "flat": 0.1, "peaky": 3.0, "sinks": 1.5, "drifting": 1.5}[kind] * (1 + 0.2 * number)
    q, k, v = rng.standard_normal((3, ROWS, dim))
    q, k = (x * np.sqrt(std) for x in (q, k))
    if kind == "sinks":
        k[:4] += 6 * q.mean(axis=0) + 3.0
        q += 0.5
    if kind == "drifting":
        path = np.cumsum(rng.standard_normal((2, ROWS, dim)), axis=1) / np.sqrt(ROWS) * 2
        q, k = q + path[0], k + path[1]
    v += np.cumsum(rng.standard_normal(v.shape), axis=0) / np.sqrt(ROWS) if number % 2 else 1.0
    name = folder / f"{kind}{number}.h5"
    causal = number % 2 == 0 or kind == "drifting"
    with h5py.File(name, "w") as file:
        for part, x in zip("qkv", (q, k, v), strict=True):
            file[part] = x.astype("f4")
        file.attrs["causal"], file.attrs["layout"] = causal, "TD"
    return str(name), causal


def streamattn(*args: str) -> dict:
    """The JSON that a command prints."""
    done = subprocess.run([sys.executable, "-m", "streamattn_cli", *args, "--json"], capture_output=True, check=True)
    return json.loads(done.stdout)


def case(name: str, words: list[str], budget: str) -> float:
    """The error of auto's choice over the least, at the same memory; prints both."""
    found = streamattn("compare", *words, "--resident-rows", budget, "--audit", "128", "--quiet")
    errors = {t["method"]: t["audit"]["method"]["error"] for t in found["trials"] if t["audit"]}
    with tempfile.TemporaryDirectory() as folder:
        run = streamattn(
            "attend",
            *words,
            "--method",
            "auto",
            "--resident-rows",
            budget,
            "--audit",
            "128",
            "--max-error",
            "inf",
            "-o",
            f"{folder}/out.npy",
            "--quiet",
        )
    method, error = run["facts"]["method"], run["audit"]["method"]["error"]
    best = min(errors, key=errors.get)
    ratio = max(error, LEAST) / max(min(errors[best], error), LEAST)
    print(f"{name:24} auto {method:8} {error:.4f}   best {best:8} {errors[best]:.4f}   ratio {ratio:.2f}", flush=True)
    return ratio


def main() -> None:
    """Print a line per case and the share within 1.25."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--resident-rows", default="512")
    words = parser.parse_args()
    ratios = []
    for file in words.files:
        with h5py.File(file) as opened:
            heads = opened["k"].shape[1]
        for head in range(heads):
            ratios.append(case(f"{Path(file).stem} {head}", [file, "--select", str(head)], words.resident_rows))
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for number in range(4):
                name, causal = made_up(Path(folder), kind, number)
                ratios.append(case(f"{kind} {number} {'causal' if causal else 'full'}", [name], words.resident_rows))
    print(f"within 1.25: {np.mean(np.array(ratios) <= 1.25):.3f} of {len(ratios)} cases; worst {max(ratios):.2f}")


if __name__ == "__main__":
    main()
