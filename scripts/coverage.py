"""How often does a 95% interval of the audit hold the true error? Trials on heads whose every row is known.

    .venv/bin/python scripts/coverage.py FILE.h5 ... --trials 500 --rows 64,256

For every file and method the answers to all rows are computed once, exactly and by the method; then each trial draws
its own sample, as `--audit` would, and estimates the error of every group of query heads and of all together. Prints
coverage and misses, by case and over all.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

from streamattn_cli.engine.estimate import draw_rows, estimate

METHODS = (("nystrom", 384), ("window", 384))


def answers(file: str, method: str, *options: str) -> np.ndarray:
    """All outputs (rows, heads, dim) float64."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.npy"
        command = [sys.executable, "-m", "streamattn_cli", "attend", file, "--method", method, *options, "-o", str(out)]
        subprocess.run([*command, "--quiet"], check=True)
        return np.load(out).astype(np.float64)


def squares(file: str, method: str, budget: int, exact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared error and size (rows, columns): all heads together, then group by group."""
    wrong = ((answers(file, method, "--resident-rows", str(budget)) - exact) ** 2).sum(axis=2)
    size = (exact**2).sum(axis=2)
    with h5py.File(file) as opened:
        groups = opened["k"].shape[1] if opened["k"].ndim == 3 else 1

    def columns(x: np.ndarray) -> np.ndarray:
        return np.column_stack([x.sum(axis=1), x.reshape(len(x), groups, -1).sum(axis=2)])

    return columns(wrong), columns(size)


def trials(wrong: np.ndarray, size: np.ndarray, rows: int, count: int) -> np.ndarray:
    """(columns, 2): the share of trials whose interval lies above the truth, and below it."""
    truth = np.sqrt(wrong.sum(axis=0) / size.sum(axis=0))
    missed = np.zeros((len(truth), 2))
    for seed in range(count):
        design = draw_rows(len(wrong), rows, seed)
        found = estimate(wrong[design.rows], size[design.rows], design)
        missed[:, 0] += [e.low > t for e, t in zip(found, truth, strict=True)]
        missed[:, 1] += [e.high < t for e, t in zip(found, truth, strict=True)]
    return missed / count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--rows", default="64,256")
    words = parser.parse_args()
    sizes = [int(word) for word in words.rows.split(",")]
    covered: dict[int, list[float]] = {rows: [] for rows in sizes}
    print("file method rows | coverage by column (all heads, then each group) | intervals too high, too low")
    for file in words.files:
        exact = answers(file, "exact")
        for method, budget in METHODS:
            wrong, size = squares(file, method, budget, exact)
            for rows in sizes:
                missed = trials(wrong, size, rows, words.trials)
                each = 1 - missed.sum(axis=1)
                covered[rows] += list(each)
                low, high = missed.mean(axis=0)
                print(
                    f"{Path(file).stem} {method} {rows} | {' '.join(f'{c:.3f}' for c in each)} | {low:.3f} {high:.3f}",
                    flush=True,
                )
    for rows, each in covered.items():
        mean, least = np.mean(each), np.min(each)
        print(f"audit {rows}: mean coverage {mean:.3f}, least {least:.3f}, over {len(each)} cases of {words.trials}")


if __name__ == "__main__":
    main()
