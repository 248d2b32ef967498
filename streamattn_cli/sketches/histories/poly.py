"""`poly`: attention by the polynomial method (arXiv 2311.14652; METHODS.md (P1) to (P15)), in exact accumulators.

The state is the matrix of plain moments M[a] = sum_j x_j^a c_j over the monomials a of degree <= g, where
x = sqrt(s) (k - mu) and c = [v, 1]. For a query u = sqrt(s) q they give the power sums of its own logits exactly,
    S_l(u) = sum_{|a|=l} l!/a! u^a M[a] = sum_j (u.x_j)^l c_j,      and      y = sum_l P_l S_l(u)
is U1 (U2^T [V, 1]) of the paper for any polynomial P. So P need not be chosen before the tokens are seen, nor be the
same for all queries: S_0, S_1, S_2 tell the mean and spread of a query's logits, and P is the polynomial that is
nearest to e^x for them (a Hermite expansion). Moments are linear in the tokens, so merging is addition.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from sys import float_info

import numpy as np

from streamattn_cli.errors import CannotMeet, UsageError
from streamattn_cli.kernels import blas, monomials, poly
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.sketches.histories.monomials import feature_count, low_count, recentre, table
from streamattn_cli.sketches.method import History, Load, Method, MethodOptions, PlainParams
from streamattn_cli.sketches.partial import Partial

MAX_DEGREE = 12  # beyond it the powers outgrow what float64 sums can hold apart
LARGEST = 1e28  # what the powers of a key may come to, so that sums of them stay within float32
SPARE = (11, 14)  # kernels/quadrature.py SPARE
BLOCK = 128  # monomials of keys multiplied at a time
PANEL = 128  # queries answered at a time: their monomials stay in the cache
SAMPLE = 64  # queries used to predict the error


@dataclass(frozen=True)
class PolyParams(PlainParams):
    """Settings of `poly`.

    degree g, 1..12; `polynomial` "hermite" (per query) or "taylor"; beta: queries are shortened so that no |logit| is larger;
    max_error: refuse when the error predicted from the first rows is larger.
    """

    degree: int = 4
    polynomial: str = "hermite"
    beta: float | None = None
    max_error: float = 0.25


class PolyHistory(History):
    """The compressed history of one key head. State arrays: see `state_spec`."""

    def __init__(self, params: PolyParams, dim: int, value_dim: int, scale: float, dtype: str, state: dict):
        super().__init__(params, dim, value_dim, scale, dtype, state)
        self.table, self.origin = table(dim, params.degree), np.zeros(dim)

    @staticmethod
    def state_spec(params: PolyParams, dim: int, value_dim: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of every state array; all follow from the parameters."""
        return {
            "moments": ((feature_count(dim, params.degree), value_dim + 1), "f8"),
            "mu": ((dim,), "f8"),
            "radius": ((2,), "f8"),  # no sqrt(s) (k - mu) is longer than the first
        }

    @staticmethod
    def work_spec(params: PolyParams, dim: int, value_dim: int, group: int, queries: int, dtype: str) -> dict:
        """Name -> (shape, dtype) of the scratch arrays one thread needs."""
        width = value_dim + 1
        at_once = max(group, PANEL)
        return {
            "x": ((dim, at_once), dtype),
            "low": ((low_count(dim, params.degree), at_once), dtype),
            "values": ((2, width * group), dtype),
            "block": ((BLOCK, width), dtype),
            "weighed": ((feature_count(dim, params.degree), width), dtype),
            "part": ((width, PANEL), dtype),
            "sums": ((params.degree + 1, width, PANEL), dtype),
            "polynomials": ((params.degree + 6, PANEL), "f8"),
            "spare": (SPARE, "f8"),
        }

    @staticmethod
    def calibration_bytes(rows: int, dim: int, value_dim: int, group: int) -> int:
        """Bound on the bytes that `calibrate` and its caller hold for `rows` first rows, `group` query heads."""
        wide = 8 * rows * (4 * dim + 2 * (value_dim + 1) + 2 * group * dim)
        return wide + 8 * 4 * SAMPLE * rows

    def calibrate(self, k: np.ndarray, c: np.ndarray, q: np.ndarray | None) -> float | None:
        """Set the centre from the first rows k (n, d), c (n, dv + 1) and queries q (r, d).

        Returns the predicted relative error of the outputs, None when no query is known. Raises CannotMeet when it
        is above `max_error`: the numbers would be wrong.
        """
        p, s = self.params, self.state
        root = np.sqrt(self.scale)
        there = c[:, -1] > 0
        k, c = k[there].astype(np.float64), c[there].astype(np.float64)
        s["mu"][:] = c[:, -1] @ k / max(c[:, -1].sum(), 1.0)
        x = root * (k - s["mu"])
        s["radius"][:] = 0, np.inf
        if q is None or not len(k):  # all of them were dropped
            return None
        u = root * q[np.linspace(0, len(q) - 1, min(len(q), SAMPLE)).astype(int)].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            error, largest = self._predict(u, x, c)
        if not np.isfinite(error):
            raise CannotMeet(
                f"poly of degree {p.degree}: sums over the first rows go beyond the range of floats, logits reach {largest:.2g}. "
                "Divide values by a power of two, and multiply the answers by it, or give a smaller --scale."
            )
        if not error <= p.max_error:
            raise CannotMeet(
                f"poly of degree {p.degree} would err by about {error:.2g} (relative) on this input, more than the "
                f"allowed {p.max_error:g}: its logits reach {largest:.1f} in the first rows, too far for a polynomial. "
                "Use --method nystrom or exact, a smaller --scale, a higher even --degree (dim at most 16), "
                "or accept the error with --max-error."
            )
        return error

    def _predict(self, u: np.ndarray, x: np.ndarray, c: np.ndarray) -> tuple[float, float]:
        """Relative Frobenius error of attention over the first rows when P replaces exp; and the largest |logit|."""
        true = u @ x.T
        exact = np.exp(true - true.max(axis=1, keepdims=True)) @ c
        longest = np.linalg.norm(x, axis=1).max()
        logits = _clip_norm(u, query_limit(self.params, np.array([longest]))) @ x.T
        sums = np.stack([(logits**l @ c).T for l in range(self.params.degree + 1)])
        sums = np.ascontiguousarray(sums, self.dtype)  # what the kernel is compiled for
        approx, shift = np.zeros_like(exact), np.zeros(len(u), self.dtype)
        work = np.empty((len(sums) + 5, len(u)))
        work[len(sums) + 2] = np.abs(logits).max(axis=1)
        poly.blend(sums, self.params.polynomial == "taylor", work, np.empty(SPARE), shift, approx)
        good = approx[:, -1] > 0
        exact = exact[:, :-1] / exact[:, -1:]
        approx = np.where(good[:, None], approx[:, :-1] / np.where(good, approx[:, -1], 1)[:, None], 0)
        approx = np.clip(approx, c[:, :-1].min(axis=0), c[:, :-1].max(axis=0))
        error = np.linalg.norm(approx - exact) / max(float(np.linalg.norm(exact)), 1e-300)
        return float(error), float(np.abs(true).max())

    def absorb(self, k: np.ndarray, c: np.ndarray, work: dict) -> int:
        """Take in one group of rows, k (n, d), c (n, dv + 1), n <= group. Returns how many keys were clipped."""
        s, t = self.state, self.table
        scratch = (work[name] for name in ("x", "low", "values", "block"))
        given = (
            blas.address(c.dtype.str[1:]),
            k,
            s["mu"],
            np.sqrt(self.scale),
            key_limit(self.params),
            c,
            t.start,
            t.order,
            t.run,
        )
        clipped, longest = monomials.absorb(*given, *scratch, s["moments"])
        s["radius"][0] = max(s["radius"][0], min(longest, key_limit(self.params)))
        return int(clipped)

    @property
    def query_limit(self) -> float:
        """Longer queries are shortened."""
        return query_limit(self.params, self.state["radius"])

    def partial(self, q: np.ndarray, work: dict, out: Partial) -> int:
        """Answer a tile of queries q (r, d) into `out`. Returns how many queries were clipped."""
        s, t, weighed = self.state, self.table, work["weighed"]
        monomials.weigh(s["moments"], t.multinomial, t.order, weighed)
        scratch = poly.Scratch(*(work[name] for name in ("x", "low", "part", "sums", "polynomials", "spare")))
        gemm, taylor = blas.address(q.dtype.str[1:]), self.params.polynomial == "taylor"
        radius = np.array([s["radius"][0], self.query_limit])
        clipped = poly.answer(
            gemm, q, s["mu"], self.origin, self.scale, radius, taylor, weighed, t.start, t.run, scratch, out.m, out.y,
            out.doubt,
        )  # fmt: skip
        return int(clipped)

    def answer(
        self, q: np.ndarray, start: int, span: np.ndarray, out: np.ndarray, doubt: np.ndarray, work: dict
    ) -> None:
        """Answer queries q (heads, n, d), global query rows start.., into out (heads, n, dv) and doubt (heads, n) when all
        tokens are here, whose values have the range span (2, dv)."""
        s, t, weighed = self.state, self.table, work["weighed"]
        monomials.weigh(s["moments"], t.multinomial, t.order, weighed)
        gemm, taylor = blas.address(q.dtype.str[1:]), self.params.polynomial == "taylor"
        radius = np.array([s["radius"][0], self.query_limit])
        given = start % PANEL, self.origin, self.scale, radius, taylor, weighed, t.start, t.run, span
        panel = (_panel(work[name]) for name in ("x", "low", "part", "sums", "polynomials"))
        scratch = poly.Scratch._make([*panel, work["spare"]])
        for queries, answers, doubts in zip(q, out, doubt, strict=True):
            poly.outputs(gemm, queries, *given, self.mean_value(), scratch, work["counts"], answers, doubts)

    def mean_value(self) -> np.ndarray:
        """The mean of the absorbed values (dv,), 0 where nothing was absorbed: the monomial 1 counts and sums them."""
        total = self.state["moments"][0]
        mean: np.ndarray = total[:-1] / total[-1] if total[-1] > 0 else total[:-1] * 0
        return mean

    def merge(self, other: PolyHistory) -> None:
        """Add another shard's moments, moved to this one's centre first; the wider norm bounds of the two hold."""
        shift = np.sqrt(self.scale) * (other.state["mu"] - self.state["mu"])
        self.state["moments"] += recentre(other.state["moments"], self.table, shift)
        theirs = other.state["radius"] + [np.linalg.norm(shift), 0]
        np.maximum(self.state["radius"], theirs, out=self.state["radius"])


