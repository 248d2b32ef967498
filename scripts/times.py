"""Does `plan` tell how long a run takes? Its projected seconds against those of the run itself, for random settings.

    .venv/bin/python scripts/times.py --settings 20 --seed 0

Every setting is an input of other sizes and one of its methods, as `plan` offers it for it. Prints both times, their
ratio, and the share of ratios within a factor of 2.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

METHODS = ("nystrom", "window", "poly", "evict", "sample", "reservoir", "exact", "balance", "wildcat")


def program(*words: object) -> dict:
    """What `streamattn WORDS --json` says."""
    command = [sys.executable, "-m", "streamattn_cli", *map(str, words), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def setting(folder: Path, seed: int, method: str) -> tuple[str, float, float]:
    """A setting in words, the projected seconds and the measured ones."""
    rng = np.random.default_rng([9, seed])
    dim = int(rng.choice([8, 16] if method == "poly" else [16, 32, 64, 128]))
    heads, kv_heads = [(1, 1), (2, 1), (4, 2), (4, 4), (8, 2)][rng.integers(5)]
    rows = int(rng.integers(8000, 60000) / (heads if method == "exact" else heads**0.5))
    shape = ("--rows", rows, "--dim", dim, "--heads", heads, "--kv-heads", kv_heads)
    program("generate", *shape, "--dtype", rng.choice(["f16", "f32"]), "--seed", seed, "--quiet", folder / "in.h5")
    mode, budget = str(rng.choice(["--causal", "--full"])), int(rng.choice([256, 512, 1024, 2048]))
    plan = program("plan", folder / "in.h5", mode, "--resident-rows", budget)
    option = next(o for o in plan["options"] if o["method"] == method)
    settings = [word for name, value in option["settings"].items() for word in (f"--{name.replace('_', '-')}", value)]
    words = (mode, "--method", method, *settings, "--max-error", "inf", "--audit", option["audit"])
    done = program("attend", folder / "in.h5", *words, "--quiet", "--force", "-o", folder / "out.npy")
    (folder / "in.h5").unlink()
    described = f"{method} {mode} {rows} rows, dim {dim}, {heads}/{kv_heads} heads, {budget}"
    return described, option["seconds"], done["seconds"]


def main() -> None:
    """Print a line per setting, and how many were right within a factor of 2."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--settings", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.settings):
            words, projected, seconds = setting(Path(folder), args.seed + i, METHODS[i % len(METHODS)])
            ratios.append(projected / seconds)
            print(f"{ratios[-1]:5.2f}  projected {projected:7.2f} s, took {seconds:7.2f} s  {words}", flush=True)
    right = np.mean([0.5 <= ratio <= 2 for ratio in ratios])
    print(f"{100 * right:.0f}% of {len(ratios)} within a factor of 2; median ratio {np.median(ratios):.2f}")


if __name__ == "__main__":
    main()
