"""What is held: words of every part against the number of rows, and the peak that the program measures of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from results import figure, keep
from svgplot import Figure

from streamattn_cli.sketches.histories.monomials import feature_count
from streamattn_cli.sketches.paper.countsketch import scan_sketch

COMMAND = [sys.executable, "-m", "streamattn_cli"]


def words_against_rows() -> None:
    """Words against n, for d = 4, degree 6, k = 64, m1 = 4096, m2 = 10,240; marked where sketches begin to pay."""
    d, t, k, m1, m2 = 4, feature_count(4, 6), 64, 4096, scan_sketch(10_240, True, 0).counters
    parts = {
        "K and V stored": lambda n: 2 * d * n,
        "output stored": lambda n: d * n,
        "Psi U2, Psi V, prod": lambda n: m1 * (t + d) + t,
        "Phi D^-1 U1": lambda n: m2 * t,
        "exact accumulators": lambda n: t * (d + 1),
        "heaps of the best k": lambda n: 3 * k * d,
    }
    powers = range(10, 31, 2)
    rows = [(name, 1 << power, words(1 << power)) for name, words in parts.items() for power in powers]
    keep("words", ("part", "rows", "words"), rows)
    fig = Figure("Words held, d = 4, degree 6, k = 64, m1 = 4096, m2 = 10240", "rows n", "words")
    for name, words in parts.items():
        fig.line(name, [(1 << power, words(1 << power)) for power in powers], dashed=name.endswith("stored"))
    sketches = parts["Psi U2, Psi V, prod"](0) + parts["Phi D^-1 U1"](0)
    fig.marks = [(sketches / (2 * d), "break-even with K and V"), (sketches / d, "with the output")]
    figure(fig, "words")


def memory_against_rows() -> None:
    """The peak of the program itself, fed by a pipe: exact accumulators and Psi up to 10^8 rows, all sketches to
    10^7."""
    rows, lines = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _check(
            [
                *COMMAND,
                "generate",
                "--rows",
                "2000",
                "--dim",
                "4",
                "--emit",
                "q",
                "--seed",
                "3",
                "--quiet",
                folder / "q.npy",
            ]
        )
        for what, most in (("exact accumulators", 8), ("psi", 8), ("paper", 7)):
            for power in range(5, most + 1):
                memory, seconds = _measure(folder, what, 10**power)
                rows.append((what, 10**power, memory["peak"], memory["projected"], seconds))
                lines.setdefault(what, []).append((10**power, memory["peak"] / 2**20))
    keep("memory", ("sketches", "rows", "peak_bytes", "projected_bytes", "seconds"), rows)
    fig = Figure("Peak memory above the program itself, d = 4", "rows n", "MiB")
    for what, points in lines.items():
        fig.line(what, points)
    fig.line("K and V (float32)", [(10**p, 32 * 10**p / 2**20) for p in range(5, 9)], dashed=True)
    figure(fig, "memory")


def _measure(folder: Path, what: str, n: int) -> tuple[dict, float]:
    """Peak memory and seconds of one run over n rows of k and v from a pipe (and n queries, for `paper`)."""
    stream = ["--rows", n, "--dim", "4", "--logit-std", "0.7", "--value-mean", "2"]
    words = ["--full", "--degree", "4", "--json", "--quiet", "--max-error", "1"]
    queries, out = folder / "q.npy", folder / "out.npy"
    makers = []
    if what == "exact accumulators":
        words += ["--method", "poly"]
    elif what == "psi":
        words += ["--sketches", "psi"]
    else:
        queries, out = folder / "queries", folder / "out.h5"
        if not queries.exists():
            os.mkfifo(queries)
        words += ["--sketches", "paper", "--order", "kvq", "--top-k", "64", "--m2", "10240"]
        makers.append(_start([*COMMAND, "generate", *stream, "--emit", "q", "--seed", "2", "--quiet", queries]))
    made = _start(
        [*COMMAND, "generate", *stream, "--emit", "kv", "--seed", "1", "--quiet", "-"], stdout=subprocess.PIPE
    )
    done = subprocess.run(list(map(str, [*COMMAND, "attend", "-", "--q", queries, *words, "--force", "-o", out])),
    stdin=made.stdout,
                          stdout=subprocess.PIPE, check=True)  # fmt: skip
    for process in (made, *makers):
        process.wait()
    outcome = json.loads(done.stdout)
    return outcome["memory"], outcome["seconds"]


def _start(command: list, **words) -> subprocess.Popen:
    return subprocess.Popen(list(map(str, command)), **words)


def _check(command: list) -> None:
    subprocess.run(list(map(str, command)), check=True)
