"""How wrong is it? Sampled query rows are answered exactly as well, and the two answers compared.

Half of the sample is drawn evenly. Where keys can be read again, a quarter is chosen by the squared norm of the answer and
a quarter by that times the squared doubt, so that rare rows that weigh much are met; every row counts by the inverse of
its chance. What is compared is what is written: rounded to the dtype of the output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from streamattn_cli.engine.audit.estimate import (
    Design,
    Strata,
    by_position,
    by_sequence,
    estimate,
    estimate_bytes,
    norm_of,
    worst_rows,
)
from streamattn_cli.engine.audit.exactrows import (
    TRUTH,
    ExactRows,
    ExactSequences,
    exact_rows,
    read_queries,
    wide_queries,
)
from streamattn_cli.engine.audit.sample import SizeSample
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.saving.saver import State
from streamattn_cli.engine.watch.events import Audit, Flagged
from streamattn_cli.engine.workers.lanes import Answers, Lane
from streamattn_cli.errors import CheckpointIncompatible
from streamattn_cli.kernels import norms
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.tensors.sequences import Sequences

EVEN, ANSWER, DOUBT, FLAGGED = range(4)  # facts of a row: what it is chosen by, and whether the method flagged it
FACTS = 4
MOST_DOUBT = 4.0  # more says no more: an answer may be any number of times too large
SAFE = 128  # exponent of two; answers within it are compared as they are
DOUBTED = "audit.doubted"
LEAST_BY_SIZE = 16  # audited rows; fewer are all drawn evenly


def facts_of_rows(answers: np.ndarray, doubt: np.ndarray) -> np.ndarray:
    """Facts (n, FACTS) of answers (n, heads, dv), NaN where a query was dropped, and their doubt (n, heads)."""
    found = np.ones((len(answers), FACTS))
    sizes = np.empty(doubt.shape)
    norms.squares(answers, sizes)
    limited = np.minimum(doubt, MOST_DOUBT).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        found[:, ANSWER], found[:, DOUBT] = sizes.sum(axis=1), (sizes * limited**2).sum(axis=1)
    dropped = np.isnan(found[:, ANSWER])
    found[:, FLAGGED] = (doubt >= 1).any(axis=1)
    np.nan_to_num(found, copy=False, nan=0.0, posinf=1e300)
    found[dropped] = 0
    return found


@dataclass(frozen=True)
class Heard:
    """Sampled rows (n,) with what the method answered (n, heads, dv) float64 and their facts (n, FACTS)."""

    rows: np.ndarray
    approx: np.ndarray
    facts: np.ndarray


class Auditing:
    """What a run shows rows and answers to. drawn: what answers rows exactly while the keys pass the first time."""

    drawn: ExactRows | ExactSequences | None = None

    def see(self, lane: Lane, k: np.ndarray, c: np.ndarray, row: int, work: dict) -> None:
        """Show the keys (n, d) and values (n, dv + 1) of a lane from this row of the stream on, in the first pass."""

    def observe(self, start: int, answers: Answers, q: np.ndarray | None = None) -> None:
        """What the method answered to rows start..; q: their block, where it cannot be read again."""
        raise NotImplementedError

    def repaired(self, rows: np.ndarray, heads: np.ndarray, answers: np.ndarray) -> None:
        """The answers (n, dv) of these rows and query heads (n,) are exact now, and written."""

    def second(self) -> ExactRows | ExactSequences | None:
        """The rows that are still to be answered exactly, in a second pass over the keys; None if there are none."""
        return None

    def estimate(
        self, second: ExactRows | ExactSequences | None, work: dict, repaired: bool = False
    ) -> tuple[Audit | None, str | None]:
        """All keys have been seen, in the second pass, too: the audit, or the reason why there is none.

        repaired: tell the error before the repairs, too.
        """
        raise NotImplementedError

    def save(self) -> State:
        """Everything gathered so far, as named arrays (or lists of one array per lane)."""
        return {}

    def load(self, state: State, name: str) -> None:
        """Take back what `save` gave; `name` is the checkpoint's, for messages."""


