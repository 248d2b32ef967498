"""Which methods and settings are compared, and what each becomes within a budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from streamattn_cli.engine.planning.parameters import poly_bytes
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.requests import CompareRequest, RunRequest
from streamattn_cli.errors import UsageError
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.sketches.histories.monomials import feature_count
from streamattn_cli.sketches.histories.poly import MAX_DEGREE
from streamattn_cli.units import format_bytes

KINDS = {
    "effort": str, "bits": int, "score": str, "sinks": int, "window": int, "buffer": int, "atoms": int, "degree": int,
    "polynomial": str, "beta": float,
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A method with the settings that differ from the defaults."""

    label: str
    method: str
    settings: dict


def parse_candidates(text: str) -> list[Candidate]:
    """'nystrom,nystrom:effort=best:sinks=8,poly:degree=2' as candidates. Raises UsageError."""
    return [_candidate(word.strip()) for word in text.split(",") if word.strip()] or [
        Candidate(method.name, method.name, {}) for method in registry.usable() if method.compared
    ]


def _candidate(word: str) -> Candidate:
    method, *pairs = word.split(":")
    if method == "exact":
        raise UsageError("--methods exact: exact attention is what the others are measured against; omit it")
    if method not in registry.names():
        known = sorted(name for name in registry.names() if name != "exact")
        raise UsageError(f"--methods {method}: unknown; use some of {', '.join(known)}")
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if name not in KINDS or not equals:
            raise UsageError(f"--methods {word}: {pair!r} is not a setting; write {method}:NAME=VALUE with NAME one of "
                             f"{', '.join(KINDS)}")  # fmt: skip
        try:
            settings[name] = KINDS[name](value)
        except ValueError:
            raise UsageError(f"--methods {word}: {value!r} is not a value of {name}") from None
    return Candidate(word, method, settings)


def requests(
    request: CompareRequest, budgets: tuple[int, ...], candidates: list[Candidate], problem: Problem
) -> Iterator[tuple[str, int, RunRequest | str]]:
    """(label, resident rows, request) of every run; a reason in place of the request where there can be none.

    poly takes the largest degree that fits; one of a degree that was asked for runs once, whatever the budget.
    """
    head = HeadParams(problem.k.dim, problem.v.dim, problem.scale, problem.precision, storage=_stored(problem))
    one = head.row_bytes
    for budget in budgets:
        rows = budget // (one * len(problem.k)) if request.by_bytes else budget
        for candidate in candidates:
            changed = request.run(
                **{"method": candidate.method, "resident_rows": rows, "audit": 0, "max_error": float("inf")}
                | candidate.settings
            )
            if candidate.method != "poly":
                yield candidate.label, rows, changed
            elif "degree" in candidate.settings:
                if budget == budgets[0]:
                    yield candidate.label, rows, replace(changed, resident_rows=None)
            else:
                degree = _largest_degree(changed, head, rows * one)
                yield candidate.label, rows, (
                    replace(changed, degree=degree, resident_rows=None) if degree else
                    f"degree 1 alone takes {format_bytes(poly_bytes(changed, head, 1))} per key head, "
                    f"{format_bytes(rows * one)} are allowed"
                )  # fmt: skip


def _largest_degree(request: RunRequest, head: HeadParams, allowed: int) -> int:
    degree = 0
    while degree < MAX_DEGREE and feature_count(head.dim, degree + 1) * (head.value_dim + 1) * 8 <= allowed:
        degree += 1
    while degree and poly_bytes(request, head, degree) > allowed:
        degree -= 1
    return degree


def _stored(problem: Problem) -> str:
    k, v = problem.k.kept, problem.v.kept
    return k if k == v else problem.precision
