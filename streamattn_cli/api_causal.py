"""Causal attention of one layer, step by step, for Python programs: what a language model asks of its cache."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from streamattn_cli.api_inputs import array_of, check_dtype, heads_of_array, run_of
from streamattn_cli.checkpoint.commit import save
from streamattn_cli.checkpoint.container import read
from streamattn_cli.engine.jobs.sketch import sketch_facts
from streamattn_cli.engine.passes.warm import warm
from streamattn_cli.engine.planning.footprint import work_spec
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.saving.saver import check_schema, describe, stack_heads, unstack_heads
from streamattn_cli.engine.watch.events import Listener
from streamattn_cli.engine.watch.meter import available_memory
from streamattn_cli.engine.workers.lanes import Answers, Lane
from streamattn_cli.engine.workers.pool import Workers, default_threads
from streamattn_cli.errors import CannotMeet, CheckpointIncompatible, InputMalformed, NonFinite, UsageError
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.inputs.open import Inputs
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.bend import Bend
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams, allocate
from streamattn_cli.sketches.method import History

PHASE = "causal steps"  # of a saved CausalAttention
Hook = Callable[[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]

_shared: WeakValueDictionary[tuple, _Crew] = WeakValueDictionary()  # the layers of a model take turns


class _Crew(Workers):
    """Workers that several layers of the same shapes share; `lock` is held during a step."""

    def __init__(self, threads: int, spec: dict):
        super().__init__(threads, spec)
        self.lock = threading.Lock()

    @staticmethod
    def of(threads: int, spec: dict) -> _Crew:
        """The workers for so many threads and these scratch arrays: those that there are, or new ones."""
        key = threads, json.dumps(spec, sort_keys=True)
        crew = _shared.get(key)
        if crew is None:
            crew = _shared[key] = _Crew(threads, spec)
        return crew


class CausalAttention:
    """Causal attention of all heads of one layer, in memory that does not grow with the stream.

        layer = CausalAttention(method="nystrom", resident_rows=512, rope="10000:half")
        for q, k, v in blocks:               # (rows, heads, dim), or (rows, dim); any number of rows, one by one too
            out = layer.step(q, k, v)        # (rows, query heads, value_dim): each row attends to those up to itself
        layer.save("layer.sattn")            # CausalAttention.load goes on after the last row

    The answers are those of `streamattn attend --causal` of a pipe, byte for byte, however the rows are cut into steps.
    Settings are those of AttentionSketch, and `rope` (--rope); dtypes, too: float16, float32, float64, uint16 as bfloat16
    bit patterns, tensors of PyTorch. Query head h looks at key head h // (query heads / key heads). Answers are float32,
    float64 where an input is that. Methods that look at the first rows before they begin (poly, auto) and `exact`, which
    keeps nothing, are refused (CannotMeet). Steps of one object must not overlap; those of several may.

    audit: a function that is called after every step with (row, q, k, v, out, doubt): the number of the first row, what
    was given and answered, and doubt (rows, query heads) float32, about how large the relative error of each answer is
    (1 and more: not to be trusted). It may keep what it wants to compare with exact answers.
    """

    def __init__(self, audit: Hook | None = None, rope: str | None = None, **settings: object):
        self._request = run_of(settings, causal=True, rope=rope)
        if self._request.method in ("exact", "auto"):
            raise CannotMeet(
                f"method {self._request.method} "
                + ("keeps no state" if self._request.method == "exact" else "looks at the first rows before it begins")
                + "; use nystrom, evict, window or another method that keeps rows"
            )
        self.audit = audit
        self._problem: Problem | None = None
        self._done = 0  # rows in the sketches; for a method that learns from whole groups a multiple of these
        self._waiting: list[np.ndarray] = []  # q, k and v of the group under way, each (1, n, items)

    @property
    def rows(self) -> int:
        """Rows answered so far."""
        return self._done + (self._waiting[0].shape[1] if self._waiting else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of the state: sketches, and rows of a group that wait at most. 0 before the first step."""
        if self._problem is None:
            return 0
        row = sum(self._widths[name] * np.dtype(self._held[name]).itemsize for name in "qkv")
        waiting = (self._group - 1) * row if self._learns else 0
        return sum(array.nbytes for sketch in self._sketches for array in sketch.state.values()) + waiting

    def step_bytes(self, rows: int) -> int:
        """Bytes that a step of so many rows takes beside the state, for a while, at most; 0 before the first step."""
        if self._problem is None:
            return 0
        parts, crew = make_plan(self._problem).parts, len(self._crew.works)
        (heads, dim), precision = self._answer_shape
        row = 2 * sum(
            self._widths[name] * np.dtype(self._held[name]).itemsize for name in "qkv"
        )  # as given, and in one block
        row += heads * (2 * dim * np.dtype(precision).itemsize + 4)
        copies = self.nbytes // len(self._sketches) * crew if self._learns else 0  # that answer the group under way
        fixed = sum(parts.get(name, 0) for name in ("work", "compression", "slack"))
        return fixed + copies + row * (rows + (self._group - 1) * self._learns)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was inferred from the settings and the first step."""
        return tuple(map(str, self._problem.notes)) if self._problem else ()

    def facts(self) -> dict:
        """Method, settings and shapes, as `streamattn attend --json` has them; empty before the first step."""
        return self._problem.facts() if self._problem else {}

    def step(self, q: object, k: object, v: object) -> np.ndarray:
        """Take in the next rows, q (n, query heads, dim), k (n, key heads, dim), v (n, key heads, value_dim), or one head
        without its axis, and answer them: (n, query heads, value_dim), or (n, value_dim).

        Raises InputMalformed where they do not fit each other or the rows before, NonFinite, MemoryBudget, and CannotMeet
        where the method cannot serve such rows; then the state is as it was before.
        """
        given = [array_of(part) for part in (q, k, v)]
        self._check(given)
        blocks = [
            np.ascontiguousarray(part).view(self._held[name]).reshape(1, len(part), self._widths[name])
            for name, part in zip("qkv", given, strict=True)
        ]
        with self._crew.lock:
            self._check_finite(blocks)
            answers = self._step(blocks)
        if self._request.nan_policy != "drop" and not np.isfinite(answers.rows).all():
            raise NonFinite("step: answers are not finite: sums of values or logits go beyond the range of the dtype")
        out = answers.rows if given[0].ndim == 3 else answers.rows[:, 0]
        if self.audit:
            self.audit(self.rows - len(out), given[0], given[1], given[2], out, answers.doubt)
        return out

    def warm(self, listener: Listener = lambda event: None) -> None:
        """Compile or load now what later steps use; the listener hears of kernels that are compiled. UsageError before the first
        step, which may be one of no rows."""
        if self._problem is None:
            raise UsageError("nothing to warm: take a step first, of no rows if you like")
        warm(make_plan(self._problem), listener)

    def save(self, path: str | os.PathLike) -> None:
        """Write the state to a file, atomically and durably. Raises OutputFailed, and UsageError before the first step."""
        if self._problem is None:
            raise UsageError("nothing to save: take a step first")
        state = stack_heads([sketch.state for sketch in self._sketches], "head")
        state |= {f"waiting.{name}": part for name, part in zip("qkv", self._waiting, strict=False)}
        facts = sketch_facts(self._problem) | {
            "rows": {name: [shape, dtype] for name, (shape, dtype) in self._kinds.items()}
        }
        save(os.fspath(path), state, describe(facts, PHASE, self._done, {}, None))

    @classmethod
    def load(cls, path: str | os.PathLike, audit: Hook | None = None, threads: int | None = None) -> CausalAttention:
        """What `save` wrote. Raises InputMissing, CheckpointCorrupt, CheckpointIncompatible, MemoryBudget."""
        name = os.fspath(path)
        state, meta = read(name, available_memory())
        check_schema(name, meta)
        if meta["phase"] != PHASE:
            raise CheckpointIncompatible(f"{name}: not saved by CausalAttention; a sketch is opened by open_sketch")
        facts = json.loads(meta["params"])
        settings = {"method": facts["method"], "seed": facts["seed"], "nan_policy": facts["nan_policy"]}
        self = cls(audit, threads=threads, **settings)
        self._begin({part: (tuple(shape), dtype) for part, (shape, dtype) in facts["rows"].items()}, facts)
        unstack_heads({**state}, [sketch.state for sketch in self._sketches], "head", name)
        self._done = int(meta["rows"])
        self._waiting = [state[f"waiting.{part}"] for part in "qkv" if f"waiting.{part}" in state]
        return self

    def _check(self, given: list[np.ndarray]) -> None:
        """Whether q, k and v fit each other and the rows before; at the first step, decide everything."""
        for name, array in zip("qkv", given, strict=True):
            check_dtype(array, name)
        q, k, v = given
        lengths, axes = {len(part) for part in given}, {part.ndim for part in given}
        if len(lengths) > 1 or len(axes) > 1 or q.ndim not in (2, 3) or k.shape[1:-1] != v.shape[1:-1]:
            raise InputMalformed(
                f"step: q {q.shape}, k {k.shape} and v {v.shape} found, expected (n, query heads, dim), (n, key heads, dim) "
                "and (n, key heads, value_dim), or (n, dim) twice and (n, value_dim)"
            )
        kinds = {name: (part.shape[1:], part.dtype.str) for name, part in zip("qkv", given, strict=True)}
        if self._problem is None:
            self._begin(kinds)
        elif kinds != self._kinds:
            raise InputMalformed(f"step: rows of q, k and v like {kinds} found, expected {self._kinds} as before")

    def _begin(self, kinds: dict[str, tuple], facts: dict | None = None) -> None:
        """Decide everything that shapes and dtypes decide, or take it from the facts of a file; make the empty state."""
        none = {name: np.empty((0, *shape), np.dtype(dtype)) for name, (shape, dtype) in kinds.items()}
        heads = {name: heads_of_array(array, name, 0) for name, array in none.items()}
        if facts is None:
            problem = resolve(self._request, Inputs(heads["q"], heads["k"], heads["v"]))
        else:
            held = HeadParams.from_dict(facts["head"])
            problem = Problem(
                self._request, heads["q"], heads["k"], heads["v"], causal=True, scale=facts["scale"], method=facts["method"],
                precision=facts["precision"], params=held, notes=(),
                local=held.window if held.local else None, sink_logits=tuple(facts.get("sink_logits", ())),
                bend=Bend.of_facts(facts),
            )  # fmt: skip
        params = problem.params
        if params is None:
            raise CannotMeet(f"method {problem.method} keeps no state; use nystrom, evict or window")
        history = registry.history_of(params.history) if params.history else None
        self._learns = history is not None and history.learns
        if history and not self._learns and history.calibrate is not History.calibrate:
            raise CannotMeet(
                f"method {problem.method} looks at the first rows before it begins; use nystrom, evict or window"
            )
        threads = make_plan(problem).threads if facts is None else self._request.threads or default_threads()
        self._crew = _Crew.of(min(threads, len(problem.k)), work_spec(problem))
        self._lanes = [Lane(problem, at) for at in range(len(problem.k))]
        self._sketches = [HeadAttention(params, **problem.logits_of(lane.query_heads)) for lane in self._lanes]
        self._group, self._kinds = params.group, kinds
        self._widths = {name: int(np.prod(shape)) for name, (shape, _) in kinds.items()}
        self._held = {name: DTYPES[part.tensor.dtype].holder for name, part in heads.items()}
        self._answer_shape = (len(problem.q), problem.v.dim), problem.precision
        self._problem = problem

    def _check_finite(self, blocks: list[np.ndarray]) -> None:
        """Raise NonFinite before anything is taken in."""
        if self._request.nan_policy == "drop":
            return
        q, k, v = blocks
        work = self._crew.works[0]
        for lane in self._lanes:
            if any(part.bad(block, 0, block.shape[1]) for part, block in ((lane.q, q), (lane.k, k), (lane.v, v))):
                for a, b in lane.steps(self.rows, q.shape[1]):
                    lane.keys(k, v, a, b, self.rows + a, work)
                    lane.queries(q, a, b, self.rows + a, work)

    def _step(self, new: list[np.ndarray]) -> Answers:
        """Answers to the new rows. A method that learns from whole groups learns from those that are complete; the rows of
        the group under way are answered with a copy of the state, and wait."""
        blocks, held = new, 0
        if self._waiting:
            held = self._waiting[0].shape[1]
            blocks = [np.concatenate(parts, axis=1) for parts in zip(self._waiting, new, strict=True)]
        rows = blocks[0].shape[1]
        whole = rows - rows % self._group if self._learns else rows
        (heads, dim), precision = self._answer_shape
        answers = Answers(np.empty((rows, heads, dim), precision), np.empty((rows, heads), np.float32))

        def task(lane: Any, work: dict) -> None:
            sketch = self._sketches[lane.index]
            for a, b in lane.steps(self._done, whole):
                self._answer(lane, sketch, blocks, a, b, answers, work)
            if whole < rows:
                sketch = _copy(sketch)
                for a, b in lane.steps(self._done + whole, rows - whole):
                    self._answer(lane, sketch, blocks, whole + a, whole + b, answers, work)

        self._crew.run(task, self._lanes)
        self._done += whole
        self._waiting = [block[:, whole:].copy() for block in blocks] if whole < rows else []
        return Answers(answers.rows[held:], answers.doubt[held:])

    def _answer(
        self, lane: Lane, sketch: HeadAttention, blocks: list, a: int, b: int, answers: Answers, work: dict
    ) -> None:
        """Rows [a, b) of the blocks of one key head: take them in, and answer them."""
        q, k, v = blocks
        row = self._done + a
        keys, values = lane.keys(k, v, a, b, row, work)
        queries = lane.queries(q, a, b, row, work)
        out, doubt = lane.answers(b - a, work)
        sketch.step(queries, keys, values, out, work, doubt)
        lane.put(out, doubt, answers, a, b, work)


def _copy(sketch: HeadAttention) -> HeadAttention:
    state = allocate(sketch.params.state_spec())
    for name, array in sketch.state.items():
        state[name][...] = array
    return HeadAttention(sketch.params, state, sketch.sink_logits, sketch.bend)
