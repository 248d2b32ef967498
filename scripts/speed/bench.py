"""The speed benchmark (scripts/bench): every part is a function that yields lines (what, value, unit, beside, ratio)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
from formats import formats
from machine import COMMAND, FOLDER, THREADS, TRIES, best, dump, exponent, facts, gemm_rate, run
from peers import elu_features, linear, numpy_exact, sketched_features, torch_seconds

from streamattn_cli.engine.jobs.inspect import inspect
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams, allocate
from streamattn_cli.sketches.histories.monomials import feature_count
from streamattn_cli.sketches.histories.nystromparams import nystrom_params
from streamattn_cli.sketches.histories.poly import PolyParams
from streamattn_cli.sketches.histories.window import window_params
from streamattn_cli.sketches.method import MethodOptions

RUNS = Path(__file__).parents[1] / "bench_runs"
TOP = Path(__file__).parents[2]
QUICK = "--quick" in sys.argv
LONG = 1 << (17 if QUICK else 20)
Line = tuple[str, float, str, str, float | None]  # what, value, unit, what it is held against, ratio to that


def nystrom() -> Iterator[Line]:
    """Causal nystrom, 512 resident rows, d = 64, from an HDF5 float16 file, beside torch's exact causal attention.

    torch is measured to 131,072 rows, and from there on scaled by its own exponent.
    """
    for heads, kv_heads in ((2, 2), (9, 3)):
        shape = f"{heads} query heads, {kv_heads} key heads"
        torch_at, ours = {}, {}
        for turn in range(TRIES):  # in turns, so that a machine that changes its speed changes it for all
            for n in (1 << 14, 1 << 15, *([1 << 17] if turn == 1 else [])):  # the longest takes minutes
                took = torch_seconds(n, heads, 64, True, 1 if n == 1 << 17 else 2)
                torch_at[n] = took and min(took, torch_at.get(n, took))
            for effort in ("fast", "default"):
                for rows in sorted({1 << 14, 1 << 17, LONG}):
                    words = "attend", *dump(rows, heads, kv_heads, 64), "--causal", "--method", "nystrom", "--audit", 0
                    outcome = run(*words, "--resident-rows", 512, "--effort", effort, "-o", "OUT.npy")
                    before = ours.setdefault(effort, {}).get(rows, outcome)
                    ours[effort][rows] = min(outcome, before, key=lambda outcome: outcome["seconds"])
        power = None
        if torch_at[1 << 14]:
            for n, took in torch_at.items():
                yield f"torch exact, {heads} heads, {n} rows", n / took, "rows/s", "", None
            for some in ((1 << 14, 1 << 15), (1 << 14, 1 << 15, 1 << 17)):
                power = exponent(list(some), [torch_at[n] for n in some])
                yield f"torch exact, {heads} heads, exponent {some[0]}..{some[-1]}", power, "", "", None
        for effort, outcomes in ours.items():
            for rows, outcome in outcomes.items():
                theirs, beside = torch_at.get(rows), "torch"
                if power and not theirs:
                    theirs = torch_at[1 << 17] * (rows / (1 << 17)) ** power
                    beside = f"torch, scaled from 131072 rows by its exponent {power:.2f}"
                ratio = theirs and theirs / outcome["seconds"]
                yield f"nystrom {effort}, {shape}, {rows} rows", rows / outcome["seconds"], "rows/s", beside, ratio
                yield f"  peak memory, {rows} rows", outcome["memory"]["peak"] / 1e6, "MB", "", None
            seconds = {rows: outcome["seconds"] for rows, outcome in outcomes.items()}
            sizes = [rows for rows in seconds if rows >= 1 << 17]
            if len(sizes) > 1:
                power_ours = exponent(sizes, [seconds[rows] for rows in sizes])
                yield f"nystrom {effort}, {shape}: growth exponent {sizes[0]}..{sizes[-1]}", power_ours, "", "", None


def exact() -> Iterator[Line]:
    """The exact method, d = 64, two heads, beside torch."""
    for causal in (True, False):
        for rows in (8192, 16384, 32768):
            words = "attend", *dump(rows, 2, 2, 64), "--causal" if causal else "--full", "--method", "exact"
            ours = min(run(*words, "-o", "OUT.npy")["seconds"] for _ in range(TRIES))
            theirs = torch_seconds(rows, 2, 64, causal)
            mode = "causal" if causal else "full"
            yield f"exact, {mode}, {rows} rows", rows / ours, "rows/s", "torch", theirs and theirs / ours


def poly() -> Iterator[Line]:
    """poly, d = 8, degree 4, full attention, one thread: FLOP rate beside NumPy's sgemm of the same run.

    Counted are the t features (one product each) and the t x (dv + 1) multiply-adds of a row.
    """
    rows, dim = 1 << 15, 8
    rng = np.random.default_rng(0)
    k, q = (rng.standard_normal((rows, dim)).astype("f4") for _ in range(2))
    for value_dim in (8, 64):
        c = np.ones((rows, value_dim + 1), "f4")
        params = HeadParams(
            dim, value_dim, dim**-0.5, "f4", history=PolyParams(degree=4, max_error=np.inf), storage="f2"
        )
        head, work = HeadAttention(params), allocate(params.work_spec())
        head.calibrate(k[:512], c[:512], q[:512])
        head.absorb(k, c, work)
        head.finish(work)
        out = np.empty((1, rows, value_dim), "f4")
        t = feature_count(dim, 4)
        flops = rows * t * (2 * (value_dim + 1) + 1)
        gemm = gemm_rate()
        blank = HeadAttention(params)
        blank.calibrate(k[:512], c[:512], q[:512])
        for what, work_of in (
            ("absorb", lambda blank=blank, c=c, work=work: blank.absorb(k, c, work)),
            ("query", lambda head=head, out=out, work=work: head.answer(q[None], 0, out, work)),
        ):
            seconds = best(work_of, 5)
            yield (
                f"poly {what}, dv = {value_dim}",
                flops / seconds / 1e9,
                "GFLOP/s",
                "sgemm, one thread",
                flops / seconds / gemm,
            )
            yield f"poly {what}, dv = {value_dim}", rows / seconds, "rows/s", "", None


def scans() -> Iterator[Line]:
    """window and inspect over float16 keys and values in the page cache, beside readinto of the same files."""
    rows = 1 << (18 if QUICK else 22)  # a scan has 9 ms besides
    size = 2 * rows * 2 * 64 * 2
    for kind in ("npy", "h5"):
        words = dump(rows, 2, 2, 64, kind, "kv")
        files = [word for word in words if word.startswith(str(FOLDER))]
        plain = best(lambda files=files: [_read(name) for name in files], 5)
        yield f"readinto, {kind}", size / plain / 1e9, "GB/s", "", None
        sketch = "--method", "window", "--resident-rows", 512, "-o", "OUT.sattn"
        ours = min(run("sketch", *words, *sketch)["seconds"] for _ in range(5))
        yield f"window, {kind}", size / ours / 1e9, "GB/s", "readinto", plain / ours
        spec = (
            InputSpec(input=files[0], layout="THD") if kind == "h5" else InputSpec(k=files[0], v=files[1], layout="THD")
        )
        ours = best(lambda spec=spec: inspect(spec, None, lambda event: None, Interrupts()), 5)
        yield f"inspect, {kind}, in this process", size / ours / 1e9, "GB/s", "readinto", plain / ours


def _read(name: str) -> None:
    room = bytearray(1 << 20)
    with open(name, "rb", buffering=0) as file:
        while file.readinto(room):
            pass


def audit() -> Iterator[Line]:
    """What an audit of 64 rows costs a nystrom run, in turns."""
    rows = 1 << 17
    for effort in ("fast", "default"):
        words = "attend", *dump(rows, 2, 2, 64), "--causal", "--method", "nystrom", "--resident-rows", 512
        took = {0: [], 64: []}
        for _ in range(3):
            for count, times in took.items():
                times.append(run(*words, "--effort", effort, "--audit", count, "-o", "OUT.npy")["seconds"])
        yield (
            f"nystrom {effort} with an audit of 64",
            rows / min(took[64]),
            "rows/s",
            "without",
            min(took[64]) / min(took[0]),
        )


def start() -> Iterator[Line]:
    """Start-up: seconds of whole commands."""
    sample = str(TOP / "sample_data" / "heads.h5")
    attend = "attend", sample, "--causal", "--resident-rows", "256", "--force", "-o", str(FOLDER / "out.npy")
    bare = best(lambda: os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", "pass"]), 5)
    yield "python -c pass", bare, "s", "", None
    for name, words in (("--help", ["--help"]), ("attend --help", ["attend", "--help"])):
        took = best(lambda words=words: _quietly(words), 5)
        yield f"streamattn {name}", took, "s", "", None
    yield "attend of the sample head, kernels in the cache", best(lambda: _quietly(attend), 3), "s", "", None
    for method in ("nystrom", "window", "poly"):
        cold = os.environ | {"NUMBA_CACHE_DIR": str(FOLDER / f"cache-{method}")}
        more = ("--method", method, *(("--degree", "2", "--max-error", "9") if method == "poly" else ()))
        took = best(lambda more=more, cold=cold: _quietly((*attend, *more), cold), 1)
        yield f"attend --method {method} for the first time on a machine", took, "s", "", None


def _quietly(words: tuple | list, environment: dict | None = None) -> None:
    subprocess.run([*COMMAND, *words], capture_output=True, check=True, env=environment)


def methods() -> Iterator[Line]:
    """Every method on one thread, d = 64, 512 resident rows, float16 rows: rows absorbed and causal rows answered a second."""
    rows, dim = 1 << 14, 64
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((rows, dim)).astype("f4") for _ in range(3))
    c = np.column_stack([v, np.ones(rows, "f4")])
    base = HeadParams(dim, dim, 0.125, "f4", sinks=4, storage="f2")
    choices = {"window": window_params(base, 512)}
    options = MethodOptions(resident_rows=512)
    keepers = ("balance", "evict", "reservoir", "sample", "wildcat")
    choices |= {name: registry.find(name).settings(base, options, True, None) for name in keepers}
    choices |= {f"nystrom {effort}": nystrom_params(base, 512, effort) for effort in ("fast", "default", "best")}
    choices["poly, degree 2"] = replace(base, history=PolyParams(degree=2, max_error=np.inf))
    for name, params in choices.items():
        work, out = allocate(params.work_spec()), np.empty((1, rows, dim), "f4")

        def fresh(params: HeadParams = params) -> HeadAttention:
            head = HeadAttention(params)
            head.calibrate(k[:512], c[:512], q[:512])
            return head

        fresh().step(q[None, :1024], k[:1024], c[:1024], out[:, :1024], work)
        yield f"{name}: absorb", rows / best(lambda: fresh().absorb(k, c, work), 2), "rows/s", "", None
        head = fresh()
        head.absorb(k, c, work)
        head.finish(work)
        yield f"{name}: query", rows / best(lambda: head.answer(q[None], 0, out, work), 2), "rows/s", "", None
        yield f"{name}: causal", rows / best(lambda: fresh().step(q[None], k, c, out, work), 2), "rows/s", "", None


def growth() -> Iterator[Line]:
    """Seconds of one head against the number of rows, 2^14 to 2^22: the fitted exponent (the same block again and again)."""
    block = 4096
    rng = np.random.default_rng(0)
    marks = [1 << e for e in range(14, 19 if QUICK else 23)]
    for name, dim in (("nystrom fast", 64), ("window", 64), ("poly, degree 4", 8)):
        q, k, v = (rng.standard_normal((block, dim)).astype("f4") for _ in range(3))
        c = np.column_stack([v, np.ones(block, "f4")])
        base = HeadParams(dim, dim, dim**-0.5, "f4", sinks=4, storage="f2")
        if name.startswith("poly"):
            params = replace(base, sinks=0, history=PolyParams(degree=4, max_error=np.inf))
        else:
            params = window_params(base, 512) if name == "window" else nystrom_params(base, 512, "fast")
        head, work, out = HeadAttention(params), allocate(params.work_spec()), np.empty((1, block, dim), "f4")
        head.calibrate(k, c, q)
        took, began = [], time.perf_counter()
        for at in range(block, marks[-1] + 1, block):
            head.step(q[None], k, c, out, work)
            if at in marks:
                took.append(time.perf_counter() - began)
        held = sum(array.nbytes for array in head.state.values())
        yield f"{name}: exponent {marks[0]}..{marks[-1]}", exponent(marks, took), "", "", None
        yield f"{name}: last doubling", took[-1] / took[-2], "times", "", None
        yield f"{name}: state at {marks[-1]} rows", held / 1e3, "kB", "", None


def heads() -> Iterator[Line]:
    """Many heads of 128 dims: rows times heads a second, and memory."""
    rows = 1 << 13
    first = None
    for count in (1, 2, 4, 8, 16, 32):
        words = "attend", *dump(rows, count, count, 128), "--causal", "--method", "nystrom", "--resident-rows", 512
        outcome = run(*words, "--effort", "fast", "--audit", 0, "-o", "OUT.npy")
        rate = rows * count / outcome["seconds"]
        first = first or rate
        yield f"{count} heads of 128", rate, "rows x heads/s", "one head", rate / first
        yield f"  peak memory, {count} heads", outcome["memory"]["peak"] / 1e6, "MB", "", None


def features() -> Iterator[Line]:
    """d = 8, logits of std 0.7, full attention, one head: poly of degree 4 beside feature methods of the same size."""
    rows, dim = 1 << (14 if QUICK else 16), 8
    rng = np.random.default_rng(0)
    q = rng.standard_normal((rows, dim))
    q *= np.sqrt(dim) / np.linalg.norm(q, axis=1, keepdims=True)
    q, k, v = q.astype("f4"), *(rng.standard_normal((rows, dim)).astype("f4") for _ in range(2))
    scale, t, some = 0.7 / np.sqrt(dim), feature_count(dim, 4), slice(0, 512)
    truth = numpy_exact(q[some], k, v, scale)
    c = np.column_stack([v, np.ones(rows, "f4")])
    params = HeadParams(dim, dim, scale, "f4", history=PolyParams(degree=4))
    work = allocate(params.work_spec())

    def ours() -> np.ndarray:
        head, out = HeadAttention(params), np.empty((1, rows, dim), "f4")
        head.calibrate(k[:512], c[:512], q[:512])
        head.absorb(k, c, work)
        head.finish(work)
        head.answer(q[None], 0, out, work)
        return out[0]

    def sketched() -> np.ndarray | None:
        made = sketched_features(q, k, scale, t)
        return None if made is None else linear(*made, v)

    root = np.sqrt(scale).astype("f4")
    choices = {
        "poly, degree 4": ours,
        f"PolynomialCountSketch of degree 4, {t} features": sketched,
        "linear attention, elu + 1": lambda: linear(elu_features(root * q), elu_features(root * k), v),
    }
    whole = rows / (best(lambda: numpy_exact(q[some], k, v, scale), 2) * rows / 512)
    yield "exact in NumPy", whole, "rows/s", "", None
    for name, work_of in choices.items():
        found = work_of()
        if found is None:
            continue
        rate = rows / best(work_of, 2)
        yield name, rate, "rows/s", "exact in NumPy", rate / whole
        wrong = np.linalg.norm(found[some] - truth) / np.linalg.norm(truth)
        yield f"  error of {name}", float(wrong), "", "", None


PARTS: dict[str, Callable[[], Iterator[Line]]] = {
    part.__name__: part
    for part in (start, scans, formats, poly, methods, features, exact, nystrom, audit, heads, growth)
}


def table(lines: list[Line]) -> str:
    """Lines as a Markdown table."""
    rows = ["| what | value | unit | ratio | of |", "| --- | ---: | --- | ---: | --- |"]
    for what, value, unit, beside, ratio in lines:
        shown = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        rows.append(f"| {what} | {shown} | {unit} | {'' if ratio is None else f'{ratio:.3g}'} | {beside} |")
    return "\n".join(rows)


def main() -> None:
    """Run the parts that are named, or all; write the raw numbers and, after a whole run, the tables."""
    names = [word for word in sys.argv[1:] if not word.startswith("--")] or list(PARTS)
    told = facts() | {"sgemm_gflops": {n: gemm_rate("f4", n) / 1e9 for n in sorted({1, THREADS})}}
    print(json.dumps(told), flush=True)
    found: dict[str, list[Line]] = {}
    try:
        for name in names:
            print(f"\n{name}: {PARTS[name].__doc__.splitlines()[0]}", flush=True)
            found[name] = []
            for line in PARTS[name]():
                found[name].append(line)
                print("  " + table([line]).splitlines()[2], flush=True)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    RUNS.mkdir(exist_ok=True)
    stem = f"{date.today()}{'-quick' if QUICK else ''}{'' if len(found) == len(PARTS) else '-' + '-'.join(found)}"
    (RUNS / f"{stem}.json").write_text(json.dumps({"facts": told, "parts": found}, indent=1) + "\n")
    if len(found) == len(PARTS) and not QUICK:
        text = [f"# Speed, {date.today()}", "", f"`{json.dumps(told)}`", ""]
        for name, lines in found.items():
            text += [f"## {name}", "", " ".join((PARTS[name].__doc__ or "").split()), "", table(lines), ""]
        (RUNS / "README.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
