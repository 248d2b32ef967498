"""Error against the number of rows at fixed memory, and Psi's error against its size."""

from __future__ import annotations

import numpy as np
from results import figure, keep
from streams import BLOCK, attention, block, fresh_head
from svgplot import Figure

from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams, allocate
from streamattn_cli.sketches.histories.poly import PolyParams
from streamattn_cli.sketches.paper.countsketch import scan_sketch, sketch_rows
from streamattn_cli.sketches.paper.sketched import SketchParams

SPREAD, M1, M2, K, QUERIES = 0.7, 1024, 10_240, 64, 64
MEAN = 2.0
DEGREE = {4: 6, 8: 4}


class Race:
    """Everything that is compared, on one growing stream. A mean added to all values is added to all exact outputs."""

    def __init__(self, dim: int):
        q, k, v = block(0, dim, SPREAD)
        self.dim, self.scale = dim, dim**-0.5
        self.q = block(10**6, dim, SPREAD)[0][:QUERIES]
        poly = PolyParams(DEGREE[dim], max_error=np.inf)
        self.exact = HeadAttention(HeadParams(dim, dim, self.scale, "f8", history=poly))
        self.exact_work = allocate(self.exact.params.work_spec())
        c = np.column_stack([v, np.ones(len(v))]).astype(np.float64)
        self.exact.calibrate(k[:1024].astype(float), c[:1024], q[:1024].astype(float))
        self.psi = [fresh_head(SketchParams(dim, dim, self.scale, poly, M1, seed=seed), k, v, q) for seed in range(2)]
        self.z, self.y = np.zeros(QUERIES), np.zeros((QUERIES, dim))
        self.squares, self.rows, self.total = np.zeros(QUERIES), 0, np.zeros(dim)

    def take(self, number: int) -> None:
        """One more block of rows."""
        _, k, v = block(number, self.dim, SPREAD)
        weights = np.exp(self.scale * self.q.astype(np.float64) @ k.T.astype(np.float64))
        self.z += weights.sum(axis=1)
        self.squares += (weights**2).sum(axis=1)
        self.y += weights @ v
        self.total += v.sum(axis=0, dtype=np.float64)
        wide = np.column_stack([v, np.ones(len(v))]).astype(np.float64)
        self.exact.absorb(k.astype(np.float64), wide, self.exact_work)
        for head, work in self.psi:
            head.absorb_keys(k, self.rows, work)
            head.absorb_values(v, self.rows, work)
        self.rows += len(k)

    def errors(self, mean: float) -> dict[str, float]:
        """Root mean square error of every contestant, absolute; and the size of the outputs."""
        true = self.y / self.z[:, None] + mean
        found = {"outputs (rms)": true, "mean of values": true - self.total / self.rows - mean}
        exact = HeadAttention(self.exact.params, {name: array.copy() for name, array in self.exact.state.items()})
        exact.finish(self.exact_work)
        out = np.empty((1, QUERIES, self.dim))
        exact.answer(self.q[None].astype(np.float64), 0, out, self.exact_work)
        found["exact accumulators"] = out[0] + mean - true
        for centred in (False, True):
            parts = []
            for head, work in self.psi:
                moments = head.moments()
                joined = head.state["sk_k"].T @ head.state["sk_k"][:, 0]  # Psi of U2, joined with Psi of 1
                average = self.total / self.rows
                moments[:, :-1] += np.outer(head.state["prod"] - joined, average) if centred else mean * joined[:, None]
                rows = np.empty((1, QUERIES, self.dim))
                head.answer(self.q[None], 0, moments, rows, work, False)
                parts.append(rows[0] + (mean if centred else 0) - true)
            found["Psi, values centred" if centred else "Psi"] = np.array(parts)
        return {name: float(np.sqrt((x**2).mean())) for name, x in found.items()}

    def formula(self, mean: float) -> float:
        """sqrt((rms(v)^2 n / n_eff + mean(T^2)) / m1)."""
        return float(np.sqrt(((1 + mean**2) * self.rows * (self.squares / self.z**2).mean() + mean**2) / M1))


def error_against_rows() -> None:
    """Figure and numbers: n = 2^12..2^22, d = 4 and 8, values with and without a mean."""
    rows = []
    for dim in (4, 8):
        race, done = Race(dim), 0
        lines: dict[tuple[float, str], list] = {}
        for power in range(12, 23):
            while done < (1 << power) // BLOCK:
                race.take(done)
                done += 1
            for mean in (0.0, MEAN):
                errors = race.errors(mean) | {"Psi, formula": race.formula(mean)}
                if power % 2 == 0:
                    errors["Phi: T less the k found"], errors["best k entries"] = _phi_error(race, mean)
                for name, error in errors.items():
                    rows.append((dim, DEGREE[dim], mean, 1 << power, name, error))
                    lines.setdefault((mean, name), []).append((1 << power, error))
        for mean in (0.0, MEAN):
            fig = Figure(
                f"Error at fixed memory, d = {dim}, value mean {mean:g}", "rows n", "rms error of an output entry"
            )
            for (its, name), points in lines.items():
                if its == mean:
                    fig.line(name, points, dashed=name in ("outputs (rms)", "Psi, formula"))
            figure(fig, f"error_rows_d{dim}_mean{mean:g}")
    keep("error_rows", ("dim", "degree", "value_mean", "rows", "what", "rms_error"), rows)


