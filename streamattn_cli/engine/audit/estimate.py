"""What a sample of rows says about all of them: relative errors with intervals, by head, by position, and the worst.

Row i of the sample was drawn with chance p_i, so that it stands for 1 / p_i rows (Horvitz and Thompson 1952). The error
is a ratio of two totals, E = sqrt(sum |answer - exact|^2 / sum |exact|^2). Its interval is a bootstrap-t on log E (Efron
and Tibshirani 1993, ch. 12; variance by linearisation, Cochran 1977, ch. 6): row errors are skewed, so that the plain
percentile interval covers too seldom. Resampled multiplicities have mean 1 and variance 1 - p_i (Beaumont and Patak
2012): a row that was sure to be drawn leaves nothing to chance. scripts/audit_intervals.py measures the coverage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from streamattn_cli.engine.watch.events import ErrorEstimate, SequenceError, WorstRow
from streamattn_cli.rows.tensors.sequences import Sequences

RESAMPLES = 2000
LEAST_ROWS = 8  # of a stratum; with fewer rows in all, nothing can be said about the spread
MOST_STRATA = 8
PIECES = 16  # of the stream, in the picture of error by position
WORST = 10
# Quantiles of t for the lower and the upper limit. A few rows hold much of the error, and most samples miss them: both
# limits are taken from further out than 2.5%, by as much as gives 95% on real heads.
TAILS = (0.985, 0.001)
UNMET = 2.0  # rows like the one that counts most, which the upper limit leaves room for
DOMINATED = 0.5  # one row that stands for such a share of a total leaves the interval unknown
_CHUNK = 1 << 15  # items of a resampling matrix
_TINY = 1e-300


@dataclass(frozen=True)
class Design:
    """How a sample of `total` rows was drawn: rows (n,) int64, sorted, each with its chance (n,) in (0, 1]."""

    rows: np.ndarray
    chances: np.ndarray
    total: int

    def only(self, chosen: np.ndarray) -> Design:
        """The same with those rows alone, (n,) bool."""
        return Design(self.rows[chosen], self.chances[chosen], self.total)


@dataclass(frozen=True)
class Strata:
    """`count` of `total` rows, the same share of every stratum: edges (strata + 1,), counts (strata,) drawn of each."""

    edges: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, total: int, count: int) -> Strata:
        """LEAST_ROWS or more rows from each of at most MOST_STRATA parts of the stream."""
        strata = min(MOST_STRATA, max(1, count // LEAST_ROWS))
        if total // strata < -(-count // strata):  # nearly all rows: strata would run out of them
            strata = 1
        steps = np.arange(strata + 1, dtype=np.int64)
        return cls(steps * total // strata, np.diff(steps * count // strata))

    def draw(self, seed: int) -> np.ndarray:
        """Different rows (count,) int64, sorted; the same for the same seed."""
        generator = np.random.Generator(np.random.Philox(seed))
        pieces = zip(self.edges, self.edges[1:], self.counts, strict=False)
        rows = [a + np.sort(generator.choice(b - a, n, replace=False, shuffle=False)) for a, b, n in pieces]
        return np.concatenate(rows).astype(np.int64)

    def chances(self, rows: np.ndarray) -> np.ndarray:
        """How likely each of these rows (n,) was to be drawn."""
        stratum = np.searchsorted(self.edges, rows, side="right") - 1
        return self.counts[stratum] / np.diff(self.edges)[stratum]


def draw_rows(total: int, count: int, seed: int) -> Design:
    """`count` different rows of `total`, the same share of every stratum; the same for the same seed."""
    strata = Strata.of(total, count)
    rows = strata.draw(seed)
    return Design(rows, strata.chances(rows), total)


def estimate(wrong: np.ndarray, size: np.ndarray, design: Design) -> list[ErrorEstimate]:
    """One estimate per column of wrong, size (n, columns): squared norms of error and exact answer, row by row.

    An infinite error makes that of its column infinite.
    """
    lost = ~np.isfinite(wrong).all(axis=0)
    rows = _ratio(wrong, size)
    wrong = np.where(np.isfinite(wrong), wrong, 0.0)
    low, high, enough = _intervals(wrong, size, design)
    weight = 1 / design.chances
    error = np.where(lost, np.inf, _ratio(weight @ wrong, weight @ size))
    high = np.where(lost, np.inf, high)
    median, p95 = (weighted_quantile(rows, weight, share) for share in (0.5, 0.95))
    found = zip(*(map(float, figures) for figures in (error, low, high, median, p95)), map(bool, enough), strict=True)
    return [ErrorEstimate(*figures) for figures in found]


def weighted_quantile(values: np.ndarray, weight: np.ndarray, share: float) -> np.ndarray:
    """Quantiles (columns,) of values (n, columns) when row i is there weight[i] / min(weight) times."""
    weight = weight / weight.min()
    place = share * (weight.sum() - 1)
    found = []
    for column in values.T:
        order = np.argsort(column, kind="stable")
        last = np.cumsum(weight[order]) - 1  # the place of the last time that a row is there
        i = min(int(np.searchsorted(last, place)), len(order) - 1)
        a, b = column[order[max(i - 1, 0)]], column[order[i]]
        part = min(1.0, 1 - (last[i] - weight[order[i]] + 1 - place)) if i else 1.0
        found.append(b if a == b or part >= 1 else a + (b - a) * part)
    return np.array(found)


def by_position(wrong: np.ndarray, size: np.ndarray, design: Design) -> tuple[list[int], list[list[float | None]]]:
    """Edges of at most PIECES pieces of the stream and, for every head (column), its error in each; None: no rows."""
    total, weight = design.total, (1 / design.chances)[:, None]
    pieces = max(1, min(PIECES, len(design.rows) // 4))
    edges = [total * i // pieces for i in range(pieces + 1)]
    cuts = np.searchsorted(design.rows, edges)
    found = []
    for a, b in zip(cuts, cuts[1:], strict=False):
        errors = _ratio((weight * wrong)[a:b].sum(axis=0), (weight * size)[a:b].sum(axis=0))
        found.append([_short(e) if b > a else None for e in errors])
    return edges, [list(head) for head in zip(*found, strict=True)]


def worst_rows(
    wrong: np.ndarray, size: np.ndarray, rows: np.ndarray, sequences: Sequences | None = None
) -> tuple[WorstRow, ...]:
    """The rows and heads with the largest error relative to their own exact answer: see `worst_first`."""
    errors, found = _ratio(wrong, size), []
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = 10 ** (np.floor(np.log10(errors)) - 3)  # of what is told
        told = np.where((0 < errors) & (errors < np.inf), np.rint(errors / unit) * unit, errors)
    order = np.argsort(-told, axis=None, kind="stable")[:WORST]
    for i, head in zip(*np.unravel_index(order, errors.shape), strict=True):
        number, row = None, int(rows[i])
        if sequences:
            number, row = sequences.local(row)
            number += sequences.before
        found.append(WorstRow(row, int(head), _short(errors[i, head]), number))
    return worst_first(found)


def worst_first(rows: Iterable[WorstRow]) -> tuple[WorstRow, ...]:
    """The WORST of them; those whose errors are told as the same number in the order of rows, or rounding would decide."""
    return tuple(sorted(rows, key=lambda row: (-row.error, row.sequence or 0, row.row, row.head))[:WORST])


def by_sequence(
    wrong: np.ndarray, size: np.ndarray, design: Design, sequences: Sequences, unit: float
) -> tuple[SequenceError, ...]:
    """The error of every sequence of which rows were audited; wrong, size (n, heads): see `estimate`; unit: of the
    numbers whose squares these are."""
    weight = (1 / design.chances)[:, None]
    numbers = np.searchsorted(sequences.edges, design.rows, side="right") - 1
    found, firsts = np.unique(numbers, return_index=True)
    totals = [np.add.reduceat(weight * squares, firsts) for squares in (wrong, size)]
    errors, errors_of_all = _ratio(*totals), _ratio(*(total.sum(axis=1) for total in totals))
    counts, norms = np.diff([*firsts, len(numbers)]), norm_of(totals[1].sum(axis=1), unit)
    return tuple(
        SequenceError(int(number) + sequences.before, int(count), _short(error), float(norm), tuple(map(_short, heads)))
        for number, count, error, norm, heads in zip(found, counts, errors_of_all, norms, errors, strict=True)
    )


def norm_of(squares: np.ndarray, unit: float) -> np.ndarray:
    """The norms of what has these squared norms in another unit, at most the largest number there is."""
    with np.errstate(over="ignore"):
        found: np.ndarray = np.minimum(unit * np.sqrt(squares), np.finfo(np.float64).max)
    return found


def estimate_bytes(rows: int, columns: int) -> int:
    """Bound on what `estimate` takes beside its arguments."""
    resampling = _step(rows, columns) * (12 * columns + 4 * rows) + (3 * RESAMPLES + 8 * rows) * columns
    return 8 * resampling + (1 << 16)


def _step(rows: int, columns: int) -> int:
    """Resamples drawn at a time."""
    return max(1, min(RESAMPLES, _CHUNK // rows, _CHUNK // columns))


def _intervals(wrong: np.ndarray, size: np.ndarray, design: Design) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """95% limits of every column, and whether there are rows enough to tell them."""
    weight = (1 / design.chances)[:, None]
    unseen = 1 - design.chances[:, None]
    moments = _moments(weight * wrong, weight * size, unseen)
    w, s = np.maximum((weight * wrong).sum(axis=0), _TINY), np.maximum((weight * size).sum(axis=0), _TINY)
    error, spread = 0.5 * np.log(np.maximum(w / s, _TINY)), _spread(w, s, *(x.sum(axis=0) for x in moments))
    none = wrong.sum(axis=0) == 0
    all_wrong = ~none & (size.sum(axis=0) == 0)
    plain = np.where(none, 0.0, np.where(all_wrong, np.inf, np.exp(error)))
    if not unseen.any():  # every row was audited: nothing is left to chance
        return plain, plain, np.ones(len(plain), bool)
    if len(wrong) < LEAST_ROWS:
        return np.zeros_like(plain), np.full_like(plain, np.inf), np.zeros(len(plain), bool)
    t = _studentised(weight * wrong, weight * size, moments, design.chances, error)
    low, high = (np.exp(np.clip(error - q * spread, -300, 300)) for q in np.quantile(t, TAILS, axis=0))
    largest = np.maximum((unseen * weight * wrong).max(axis=0) / w, (unseen * weight * size).max(axis=0) / s)
    high = high * np.sqrt(1 + UNMET * largest)
    enough = none | (largest <= DOMINATED) & ~all_wrong
    return np.where(none | all_wrong, 0.0, low), np.where(none, 0.0, np.where(all_wrong, np.inf, high)), enough


def _moments(w: np.ndarray, s: np.ndarray, unseen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the variances and the covariance of the two totals are sums of, row by row."""
    return unseen * w * w, unseen * w * s, unseen * s * s


