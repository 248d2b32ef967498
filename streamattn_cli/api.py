"""What the command does, for Python programs and notebooks: attend, audit, compare, and sketches, fed with arrays."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from streamattn_cli.api_inputs import array_of, check_dtype, heads_of_array, inputs_of, like, request_of, run_of
from streamattn_cli.checkpoint.commit import save
from streamattn_cli.engine.jobs.compare import Comparison, audit_answers, compare_on
from streamattn_cli.engine.jobs.merge import heads_of, merge_files, packed
from streamattn_cli.engine.jobs.query import answer, queries_problem
from streamattn_cli.engine.jobs.sketch import (
    SketchFile,
    keys_problem,
    open_sketch_file,
    sketch_facts,
)
from streamattn_cli.engine.passes.open_run import check_finite, make_run
from streamattn_cli.engine.passes.pump import Watch
from streamattn_cli.engine.passes.run import SketchRun
from streamattn_cli.engine.planning.footprint import FIRST_ROWS
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.requests import CompareRequest
from streamattn_cli.engine.request.settings import read_budgets
from streamattn_cli.engine.saving.saver import stack_heads
from streamattn_cli.engine.saving.sources import key_sources
from streamattn_cli.engine.watch.events import Audit, Event, Note
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.engine.workers.lanes import STEP
from streamattn_cli.errors import CannotMeet, InputMalformed, UsageError
from streamattn_cli.rows.inputs.open import Inputs
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.memory import MemoryTensor
from streamattn_cli.rows.writers.base import ArrayWriter, Nowhere

LOG = logging.getLogger("streamattn")


@dataclass(frozen=True)
class Answered:
    """Answers (rows, query heads, value_dim), or (rows, value_dim) to queries (rows, dim), and how wrong they are: audit (see
    engine/watch/events.py; None without audit=N), or the reason why there is none. facts: method, settings and shapes;
    counts: what was clipped or dropped; notes: what was inferred."""

    out: np.ndarray
    audit: Audit | None
    audit_reason: str | None
    facts: dict
    counts: dict
    notes: tuple[str, ...]


def attend(
    q: object, k: object = None, v: object = None, *, causal: bool | None = None, audit: int = 0, **settings: object
) -> Answered:
    """`streamattn attend`: answers to q over k and v in constant memory.

    Arrays (rows, heads, dim) or (rows, dim), or tensors of PyTorch; or words of the command: three of FILE or FILE:DATASET,
    or one file that holds q, k and v. Settings are the options of the command with underscores. Raises WrongSetting and
    the errors of the command.
    """
    request = run_of(settings, causal=causal, audit=audit)
    with inputs_of(q, k, v) as inputs:
        plan = make_plan(resolve(request, inputs))
        problem = plan.problem
        out = np.empty((problem.q.count, len(problem.q), problem.v.dim), problem.out_dtype)
        run = make_run(plan, _unwatched(plan), ArrayWriter(out))
        try:
            _, found, reason = run.go()
        finally:
            run.close()
        counts = run.counts()
        check_finite(counts, request.nan_policy, "the answers")
        return Answered(like(q, out), found, reason, problem.facts(), counts, tuple(map(str, problem.notes)))


def audit(
    answers: np.ndarray, q: object, k: object = None, v: object = None, *, rows: int = 128, causal: bool | None = None,
    scale: object = None, seed: int = 0, first_query: object = None, local: object = None, sink_logit: object = None,
    softcap: object = None, logit_bias: object = None,
) -> Audit:  # fmt: skip
    """How wrong are these answers, of whatever method? About `rows` of them are compared with exact attention.

    q, k and v are those of `attend`. Raises InputMalformed where the answers have another shape.
    """
    settings = {
        "scale": scale, "seed": seed, "first_query": first_query, "local": local, "sink_logit": sink_logit, "softcap": softcap,
        "logit_bias": logit_bias,
    }  # fmt: skip
    request = run_of(settings, causal=causal, audit=rows)
    with inputs_of(q, k, v) as inputs:
        array = array_of(answers)
        return audit_answers(array if array.ndim == 3 else array[:, None], request, inputs)


def compare(
    q: object, k: object = None, v: object = None, *, methods: str = "", resident_rows: int | str | Sequence[int | str] = 1024,
    causal: bool | None = None, audit: int = 128, **settings: object,
) -> Comparison:  # fmt: skip
    """`streamattn compare`: several methods in the same memory, against one exact truth.

    `methods` as on the command line ("nystrom,window"), `resident_rows` one number, or share of the keys ("5%"), or several.
    Each of the `trials` of what it returns has its audit; `to_dict` gives what --json prints.
    """
    budgets = read_budgets(",".join(map(str, np.atleast_1d(resident_rows))))
    request = replace(
        request_of(CompareRequest, settings, causal=causal, audit=audit), methods=methods, budgets=budgets
    )
    with inputs_of(q, k, v) as inputs:
        return compare_on(inputs, request, _log, Interrupts())


def open_sketch(path: str | os.PathLike) -> AttentionSketch:
    """The sketch in a file of `streamattn sketch`, `merge` or `AttentionSketch.save`.

    Raises InputMissing, CheckpointCorrupt, CheckpointIncompatible, MemoryBudget (streamattn_cli.errors).
    """
    sketch = AttentionSketch()
    sketch._file = open_sketch_file(os.fspath(path))
    return sketch


class AttentionSketch:
    """A sketch of keys and values of any number, of constant size, that answers attention queries.

        sketch = AttentionSketch(method="nystrom", resident_rows=512)
        for k, v in blocks:                  # (rows, heads, dim) or (rows, dim)
            sketch.absorb(k, v)
        out = sketch.query(q)                # (queries, query heads, dim) -> the same with value_dim
        sketch.save("all.sattn")             # what `streamattn query`, `merge` and `info` read

    Settings are the options of `streamattn sketch` with underscores, `scale` a number, "sqrt" or "d", `memory` a number of
    bytes or "512MiB"; values that they cannot have are refused at once (WrongSetting, a ValueError). float16, float32
    and float64 arrays are taken as they are, uint16 as bfloat16 bit patterns, tensors of PyTorch likewise;
    dtypes must not change on the way. Rows are absorbed as the command absorbs those of a pipe: how they are cut into
    blocks changes nothing, and the first 1024 wait until all of them are there, because settings are chosen by them. Other dtypes
    are refused (WrongDtype, a TypeError). Errors are those of streamattn_cli.errors, with the messages of the command.
    What was inferred goes to the logger `streamattn` (INFO). As a context, `with AttentionSketch(...) as sketch:`, it ends its
    threads, and its rows are gone unless they were saved.
    """

    def __init__(self, queries: np.ndarray | None = None, **settings: object):
        """`queries`: some typical ones, (n, query heads, dim) or (n, dim), for the methods that learn from them."""
        self._request = run_of(settings)
        self._queries = None if queries is None else heads_of_array(queries, "queries")
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []  # the first rows, until there are enough of them
        self._run: SketchRun | None = None
        self._file: SketchFile | None = None
        self._lost = False  # an interrupt left nobody knows what
        self._kind: list[tuple] | None = None  # shapes and dtypes of a row of k and v

    def __enter__(self) -> AttentionSketch:
        return self

    def __exit__(self, *_exc: object) -> None:
        """End the threads of the sketch, whose rows are gone then unless they were saved."""
        self._close()

    @property
    def rows(self) -> int:
        """Rows absorbed, dropped ones included."""
        waiting = sum(len(k) for k, _ in self._waiting)
        if self._run:
            return self._run.rows + waiting
        return (self._file.rows if self._file else 0) + waiting

    def absorb(self, k: np.ndarray, v: np.ndarray) -> None:
        """Take in the next rows: k (n, key heads, dim) or (n, dim), v (n, key heads, value_dim) or (n, value_dim).

        Raises InputMalformed where they do not fit each other or the rows before, NonFinite, and CannotMeet where the
        method cannot serve such rows; then the sketch is as it was before.
        """
        k, v = array_of(k), array_of(v)
        kind = self._check(k, v)
        self._check_whole()
        if self._run is None and self._file is None and self.rows + len(k) < FIRST_ROWS:
            self._waiting.append((k.copy(), v.copy()))  # the caller may use its arrays again
        elif len(k):
            if self._waiting:
                k, v = (np.concatenate(parts) for parts in zip(*self._waiting, (k, v), strict=True))
            self._absorb(k, v)
            self._waiting = []
        self._kind = kind

    def query(self, q: np.ndarray) -> np.ndarray:
        """Attention over all rows absorbed: q (n, query heads, dim) or (n, dim) -> (n, query heads, value_dim) or (n,
        value_dim), float32, float64 for float64 keys and values. More rows may be absorbed afterwards.

        Query head h looks at key head h // (query heads / key heads).
        """
        file, given = self._current(), array_of(q)
        inputs = Inputs(heads_of_array(given, "q"), None, None)
        plan = make_plan(queries_problem(self._request, file, inputs))
        out = np.empty((len(given), len(plan.problem.q), plan.problem.v.dim), plan.problem.out_dtype)
        answer(file, plan, _unwatched(plan), ArrayWriter(out))
        return out if given.ndim == 3 else out[:, 0]

    def audit(self, q: object, k: object, v: object, rows: int = 128) -> Audit:
        """How wrong are the answers to q? k and v are the keys and values that the sketch was made of, arrays or words of
        the command; about `rows` queries are answered exactly as well. Raises InputMalformed for other keys."""
        file = self._current()
        with inputs_of(q, k, v) as inputs:
            request = replace(self._request, audit=rows)
            plan = make_plan(queries_problem(request, file, inputs))
            found, reason = answer(file, plan, _unwatched(plan), Nowhere())[2:]
        if found is None:
            raise CannotMeet(f"audit: {reason}")
        return found

    def save(self, path: str | os.PathLike) -> None:
        """Write the sketch to a file, atomically and durably. Raises OutputFailed."""
        save(os.fspath(path), *packed(self._current()))

    def merge(self, *others: AttentionSketch) -> None:
        """Take in sketches of other rows, in order, as `streamattn merge` does; they stay as they are.

        Raises CheckpointIncompatible for other settings and for rows that two of them share.
        """
        files = [self._copied(), *(other._copied() for other in others)]
        self._file = replace(merge_files(files), name="merged sketch")
        self._close()

    def _absorb(self, k: np.ndarray, v: np.ndarray) -> None:
        """Absorb rows through the pass of the command, as a pipe that begins where the last rows ended."""
        done = self._run.rows if self._run else self._file.rows if self._file else 0
        parts = {name: heads_of_array(array, name, done) for name, array in (("k", k), ("v", v))}
        run = self._begin(parts) if self._run is None else self._run
        try:
            if done:
                items = [MemoryTensor(each, "THD" if each.ndim == 3 else "TD").items for each in (k, v)]
                run.check(items[0], items[1], done)
            else:
                run.begin()
        except BaseException:
            if not done:
                self._close()
            raise
        try:
            run.absorb_heads(parts["k"], parts["v"], done, min(self._block_rows, -(-len(k) // STEP) * STEP))
        except BaseException:  # of the first rows, or in the middle of others
            self._close()
            self._lost = bool(done)
            raise

    def _check(self, k: np.ndarray, v: np.ndarray) -> list[tuple]:
        """Whether k and v fit each other and the rows before; returns shapes and dtypes of their rows."""
        check_dtype(k, "k")
        check_dtype(v, "v")
        if len(k) != len(v) or k.ndim != v.ndim or k.ndim not in (2, 3) or k.shape[1:-1] != v.shape[1:-1]:
            raise InputMalformed(f"absorb: k {k.shape} and v {v.shape} found, expected (n, heads, dim) and (n, heads, "
                                 "value_dim), or (n, dim) and (n, value_dim)")  # fmt: skip
        kind = [(array.shape[1:], array.dtype.str) for array in (k, v)]
        if self._kind not in (None, kind):
            raise InputMalformed(f"absorb: rows of k and v like {kind} found, expected {self._kind} as before")
        return kind

    def _check_whole(self) -> None:
        if self._lost:
            raise UsageError("an absorb of this sketch was interrupted, and left it half done; begin another one")

    def _begin(self, parts: dict[str, Heads]) -> SketchRun:
        """Decide everything that the first rows decide, and make the empty state."""
        inputs = Inputs(self._queries, parts["k"], parts["v"])
        problem = keys_problem(self._request, inputs, self._file)
        plan = make_plan(problem)
        self._run = run = SketchRun(plan, _unwatched(plan))
        self._block_rows = plan.block_rows
        sources = key_sources(problem)
        self._facts, self._sources = sketch_facts(problem), [*(self._file.sources if self._file else []), *sources]
        if self._file:
            run.sketches.load(self._file.state, self._file.name)
            self._file = None
        return run

    def _current(self) -> SketchFile:
        """The sketch as it is now, over its living arrays."""
        self._check_whole()
        if self._waiting:
            self._absorb(*(np.concatenate(parts) for parts in zip(*self._waiting, strict=True)))
            self._waiting = []
        if self._file:
            return self._file
        run = self._run
        if run is None:
            raise UsageError("the sketch is empty: absorb keys and values first")
        params, heads = run.problem.head, len(run.sketches.heads)
        return SketchFile(
            "sketch", params, heads, run.sketches.save(), Phase.SKETCH, run.rows, self._facts, self._sources
        )

    def _copied(self) -> SketchFile:
        file = self._current()
        return replace(file, state=stack_heads([head.state for head in heads_of(file)], "head"))

    def _close(self) -> None:
        if self._run:
            self._run.close()
            self._run = None


def _unwatched(plan: Plan) -> Watch:
    for note in plan.problem.notes:
        _log(Note(note))
    return Watch(_log, Interrupts(), allowed=plan.allowed)


def _log(event: Event) -> None:
    """A listener: what was inferred goes to `logging`, as the command prints it."""
    if isinstance(event, Note):
        LOG.info("%s", event.text)
