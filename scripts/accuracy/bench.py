"""Error of every streaming method at equal resident bytes (scripts/bench_accuracy)."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from heads import Head, dumped, load
from oracle import Truth, evict_knowing, nystrom_knowing

from streamattn_cli.errors import UsageError
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.budget import row_bytes
from streamattn_cli.sketches.head import HeadAttention, HeadParams, allocate, spec_bytes
from streamattn_cli.sketches.method import MethodOptions

sys.path.insert(0, str(Path(__file__).parents[1] / "paper"))
from svgplot import Figure  # noqa: E402

TOP = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
SHARES = (0.01, 0.02, 0.05, 0.10)
LEAST_SQUARES_AT = (0.05,)  # the costly oracle runs at these shares only
KEEPERS = ("balance", "evict", "sample", "wildcat")
METHODS = ("window", *KEEPERS, "nystrom fast", "nystrom")
CAUSAL_ORACLES = ("evict, knowing the future", "least squares on the future")
KNOWN_QUERIES = 1024  # of full attention, shown to the methods beforehand
SINKS = 4


@dataclass(frozen=True)
class Result:
    """One line of the raw numbers."""

    head: str
    mode: str
    share: float
    method: str
    resident_rows: float
    error: float
    needle_error: float
    guarded: int  # queries whose z was not positive
    queries: int
    seconds: float


def params_of(head: Head, method: str, rows: int, causal: bool) -> HeadParams:
    """The method within a budget of `rows` rows, everything counted."""
    dim, value_dim = head.k.shape[1], head.c.shape[1] - 1
    base = HeadParams(dim, value_dim, head.scale, "f4", sinks=SINKS, storage=head.storage)
    name, _, effort = method.partition(" ")
    options = MethodOptions(sinks=SINKS, resident_rows=rows, effort=effort or "default", rope=head.rope)
    return registry.find(name).settings(base, options, causal, head.rows)


def answers(head: Head, params: HeadParams, causal: bool) -> tuple[np.ndarray, int]:
    """Answers (heads, n, dv) of a method in one pass, and how often z was not positive."""
    sketch, work = HeadAttention(params), allocate(params.work_spec())
    out = np.empty((*head.q.shape[:2], head.c.shape[1] - 1), "f4")
    if causal:
        sketch.step(head.q, head.k, head.c, out, work)
    else:
        rows = np.linspace(0, head.rows - 1, KNOWN_QUERIES).astype(int)
        sketch.calibrate(head.k[:KNOWN_QUERIES], head.c[:KNOWN_QUERIES], head.q[:, rows].reshape(-1, head.q.shape[2]))
        sketch.absorb(head.k, head.c, work)
        sketch.finish(work)
        sketch.answer(head.q, 0, out, work)
    return out, int(work["counts"][1])


def measure(task: tuple[str, str]) -> list[Result]:
    """All methods and budgets on one head, causal or full. Causal errors are those of the second half of the rows."""
    name, mode = task
    head, causal = load(name), mode == "causal"
    truth = Truth(head, causal)
    first = head.rows // 2 if causal else 0
    found = []

    def keep(method: str, share: float, resident: float, out: np.ndarray, guarded: int, began: float) -> None:
        error = relative(out[:, first:], truth.out[:, first:])
        needle = relative(out[:, head.needles], truth.out[:, head.needles]) if head.needles is not None else np.nan
        queries, seconds = out.shape[0] * out.shape[1], time.perf_counter() - began
        found.append(Result(head.name, mode, share, method, resident, error, needle, guarded, queries, seconds))

    for share in SHARES:
        rows = round(share * head.rows)
        for method in METHODS:
            began = time.perf_counter()
            try:
                params = params_of(head, method, rows, causal)
            except UsageError:  # too few rows for it
                continue
            out, guarded = answers(head, params, causal)
            keep(method, share, spec_bytes(params.state_spec()) / row_bytes(params), out, guarded, began)
        if causal:
            began = time.perf_counter()
            keep(CAUSAL_ORACLES[0], share, rows, evict_knowing(head, truth, rows), 0, began)
        if causal and share in LEAST_SQUARES_AT:
            began, params = time.perf_counter(), params_of(head, "nystrom", rows, True)
            keep(CAUSAL_ORACLES[1], share, rows, nystrom_knowing(head, truth, params), 0, began)
    return found


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Frobenius norm of the difference over that of the truth."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def tables(results: list[Result]) -> str:
    """Markdown: geometric means over the heads of each kind, ratios to the best baseline, worst heads, stress."""
    by = defaultdict(dict)  # (kind, mode, share, method) -> {head: result}
    for r in results:
        by[_kind(r.head), r.mode, r.share, r.method][r.head] = r
    text = []
    for kind, mode in sorted({key[:2] for key in by}):
        names = [m for m in (*METHODS, *CAUSAL_ORACLES) if any(key[:2] == (kind, mode) and key[3] == m for key in by)]
        heads = len({head for key, found in by.items() if key[:2] == (kind, mode) for head in found})
        text += ["", f"### {kind}, {mode} ({heads} key heads)", ""]
        text.append("| method | " + " | ".join(f"{s:.0%}" for s in SHARES) + " |")
        text.append("| --- |" + " ---: |" * len(SHARES))
        for method in names:
            cells = [_cell(by.get((kind, mode, share, method))) for share in SHARES]
            text.append(f"| {method} | " + " | ".join(cells) + " |")
        for label, line in _comparisons(by, kind, mode):
            text.append(f"| {label} | " + " | ".join(line) + " |")
        if kind == "needles":
            text.append(f"| queries that ask for a needle: nystrom | {_needles(by, mode, 'nystrom')} |")
            text.append(f"| queries that ask for a needle: evict | {_needles(by, mode, 'evict')} |")
    return "\n".join(text[1:]) + "\n"


def _kind(head: str) -> str:
    return head if head in ("drift", "needles") else "sample head" if head.startswith("heads:") else "real heads"


def _mean(found: dict | None) -> float:
    return float(np.exp(np.mean(np.log([max(r.error, 1e-12) for r in found.values()])))) if found else np.nan


def _cell(found: dict | None) -> str:
    return f"{_mean(found):.4f}" if found else ""


def _comparisons(by: dict, kind: str, mode: str):
    """nystrom over the best baseline: of the means, and on the worst head; and its z <= 0."""
    ratios, worst, guarded = [], [], []
    for share in SHARES:
        ours = by.get((kind, mode, share, "nystrom"))
        baselines = [by.get((kind, mode, share, m)) for m in ("window", *KEEPERS)]
        baselines = [b for b in baselines if b and ours and b.keys() == ours.keys()]
        if not baselines:
            ratios.append(""), worst.append(""), guarded.append("")
            continue
        ratios.append(f"{_mean(ours) / min(_mean(b) for b in baselines):.2f}")
        worst.append(f"{max(r.error / min(b[h].error for b in baselines) for h, r in ours.items()):.2f}")
        guarded.append(f"{sum(r.guarded for r in ours.values())} of {sum(r.queries for r in ours.values())}")
    yield "nystrom / best baseline", ratios
    yield "the same, worst head", worst
    yield "nystrom, queries with z <= 0", guarded


def _needles(by: dict, mode: str, method: str) -> str:
    found = [by.get(("needles", mode, share, method)) for share in SHARES]
    return " | ".join(f"{next(iter(f.values())).needle_error:.3f}" if f else "" for f in found)


def figure(results: list[Result], path: Path) -> None:
    """Error against resident rows: geometric means over the real heads (without any: the sample head), causal."""
    kind = "real heads" if any(_kind(r.head) == "real heads" for r in results) else "sample head"
    title = f"Causal attention, {kind}: error at equal memory"
    plot = Figure(title, "resident rows of one key head, everything counted", "relative error")
    for method in (*METHODS, *CAUSAL_ORACLES):
        points = []
        for share in SHARES:
            wanted = (kind, "causal", share, method)
            found = [r for r in results if (_kind(r.head), r.mode, r.share, r.method) == wanted]
            if found:
                points.append((np.mean([r.resident_rows for r in found]), _mean({r.head: r for r in found})))
        if points:
            lone = len(points) == 1  # it needs its mark
            plot.line(method, points, dashed=method in CAUSAL_ORACLES and not lone)
    plot.save(path)


def main() -> None:
    shared = TOP.parent / "shared" / "data"
    folders = [Path(word) for word in sys.argv[1:]] or ([shared] if shared.is_dir() else [])
    paths = [path for folder in folders for path in sorted(folder.glob("*.h5"))] + [TOP / "sample_data" / "heads.h5"]
    names = [name for path in paths for name in dumped(path)] + ["drift", "needles"]
    tasks = [(name, mode) for mode in ("causal", "full") for name in names]
    print(f"{len(names)} heads, {', '.join(f'{s:.0%}' for s in SHARES)} of their rows, causal and full", flush=True)
    results, began = [], time.time()
    with ProcessPoolExecutor(min(os.cpu_count() or 1, len(tasks))) as pool:
        for (name, mode), found in zip(tasks, pool.map(measure, tasks), strict=True):
            results += found
            ours = {r.share: r.error for r in found if r.method == "nystrom"}
            print(f"{time.time() - began:5.0f} s  {Path(name).name} {mode}: nystrom "
                  + ", ".join(f"{share:.0%} {error:.4f}" for share, error in ours.items()), flush=True)  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / "errors.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Result.__dataclass_fields__)
        for r in results:
            writer.writerow([f"{x:.6g}" if isinstance(x, float) else x for x in r.__dict__.values()])
    (RESULTS / "tables.md").write_text(tables(results))
    figure(results, RESULTS / "errors.svg")
    print(tables(results))
    print(f"written: {RESULTS.relative_to(TOP)}/errors.csv, tables.md, errors.svg")


if __name__ == "__main__":
    main()
