"""Phi: how good recovery is for its size, and the paper's guarantee over many hashes."""

from __future__ import annotations

from math import comb, log, log2
from time import perf_counter

import numpy as np
from results import figure, keep
from streams import attention, fresh_head
from svgplot import Figure

from streamattn_cli.sketches.histories.poly import PolyParams
from streamattn_cli.sketches.paper.countsketch import (
    least_counters,
    peel_sketch,
    scan_sketch,
    sketch_rows,
    usual_counters,
)
from streamattn_cli.sketches.paper.sketched import SketchParams

N, K, COLUMNS = 1 << 16, 64, 4
BITS = int(log2(N))
SEEDS = 1000


def columns(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(N, 4) columns with shared heavy rows: spikes of twice the tail's norm, a power law, or nothing heavy at all."""
    x = rng.standard_normal((N, COLUMNS)) / np.sqrt(N)
    if kind == "planted":
        rows = rng.choice(N, K, replace=False)
        x[rows] = rng.choice([-1, 1], (K, COLUMNS)) * 2 / np.sqrt(K)
    if kind == "power law":
        x *= (np.arange(1, N + 1) ** -0.8 * np.sqrt(N))[rng.permutation(N), None]
    return x


def ratio(x: np.ndarray, found: list, k: int) -> np.ndarray:
    """|x - y| / |x - best k| of every column."""
    y = np.zeros_like(x)
    for part in found:
        y[part.rows[:, None], range(x.shape[1]) if part.column is None else [part.column]] = part.values
    return np.linalg.norm(x - y, axis=0) / tail(x, k)


def tail(x: np.ndarray, k: int) -> np.ndarray:
    """Norm of every column without its k largest entries."""
    return np.sqrt(np.sort(x**2, axis=0)[: len(x) - k].sum(axis=0))


def recovery_against_size() -> None:
    """A figure for each kind of column: decoders against m2 / k, with T = 0 and the heap beside them."""
    rows = []
    for kind in ("planted", "power law", "flat"):
        fig = Figure(
            f"Recovery of {kind} columns, n = 2^{BITS}, k = {K}", "m2 / k", "error over that of the best k", log_y=False
        )
        lines: dict[str, list] = {}
        for seed in range(3):
            x = columns(kind, np.random.default_rng([seed, 5]))
            zero = float((np.linalg.norm(x, axis=0) / tail(x, K)).mean())
            for per_k in (20, 40, 80, 160, 320, 640, 1280, 2560):
                for decoder, joint in (("scan", True), ("scan", False), ("peel", True), ("peel", False)):
                    if per_k * K < least_counters(decoder, joint, K, BITS):
                        continue
                    sketch = (
                        scan_sketch(per_k * K, joint, seed)
                        if decoder == "scan"
                        else peel_sketch(per_k * K, K, BITS, seed)
                    )
                    z = sum(sketch_rows(sketch, np.arange(a, a + 4096), x[a : a + 4096]) for a in range(0, N, 4096))
                    found = float(ratio(x, sketch.recover(z, N, K, not joint), K).mean())
                    name = f"{decoder}, {'joint' if joint else 'per column'}"
                    lines.setdefault(name, {}).setdefault(per_k, []).append(found)
                    rows.append((kind, seed, name, per_k, found))
                lines.setdefault("T = 0", {}).setdefault(per_k, []).append(zero)
                rows.append((kind, seed, "T = 0", per_k, zero))
        for name, points in lines.items():
            fig.line(name, [(x, min(float(np.mean(y)), 4.0)) for x, y in points.items()], dashed=name == "T = 0")
        fig.line("heap (state before queries)", [(20, 1.0), (2560, 1.0)], dashed=True)
        figure(fig, "recovery_" + kind.replace(" ", "_"))
    keep("recovery", ("columns", "seed", "decoder", "m2_over_k", "ratio"), rows)


def decoders() -> None:
    """Numbers: seconds and ratio of both decoders at n = 2^20 with 250,000 counters, measured side by side."""
    rows, n = [], 1 << 20
    for count in (1, 4):
        rng = np.random.default_rng([3, count])
        x = rng.standard_normal((n, count)) / np.sqrt(n)
        heavy = np.sort(rng.choice(n, K, replace=False))
        x[heavy] = rng.choice([-1, 1], (K, count)) * 2 / np.sqrt(K)
        for name, sketch in (("scan", scan_sketch(250_000, count > 1, 1)), ("peel", peel_sketch(250_000, K, 20, 1))):
            z = sum(sketch_rows(sketch, np.arange(a, a + 4096), x[a : a + 4096]) for a in range(0, n, 4096))
            times = []
            for _ in range(7):
                began = perf_counter()
                found = sketch.recover(z, n, K, False)
                times.append(perf_counter() - began)
            recall = float(np.isin(heavy, found[0].rows).mean())
            rows.append((count, name, sketch.counters, min(times), float(ratio(x, found, K).max()), recall))
    keep("decoders", ("columns", "decoder", "counters", "seconds", "worst_ratio", "recall"), rows)


def heads(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, k, v of 2,048 rows whose outputs have 16 heavy rows, or none (with and without a value mean)."""
    n, rng = 2048, np.random.default_rng(11)
    k, q, v = (rng.standard_normal((n, 4)) for _ in range(3))
    if kind == "heavy rows":
        others = np.column_stack(
            [k[:, 1] ** a * k[:, 2] ** b * k[:, 3] ** c for a in range(4) for b in range(4) for c in range(4)]
        )
        k[:, 0] -= others @ np.linalg.lstsq(others, k[:, 0], rcond=None)[0]
        q[:, 0] = 0
        q[rng.choice(n, 16, replace=False)] = [2, 0, 0, 0]
        v = np.outer(k[:, 0], [4, -3, 5, 4]) + 0.05 * v
    if kind == "flat, value mean 2":
        v = v + 2
    return q, k, v


def guarantee() -> None:
    """The share of columns with |T - y| <= (1 + eps1) |T - best k| + eps2, over SEEDS hashes, and a binomial test of
    0.99.

    T is exact attention; y comes out of the whole algorithm (K, then Q, then V). eps2 is 3 times the norm of Psi's
    noise by its formula; eps1 chooses m2 as the planner does. "Phi alone" asks the same of the rows that these sketches
    would produce, with eps2 = 0: |T' - y| <= (1 + eps1) |T' - best k of T'|.
    """
    rows, k, eps1 = [], 16, 0.1
    for kind in ("heavy rows", "flat, value mean 0", "flat, value mean 2"):
        q, keys, v = heads(kind)
        n = len(q)
        t = attention(q, keys, v, 0.5)
        best, m1 = tail(t, k), 4096
        shares = np.exp(0.5 * q[:256] @ keys.T)
        shares /= shares.sum(axis=1, keepdims=True)
        eps2 = 3 * np.sqrt(n * (v**2).sum(axis=0) * (shares**2).sum(axis=1).mean() / m1)
        m2 = usual_counters("scan", True, k, n, 11, eps1)
        failed, alone, ratios, made = 0, 0, [], np.empty((1, n, 4))
        for seed in range(SEEDS):
            params = SketchParams(4, 4, 0.5, PolyParams(6), m1, scan_sketch(m2, True, seed), seed=seed)
            head, work = fresh_head(params, keys, v, q)
            head.absorb_keys(keys, 0, work)
            head.absorb_queries(q[None], 0, work)
            head.absorb_values(v, 0, work)
            moments = head.moments()
            z, _ = head.outputs(moments, 0)
            found = params.phi.recover(z, n, k, False)
            off = ratio(t, found, k) * best
            failed += int((off > (1 + eps1) * best + eps2).sum())
            ratios.append(off / best)
            head.answer(q[None], 0, moments, made, work, False)
            alone += int((ratio(made[0], found, k) > 1 + eps1).sum())
        trials = SEEDS * 4
        zero = float((np.linalg.norm(t, axis=0) / best).mean())
        rows.append((kind, trials, failed, 1 - failed / trials, at_least(failed, trials, 0.01), alone,
                     1 - alone / trials, at_least(alone, trials, 0.01), float(np.mean(ratios)),
                     float(np.quantile(ratios, 0.99)), zero, float((eps2 / best).mean()), m1, m2))  # fmt: skip
    header = ("outputs", "columns", "failed", "held", "p_of_so_many_failures_at_0.99", "phi_alone_failed",
              "phi_alone_held", "phi_alone_p", "mean_ratio", "p99_ratio", "zero_ratio",
              "eps2_over_best", "m1", "m2")  # fmt: skip
    keep("guarantee", header, rows)


def at_least(count: int, trials: int, chance: float) -> float:
    """P(X >= count) for a binomial X: small means that the failures are too many for the claimed chance."""
    logs = [log(comb(trials, i)) + i * log(chance) + (trials - i) * log(1 - chance) for i in range(count)]
    return max(0.0, 1.0 - sum(np.exp(logs))) if count else 1.0