def _spread(w: np.ndarray, s: np.ndarray, ww: np.ndarray, ws: np.ndarray, ss: np.ndarray) -> np.ndarray:
    """Standard error of log sqrt(w / s)."""
    found: np.ndarray = 0.5 * np.sqrt(np.maximum(ww / w / w - 2 * (ws / w / s) + ss / s / s, 0))
    return found


def _studentised(w: np.ndarray, s: np.ndarray, moments: tuple, chances: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(log E* - log E) / its standard error, (RESAMPLES, columns); w, s (n, columns) are weighted."""
    generator = np.random.Generator(np.random.Philox(0))
    step = _step(*w.shape)
    found = np.empty((RESAMPLES, w.shape[1]))
    for first in range(0, RESAMPLES, step):
        last = min(first + step, RESAMPLES)
        times = generator.poisson(1, (last - first, len(w))).astype(np.float64)
        times -= 1
        times *= np.sqrt(1 - chances)
        times += 1
        totals = (np.maximum(times @ x, _TINY) for x in (w, s))
        w_again, s_again = totals
        np.maximum(times, 0, out=times)
        spread = _spread(w_again, s_again, *(times @ x for x in moments))
        away = 0.5 * np.log(np.maximum(w_again / s_again, _TINY)) - error
        found[first:last] = np.where(spread > 1e-12, away / np.maximum(spread, 1e-12), 0.0)
    return found


def _ratio(wrong: np.ndarray, size: np.ndarray) -> np.ndarray:
    """sqrt(wrong / size); 0 / 0 is no error, and what is not 0 and should be is infinitely wrong."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        found: np.ndarray = np.where(wrong > 0, np.sqrt(wrong / size), 0.0)
    return found


def _short(value: float) -> float:
    """Four significant digits: enough for a picture."""
    return float(f"{value:.4g}")