def key_limit(params: PolyParams) -> float:
    """How long sqrt(s) (k - mu) may be: sums of its powers are float32."""
    return float(LARGEST ** (1 / params.degree))


def query_limit(params: PolyParams, radius: np.ndarray) -> float:
    """How long sqrt(s) q may be, where no key is longer than radius[0], so that no logit is beyond beta."""
    return params.beta / max(float(radius[0]), 1e-300) if params.beta else np.inf


def _panel(scratch: np.ndarray) -> np.ndarray:
    """The memory of a scratch array (rows, G) as a contiguous one for PANEL queries."""
    return scratch if scratch.shape[-1] == PANEL else scratch.reshape(-1)[: len(scratch) * PANEL].reshape(-1, PANEL)


def _clip_norm(rows: np.ndarray, radius: float) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    clipped: np.ndarray = rows * np.minimum(1.0, radius / np.maximum(norms, 1e-300))
    return clipped


def _settings(head: HeadParams, options: MethodOptions, causal: bool, stream: int | None) -> HeadParams:
    if not 1 <= options.degree <= MAX_DEGREE:
        raise UsageError(f"--degree {options.degree}: choose 1 to {MAX_DEGREE} (float64 cannot hold more)")
    if not options.max_error >= 0:
        raise UsageError(f"--max-error {options.max_error:g}: must be 0 or more (0.25 allows a relative error of 25%)")
    if options.beta is not None and not options.beta > 0:
        raise UsageError(f"--beta {options.beta:g}: must be above 0")
    max_error = min(options.max_error, float_info.max)  # "inf" would not be JSON
    history = PolyParams(options.degree, options.polynomial, options.beta, max_error)
    return replace(head, sinks=options.sinks or 0, window=options.window or 0, history=history)


def _micros(load: Load) -> float:
    features = feature_count(load.dim, load.params.history.degree)
    products = features * (load.value_dim + 1)
    absorbing = load.rows * (1.4e-3 * features + 2.4e-5 * products)
    return 0.64 * load.answering() + absorbing + load.queries * load.group * 3.3e-5 * products


def _miniature(params: HeadParams) -> HeadParams:
    assert isinstance(params.history, PolyParams)
    history = replace(params.history, max_error=float("inf"))
    return replace(params, window=min(params.window, 300), sinks=min(params.sinks, 4), history=history)


METHOD = Method(
    name="poly",
    settings=_settings,
    options=frozenset({"degree", "polynomial", "beta", "max_error", "window", "sinks"}),
    params=PolyParams,
    history=PolyHistory,
    micros=_micros,
    miniature=_miniature,
)
