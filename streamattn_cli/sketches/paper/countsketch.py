"""The sketch Phi of a long column, and how its heavy rows are found again (METHODS.md (S7) to (S11)).

Two decoders. `ScanSketch`: R tables; every row's counters are looked at, n R hashes. `PeelSketch`: tables whose buckets
also count, bit by bit, the rows with that bit set, so that a heavy row's number can be read off its bucket; what is
found is taken out and the next are looked for; the time does not depend on n. Columns are decoded jointly (a row is
heavy by its norm over all of them), or each on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, comb, log, pi

import numpy as np

from streamattn_cli.kernels import countsketch as kernel

PHI = 1 << 20  # first table number of Phi; Psi's is 0, so that one seed serves both


@dataclass(frozen=True)
class Recovered:
    """The entries found in one column, or (column None) rows found for all columns jointly.

    rows (j,) int64, ascending; values (j, c) float64, with c = 1 for a single column.
    """

    column: int | None
    rows: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class ScanSketch:
    """R tables of `buckets` counters."""

    tables: int
    buckets: int
    seed: int = 0

    @property
    def counters(self) -> int:
        """m2."""
        return self.tables * self.buckets

    @property
    def per_row(self) -> int:
        """Counters that a row may touch."""
        return self.tables

    def locate(self, rows: np.ndarray, target: np.ndarray, sign: np.ndarray, count: np.ndarray) -> None:
        """The counters (n, per_row) of rows (n,) int64, their signs, and how many they are (n,)."""
        with np.errstate(over="ignore"):
            kernel.rows_places(_keys(self.seed, PHI, self.tables), self.buckets, rows, target, sign)
        count[:] = self.tables

    def tail(self, z: np.ndarray) -> np.ndarray:
        """(c,): the norm of every sketched column; z (counters, c)."""
        norms: np.ndarray = np.sqrt(np.median((z**2).reshape(self.tables, self.buckets, -1).sum(axis=1), axis=0))
        return norms

    def recover(self, z: np.ndarray, n: int, k: int, per_column: bool) -> list[Recovered]:
        """The k heaviest of n rows from the counters z (counters, c)."""
        if per_column:
            return [self._recover(z[:, [c]], n, k, c) for c in range(z.shape[1])]
        return [self._recover(z, n, k, None)]

    def _recover(self, z: np.ndarray, n: int, k: int, column: int | None) -> Recovered:
        signed = z.shape[1] == 1
        table = z if signed else (z**2).sum(axis=1)
        keep = k if signed else 4 * k  # medians of norms rank roughly; the best k follow from the values
        scores, rows = np.full(keep, -1.0), np.full(keep, -1, np.int64)
        with np.errstate(over="ignore"):
            kernel.scan(
                np.ascontiguousarray(table.reshape(self.tables, self.buckets)), signed,
                _keys(self.seed, PHI, self.tables), 0, n, scores, rows,
            )  # fmt: skip
        return _best(self, z, rows[rows >= 0], k, column)


@dataclass(frozen=True)
class PeelSketch:
    """3 bit-test tables of `buckets` buckets of 1 + bits counters, and 5 tables of `estimate_buckets` for the
    values."""

    buckets: int
    bits: int
    estimate_buckets: int
    seed: int = 0

    tables = 3
    estimate_tables = 5
    rounds = 4

    @property
    def counters(self) -> int:
        """m2."""
        return self._tests + self.estimate_tables * self.estimate_buckets

    @property
    def per_row(self) -> int:
        """Counters that a row may touch."""
        return self.estimate_tables + self.tables * (1 + self.bits)

    @property
    def _tests(self) -> int:
        return self.tables * self.buckets * (1 + self.bits)

    @property
    def estimates(self) -> ScanSketch:
        """The tables that values are read from."""
        return ScanSketch(self.estimate_tables, self.estimate_buckets, self.seed)

    def locate(self, rows: np.ndarray, target: np.ndarray, sign: np.ndarray, count: np.ndarray) -> None:
        """The counters (n, per_row) of rows (n,) int64, their signs, and how many they are (n,)."""
        self.estimates.locate(rows, target, sign, count)
        target[:, : self.estimate_tables] += self._tests
        keys = _keys(self.seed, PHI + self.estimate_tables, self.tables)
        with np.errstate(over="ignore"):
            kernel.bit_places(keys, self.buckets, self.bits, rows, self.estimate_tables, target, sign, count)

    def tail(self, z: np.ndarray) -> np.ndarray:
        """(c,): the norm of every sketched column; z (counters, c)."""
        return self.estimates.tail(z[self._tests :])

    def recover(self, z: np.ndarray, n: int, k: int, per_column: bool) -> list[Recovered]:
        """The k heaviest of n rows from the counters z (counters, c)."""
        if per_column:
            return [self._recover(z[:, [c]], n, k, c) for c in range(z.shape[1])]
        return [self._recover(z, n, k, None)]

    def _recover(self, z: np.ndarray, n: int, k: int, column: int | None) -> Recovered:
        tests, estimates = z[: self._tests], z[self._tests :]
        rest, found = tests, Recovered(column, np.zeros(0, np.int64), np.zeros((0, z.shape[1])))
        for _ in range(self.rounds):
            new = np.setdiff1d(self._read_rows(rest, n), found.rows)
            if not len(new):
                break
            found = _best(self.estimates, estimates, np.union1d(found.rows, new), 2 * k, column)
            rest = tests - self._tested(found)
        return _best(self.estimates, estimates, found.rows, k, column)

    def _read_rows(self, z: np.ndarray, n: int) -> np.ndarray:
        """Row numbers that the buckets spell, as far as they lead back to their bucket."""
        tests = z[: self._tests].reshape(self.tables, self.buckets, 1 + self.bits, -1)
        total, ones = tests[:, :, :1], tests[:, :, 1:]
        bit = (ones**2).sum(axis=3) > ((total - ones) ** 2).sum(axis=3)
        rows = bit @ (np.int64(1) << np.arange(self.bits))
        candidates = np.unique(rows[rows < n])
        target, sign = np.empty((len(candidates), self.tables), np.int64), np.empty((len(candidates), self.tables))
        with np.errstate(over="ignore"):
            keys = _keys(self.seed, PHI + self.estimate_tables, self.tables)
            kernel.rows_places(keys, self.buckets, candidates, target, sign)
        spelled = rows.reshape(-1)[target]
        met: np.ndarray = candidates[(spelled == candidates[:, None]).any(axis=1)]
        return met

    def _tested(self, found: Recovered) -> np.ndarray:
        """What the rows found so far put into the bit-test counters."""
        shape = (len(found.rows), self.tables * (1 + self.bits))
        target, sign, count = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(len(found.rows), np.int64)
        keys = _keys(self.seed, PHI + self.estimate_tables, self.tables)
        with np.errstate(over="ignore"):
            kernel.bit_places(keys, self.buckets, self.bits, found.rows, 0, target, sign, count)
        return _gather(self._tests, target, sign, count, found.values)


def sketch_rows(sketch: ScanSketch | PeelSketch, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Phi y (counters, c) of the sparse columns with `values` (j, c) in rows (j,)."""
    shape = (len(rows), sketch.per_row)
    target, sign, count = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(len(rows), np.int64)
    sketch.locate(rows, target, sign, count)
    return _gather(sketch.counters, target, sign, count, values)


