"""Resuming a run: what its checkpoint must agree with, and where its inputs and its output are taken up again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamattn_cli.checkpoint.commit import CheckpointWriter
from streamattn_cli.checkpoint.container import read
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.request.settings import ResumeSettings
from streamattn_cli.engine.saving.saver import check_facts, check_sources
from streamattn_cli.engine.watch.meter import available_memory
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.errors import CheckpointIncompatible, UsageError
from streamattn_cli.rows.inputs.fingerprint import identity_of
from streamattn_cli.rows.targets import numbered
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.ranges import RangeTensor
from streamattn_cli.rows.tensors.resumed import ContinuedTensor
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.temporary import recover


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read: after row `done` of a phase, with the unfinished output if there is one."""

    name: str
    state: dict[str, np.ndarray | list[np.ndarray]]
    phase: Phase
    done: int
    part: tuple[str, int] | None  # file name beside the output, and how many of its rows count
    doubt: tuple[str, int] | None  # the same of --doubt; None when that is complete
    meta: dict[str, str]


def facts_of(problem: Problem, audit_rows: int) -> dict:
    """What must be the same for a run to be resumed; block sizes, threads and budgets may change."""
    facts = problem.facts()
    if problem.params:
        facts["head"] = problem.params.to_dict()
    if problem.sketches:
        facts["sketches"] = {"kind": problem.sketches.kind, "poly": problem.sketches.params.poly.to_dict()}
    r = problem.request
    if r.top_k:
        facts["top_k"] = [r.top_k, r.deviation]
    return (
        facts
        | {
            "audit_rows": audit_rows,
            "out_dtype": problem.out_dtype,
            "layout": problem.q.layout,
            "nan_policy": r.nan_policy,
            "query_model": r.query_model,
            "select": list(r.inputs.select or ()),
        }
        | ({"sequences": _borders(problem)} if problem.sequences else {})
        | ({"missing": r.inputs.missing} if r.inputs.missing != "error" else {})
        | ({"share": r.share} if r.share != "equal" else {})
        | {name: word for name, word in (("repair", r.repair), ("doubt", r.doubt and True)) if word}
    )


def _borders(problem: Problem) -> list[str]:
    """Digests of where the sequences of queries and keys begin."""
    several = [h.several for h in (problem.q, problem.k)]
    edges = [s.edges.tobytes() + (b"" if s.skipped is None else s.skipped.tobytes()) for s in several]
    return [hashlib.sha256(each).hexdigest()[:32] for each in edges]


def sources_of(problem: Problem, whole: bool = False) -> dict[str, dict]:
    """Identities of the inputs that there are; whole: by all of their bytes (--fingerprint)."""
    parts = {"q": problem.q, "k": problem.k, "v": problem.v}
    return {name: identity_of(heads, whole) for name, heads in parts.items() if heads.tensor.width}


def checkpoint_there(name: str | None, settings: ResumeSettings) -> bool:
    """Whether there is a checkpoint of this name to resume. Raises UsageError where nobody said whether to."""
    if name is None:
        if settings.resume:
            raise UsageError("--resume needs --checkpoint FILE")
        if settings.checkpoint_every != ResumeSettings.checkpoint_every:
            raise UsageError(f"--checkpoint-every {settings.checkpoint_every} needs --checkpoint FILE")
        return False
    if not os.path.isfile(name) or (settings.force and not settings.resume):
        return False  # of what is no file, its writer says why it cannot be one
    if not settings.resume:
        raise UsageError(f"{name}: there is a checkpoint already; continue with --resume, or start again with --force")
    return True


