"""A sketch made side by side, by threads, processes or a Dask cluster: ranges of rows, which are then merged, or key heads.

Shards are cut by the number asked for alone and merged in their order, so that neither the engine nor the number of
workers changes a byte. All of them see the same first rows, and so choose the same settings. Without --shards each task has all
rows of some key heads: the bytes are those of one pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from streamattn_cli.checkpoint.commit import CheckpointWriter
from streamattn_cli.engine.jobs.ceremony import Ceremony, announce, measured
from streamattn_cli.engine.jobs.executors import Engine, Stop, find_engine
from streamattn_cli.engine.jobs.merge import merge_heads
from streamattn_cli.engine.jobs.pieces import PIECES, Piece, cut_heads, narrow
from streamattn_cli.engine.jobs.sketch import keys_problem, sketch_facts
from streamattn_cli.engine.jobs.tasks import SEEN, check_room, divided, in_order, in_worker, portable
from streamattn_cli.engine.passes.pump import Watch
from streamattn_cli.engine.passes.run import SketchRun
from streamattn_cli.engine.planning.footprint import merging_bytes
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.requests import RunRequest, SketchRequest
from streamattn_cli.engine.saving.saver import describe, stack_heads
from streamattn_cli.engine.saving.sources import check_same, key_sources
from streamattn_cli.engine.watch.events import Finished, Listener, Outcome, Progress
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import UsageError
from streamattn_cli.rows.inputs.fingerprint import check_unchanged, file_states
from streamattn_cli.rows.inputs.several_files import absolute, open_stream, wants_queries
from streamattn_cli.rows.tensors.heads import refuse_pipes
from streamattn_cli.rows.tensors.ranges import first_row
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import allocate
from streamattn_cli.versions import OURS

ALIGN = 512  # rows: shards begin where tiles and groups begin


@dataclass(frozen=True)
class Shard:
    """What a worker is told: which rows of which files, and how. Small, and holds no array."""

    request: RunRequest
    number: int
    first: int
    stop: int
    sources: tuple[dict, ...]  # what the files must be, also where the worker sees them
    version: str
    engine: str
    piece: Piece = Piece()  # of its key heads, where it has not all of them

    @property
    def name(self) -> str:
        """For messages."""
        return self.piece.name or f"shard {self.number} (rows {self.first}:{self.stop})"


@dataclass(frozen=True)
class Absorbed:
    """What a worker returns: the state arrays of every key head, and the rows it dropped."""

    states: list[dict[str, np.ndarray]]
    dropped: int
    bytes_read: int


def cut(rows: int, shards: int) -> list[tuple[int, int]]:
    """Ranges of about equal length whose borders are multiples of ALIGN; fewer than `shards` of a short stream."""
    borders = sorted({min(rows, -(-rows * i // (shards * ALIGN)) * ALIGN) for i in range(shards + 1)})
    return list(zip(borders, borders[1:], strict=False))


def absorb_shard(shard: Shard, stop: Stop | None = None) -> Absorbed:
    """Absorb one shard's rows; runs in a worker. Errors name the worker."""
    return in_worker(shard, _absorb, stop)