def _phi_error(race: Race, mean: float) -> tuple[float, float]:
    """rms of T - recovered(T) and of T less its best k, over up to 2^20 queries; T comes from the exact
    accumulators."""
    head = HeadAttention(race.exact.params, {name: array.copy() for name, array in race.exact.state.items()})
    head.finish(race.exact_work)
    n = min(race.rows, 1 << 20)
    out = np.empty((1, n, race.dim))
    for a in range(0, n, BLOCK):
        head.answer(
            block(a // BLOCK, race.dim, SPREAD)[0][None].astype(np.float64), a, out[:, a : a + BLOCK], race.exact_work
        )
    t = out[0] + mean
    phi = scan_sketch(M2, True, 1)
    z = sum(sketch_rows(phi, np.arange(a, a + BLOCK), t[a : a + BLOCK]) for a in range(0, n, BLOCK))
    found = phi.recover(z, n, K, False)[0]
    best = np.sqrt(np.sort(t**2, axis=0)[: n - K].sum() / t.size)
    t[found.rows] -= found.values
    return float(np.sqrt((t**2).mean())), float(best)


def psi_error_against_size() -> None:
    """Figure and numbers: the approximate matrix product's error against m1, with the formula drawn in.

    The variance of an entry is (|p|^2 |v|^2 + (p.v)^2) / m1. The first term is the usual formula rms(v)^2 n / (n_eff
    m1); the second, the output's own square, matters where values have a mean.
    """
    dim, n, seeds = 4, 1 << 14, 32
    parts = [block(i, dim, SPREAD) for i in range(n // BLOCK)]
    q, k, v = (np.concatenate([p[i] for p in parts]) for i in range(3))
    q = q[:256]
    rows, lines = [], {}
    shares = np.exp(0.5 * q.astype(float) @ k.T.astype(float))
    shares /= shares.sum(axis=1, keepdims=True)
    for mean in (0.0, MEAN):
        true = attention(q, k, v, 0.5) + mean
        for power in range(4, 15, 2):
            errors = []
            for seed in range(seeds):
                params = SketchParams(dim, dim, 0.5, PolyParams(6), 1 << power, seed=seed)
                head, work = fresh_head(params, k, v, q)
                head.absorb_keys(k, 0, work)
                head.absorb_values(v + np.float32(mean), 0, work)
                out = np.empty((1, len(q), dim))
                head.answer(q[None], 0, head.moments(), out, work, False)
                errors.append(((out[0] - true) ** 2).mean())
            measured = float(np.sqrt(np.mean(errors)))
            square = ((v + mean) ** 2).mean() * n * (shares**2).sum(axis=1).mean() / (1 << power)
            formula, whole = float(np.sqrt(square)), float(np.sqrt(square + (true**2).mean() / (1 << power)))
            rows.append((dim, n, mean, 1 << power, measured, formula, measured / formula, whole, measured / whole))
            lines.setdefault((mean, "measured"), []).append((1 << power, measured))
            lines.setdefault((mean, "formula"), []).append((1 << power, whole))
    header = (
        "dim",
        "rows",
        "value_mean",
        "m1",
        "rms_error",
        "formula",
        "ratio",
        "formula_with_output",
        "ratio_with_output",
    )
    keep("psi_size", header, rows)
    fig = Figure(f"Psi: error against m1, n = {n}, d = {dim}", "m1", "rms error of an output entry")
    for (mean, name), points in lines.items():
        fig.line(f"{name}, value mean {mean:g}", points, dashed=name == "formula")
    figure(fig, "psi_size")


def speed() -> list[tuple]:
    """Rows a second of the update kernels, and the FLOP rate of exact accumulators against NumPy's sgemm in this
    run."""
    import time

    from streamattn_cli.kernels import blas, monomials
    from streamattn_cli.sketches.histories.monomials import table

    rng, t, group = np.random.default_rng(0), table(8, 4), 256
    k, c = rng.standard_normal((group, 8)).astype("f4"), np.ones((group, 9), "f4")
    x, low, values = np.empty((8, group), "f4"), np.empty((int(t.start[4]), group), "f4"), np.empty((2, c.size), "f4")
    moments, a = np.zeros((len(t.parent), 9)), rng.standard_normal((2048, 2048)).astype("f4")
    rest = k, np.zeros(8), 1.0, np.inf, c, t.start, t.order, t.run, x, low, values, np.empty((128, 9), "f4"), moments
    rates = {"sgemm": [], "accumulators": []}
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        rates["sgemm"].append(2 * 2048**3 / (time.perf_counter() - began))
        began = time.perf_counter()
        for _ in range(400):
            monomials.absorb(blas.address("f4"), *rest)
        rates["accumulators"].append(400 * group * len(t.parent) * (2 * 9 + 1) / (time.perf_counter() - began))
    best = {name: max(each) for name, each in rates.items()}
    rows = [("exact accumulators / sgemm, d = 8, degree 4 (FLOP rate)", best["accumulators"] / best["sgemm"])]
    params = SketchParams(4, 4, 0.5, PolyParams(6), 4096, scan_sketch(10_240, True, 0))
    q, k, v = block(0, 4, SPREAD)
    head, work = fresh_head(params, k, v, q)
    updates = {
        "Psi keys": lambda start: head.absorb_keys(k, start, work),
        "Psi values": lambda start: head.absorb_values(v, start, work),
        "Phi queries": lambda start: head.absorb_queries(q[None], start, work),
    }
    for name, use in updates.items():
        use(0)
        began = time.perf_counter()
        for i in range(1, 17):
            use(i * BLOCK)
        rows.append(
            (f"{name}, d = 4, degree 6, m1 4096, m2 10240 (rows/s)", 16 * BLOCK / (time.perf_counter() - began))
        )
    keep("speed", ("what", "rate"), rows)
    return rows
