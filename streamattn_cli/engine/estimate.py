"""What a sample of rows says about all of them: relative errors with intervals, by head, by position, and the worst.

The sample is stratified by position: rows of one part of the stream resemble one another. The error is a ratio of two
totals, E = sqrt(sum |answer - exact|^2 / sum |exact|^2), each estimated by sum_h N_h / n_h sum of the stratum's rows.
Its interval is a bootstrap-t on log E (Efron and Tibshirani 1993, ch. 12; variance by linearisation, Cochran 1977,
ch. 6): row errors are skewed, so that the plain percentile interval covers too seldom (scripts/coverage.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamattn_cli.engine.events import ErrorEstimate, WorstRow

RESAMPLES = 2000
LEAST_ROWS = 8  # rows of a stratum; with fewer rows in all, nothing can be said about the spread
MOST_STRATA = 8
PIECES = 16  # of the stream, in the picture of error by position
WORST = 10
# Quantiles of t for the lower and the upper limit. A few rows hold much of the error, and most samples miss them: the
# upper limit is taken from further out than 2.5%, by as much as gives 95% on real heads.
TAILS = (0.975, 0.0025)
_CHUNK = 1 << 15  # items of a resampling matrix
_TINY = 1e-300


@dataclass(frozen=True)
class Design:
    """How rows (n,) int64, sorted, were drawn: evenly from the strata between `edges` (strata + 1,)."""

    rows: np.ndarray
    edges: np.ndarray

    def strata(self) -> list[tuple[int, int, int]]:
        """(first, last, population) of every stratum that has rows: rows[first:last] stand for `population` rows."""
        cuts = np.searchsorted(self.rows, self.edges)
        sizes = np.diff(self.edges)
        return [(int(a), int(b), int(n)) for a, b, n in zip(cuts, cuts[1:], sizes, strict=False) if b > a]

    def only(self, chosen: np.ndarray) -> Design:
        """The same with those rows alone, (n,) bool."""
        return Design(self.rows[chosen], self.edges)


def stratum_edges(total: int, count: int) -> np.ndarray:
    """Edges of the strata from which `count` of `total` rows are drawn: LEAST_ROWS or more rows from each."""
    strata = min(MOST_STRATA, max(1, count // LEAST_ROWS))
    if total // strata < -(-count // strata):  # nearly all rows: strata would run out of them
        strata = 1
    return np.arange(strata + 1, dtype=np.int64) * total // strata


def draw_rows(total: int, count: int, seed: int) -> Design:
    """`count` different rows of `total`, the same share of every stratum; the same for the same seed."""
    generator = np.random.Generator(np.random.Philox(seed))
    edges = stratum_edges(total, count)
    strata = len(edges) - 1
    counts = np.diff(np.arange(strata + 1) * count // strata)
    rows = [
        a + np.sort(generator.choice(b - a, n, replace=False, shuffle=False))
        for a, b, n in zip(edges, edges[1:], counts, strict=False)
    ]
    return Design(np.concatenate(rows).astype(np.int64), edges)


def estimate(wrong: np.ndarray, size: np.ndarray, design: Design) -> list[ErrorEstimate]:
    """One estimate per column of wrong, size (n, columns): squared norms of error and exact answer, row by row."""
    strata = design.strata()
    low, high = _intervals(wrong, size, strata)
    weight = np.concatenate([np.full(b - a, n / (b - a)) for a, b, n in strata])
    error = _ratio(weight @ wrong, weight @ size)
    rows = _ratio(wrong, size)
    median, p95 = np.median(rows, axis=0), np.quantile(rows, 0.95, axis=0)
    return [ErrorEstimate(*map(float, figures)) for figures in zip(error, low, high, median, p95, strict=True)]


def by_position(wrong: np.ndarray, size: np.ndarray, design: Design) -> tuple[list[int], list[list[float | None]]]:
    """Edges of at most PIECES pieces of the stream and, for every head (column), its error in each; None: no rows."""
    total = int(design.edges[-1])
    pieces = max(1, min(PIECES, len(design.rows) // 4))
    edges = [total * i // pieces for i in range(pieces + 1)]
    cuts = np.searchsorted(design.rows, edges)
    found = []
    for a, b in zip(cuts, cuts[1:], strict=False):
        errors = _ratio(wrong[a:b].sum(axis=0), size[a:b].sum(axis=0))
        found.append([_short(e) if b > a else None for e in errors])
    return edges, [list(head) for head in zip(*found, strict=True)]


def worst_rows(wrong: np.ndarray, size: np.ndarray, rows: np.ndarray) -> tuple[WorstRow, ...]:
    """The rows and heads with the largest error relative to their own exact answer, worst first."""
    errors = _ratio(wrong, size)
    order = np.argsort(-errors, axis=None, kind="stable")[:WORST]
    places = zip(*np.unravel_index(order, errors.shape), strict=True)
    return tuple(WorstRow(int(rows[i]), int(head), _short(errors[i, head])) for i, head in places)


def estimate_bytes(rows: int, columns: int) -> int:
    """Bound on what `estimate` takes beside its arguments."""
    longest = -(-rows // (len(stratum_edges(RESAMPLES * rows, rows)) - 1))
    resampling = _step(longest, columns) * (16 * columns + 3 * longest) + (3 * RESAMPLES + 2 * longest) * columns
    return 8 * max(resampling, 4 * rows * columns)


def _step(longest: int, columns: int) -> int:
    """Resamples drawn at a time."""
    return max(1, min(RESAMPLES, _CHUNK // longest, _CHUNK // columns))


def _intervals(wrong: np.ndarray, size: np.ndarray, strata: list) -> tuple[np.ndarray, np.ndarray]:
    """95% limits of every column."""
    error, spread = _log_error(wrong, size, strata, finite=True)
    plain = np.exp(error) * (wrong.sum(axis=0) > 0)
    if all(b - a == n for a, b, n in strata):  # every row was audited: nothing is left to chance
        return plain, plain
    if sum(b - a for a, b, _ in strata) < LEAST_ROWS:
        return np.zeros_like(plain), np.full_like(plain, np.inf)
    t = _studentised(wrong, size, strata, error)
    exact = wrong.sum(axis=0) == 0
    limits = np.quantile(t, TAILS, axis=0)
    return tuple(np.where(exact, 0.0, np.exp(np.clip(error - q * spread, -300, 300))) for q in limits)


def _log_error(wrong: np.ndarray, size: np.ndarray, strata: list, finite: bool) -> tuple[np.ndarray, np.ndarray]:
    """log E and its standard error; `finite`: less the share of the population that was seen."""
    weight = np.concatenate([np.full(b - a, n / (b - a)) for a, b, n in strata])[:, None]
    w, s = (np.maximum((weight * x).sum(axis=0), _TINY) for x in (wrong, size))
    parts = 0.5 * (wrong / w - size / s)
    variance = np.zeros(wrong.shape[1])
    for a, b, n in strata:
        if b - a > 1:
            unseen = 1 - (b - a) / n if finite else 1.0
            variance += n * n * unseen * parts[a:b].var(axis=0, ddof=1) / (b - a)
    return 0.5 * np.log(w / s), np.sqrt(variance)


def _studentised(wrong: np.ndarray, size: np.ndarray, strata: list, error: np.ndarray) -> np.ndarray:
    """(log E* - log E) / its standard error, (RESAMPLES, columns), for rows drawn again within their strata."""
    generator = np.random.Generator(np.random.Philox(0))
    longest = max(b - a for a, b, _ in strata)
    step = _step(longest, wrong.shape[1])
    found = []
    for first in range(0, RESAMPLES, step):
        w, s, ww, ws, ss = np.zeros((5, min(step, RESAMPLES - first), wrong.shape[1]))
        for a, b, n in strata:
            m, x, y = b - a, wrong[a:b], size[a:b]
            counts = generator.multinomial(m, np.full(m, 1 / m), size=len(w)).astype(np.float64)
            xs, ys = counts @ x, counts @ y
            w += n / m * xs
            s += n / m * ys
            share = n * n / m / max(m - 1, 1)
            ww += share * (counts @ (x * x) - xs * xs / m)
            ws += share * (counts @ (x * y) - xs * ys / m)
            ss += share * (counts @ (y * y) - ys * ys / m)
        w, s = np.maximum(w, _TINY), np.maximum(s, _TINY)
        spread = 0.5 * np.sqrt(np.maximum(ww / w / w - 2 * (ws / w / s) + ss / s / s, 0))
        found.append(np.where(spread > 1e-12, (0.5 * np.log(w / s) - error) / np.maximum(spread, 1e-12), 0.0))
    return np.concatenate(found)


def _ratio(wrong: np.ndarray, size: np.ndarray) -> np.ndarray:
    """sqrt(wrong / size); 0 / 0 is no error."""
    return np.sqrt(np.where(wrong > 0, wrong / np.maximum(size, _TINY), 0.0))


def _short(value: float) -> float:
    """Four significant digits: enough for a picture."""
    return float(f"{value:.4g}")
