"""Error of every streaming method at equal resident bytes (scripts/bench_accuracy)."""

from __future__ import annotations

import argparse
import csv
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from caches import BITS, rounded_cache
from heads import Head, dumped, load
from oracle import Truth, answers_at, evict_knowing, nystrom_knowing
from tables import errors_figure, rows_figure, tables

from streamattn_cli.errors import UsageError
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams, allocate, spec_bytes
from streamattn_cli.sketches.method import MethodOptions

TOP = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
SHORT, LONG = 8192, (8192, 16384, 32768, 131072)  # rows
SHARES, FIXED = (0.01, 0.02, 0.05, 0.10), (160, 256, 512, 1024)  # budgets: of the rows, and in resident rows
LEAST_SQUARES_AT = ("5%",)  # the costly oracle runs at these budgets only
CODED = (
    "evict bits=8", "evict bits=6", "evict bits=4", "evict score=last", "evict score=expected", "evict bits=6 score=last",
)  # fmt: skip
METHODS = ("window", "balance", "evict", *CODED, "sample", "reservoir", "wildcat", "nystrom effort=fast", "nystrom")
FAST_ONES = ("window", "evict", *CODED[:3], CODED[5], "nystrom effort=fast", "nystrom")  # on long streams
KNOWN_QUERIES = 1024  # of full attention, shown to the methods beforehand
SINKS = 4
CACHES, ORACLES = "caches", "oracles"  # beside methods: all rows in few bits, and methods that know the future
ASKED = 2048  # rows of the second half that causal streams are measured on
# causal: shares of SHORT rows, with the stress streams; fixed budgets and more rows; full attention: shares
PARTS = ("short", "long", "full")


@dataclass(frozen=True)
class Result:
    """One line of the raw numbers."""

    head: str
    rows: int
    mode: str
    budget: str  # such as 1% or R=256
    method: str
    resident_rows: float
    error: float
    p99: float  # of the rows' own relative errors
    needle_error: float
    guarded: int  # queries whose z was not positive
    queries: int
    seconds: float


def params_of(head: Head, method: str, rows: int, causal: bool) -> HeadParams:
    """The method, 'NAME' or 'NAME OPTION=VALUE', within a budget of `rows` rows, everything counted."""
    dim, value_dim = head.k.shape[1], head.c.shape[1] - 1
    base = HeadParams(dim, value_dim, head.scale, "f4", sinks=SINKS, storage=head.storage)
    name, *settings = method.split()
    given = {key: int(value) if value.isdigit() else value for key, value in (pair.split("=") for pair in settings)}
    options = MethodOptions(sinks=SINKS, resident_rows=rows, rope=head.rope, **given)
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


def budgets(rows: int, part: str) -> list[tuple[str, int]]:
    """Names and resident rows of the budgets for a stream of so many rows."""
    if part == "long":
        return [(f"R={resident}", resident) for resident in FIXED]
    return [(f"{share:.0%}", round(share * rows)) for share in SHARES]


class Measured:
    """The results of one head, against the truth."""

    def __init__(self, head: Head, mode: str, asked: np.ndarray, truth: np.ndarray):
        self.head, self.mode, self.asked, self.truth = head, mode, asked, truth
        self.found: list[Result] = []

    def keep(self, method: str, budget: str, resident: float, out: np.ndarray, guarded: int, began: float) -> None:
        """Take in answers to the asked rows (heads, r, dv)."""
        head, off = self.head, np.linalg.norm(out - self.truth, axis=2)
        own = off / np.maximum(np.linalg.norm(self.truth, axis=2), 1e-30)
        needles = np.isin(self.asked, head.needles) if head.needles is not None else np.zeros(0, int)
        needle = relative(out[:, needles], self.truth[:, needles]) if needles.any() else np.nan
        self.found.append(
            Result(
                head.name, head.rows, self.mode, budget, method, resident, relative(out, self.truth),
                float(np.percentile(own, 99)), needle, guarded, head.q.shape[0] * head.rows, time.perf_counter() - began,
            )
        )  # fmt: skip


