"""The audits of parts that were answered apart, as one: squared errors add up by the squared norms of the exact answers.

The limits are those that would hold if every part were at its own, which is more than 95% allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from streamattn_cli.engine.audit.estimate import DOMINATED, worst_first
from streamattn_cli.engine.watch.events import Audit, ErrorEstimate, Flagged, SequenceError

FIGURES = ("error", "low", "high", "median_row", "p95_row")


def estimate_of(estimates: Sequence[ErrorEstimate], norms: Sequence[float]) -> ErrorEstimate:
    """One estimate of several, by the norms of their exact answers."""
    whole = sum(norm**2 for norm in norms) or 1.0

    def mean(name: str) -> float:
        squares = (norm**2 * getattr(each, name) ** 2 for each, norm in zip(estimates, norms, strict=True) if norm)
        return float((sum(squares) / whole) ** 0.5)

    return ErrorEstimate(**{name: mean(name) for name in FIGURES}, enough=_enough(estimates, norms))


def _enough(estimates: Sequence[ErrorEstimate], norms: Sequence[float]) -> bool:
    """Whether the limits can be trusted: no row stands for too much of a total. Where one does of a part, it stands for no more
    of all than that part does."""
    sizes = [norm**2 for norm in norms]
    for totals in (sizes, [size * each.error**2 for size, each in zip(sizes, estimates, strict=True)]):
        doubtful = [total for total, each in zip(totals, estimates, strict=True) if not each.enough and total]
        if doubtful and not max(doubtful) <= DOMINATED * sum(totals):
            return False
    return True


def of_layers(audits: Sequence[Audit]) -> Audit:
    """The audit of several layers; their heads stay with each of them."""
    return replace(_sums(audits), rows=sum(audit.rows for audit in audits))


def of_heads(audits: Sequence[Audit]) -> Audit:
    """The audit of a layer whose key heads were answered apart, in their order."""
    if len(audits) == 1:
        return audits[0]
    firsts = [sum(len(audit.heads) for audit in audits[:at]) for at in range(len(audits))]
    worst = [
        replace(row, head=first + row.head) for first, audit in zip(firsts, audits, strict=True) for row in audit.worst
    ]
    same = all(audit.edges == audits[0].edges for audit in audits)
    return replace(
        _sums(audits),
        rows=min(audit.rows for audit in audits),
        heads=_joined(audits, "heads"),
        norms=_joined(audits, "norms"),
        history_mass=_joined(audits, "history_mass"),
        edges=audits[0].edges if same else (),
        by_position=_joined(audits, "by_position") if same else (),
        worst=worst_first(worst),
        sequences=_sequences_of_heads(audits),
    )


def _sequences_of_heads(audits: Sequence[Audit]) -> tuple[SequenceError, ...]:
    """The errors of sequences by all heads: of those that a part has not audited, None."""
    found: dict[int, list[tuple[SequenceError | None, int]]] = {}
    known = [{one.sequence: one for one in audit.sequences} for audit in audits]
    for number in sorted({number for each in known for number in each}):
        found[number] = [(each.get(number), len(audit.heads)) for each, audit in zip(known, audits, strict=True)]
    return tuple(_sequence_of_heads(number, parts) for number, parts in found.items())


def _sequence_of_heads(number: int, parts: list[tuple[SequenceError | None, int]]) -> SequenceError:
    met = [one for one, _ in parts if one]
    norm = sum(one.norm**2 for one in met) ** 0.5
    error = sum((one.norm * one.error) ** 2 for one in met) ** 0.5 / (norm or 1.0)
    heads = tuple(error for one, count in parts for error in (one.heads if one else (None,) * count))
    return SequenceError(number, min(one.audited for one in met), error, norm, heads)


def of_sequences(audits: Sequence[Audit], edges: Sequence[int]) -> Audit:
    """The audit of a layer whose sequences, or whose queries, were answered apart, in their order; edges (audits + 1,): the
    rows at which each part begins, and the end."""
    if len(audits) == 1:
        return audits[0]
    norms = [[audit.norms[head] for audit in audits] for head in range(len(audits[0].heads))]
    heads = tuple(estimate_of([audit.heads[head] for audit in audits], each) for head, each in enumerate(norms))
    rows = [last - first for first, last in zip(edges, edges[1:], strict=False)]
    mass = zip(*(audit.history_mass for audit in audits), strict=True)
    return replace(
        _sums(audits),
        rows=sum(audit.rows for audit in audits),
        heads=heads,
        norms=tuple(sum(norm**2 for norm in each) ** 0.5 for each in norms),
        history_mass=tuple(sum(n * m for n, m in zip(rows, head, strict=True)) / sum(rows) for head in mass),
        edges=tuple(edges),
        by_position=tuple(tuple(audit.heads[head].error for audit in audits) for head in range(len(heads))),
        worst=worst_first([row for audit in audits for row in audit.worst]),
        sequences=_joined(audits, "sequences"),
    )


def numbered(audit: Audit, first: int) -> Audit:
    """The audit of rows from this one of a layer on, which it counts from 0."""
    return replace(audit, worst=tuple(replace(row, row=first + row.row) for row in audit.worst))


def _sums(audits: Sequence[Audit]) -> Audit:
    """What needs no division by heads or rows."""
    norms = [audit.norm for audit in audits]
    before = [audit.before for audit in audits]
    return Audit(
        0,
        estimate_of([audit.method for audit in audits], norms),
        estimate_of([audit.trivial for audit in audits], norms),
        flagged=_flagged([audit.flagged for audit in audits if audit.flagged]),
        before=estimate_of([each for each in before if each], norms) if all(before) else None,
        norm=sum(norm**2 for norm in norms) ** 0.5,
    )


def _flagged(parts: Sequence[Flagged]) -> Flagged | None:
    if not parts:
        return None
    met = [part for part in parts if part.error]
    error = estimate_of([part.error for part in met if part.error], [part.norm for part in met]) if met else None
    norm = sum(part.norm**2 for part in met) ** 0.5
    return Flagged(sum(part.rows for part in parts), sum(part.audited for part in parts), error, norm)


def _joined(audits: Sequence[Audit], name: str) -> tuple:
    return tuple(each for audit in audits for each in getattr(audit, name))
