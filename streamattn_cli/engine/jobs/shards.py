"""A sketch made in shards: ranges of rows absorbed side by side, by threads, processes or a Dask cluster, then merged.

Shards are cut by the number asked for alone and merged in their order, so that neither the engine nor the number of
workers changes a byte. All of them see the same first rows, and so choose the same settings.
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
from streamattn_cli.engine.jobs.sketch import keys_problem, sketch_facts
from streamattn_cli.engine.jobs.tasks import SEEN, check_room, divided, in_order, in_worker, portable
from streamattn_cli.engine.passes.pump import Watch
from streamattn_cli.engine.passes.run import SketchRun
from streamattn_cli.engine.planning.footprint import merging_bytes
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.settings import AttendRequest
from streamattn_cli.engine.saving.saver import describe, stack_heads
from streamattn_cli.engine.saving.sources import check_same, key_sources
from streamattn_cli.engine.watch.events import Finished, Listener, Outcome, Progress
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import CannotMeet, UsageError
from streamattn_cli.rows.inputs.fingerprint import check_unchanged, file_states
from streamattn_cli.rows.inputs.several_files import absolute, open_stream, wants_queries
from streamattn_cli.sketches.head import HeadAttention, allocate
from streamattn_cli.versions import OURS

ALIGN = 512  # rows: shards begin where tiles and groups begin


@dataclass(frozen=True)
class Shard:
    """What a worker is told: which rows of which files, and how. Small, and holds no array."""

    request: AttendRequest
    number: int
    first: int
    stop: int
    sources: tuple[dict, ...]  # what the files must be, also where the worker sees them
    version: str
    engine: str

    @property
    def name(self) -> str:
        """For messages."""
        return f"shard {self.number} (rows {self.first}:{self.stop})"


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


def sketch_shards(request: AttendRequest, listener: Listener, interrupts: Interrupts) -> Outcome:
    """Absorb keys and values into the sketch file `request.checkpoint` in `request.shards` shards.

    Raises what `sketch` does; UsageError for an unknown engine; CannotMeet for a pipe, which cannot be cut.
    """
    with ExitStack() as stack:
        inputs = stack.enter_context(open_stream(request.inputs, need_q=wants_queries(request.inputs)))
        files = file_states(inputs.heads[part].tensor for part in "kv")
        problem = keys_problem(request, inputs, None)
        asked = _check(problem)
        engine = find_engine(request.engine or "threads")
        rows = problem.k.count
        ranges = cut(rows, asked)
        facts, sources = sketch_facts(problem), key_sources(problem)
        plan, share = _plan(problem, len(ranges), engine)
        workers = plan.threads
        few = [f"{rows} rows make only {len(ranges)} shards"] if len(ranges) < asked else []
        announce(plan, listener, few, shards=len(ranges), workers=workers, engine=engine.word)
        writer = stack.enter_context(CheckpointWriter(request.sketch))
        told = replace(request, inputs=absolute(request.inputs), memory=share, threads=1, checkpoint=None, resume=False)
        shards = [Shard(told, i, a, b, tuple(sources), OURS, engine.word) for i, (a, b) in enumerate(ranges)]
        dropped = [0]
        with measured(plan, listener, interrupts) as ceremony, engine.open(workers) as opened:
            check_room(opened, make_plan(replace(problem, request=told)) if engine.remote else plan)
            task = absorb_shard if engine.apart else partial(absorb_shard, stop=opened.stop)

            def states() -> Iterator[list[HeadAttention]]:
                for shard, done in zip(shards, in_order(opened, task, shards, interrupts), strict=True):
                    dropped[0] += done.dropped
                    ceremony.watch.bytes_read += done.bytes_read
                    listener(_progress(shard, problem, ceremony))
                    yield [HeadAttention(problem.head, state) for state in done.states]

            heads = merge_heads(states(), allocate(problem.head.work_spec()))
        check_unchanged(files)
        state = stack_heads([head.state for head in heads], "head")
        writer.commit(state, describe(facts, Phase.SKETCH, rows, {"absorbed": sources}, None))
        counts = {
            "dropped_keys": dropped[0],
            "clipped_keys": sum(int(head.state["counters"][3]) for head in heads),
            "shards": len(shards),
        }
        outcome = ceremony.outcome("sketch", rows, counts, request.sketch)
    listener(Finished(outcome))
    return outcome


def _absorb(shard: Shard, interrupts: Interrupts) -> Absorbed:
    with open_stream(shard.request.inputs, need_q=wants_queries(shard.request.inputs)) as inputs:
        problem = keys_problem(shard.request, inputs, None)
        here = [{part: portable(one) for part, one in source.items()} for source in key_sources(problem)]
        check_same(problem.k.tensor.name, shard.sources, here, SEEN)
        watch = Watch(lambda event: None, interrupts)
        run = SketchRun(make_plan(problem), watch)
        try:
            run.begin(shard.first)
            run.absorb(shard.stop, shard.first)
        finally:
            run.close()
        dropped = run.counts()["dropped_keys"]
        return Absorbed([sketch.state for sketch in run.sketches.heads], dropped, watch.bytes_read)


def _check(problem: Problem) -> int:
    """How many shards are asked for, of an input that can be cut."""
    shards = problem.request.shards
    if shards is None or shards < 1:
        raise UsageError(f"--shards {shards}: must be at least 1")
    for heads in (problem.k, problem.v, problem.q):
        if not heads.tensor.seekable:
            raise CannotMeet(
                f"{heads.tensor.name}: a pipe passes once and cannot be cut into shards; omit --shards, or write the "
                "rows to a file first"
            )
    return shards


def _plan(problem: Problem, shards: int, engine: Engine) -> tuple[Plan, int | None]:
    """The plan of all workers together, as many as asked for whose plans fit the budget; and the budget of one.

    Workers of a cluster see to their own memory: only what waits here to be merged counts.
    """
    whole = make_plan(replace(problem, request=replace(problem.request, threads=1)))  # what not even one worker can do

    def held(workers: int) -> int:
        """What all become, what it is merged with, and those on their way."""
        return (2 + 2 * workers) * whole.sketch_bytes + merging_bytes(problem)

    def one(share: int) -> Plan:
        return make_plan(replace(problem, request=replace(problem.request, threads=1, memory=share)))

    one_plan, workers, share = divided(whole, engine, shards, held, one)
    parts = {} if engine.remote else {name: size * workers for name, size in one_plan.parts.items()}
    return replace(one_plan, threads=workers, allowed=whole.allowed, parts=parts | {"merging": held(workers)}), share


def _progress(shard: Shard, problem: Problem, ceremony: Ceremony) -> Progress:
    watch, meter = ceremony.watch, ceremony.meter
    return Progress(
        phase=Phase.SHARDS, rows=shard.stop, total=problem.k.rows, bytes=watch.bytes_read,
        seconds=time.monotonic() - ceremony.began, sketch_bytes=watch.sketch_bytes, memory_now=meter.now(),
        memory_peak=meter.peak(), memory_allowed=watch.allowed,
    )  # fmt: skip
