"""`--share adaptive`: one budget over the key heads of all layers, divided by the error of each on its first rows.

Every key head answers its first rows with half, all and twice of an equal share, and is audited. What follows from that
(engine/planning/shares.py) depends on the input and the settings alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from streamattn_cli.engine.jobs.piece_run import Job, PieceTask
from streamattn_cli.engine.jobs.pieces import Piece
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.planning.shares import Curve, divide
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.watch.events import Audit
from streamattn_cli.errors import CannotMeet, UsageError
from streamattn_cli.options import spelling
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.headparams import spec_bytes

FIRST_ROWS = 2048  # that are tried, and as many as TIMES an equal share
TIMES = 8
AUDITED = 128
BY_HAND = ("sinks", "window", "buffer", "atoms")


@dataclass(frozen=True)
class Tried:
    """A sheet of a job whose heads are tried: its request and problem, the least that a head may get, and the numbers of rows
    to try, which rise."""

    request: AttendRequest
    problem: Problem
    least: int
    sizes: tuple[int, ...]

    @property
    def equal(self) -> int:
        """Resident rows of every key head in equal shares."""
        return self.problem.request.budget

    def piece(self, head: int) -> Piece:
        """The first rows of a key head."""
        wanted = max(FIRST_ROWS, TIMES * self.equal)
        if not self.problem.sequences:
            return Piece(heads=(head, head + 1), first=wanted)
        edges = np.minimum(self.problem.k.several.edges, self.problem.q.several.edges)
        return Piece(heads=(head, head + 1), sequences=(0, min(len(edges) - 1, int(np.searchsorted(edges, wanted)))))


def tried(request: AttendRequest, problem: Problem) -> Tried:
    """What is tried of a sheet. Raises UsageError where its method is not given a number of rows."""
    given = [spelling(name) for name in BY_HAND if getattr(request, name) is not None]
    if "resident_rows" not in registry.find(problem.method).options or given:
        raise UsageError(
            f"--share adaptive divides resident rows: {given[0] if given else '--method ' + problem.method} decides otherwise; "
            "omit one of them"
        )
    if problem.local or problem.later:
        why = "--local gives the rows itself" if problem.local else "here keys come before the queries"
        raise CannotMeet(
            f"{problem.k.tensor.name}: --share adaptive tries the first rows of queries and keys with several numbers of "
            f"resident rows, and {why}; omit --share"
        )
    equal = problem.request.budget
    least = _least(request, equal)
    return Tried(request, problem, max(least, equal // 4), tuple(sorted({max(least, equal // 2), equal, 2 * equal})))


def tasks(sheet: Tried, job: Job) -> Iterator[PieceTask]:
    """The trials of a sheet, head by head; job: what they share."""
    assert isinstance(job.request, AttendRequest), "memory of a sketch that is there is not divided"
    job = replace(job, request=replace(job.request, audit=AUDITED, repair=None, doubt=None), out=None, doubts=None)
    for head in range(len(sheet.problem.k)):
        for rows in sheet.sizes:
            yield PieceTask(job, sheet.piece(head), rows)


def shares(sheets: list[Tried], audits: list[Audit | None]) -> list[list[int]]:
    """Resident rows of every key head of every sheet, from the audits of all trials in their order."""
    if len({sheet.problem.params.row_bytes for sheet in sheets if sheet.problem.params}) != 1:
        raise CannotMeet("--share adaptive: rows of some layers are larger than those of others; run them apart")
    curves, found = [], iter(audits)
    for sheet in sheets:
        whole = sheet.problem.q.rows or 1
        for head in range(len(sheet.problem.k)):
            piece = sheet.piece(head)
            first, stop = piece.rows(sheet.problem)
            errors = [next(found) for _ in sheet.sizes]
            if None in errors:
                raise CannotMeet(f"--share adaptive: key head {head} has no audited row among its first {stop - first}")
            squares = [(a.norm * a.method.error) ** 2 * whole / (stop - first) for a in errors if a]
            curves.append(Curve(sheet.sizes, tuple(squares)))
    total = sum(sheet.equal * len(sheet.problem.k) for sheet in sheets)
    most = max(sheet.problem.longest or total for sheet in sheets)
    rows = divide(curves, total, max(sheet.least for sheet in sheets), most)
    taken = iter(rows)
    return [[next(taken) for _ in range(len(sheet.problem.k))] for sheet in sheets]


def resident_bytes(request: AttendRequest, rows: list[int]) -> list[int]:
    """Bytes of the state of key heads with these numbers of resident rows."""
    with open_inputs(request.inputs, apart=True) as inputs:
        at = {count: resolve(with_rows(request, count), inputs).params for count in set(rows)}
    return [spec_bytes(params.state_spec()) for count in rows if (params := at[count])]


def with_rows(request: AttendRequest, rows: int) -> AttendRequest:
    """The request with this number of resident rows for every key head."""
    return replace(request, resident_rows=rows, memory_per_layer=None)


def _least(request: AttendRequest, equal: int) -> int:
    """The least number of resident rows that the method can work with, up to an equal share."""
    with open_inputs(request.inputs, apart=True) as inputs:

        def works(rows: int) -> bool:
            try:
                resolve(with_rows(request, rows), inputs)
            except UsageError:
                return False
            return True

        low, high = 1, equal  # the latter works: it is what was asked for
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if works(middle) else (middle + 1, high)
        return high
