"""The source paper's sketches of one key head: Psi over keys and values, Phi over queries (METHODS.md (S1) to (S6)).

Everything is kept in the basis of plain monomials x^a (see poly.py); the polynomial's coefficients and the multinomials
enter with the queries and at the end. With U2 the monomials of the keys and G the rows a_l(i) / D_i u_i^a:
    sk_k = Psi U2 (m1, t), prod = U2^T 1 (t), sk_v = Psi V (m1, dv);   W = sk_k^T sk_v, which stands for U2^T V;
    sk_q = Phi G (m2, t), once all keys are in;   Z = sk_q diag(multinomial) W (m2, dv) = Phi T.
All of it is linear: shards add up. Rows are added one after the other in float64, so that cuts change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from streamattn_cli.errors import CannotMeet, InputMalformed
from streamattn_cli.kernels import blas, expansion, monomials, poly
from streamattn_cli.kernels import countsketch as hashing
from streamattn_cli.sketches.histories.monomials import feature_count, low_count, table
from streamattn_cli.sketches.histories.poly import SPARE, PolyHistory, PolyParams, key_limit, query_limit
from streamattn_cli.sketches.paper.countsketch import PeelSketch, ScanSketch
from streamattn_cli.sketches.paper.ranges import extend, ranges_spec, row_count, stretches
from streamattn_cli.sketches.partial import Partial

TILE = 128  # rows whose monomials are made at a time
PROBES = 64  # queries that tell how much of the outputs is Psi's noise


@dataclass(frozen=True)
class SketchParams:
    """What decides the shape of the state. m1 buckets of Psi (0: no Psi, the exact U2^T V is given from elsewhere);
    `phi` None: no Phi. heads: query heads of the key head. centred: sketch the values' deviations from their mean,
    and add the mean again (Psi's noise then follows the spread of the values and not their size)."""

    dim: int
    value_dim: int
    scale: float
    poly: PolyParams
    m1: int = 0
    phi: ScanSketch | PeelSketch | None = None
    heads: int = 1
    seed: int = 0
    centred: bool = False

    @property
    def features(self) -> int:
        """t."""
        return feature_count(self.dim, self.poly.degree)

    def state_spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of every state array."""
        t = self.features
        spec = {
            "mu": ((self.dim,), "f8"),
            "radius": ((2,), "f8"),  # no sqrt(s) (k - mu) is longer than the first
            "clipped": ((2,), "i8"),  # keys, queries
            "probes": ((PROBES, self.dim), "f8"),
            "prod": ((t,), "f8"),
            "key_rows": ranges_spec(),
            "value_rows": ranges_spec(),
            "value_sums": ((2, self.value_dim), "f8"),  # of the values and of their squares
            "value_range": ((2, self.value_dim), "f8"),
        }
        if self.m1:
            spec |= {"sk_k": ((self.m1, t), "f8"), "sk_v": ((self.m1, self.value_dim), "f8")}
        if self.phi:
            spec |= {
                "sk_q": ((self.heads, self.phi.counters, t), "f8"),
                "sum_q": ((self.heads, t), "f8"),  # of the rows of G: the mean output follows from it
                "sk_one": ((self.phi.counters,), "f8"),  # Phi 1
                "query_rows": ranges_spec(),
            }
        return spec

    def work_spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of the scratch arrays of one thread."""
        targets = self.phi.per_row if self.phi else 1
        width = self.value_dim + 1
        return {
            "sk.x": ((self.dim, TILE), "f8"),
            "sk.tile": ((TILE, self.dim), "f8"),
            "sk.low": ((low_count(self.dim, self.poly.degree), TILE), "f8"),
            "sk.eight": ((8, TILE), "f8"),
            "sk.weighed": ((self.features, width), "f8"),
            "sk.part": ((width, TILE), "f8"),
            "sk.factor": ((self.poly.degree + 6, TILE), "f8"),
            "sk.spare": (SPARE, "f8"),
            "sk.sums": ((self.poly.degree + 1, width, TILE), "f8"),
            "sk.target": ((TILE, targets), "i8"),
            "sk.sign": ((TILE, targets), "f8"),
            "sk.count": ((TILE,), "i8"),
            "sk.m": ((TILE,), "f8"),
            "sk.y": ((TILE, width), "f8"),
            "sk.counts": ((2,), "i8"),  # queries clipped, queries with D <= 0
        }


class SketchedHead:
    """One key head in sketches. Rows of one kind come in order, and may be pieces of any size."""

    def __init__(self, params: SketchParams, state: dict[str, np.ndarray] | None = None):
        self.params = params
        if state is None:
            state = {name: np.zeros(shape, dtype) for name, (shape, dtype) in params.state_spec().items()}
            state["value_range"][0], state["value_range"][1] = np.inf, -np.inf
            state["radius"][1] = np.inf
        self.state = state
        self.table = table(params.dim, params.poly.degree)
        self.level = np.repeat(np.arange(params.poly.degree + 1), np.diff(self.table.start))
        self._psi_key = np.empty(1, np.uint64)
        with np.errstate(over="ignore"):
            hashing.table_keys(np.uint64(params.seed), np.uint64(0), self._psi_key)

    def calibrate(self, k: np.ndarray, c: np.ndarray, q: np.ndarray) -> float | None:
        """Set centre and bounds from the first keys k (n, d), values with weights c (n, dv + 1) and queries q (r, d);
        returns the predicted error of the polynomial alone. Raises CannotMeet where it is too large."""
        p, s = self.params, self.state
        inner = {"mu": s["mu"], "radius": s["radius"]}
        s["probes"][:] = q[np.linspace(0, len(q) - 1, PROBES).astype(int)]
        return PolyHistory(p.poly, p.dim, c.shape[1] - 1, p.scale, "f8", inner).calibrate(k, c, q)

    # --- keys and values

    def absorb_keys(self, k: np.ndarray, start: int, work: dict) -> None:
        """Take in keys k (n, d), global rows start.."""
        s, t = self.state, self.table
        for a in range(0, len(k), TILE):
            n = min(TILE, len(k) - a)
            limit = key_limit(self.params.poly)
            root = np.sqrt(self.params.scale)
            clipped, longest = monomials.centre(k[a : a + n], s["mu"], root, limit, 0, work["sk.x"])
            s["clipped"][0] += clipped
            s["radius"][0] = max(s["radius"][0], min(longest, limit))
            work["sk.factor"][:, :n], work["sk.factor"][:, n:] = 1, 0
            work["sk.count"][:] = 0
            sketch = np.zeros((1, len(s["prod"])))
            if self.params.m1:
                sketch = s["sk_k"]
                work["sk.count"][:n] = 1
                self._psi_places(start + a, n, work)
            monomials.scatter(
                work["sk.x"], work["sk.factor"], self.level, t.parent, t.var, work["sk.low"], work["sk.eight"],
                work["sk.target"], work["sk.sign"], work["sk.count"], sketch, s["prod"],
            )  # fmt: skip
        extend(s["key_rows"], start, start + len(k), "keys")

    def absorb_values(self, v: np.ndarray, start: int, work: dict) -> None:
        """Take in values v (n, dv), global rows start.."""
        s = self.state
        for a in range(0, len(v) if self.params.m1 else 0, TILE):
            n = min(TILE, len(v) - a)
            self._psi_places(start + a, n, work)
            hashing.add_rows(v[a : a + n], work["sk.target"], work["sk.sign"], s["sk_v"])
        hashing.add_moments(v, s["value_sums"], s["value_range"])
        extend(s["value_rows"], start, start + len(v), "values")

    def _psi_places(self, start: int, n: int, work: dict) -> None:
        with np.errstate(over="ignore"):
            hashing.places(self._psi_key, self.params.m1, start, work["sk.target"][:n], work["sk.sign"][:n])

    def check_values(self, key_name: str, value_name: str) -> None:
        """All keys must have met their values. Raises InputMalformed."""
        keys, values = (stretches(self.state[name]) for name in ("key_rows", "value_rows"))
        if keys != values:
            raise InputMalformed(
                f"{value_name} has {row_count(self.state['value_rows'])} rows and {key_name} "
                f"{row_count(self.state['key_rows'])}; every key needs one value (they are joined by row number alone)"
            )

    def moments(self) -> np.ndarray:
        """[W | prod] (t, dv + 1) float64, for `answer` and `recover`. W stands for U2^T V."""
        s = self.state
        values = s["sk_k"].T @ s["sk_v"]
        if self.params.centred:
            mean = s["value_sums"][0] / row_count(s["value_rows"])
            values += np.outer(s["prod"] - s["sk_k"].T @ s["sk_k"][:, 0], mean)  # column 0 of sk_k is Psi 1
        return np.column_stack([values, s["prod"]])

    def psi_error(self, moments: np.ndarray, work: dict, size: float | None = None) -> float:
        """Psi's error relative to the outputs: rms(v) sqrt(n / (n_eff m1)), with n_eff as the probes have it, over
        the root mean square of the outputs less that noise. size: the mean squared norm of an output, if it is known
        better than from the probes."""
        p, s = self.params, self.state
        out = np.empty((PROBES, p.value_dim))
        m, y = self._ask(s["probes"], 0, moments, work)
        m, z = m.copy(), y[:, -1].copy()
        np.divide(y[:, :-1], np.maximum(z, 1e-300)[:, None], out=out)
        twice, squares = self._ask(2 * s["probes"], 0, moments, work)
        good = (z > 0) & (squares[:, -1] > 0)
        if not good.any():
            return np.inf
        rows = row_count(s["value_rows"])
        shares = np.exp(np.minimum(twice - 2 * m, 50))[good] * squares[good, -1] / z[good] ** 2
        mean, square = s["value_sums"] / rows
        spread = square - mean**2 if p.centred else square
        noise = np.maximum(shares, 1 / rows).mean() * rows * spread.sum() / p.m1
        if size is None:
            size = (out[good] ** 2).sum(axis=1).mean()
        noise += 0 if p.centred else max(size - noise, 0) / p.m1  # (p.v)^2 / m1: nothing, unless values have a mean
        signal = size - noise
        return float(np.sqrt(noise / signal)) if signal > 0 else np.inf

    # --- queries

    def answer(
        self,
        q: np.ndarray,
        start: int,
        moments: np.ndarray,
        out: np.ndarray,
        work: dict,
        bounded: bool,
        doubt: np.ndarray | None = None,
    ) -> None:
        """Answer queries q (heads, n, d), global rows start.., into out (heads, n, dv); bounded: outputs are kept in
        the range of the values, as every method does (Phi cannot). A row with D <= 0 becomes 0. doubt (heads, n): that of
        the polynomial, see HeadAttention.step."""
        limits = (
            self.state["value_range"] if bounded else np.array([[-np.inf], [np.inf]]).repeat(self.params.value_dim, 1)
        )
        nothing = np.zeros(self.params.value_dim)
        for head in range(len(q)):
            for a, b in _tiles(start, q.shape[1]):
                m, y = self._ask(q[head, a:b], start + a, moments, work)
                part = Partial(m, y)
                work["sk.counts"][1] += part.guard(limits)
                part.finish(nothing, out[head, a:b])
                if doubt is not None:
                    at = (start + a) % TILE
                    doubt[head, a:b] = work["sk.factor"][-3, at : at + b - a]
                    doubt[head, a:b][part.m == -np.inf] = np.inf

    def absorb_queries(self, q: np.ndarray, start: int, work: dict) -> None:
        """Sketch the rows of queries q (heads, n, d), global rows start..; all keys must have been absorbed."""
        s, t, phi = self.state, self.table, self.params.phi
        assert phi is not None, "queries are not sketched without Phi"
        sums = np.empty((self.params.poly.degree + 1, 1, TILE))
        for a, b in _tiles(start, q.shape[1]):
            target, sign, count = work["sk.target"], work["sk.sign"], work["sk.count"]
            at = (start + a) % TILE
            live = slice(at, at + b - a)
            count[:] = 0
            phi.locate(np.arange(start + a, start + b), target[live], sign[live], count[live])
            used = np.arange(phi.per_row) < count[live, None]
            np.add.at(s["sk_one"], target[live][used], sign[live][used])
            for head in range(len(q)):
                self._load(q[head, a:b], at, work)
                self._power_sums(s["prod"][:, None], sums, work)
                factor = work["sk.factor"]
                poly.reaches(work["sk.x"], s["radius"][0], factor[-3])
                taylor = self.params.poly.polynomial == "taylor"
                work["sk.counts"][1] += expansion.row_factors(sums, taylor, factor[:-2], work["sk.spare"])
                factor[:, :at], factor[:, at + b - a :] = 0, 0
                monomials.scatter(
                    work["sk.x"], factor, self.level, t.parent, t.var, work["sk.low"], work["sk.eight"], target, sign,
                    count, s["sk_q"][head], s["sum_q"][head],
                )  # fmt: skip
        extend(s["query_rows"], start, start + q.shape[1], "queries")

    def outputs(self, moments: np.ndarray, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Z = Phi T (m2, dv) of one query head, and the mean of T's rows (dv,)."""
        s = self.state
        weighted = self.table.multinomial[:, None] * moments[:, :-1]
        return s["sk_q"][head] @ weighted, s["sum_q"][head] @ weighted / max(row_count(s["query_rows"]), 1)

    def _load(self, q: np.ndarray, at: int, work: dict) -> None:
        """Queries into columns at.. of the tile, where they are whatever the cut."""
        work["sk.tile"][:] = 0
        work["sk.tile"][at : at + len(q)] = q
        zero = np.zeros(self.params.dim)
        limit = query_limit(self.params.poly, self.state["radius"])
        work["sk.counts"][0] += monomials.centre(
            work["sk.tile"], zero, np.sqrt(self.params.scale), limit, 0, work["sk.x"]
        )[0]

    def _power_sums(self, moments: np.ndarray, sums: np.ndarray, work: dict) -> None:
        """Power sums (degree + 1, w, TILE) of the queries of the tile, by moments (t, w)."""
        t, (count, width) = self.table, moments.shape
        weighed = work["sk.weighed"].reshape(-1)[: count * width].reshape(count, width)
        monomials.weigh(moments, t.multinomial, t.order, weighed)
        rest = work["sk.low"], work["sk.part"][:width], sums
        monomials.power_sums(blas.address("f8"), work["sk.x"], weighed, t.start, t.run, *rest)

    def _ask(self, q: np.ndarray, start: int, moments: np.ndarray, work: dict) -> tuple[np.ndarray, np.ndarray]:
        """Partial answers m (n,), y (n, dv + 1) to queries of one tile, in scratch."""
        at = start % TILE
        self._load(q, at, work)
        self._power_sums(moments, work["sk.sums"], work)
        work["sk.m"][:] = self.params.scale * (work["sk.tile"] @ self.state["mu"])
        taylor = self.params.poly.polynomial == "taylor"
        poly.reaches(work["sk.x"], self.state["radius"][0], work["sk.factor"][-3])
        poly.blend(work["sk.sums"], taylor, work["sk.factor"], work["sk.spare"], work["sk.m"], work["sk.y"])
        return work["sk.m"][at : at + len(q)], work["sk.y"][at : at + len(q)]


def _tiles(start: int, n: int) -> Iterator[tuple[int, int]]:
    """Cut rows start..start+n at multiples of TILE; yields (a, b) relative to start."""
    a = 0
    while a < n:
        b = min(n, a + TILE - (start + a) % TILE)
        yield a, b
        a = b


def require_psi(error: float, params: SketchParams, max_error: float) -> None:
    """Refuse a Psi whose noise would drown the outputs. Raises CannotMeet."""
    if not error <= max_error:
        enough = "far more" if not np.isfinite(error) else str(int(params.m1 * (error / max(max_error, 1e-9)) ** 2) + 1)
        raise CannotMeet(
            f"--m1 {params.m1} is too small: Psi alone would err by about {error:.2g} of the outputs, more than the "
            f"allowed {max_error:g} (its noise is rms(v) sqrt(n / (n_eff m1)), whatever averages away in the "
            f"outputs). Use --m1 {enough}, --sketches exact where k and v come together, or accept the error with "
            "--max-error"
        )
