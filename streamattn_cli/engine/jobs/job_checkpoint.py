"""The checkpoint of a job: which pieces are answered and what came of them, and where its unfinished outputs are.

Pieces that are under way for long have checkpoints of their own beside it (NAME.piece-...), from which whoever gets them goes on:
after a worker was lost, or when the job is resumed, by whatever engine and number of workers. Pieces follow from the input.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from streamattn_cli.checkpoint.commit import CheckpointWriter
from streamattn_cli.checkpoint.container import read
from streamattn_cli.checkpoint.header import canonical_json
from streamattn_cli.engine.jobs.piece_run import Answered, Saving
from streamattn_cli.engine.jobs.sheet import Sheet
from streamattn_cli.engine.jobs.sheets import Joint
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.saving.resume import beside, checkpoint_there, facts_of, is_there, part_tag
from streamattn_cli.engine.saving.saver import check_facts, check_sources, describe, parse_every
from streamattn_cli.engine.watch.meter import available_memory
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.errors import CheckpointIncompatible, UsageError
from streamattn_cli.rows.inputs.layers import PLACE
from streamattn_cli.rows.writers.temporary import recover


class JobCheckpoint:
    """Saves a job as its pieces are answered. A context manager, which holds the lock of the file."""

    def __init__(self, request: AttendRequest, sheets: list[Sheet]):
        """Read what an earlier run has saved, and tell the sheets. Raises the errors of a checkpoint that does not fit."""
        name = request.checkpoint or ""
        if PLACE in name:
            raise UsageError(f"--checkpoint {name}: a job that is cut into pieces has one for all layers; omit {PLACE}")
        self._request, self._sheets, self._every = request, sheets, parse_every(request.checkpoint_every)
        self.facts = _facts(sheets)
        self.path = name
        self._writer = CheckpointWriter(name)
        self.tag = part_tag(self._writer)
        self._saved_at, self._saved_row = time.monotonic(), 0.0
        self._cleared: set[str] = set()  # files of pieces that are gone
        try:
            if checkpoint_there(name, request):
                self._load(name)
            for sheet in sheets:
                for at in range(len(sheet.pieces) if not sheet.parts else 0):  # of outputs that are gone
                    _remove(self._path(sheet, at))
        except BaseException:
            self._writer.close()
            raise

    def __enter__(self) -> JobCheckpoint:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._writer.close()

    def of_piece(self, sheet: Sheet, at: int) -> Saving:
        """How a piece is saved while it is answered."""
        return Saving(self._path(sheet, at), self._request.checkpoint_every, self.facts["job"]["digest"])

    def _path(self, sheet: Sheet, at: int) -> str:
        return f"{os.path.abspath(self.path)}.piece-{self._sheets.index(sheet)}-{at}"

    def reached(self, rows: float, joint: Joint | None) -> None:
        """So many rows of all sheets are answered; saves when it is time."""
        late = self._every.seconds is not None and time.monotonic() - self._saved_at >= self._every.seconds
        far = self._every.rows is not None and rows - self._saved_row >= self._every.rows
        if late or far:
            self._saved_row = rows
            self.save(joint)

    def save(self, joint: Joint | None, phase: Phase = Phase.PIECES) -> None:
        """Commit what is done, with the outputs durable up to there: from then on their unfinished files outlive a failure."""
        if joint:
            joint.keep()
        for sheet in self._sheets:
            sheet.keep()
        told = [
            {
                "sources": sheet.sources,
                "parts": sheet.parts,
                "done": {str(at): asdict(each) for at, each in sorted(sheet.done.items())},
            }
            for sheet in self._sheets
        ]
        rows = round(sum(sheet.rows_done for sheet in self._sheets))
        state = {"job": np.frombuffer(json.dumps(told).encode(), np.uint8)}
        self._writer.commit(state, describe(self.facts, phase, rows, self._sheets[0].sources, None))
        self._saved_at = time.monotonic()
        for sheet in self._sheets:
            over = {self._path(sheet, at) for at in sheet.done if not (sheet.left and sheet.pieces[at].keys)}
            for path in over - self._cleared:
                _remove(path)
            self._cleared |= over

    def _load(self, name: str) -> None:
        state, meta = read(name, self._request.memory or available_memory())
        check_facts(name, meta, self.facts)
        told = json.loads(bytes(np.asarray(state["job"])))
        for sheet, known in zip(self._sheets, told, strict=True):
            check_sources(name, {"source": json.dumps(known["sources"])}, sheet.sources)
            done = {int(at): rebuilt(Answered, each) for at, each in known["done"].items()}
            self._take_up(name, sheet, known["parts"], done)

    def _take_up(self, name: str, sheet: Sheet, parts: dict[str, str], done: dict[int, Answered]) -> None:
        """Where a sheet is: not begun, under way, or finished."""
        targets = {"out": sheet.request.output, "doubt": sheet.attended.doubt or ""}
        there = {key: part for key, part in parts.items() if beside(targets[key], part)}
        complete = len(done) == len(sheet.pieces)
        gone = [key for key in parts if key not in there]
        if not parts:  # its outputs were made after the last checkpoint
            return
        if gone and not (complete and all(is_there(targets[key]) for key in gone)):
            raise CheckpointIncompatible(
                f"{name}: the unfinished file {parts[gone[0]]} beside {targets[gone[0]]} is gone; put it back, or start "
                "again without --resume"
            )
        for key in gone:  # the run ended after it had its name
            recover(targets[key] + ".json", parts[key].split(".")[-2])
        lost = {at for at in done if sheet.pieces[at].keys and not os.path.exists(self._path(sheet, at))}
        left = {at: each for at, each in done.items() if complete or at not in lost}
        sheet.take_up(left, there, complete and not there)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _facts(sheets: list[Sheet]) -> dict:
    """What must agree for a job to be resumed: that of its first sheet in words, of all in a digest."""
    every = [
        facts_of(sheet.problem, sheet.problem.request.audit)
        | {"own": sheet.facts(), "pieces": [p.name for p in sheet.pieces]}
        for sheet in sheets
    ]
    digest = hashlib.sha256(canonical_json([sheet.name for sheet in sheets] + every).encode()).hexdigest()[:32]
    first = facts_of(sheets[0].problem, sheets[0].problem.request.audit)
    return first | {"job": {"sheets": len(sheets), "pieces": sum(len(s.pieces) for s in sheets), "digest": digest}}


def rebuilt(kind: Any, plain: Any) -> Any:
    """A value of this type from what JSON made of `asdict`."""
    if plain is None:
        return None
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: rebuilt(hints[f.name], plain[f.name]) for f in fields(kind)})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        return tuple(rebuilt(get_args(kind)[0], each) for each in plain)
    if get_origin(kind) in (Union, UnionType):
        return rebuilt(next(one for one in get_args(kind) if one is not NoneType), plain)
    return plain