class Auditor(Auditing):
    """Chooses about `rows` query rows, and compares their exact answers with what the method answered.

    Rows that are drawn beforehand are answered exactly while keys pass the first time (`see`); the others, and all of
    them if `postponed`, in a second pass (`second`). again: whether rows may be chosen by size, for a second pass.
    """

    def __init__(self, problem: Problem, lanes: list[Lane], rows: int, again: bool = True, postponed: bool = False):
        self.problem, self.lanes = problem, lanes
        by_size = size_share(problem, rows) if again else 0
        even, r = rows - 2 * by_size, problem.request
        p, heads, dv = problem.precision, len(problem.q), problem.v.dim
        self.query_dim = 0 if problem.q.tensor.seekable else problem.q.dim
        counts = {ANSWER: by_size, DOUBT: by_size} if by_size else {}
        counts |= {EVEN: even} if self.query_dim else {}
        self.samples = {
            by: SizeSample(count, 8 * r.seed + by, heads, dv, FACTS, self.query_dim, p) for by, count in counts.items()
        }
        self.strata = None if self.query_dim else Strata.of(problem.q.count, even)
        self.rows = self.strata.draw(r.seed) if self.strata else np.zeros(0, np.int64)
        self.approx = np.full((len(self.rows), heads, dv), np.nan)
        self.facts = np.zeros((len(self.rows), FACTS))
        self.exactly: dict[tuple[int, int], np.ndarray] = {}  # answers of the sample that were repaired, as written now
        self.tally = np.zeros(2, np.int64)  # rows heard, and those of them that the method flagged
        self.doubted = np.zeros(1, np.int64)  # rows heard that the method doubts at all
        self.drawn = None
        if self.strata and not postponed:
            self.drawn = exact_rows(problem, lanes, self.rows, read_queries(problem, lanes, self.rows))

    @staticmethod
    def projected_bytes(problem: Problem, rows: int) -> int:
        """Bytes of an Auditor, and of its second pass."""
        item, heads, dv = int(problem.precision[1]), len(problem.q), problem.v.dim
        by_size = size_share(problem, rows)
        held = [by_size] * 2 if by_size else []
        query_dim = 0
        if not problem.q.tensor.seekable:
            held, query_dim = [*held, rows - 2 * by_size], problem.q.dim
        samples = sum(SizeSample.projected_bytes(count, heads, dv, query_dim, item) for count in held)
        row = problem.q.tensor.outer * problem.q.tensor.width * DTYPES[problem.q.tensor.dtype].itemsize
        return ExactRows.projected_bytes(problem, rows) + samples + rows * 8 * (heads * dv + FACTS) + row

    @staticmethod
    def comparing_bytes(problem: Problem, rows: int) -> int:
        """Bytes that `estimate` takes beside them: arrays like the answers, and what is made of them."""
        heads = len(problem.q)
        arrays = 10 if problem.precision == "f8" else 7  # float64 answers may be counted in another unit
        return rows * 8 * (arrays * heads * problem.v.dim + 4 * (heads + 3)) + estimate_bytes(rows, heads + 3)

    @property
    def heard(self) -> int:
        """Rows whose answers have been heard, from the first on."""
        return int(self.tally[0])

    def save(self) -> dict:
        """See Auditing."""
        return self._heard_so_far() | (self.drawn.save() if self.drawn else {})

    def load(self, state: dict, name: str) -> None:
        """See Auditing."""
        for key, array in self._heard_so_far().items():
            if key == DOUBTED and key not in state:  # of a version that did not count them
                continue
            if key not in state or state[key].shape != array.shape:
                raise CheckpointIncompatible(
                    f"{name}: its audit is of another version of streamattn; resume with that version, or start again "
                    "without --resume"
                )
            array[...] = state[key]
        if self.drawn:
            self.drawn.load(state, name)

    def _heard_so_far(self) -> dict[str, np.ndarray]:
        held = {"approx": self.approx, "facts": self.facts, "tally": self.tally, "doubted": self.doubted}
        for by, sample in self.samples.items():
            held |= {f"by{by}.{name}": array for name, array in sample.state.items()}
        return {f"audit.{name}": array for name, array in held.items()}

    def see(self, lane: Lane, k: np.ndarray, c: np.ndarray, row: int, work: dict) -> None:
        """See Auditing."""
        if self.drawn:
            self.drawn.see(lane, k, c, row, work)

    def observe(self, start: int, answers: Answers, q: np.ndarray | None = None) -> None:
        """See Auditing."""
        if start < self.heard:  # the same answers again, for another purpose
            return
        written = answers.rows
        if self.problem.out_dtype != self.problem.precision:
            with np.errstate(over="ignore"):
                written = written.astype(self.problem.out_dtype).astype(self.problem.precision)
        a, b = np.searchsorted(self.rows, [start, start + len(written)])
        mine = self.rows[a:b] - start
        self.approx[a:b] = written[mine]
        facts = facts_of_rows(written, answers.doubt)
        for by, sample in self.samples.items():
            wide = None
            if self.query_dim:
                assert q is not None, "the queries cannot be read again"
                wide = partial(self._wide, q, start)
            sample.offer(start, facts[:, by], facts, written, wide)
        self.facts[a:b] = facts[mine]
        self.doubted += (facts[:, DOUBT] > 0).sum()
        flagged = ((answers.doubt >= 1).any(axis=1) & ~np.isnan(answers.rows).any(axis=(1, 2))).sum()
        self.tally += len(written), flagged

    def _wide(self, q: np.ndarray, start: int, i: int) -> np.ndarray:
        return wide_queries(self.problem, self.lanes, q, i, start + i)

    def repaired(self, rows: np.ndarray, heads: np.ndarray, answers: np.ndarray) -> None:
        """See Auditing."""
        mine = np.isin(rows, np.concatenate([self.rows, self._chosen().rows]))
        places = zip(map(int, rows[mine]), map(int, heads[mine]), strict=True)
        self.exactly |= zip(places, answers[mine].astype(self.problem.out_dtype), strict=True)

    def second(self) -> ExactRows | ExactSequences | None:
        """See Auditing."""
        chosen = self._chosen()
        if not len(chosen.rows):
            return None
        q = read_queries(self.problem, self.lanes, chosen.rows) if not self.query_dim else self._held(chosen.rows)
        return exact_rows(self.problem, self.lanes, chosen.rows, q)

    def estimate(
        self, second: ExactRows | ExactSequences | None, work: dict, repaired: bool = False
    ) -> tuple[Audit | None, str | None]:
        """See Auditing."""
        found = []
        if self.drawn:
            found.append((Heard(self.rows, self.approx, self.facts), *self.drawn.answers(work)))
        if second:
            found.append((self._chosen(), *second.answers(work)))
        rows = np.concatenate([heard.rows for heard, *_ in found])
        order = np.argsort(rows)
        shares = [s for *_, s in found if s is not None]
        parts = [(e, t, heard.approx, heard.facts) for heard, e, t, _ in found]
        share = _merged(shares, order) if len(shares) == len(found) else None
        found.clear()
        exact, trivial, approx, facts = (_merged(list(part), order) for part in zip(*parts, strict=True))
        del parts, shares
        design = Design(rows[order], self._chances(rows[order], facts), self.problem.q.rows or self.heard)
        told = share, facts[:, FLAGGED] > 0, int(self.tally[1]), self.problem.q.sequences
        audit, reason = compare_answers(exact, trivial, approx, design, *told)
        if audit and self.doubted[0] and not facts[:, DOUBT].any():  # the sample has none of the rows that may be wrong
            audit = replace(audit, method=replace(audit.method, enough=False))
        if audit and repaired:
            approx = approx.copy()
            for (row, head), written in self.exactly.items():
                approx[np.searchsorted(design.rows, row), head] = written
            after, _ = compare_answers(exact, trivial, approx, design, *told)
            return replace(after, before=audit.method) if after else None, None
        return audit, reason

    def _chosen(self) -> Heard:
        """The rows of the second pass, sorted."""
        slots = [(sample, i) for sample in self.samples.values() for i in range(sample.chosen.stop)]
        by_row = {int(sample.rows[i]): (sample.answers[i], sample.facts[i]) for sample, i in slots}
        mine = {} if self.drawn else {int(row): (self.approx[i], self.facts[i]) for i, row in enumerate(self.rows)}
        done = set(map(int, self.rows)) if self.drawn else set()
        found = sorted((row, *held) for row, held in (by_row | mine).items() if row not in done)
        heads, dv = self.approx.shape[1:]
        return Heard(
            np.array([row for row, *_ in found], np.int64),
            np.array([a for _, a, _ in found], np.float64).reshape(-1, heads, dv),
            np.array([f for *_, f in found]).reshape(-1, FACTS),
        )

    def _held(self, rows: np.ndarray) -> np.ndarray:
        held = {int(row): q for s in self.samples.values() for row, q in zip(s.rows, s.queries, strict=True)}
        return np.array([held[int(row)] for row in rows], TRUTH).transpose(1, 0, 2).copy()

    def _chances(self, rows: np.ndarray, facts: np.ndarray) -> np.ndarray:
        """How likely each row was to be in the sample, by any of the ways into it."""
        missed = 1 - self.strata.chances(rows) if self.strata else np.ones(len(rows))
        for by, sample in self.samples.items():
            missed = missed * (1 - sample.chances(rows, facts[:, by]))
        return np.clip(1 - missed, 1e-12, 1.0)