def measure(task: tuple) -> list[Result]:
    """All methods and budgets on one head. Causal errors are those of the second half of the rows."""
    name, rows, part, methods, wanted = task
    head, causal = load(name, rows), part != "full"
    asked = np.arange(head.rows // 2 if causal else 0, head.rows)
    beside = {word for word in (CACHES, ORACLES) if causal and (not methods or word in methods)}
    known = part == "short" and ORACLES in beside
    full = Truth(head, causal) if known or not causal else None
    if causal:
        asked = asked[np.linspace(0, len(asked) - 1, ASKED).astype(int)]
    truth = full.out[:, asked] if full else answers_at(head, asked, head.k, head.c)
    chosen = [m for m in methods if m not in beside] if methods else FAST_ONES if part == "long" else METHODS
    measured = Measured(head, "causal" if causal else "full", asked, truth)
    for budget, resident in budgets(head.rows, part):
        if wanted and budget not in wanted:
            continue
        for method in chosen:
            began = time.perf_counter()
            try:
                params = params_of(head, method, resident, causal)
            except UsageError:  # too few rows for it, or nothing for full attention
                continue
            out, guarded = answers(head, params, causal)
            used = spec_bytes(params.state_spec()) / params.row_bytes
            measured.keep(method, budget, used, out[:, asked], guarded, began)
        if known:
            _oracles(measured, full, budget, resident)
    if CACHES in beside:
        for bits in BITS:
            began, (k, c, share) = time.perf_counter(), rounded_cache(head, bits)
            measured.keep(
                f"all rows in {bits} bits", f"{share:.0%}", share * head.rows, answers_at(head, asked, k, c), 0, began
            )
    return measured.found


def _oracles(measured: Measured, truth: Truth, budget: str, rows: int) -> None:
    """Two methods that know the future."""
    head, began = measured.head, time.perf_counter()
    out = evict_knowing(head, truth, rows)
    measured.keep("evict, knowing the future", budget, rows, out[:, measured.asked], 0, began)
    if budget in LEAST_SQUARES_AT:
        began, params = time.perf_counter(), params_of(head, "nystrom", rows, True)
        out = nystrom_knowing(head, truth, params)
        measured.keep("least squares on the future", budget, rows, out[:, measured.asked], 0, began)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Frobenius norm of the difference over that of the truth."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def tasks_of(paths: list[Path], parts: list[str]) -> list[tuple[str, int, str]]:
    """(head, rows, part) of everything that is to be measured."""
    heads = [(name, rows) for path in paths for name, rows in dumped(path)]
    found = []
    for part in parts:
        if part == "long":
            found += [(name, n, part) for name, rows in heads for n in LONG if n <= rows and rows > SHORT]
        else:
            found += [(name, min(rows, SHORT), part) for name, rows in heads]
            found += [(name, SHORT, part) for name in ("drift", "needles")]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="folders of head dumps (default: ../shared/data)")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure this part only")
    parser.add_argument("--only", default="", help="measure heads only whose name has this")
    parser.add_argument(
        "--methods",
        default="",
        help="measure these only, such as 'nystrom,evict bits=6', on 2,048 rows; 'caches' and 'oracles' are asked for by name",
    )
    parser.add_argument("--budgets", default="", help="of these budgets only, such as 5%%,R=256")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    words = parser.parse_args()
    shared = TOP.parent / "shared" / "data"
    folders = words.folders or ([shared] if shared.is_dir() else [])
    paths = [path for folder in folders for path in sorted(folder.glob("*.h5"))] + [TOP / "sample_data" / "heads.h5"]
    chosen = (
        tuple(word for word in words.methods.split(",") if word),
        tuple(word for word in words.budgets.split(",") if word),
    )
    tasks = [(*task, *chosen) for task in tasks_of(paths, words.part or list(PARTS)) if words.only in task[0]]
    if not tasks:
        parser.error(f"no head has {words.only!r} in its name; give the folder of the dumps")
    results, began = [], time.time()
    RESULTS.mkdir(exist_ok=True)
    with ProcessPoolExecutor(min(words.workers, len(tasks))) as pool:
        for (name, rows, part, *_), found in zip(tasks, pool.map(measure, tasks), strict=True):
            results += found
            ours = {r.budget: r.error for r in found if r.method == "nystrom"}
            print(f"{time.time() - began:5.0f} s  {Path(name).name} {rows} rows, {part}: nystrom "
                  + ", ".join(f"{budget} {error:.4f}" for budget, error in ours.items()), flush=True)  # fmt: skip
            _write(results)
    print(tables(results))
    print(f"written: {RESULTS.relative_to(TOP)}/errors.csv, tables.md, errors.svg, rows.svg")


def _write(results: list[Result]) -> None:
    """All that is known so far."""
    with open(RESULTS / "errors.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Result.__dataclass_fields__)
        for r in results:
            writer.writerow([f"{x:.6g}" if isinstance(x, float) else x for x in r.__dict__.values()])
    (RESULTS / "tables.md").write_text(tables(results))
    errors_figure(results, RESULTS / "errors.svg")
    rows_figure(results, RESULTS / "rows.svg")


if __name__ == "__main__":
    main()