def find_saved(request: AttendRequest, facts: Mapping, sources: Mapping[str, dict]) -> Saved | None:
    """The checkpoint to resume, None to begin. Raises UsageError, and the errors of a checkpoint that does not fit."""
    name = request.checkpoint
    if not checkpoint_there(name, request) or name is None:
        return None
    found = read_saved(name, request.memory, facts, sources)
    meta, done = found.meta, found.done
    output = json.loads(meta["output"]) if "output" in meta else {}
    ended = output.get("ended") or done == sources_rows(sources)  # of a pipe nobody else knows
    part, doubt = ((output[key], output["rows"]) if key in output else None for key in ("part", "doubt"))
    if doubt and request.doubt and not beside(request.doubt, doubt[0]):
        if not (os.path.exists(request.doubt) and ended):
            raise CheckpointIncompatible(
                f"{name}: the unfinished file {doubt[0]} beside {request.doubt} is gone; put it back, or start again "
                "without --resume"
            )
        doubt = None  # the run ended between its last steps
    if part and not beside(request.output, part[0]):
        if is_there(request.output) and ended:
            recover(request.output + ".json", part[0].split(".")[-2])
            return replace(found, phase=Phase.DONE)  # it ended between its last two steps
        raise CheckpointIncompatible(
            f"{name}: the unfinished output {part[0]} beside {request.output} is gone; put it back, or start again "
            "without --resume"
        )
    return replace(found, part=part, doubt=doubt)


def read_saved(name: str, memory: int | None, facts: Mapping, sources: Mapping[str, dict]) -> Saved:
    """A checkpoint of a run with these facts and sources, but for its unfinished outputs. Raises the errors of a checkpoint
    that does not fit."""
    state, meta = read(name, memory or available_memory())
    check_facts(name, meta, facts)
    check_sources(name, meta, sources)
    return Saved(name, dict(state), _phase(name, meta), int(meta["rows"]), None, None, meta)


def _phase(name: str, meta: Mapping[str, str]) -> Phase:
    """The phase of a checkpoint. Raises CheckpointIncompatible for one that this version does not know."""
    try:
        return Phase(meta["phase"])
    except ValueError as error:
        raise CheckpointIncompatible(
            f"{name}: is in a phase {meta['phase']!r} that this version does not know; use the version of streamattn "
            f"that wrote it ({meta.get('created_by')})"
        ) from error


def is_there(output: str) -> bool:
    """Whether an output has its name."""
    return any(map(os.path.exists, numbered(output)))


def beside(output: str, part: str) -> bool:
    """Whether the unfinished file is there, in the folder of the output."""
    return os.path.exists(os.path.join(os.path.dirname(os.path.realpath(output)), part))


def answered_rows(problem: Problem, phase: Phase, done: int) -> int:
    """Queries that were answered when a run was at row `done` of a phase."""
    if phase == Phase.KEYS and problem.sequences and done:  # those of the sequences before
        number = int(np.searchsorted(problem.sequences.edges, done, side="left")) - 1
        return int(problem.q.several.edges[number])
    return done if phase.answers else 0


def part_tag(writer: CheckpointWriter) -> str:
    """What marks the unfinished output of runs that are saved in this checkpoint: its lock lets only one run at a time
    write it, and the next one overwrites what a killed one left."""
    return hashlib.sha256(os.fsencode(writer.path)).hexdigest()[:8]


def sources_rows(sources: Mapping[str, dict]) -> int | None:
    """Rows of the queries, None for a pipe."""
    rows = sources["q"].get("rows")
    return None if rows is None else int(rows)


def continued(problem: Problem, saved: Saved, skip_rows: int | None) -> Problem:
    """The problem with its pipes taken up where the checkpoint left them.

    A pipe is expected to begin again with its first row, and what has been done is dropped, unless --skip-rows says
    how many rows to drop (0: the pipe goes on by itself).
    """
    parts = {Phase.KEYS: "kv", Phase.ROWS: "qkv", Phase.QUERIES: "q"}
    if problem.sketches:  # keys and values pass apart
        parts |= {Phase.KEYS: "k", Phase.VALUES: "v", Phase.KEYS_AND_VALUES: "kv"}
    wrapped: dict[int, ContinuedTensor] = {}

    def wrap(heads: Heads) -> Heads:
        tensor = heads.tensor
        if tensor.seekable:
            return heads
        skip = saved.done if skip_rows is None else skip_rows
        if id(tensor) not in wrapped:
            wrapped[id(tensor)] = ContinuedTensor(RangeTensor(tensor, skip, None) if skip else tensor, saved.done)
        return replace(heads, tensor=wrapped[id(tensor)])

    wrapping: dict[str, Any] = {part: wrap(getattr(problem, part)) for part in parts.get(saved.phase, "")}
    return replace(problem, **wrapping)


def check_saveable(output: Writer | None) -> None:
    """Refuse outputs that cannot be resumed."""
    if output and output.unresumable:
        raise UsageError(f"{output.name}: {output.unresumable}")