def sketch_shards(request: SketchRequest, listener: Listener, interrupts: Interrupts) -> Outcome:
    """Absorb keys and values into the sketch file `request.output` in `request.shards` shards.

    Without `shards` key heads are absorbed side by side. Raises what `sketch` does; UsageError for an unknown engine;
    CannotMeet for a pipe, which cannot be cut.
    """
    with ExitStack() as stack:
        inputs = stack.enter_context(open_stream(request.inputs, need_q=wants_queries(request.inputs)))
        files = file_states((heads.tensor for heads in inputs.heads.values()), request.query_model)
        problem = keys_problem(request.run(), inputs, None)
        asked = _check(request, problem)
        engine = find_engine(request.engine or "threads")
        rows = problem.k.count
        ranges = cut(rows, asked or 1)
        pieces = [Piece()] if asked else cut_heads(problem, PIECES)
        facts, sources = sketch_facts(problem), key_sources(problem, request.fingerprint)
        plan, share = _plan(
            narrow(problem, pieces[-1]), len(ranges) * len(pieces), engine, problem.sketch_bytes, bool(asked)
        )
        workers = plan.threads
        few = [f"{rows} rows make only {len(ranges)} shards"] if asked and len(ranges) < asked else []
        announce(replace(plan, problem=problem), listener, few, shards=len(ranges), workers=workers, engine=engine.word)
        writer = stack.enter_context(CheckpointWriter(request.output))
        told = request.run(inputs=absolute(request.inputs), memory=share, threads=1)
        shards = [
            Shard(told, i, a, b, tuple(sources), OURS, engine.word, piece)
            for piece in pieces
            for i, (a, b) in enumerate(ranges)
        ]
        dropped = [0]
        with measured(plan, listener, interrupts) as ceremony, engine.open(workers, interrupts) as opened:
            check_room(opened, make_plan(narrow(replace(problem, request=told), pieces[-1])) if engine.remote else plan)
            task = absorb_shard if engine.apart else partial(absorb_shard, stop=opened.stop)

            def states() -> Iterator[list[HeadAttention]]:
                for shard, done in zip(shards, in_order(opened, task, shards, interrupts), strict=True):
                    dropped[0] += done.dropped
                    ceremony.watch.count(bytes_read=done.bytes_read)
                    listener(_progress(shard, pieces, problem, ceremony))
                    yield [HeadAttention(problem.head, state) for state in done.states]

            work = allocate(problem.head.work_spec())
            heads = merge_heads(states(), work) if asked else [head for some in states() for head in some]
        check_unchanged(files)
        state = stack_heads([head.state for head in heads], "head")
        writer.commit(state, describe(facts, Phase.SKETCH, rows, {"absorbed": sources}, None))
        counts = {
            "dropped_keys": dropped[0],
            "clipped_keys": sum(int(head.state["counters"][3]) for head in heads),
        } | ({"shards": len(shards)} if asked else {})
        outcome = ceremony.outcome("sketch", rows, counts, request.output)
    listener(Finished(outcome))
    return outcome


def _absorb(shard: Shard, interrupts: Interrupts) -> Absorbed:
    with open_stream(shard.request.inputs, need_q=wants_queries(shard.request.inputs)) as inputs:
        problem = narrow(keys_problem(shard.request, inputs, None), shard.piece)
        here = [{part: portable(one) for part, one in source.items()} for source in key_sources(problem)]
        check_same(problem.k.tensor.name, shard.sources, here, SEEN)
        watch = Watch(lambda event: None, interrupts)
        run = SketchRun(make_plan(problem), watch)
        try:
            run.begin(first_row(problem.k.tensor) if shard.piece.heads else shard.first)
            run.absorb(shard.stop, shard.first)
        finally:
            run.close()
        dropped = run.counts()["dropped_keys"]
        return Absorbed([sketch.state for sketch in run.sketches.heads], dropped, watch.bytes_read)


def _check(request: SketchRequest, problem: Problem) -> int | None:
    """How many shards are asked for, of an input that can be cut; None for key heads."""
    shards = request.shards
    if shards is not None and shards < 1:
        raise UsageError(f"--shards {shards}: must be at least 1")
    refuse_pipes((problem.k, problem.v, problem.q), "--shards and --engine cut rows into pieces (omit them)")
    return shards


def _plan(problem: Problem, tasks: int, engine: Engine, all_bytes: int, merged: bool) -> tuple[Plan, int | None]:
    """The plan of all workers together, as many as asked for whose plans fit the budget; and the budget of one.

    problem: of one task, of which there are so many; all_bytes: of the sketches of all heads; merged: whether tasks are shards of
    the same heads. Workers of a cluster see to their own memory: only what waits here to be merged counts.
    """
    whole = make_plan(replace(problem, request=replace(problem.request, threads=1)))  # what not even one worker can do

    def held(workers: int) -> int:
        """What all become, what it is merged with, and those on their way."""
        merging = whole.sketch_bytes + merging_bytes(problem) if merged else 0
        return all_bytes + 2 * workers * whole.sketch_bytes + merging

    def one(share: int) -> Plan:
        return make_plan(replace(problem, request=replace(problem.request, threads=1, memory=share)))

    one_plan, workers, share = divided(whole, engine, tasks, held, one)
    parts = {} if engine.remote else {name: size * workers for name, size in one_plan.parts.items()}
    return replace(one_plan, threads=workers, allowed=whole.allowed, parts=parts | {"merging": held(workers)}), share


def _progress(shard: Shard, pieces: list[Piece], problem: Problem, ceremony: Ceremony) -> Progress:
    watch, meter = ceremony.watch, ceremony.meter
    done = shard.stop * (pieces.index(shard.piece) + 1) // len(pieces)
    return Progress(
        phase=Phase.SHARDS, rows=done, total=problem.k.rows, bytes=watch.bytes_read,
        seconds=time.monotonic() - ceremony.began, sketch_bytes=watch.sketch_bytes, memory_now=meter.now(),
        memory_peak=meter.peak(), memory_allowed=watch.allowed,
    )  # fmt: skip