def _merged(parts: list[np.ndarray], order: np.ndarray) -> np.ndarray:
    """The rows of all parts, in order; one part is in order already."""
    if len(parts) == 1:
        return parts[0]
    merged = np.empty((len(order), *parts[0].shape[1:]))
    place, at = np.argsort(order), 0
    for part in parts:
        merged[place[at : at + len(part)]] = part
        at += len(part)
    return merged


def size_share(problem: Problem, rows: int) -> int:
    """How many of `rows` audited rows are chosen by each of the two sizes."""
    again = problem.k.tensor.seekable and problem.v.tensor.seekable
    everything = problem.q.rows is not None and rows >= problem.q.rows
    return rows // 4 if again and rows >= LEAST_BY_SIZE and not everything else 0


def compare_answers(
    exact: np.ndarray,
    trivial: np.ndarray,
    approx: np.ndarray,
    design: Design,
    shares: np.ndarray | None = None,
    flagged: np.ndarray | None = None,
    flagged_rows: int = 0,
    sequences: Sequences | None = None,
) -> tuple[Audit | None, str | None]:
    """The audit of answers (rows, heads, dv), NaN where a query was dropped; or the reason why there is none.

    shares (rows, heads): of the exact attention, what falls on the history. flagged (rows,): those that the method does
    not answer for, `flagged_rows` in all. An answer that is infinite, or whose exact one is unknown, is infinitely
    wrong.
    """
    good = ~np.isnan(approx).any(axis=(1, 2))
    if not good.any():
        return None, "every sampled query was dropped"
    design, weight = design.only(good), 1 / design.chances[good]
    if not good.all():
        exact, trivial, approx = exact[good], trivial[good], approx[good]
    if (unit := _unit(exact)) != 1:
        exact, trivial, approx = exact / unit, trivial / unit, approx / unit
    with np.errstate(over="ignore", invalid="ignore"):
        size = (exact**2).sum(axis=2)
        wrong, nothing = (((other - exact) ** 2).sum(axis=2) for other in (approx, trivial))
        wrong, nothing = (np.where(np.isnan(squares), np.inf, squares) for squares in (wrong, nothing))
        size = np.nan_to_num(size, nan=0.0, posinf=0.0)
    together = size.sum(axis=1)
    method, zero, *heads = estimate(
        np.column_stack([wrong.sum(axis=1), nothing.sum(axis=1), wrong]), np.column_stack([together, together, size]),
        design,
    )  # fmt: skip
    edges, pieces = by_position(wrong, size, design)
    worst = worst_rows(wrong, size, design.rows, sequences)
    mass = () if shares is None else tuple(map(float, np.average(shares[good], axis=0, weights=weight)))
    apart = None
    if flagged is not None and (met := flagged[good]).any():
        (error,) = estimate(wrong.sum(axis=1)[met][:, None], together[met][:, None], design.only(met))
        apart = Flagged(flagged_rows, int(met.sum()), error, float(norm_of(weight[met] @ together[met], unit)))
    elif flagged_rows:
        apart = Flagged(flagged_rows, 0, None)
    norm = float(norm_of(weight @ together, unit))
    return Audit(
        int(good.sum()),
        method,
        zero,
        tuple(heads),
        tuple(edges),
        tuple(map(tuple, pieces)),
        worst,
        history_mass=mass,
        flagged=apart,
        norm=norm,
        norms=tuple(map(float, norm_of(weight @ size, unit))),
        sequences=by_sequence(wrong, size, design, sequences, unit) if sequences else (),
    ), None


def _unit(exact: np.ndarray) -> float:
    """A power of two to count answers in, so that the squares of their squares are within the range of float64."""
    largest = float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0))
    exponent = int(np.frexp(largest)[1])
    return 2.0 ** min(exponent, 1000) if abs(exponent) > SAFE and largest else 1.0