def residual(sketch: ScanSketch | PeelSketch, z: np.ndarray, found: list[Recovered]) -> np.ndarray:
    """(c,): the norm of every column without what was found in it, as its counters z (counters, c) show it."""
    rest = z.copy()
    for part in found:
        columns = slice(None) if part.column is None else [part.column]
        rest[:, columns] -= sketch_rows(sketch, part.rows, part.values)
    return sketch.tail(rest)


def noise_of(sketch: ScanSketch | PeelSketch, rest: np.ndarray) -> np.ndarray:
    """(c,): the standard error of a recovered value, a median over tables, where the column's rest has norm `rest`."""
    values = sketch if isinstance(sketch, ScanSketch) else sketch.estimates
    noise: np.ndarray = rest * np.sqrt(pi / 2 / values.tables / max(values.buckets, 1))
    return noise


def scan_sketch(counters: int, joint: bool, seed: int) -> ScanSketch:
    """A ScanSketch of at most `counters` counters: 5 tables for joint decoding, 9 for single columns."""
    tables = 5 if joint else 9
    return ScanSketch(tables, counters // tables, seed)


def peel_sketch(counters: int, k: int, bits: int, seed: int) -> PeelSketch:
    """A PeelSketch of at most `counters` counters: 4 k buckets a table, and what is left for the values."""
    buckets = 4 * k
    left = counters - PeelSketch.tables * buckets * (1 + bits)
    return PeelSketch(buckets, bits, max(left, 0) // PeelSketch.estimate_tables, seed)


def least_counters(decoder: str, joint: bool, k: int, bits: int) -> int:
    """The fewest counters that k entries can be decoded from at all."""
    if decoder == "peel":
        return PeelSketch.tables * 4 * k * (1 + bits) + PeelSketch.estimate_tables * 2 * k
    return (5 if joint else 9) * 2 * k


def usual_counters(decoder: str, joint: bool, k: int, n: int, bits: int, eps1: float | None) -> int:
    """Counters for a recovery ratio of 1 + eps1 on n rows with probability 0.99; eps1 None: about 1.1, and a few wrong
    rows may be among the k.

    With R tables of B counters a value errs by pi / (2 R B) of the tail's square. In the worst case (a flat tail) all k
    places go to rows whose errors are the largest of n, 2 ln n times that: half the sum is the excess of the ratio.
    A row that meets heavy ones, all of one sign, in most of its tables is taken for heavy:
    n C(R, r) (k / B)^r 2^(1 - r) such rows are expected, r = (R + 1) / 2, and 0.01 are allowed (eps1 None: k of them).
    """
    values = ceil(k * log(n) * pi / (2 * (eps1 or 0.1)))
    if decoder == "peel":
        return PeelSketch.tables * 4 * k * (1 + bits) + max(values, PeelSketch.estimate_tables * 8 * k)
    tables = 5 if joint else 9
    most = (tables + 1) // 2
    allowed = k if eps1 is None else 0.01
    apart: int = tables * ceil(k * (n * comb(tables, most) * 2 ** (1 - most) / allowed) ** (1 / most))
    return max(values, apart)


def _best(sketch: ScanSketch, z: np.ndarray, rows: np.ndarray, k: int, column: int | None) -> Recovered:
    """Values of candidate rows by medians, and the k largest of them."""
    rows = np.unique(rows)
    target, sign = np.empty((len(rows), sketch.tables), np.int64), np.empty((len(rows), sketch.tables))
    with np.errstate(over="ignore"):
        kernel.rows_places(_keys(sketch.seed, PHI, sketch.tables), sketch.buckets, rows, target, sign)
    values = np.empty((len(rows), z.shape[1]))
    kernel.medians(z, target, sign, values)
    chosen = np.sort(np.argsort(-(values**2).sum(axis=1), kind="stable")[:k])
    return Recovered(column, rows[chosen], values[chosen])


def _gather(counters: int, target: np.ndarray, sign: np.ndarray, count: np.ndarray, values: np.ndarray) -> np.ndarray:
    live = np.arange(target.shape[1]) < count[:, None]
    z = np.zeros((counters, values.shape[1]))
    np.add.at(z, target[live], (sign[:, :, None] * values[:, None])[live])
    return z


def _keys(seed: int, first: int, tables: int) -> np.ndarray:
    keys = np.empty(tables, np.uint64)
    with np.errstate(over="ignore"):
        kernel.table_keys(np.uint64(seed), np.uint64(first), keys)
    return keys
