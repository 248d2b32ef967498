"""What the command does, for Python programs and notebooks: attend, audit, compare, and sketches, fed with arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np

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
from streamattn_cli.engine.request.requests import CompareRequest, RunRequest
from streamattn_cli.engine.request.scale import scale_value
from streamattn_cli.engine.saving.saver import stack_heads
from streamattn_cli.engine.saving.sources import key_sources
from streamattn_cli.engine.watch.events import Audit
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.engine.workers.lanes import STEP
from streamattn_cli.errors import CannotMeet, InputMalformed, UsageError
from streamattn_cli.options import options_of
from streamattn_cli.rows.inputs.checks import check_heads, check_rows
from streamattn_cli.rows.inputs.open import Inputs, open_inputs
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.heads import Heads, whole
from streamattn_cli.rows.tensors.memory import MemoryTensor
from streamattn_cli.rows.tensors.resumed import ContinuedTensor
from streamattn_cli.rows.writers.base import ArrayWriter, Nowhere

SETTINGS = (
    "method", "scale", "resident_rows", "effort", "bits", "score", "sinks", "window", "buffer", "atoms", "degree", "polynomial",
    "beta", "max_error", "memory", "seed", "threads", "block_rows", "nan_policy", "first_query", "local", "sink_logit",
    "softcap", "logit_bias",
)  # fmt: skip
TYPED = "first_query", "local", "sink_logit", "softcap", "logit_bias"  # numbers that the command takes as words
DTYPES = ("<f2", "<f4", "<f8", "<u2", "|V2", "<V2")
R = TypeVar("R", RunRequest, CompareRequest)


class WrongSetting(UsageError, ValueError):
    """A setting that there is not, or a value that it cannot have."""


class WrongDtype(InputMalformed, TypeError):
    """An array of numbers that are not taken for floats."""


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
    request = _request(settings, causal=causal, audit=audit)
    with _inputs(q, k, v) as inputs:
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
        return Answered(_like(q, out), found, reason, problem.facts(), counts, tuple(map(str, problem.notes)))


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
    request = _request(settings, causal=causal, audit=rows)
    with _inputs(q, k, v) as inputs:
        array = _array(answers)
        return audit_answers(array if array.ndim == 3 else array[:, None], request, inputs)


def compare(
    q: object, k: object = None, v: object = None, *, methods: str = "", resident_rows: int | Sequence[int] = 1024,
    causal: bool | None = None, audit: int = 128, **settings: object,
) -> Comparison:  # fmt: skip
    """`streamattn compare`: several methods in the same memory, against one exact truth.

    `methods` as on the command line ("nystrom,window"), `resident_rows` one number or several. Each of the `trials` of what
    it returns has its audit; `to_dict` gives what --json prints.
    """
    budgets = tuple(int(rows) for rows in np.atleast_1d(resident_rows))
    request = replace(_read(CompareRequest, settings, causal=causal, audit=audit), methods=methods, budgets=budgets)
    with _inputs(q, k, v) as inputs:
        return compare_on(inputs, request, lambda event: None, Interrupts())


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
    """

    def __init__(self, queries: np.ndarray | None = None, **settings: object):
        """`queries`: some typical ones, (n, query heads, dim) or (n, dim), for the methods that learn from them."""
        self._request = _request(settings)
        self._queries = None if queries is None else _heads(queries, "queries")
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []  # the first rows, until there are enough of them
        self._run: SketchRun | None = None
        self._file: SketchFile | None = None
        self._kind: list[tuple] | None = None  # shapes and dtypes of a row of k and v

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
        k, v = _array(k), _array(v)
        kind = self._check(k, v)
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
        file, given = self._current(), _array(q)
        inputs = Inputs(_heads(given, "q"), None, None)
        plan = make_plan(queries_problem(self._request, file, inputs))
        out = np.empty((len(given), len(plan.problem.q), plan.problem.v.dim), plan.problem.out_dtype)
        answer(file, plan, _unwatched(plan), ArrayWriter(out))
        return out if given.ndim == 3 else out[:, 0]

    def audit(self, q: object, k: object, v: object, rows: int = 128) -> Audit:
        """How wrong are the answers to q? k and v are the keys and values that the sketch was made of, arrays or words of
        the command; about `rows` queries are answered exactly as well. Raises InputMalformed for other keys."""
        file = self._current()
        with _inputs(q, k, v) as inputs:
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
        parts = {name: _heads(array, name, done) for name, array in (("k", k), ("v", v))}
        run = self._begin(parts) if self._run is None else self._run
        heads = run.sketches.heads
        before = [{name: array.copy() for name, array in sketch.state.items()} for sketch in heads]
        try:
            if not done:
                run.begin()
            run.absorb_heads(parts["k"], parts["v"], done, min(self._block_rows, -(-len(k) // STEP) * STEP))
        except BaseException:
            for sketch, saved in zip(heads, before, strict=True):
                for name, array in saved.items():
                    sketch.state[name][...] = array
            if not done:
                self._close()
            raise

    def _check(self, k: np.ndarray, v: np.ndarray) -> list[tuple]:
        """Whether k and v fit each other and the rows before; returns shapes and dtypes of their rows."""
        _check_dtype(k, "k")
        _check_dtype(v, "v")
        if len(k) != len(v) or k.ndim != v.ndim or k.ndim not in (2, 3) or k.shape[1:-1] != v.shape[1:-1]:
            raise InputMalformed(f"absorb: k {k.shape} and v {v.shape} found, expected (n, heads, dim) and (n, heads, "
                                 "value_dim), or (n, dim) and (n, value_dim)")  # fmt: skip
        kind = [(array.shape[1:], array.dtype.str) for array in (k, v)]
        if self._kind not in (None, kind):
            raise InputMalformed(f"absorb: rows of k and v like {kind} found, expected {self._kind} as before")
        return kind

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


def _inputs(q: object, k: object, v: object) -> Inputs:
    """The inputs of three arrays, of three words, or of one word."""
    words = [word for word in (q, k, v) if isinstance(word, (str, os.PathLike))]
    if not words:
        heads = {name: _heads(array, name) for name, array in (("q", q), ("k", k), ("v", v))}
        check_heads(InputSpec(), heads)
        check_rows(heads)
        return Inputs(heads["q"], heads["k"], heads["v"])
    given = [os.fspath(word) for word in words]
    if len(given) == 3:
        return open_inputs(InputSpec(q=given[0], k=given[1], v=given[2]))
    if len(given) > 1 or k is not None or v is not None:
        raise WrongSetting(
            "q, k, v: some arrays and some names of files found; give three arrays, three names, or one file"
        )
    return open_inputs(InputSpec(given[0]))


def _like(q: Any, out: np.ndarray) -> np.ndarray:
    """Answers without an axis of heads to queries without one."""
    return out[:, 0] if not isinstance(q, (str, os.PathLike)) and np.ndim(q) == 2 else out


def _array(given: object) -> np.ndarray:
    """An array, or a tensor of PyTorch on any device as one; of bfloat16 its bit patterns, uint16."""
    if not hasattr(given, "detach"):
        return np.asarray(given)
    tensor = given.detach().cpu()
    if str(tensor.dtype) != "torch.bfloat16":
        return np.asarray(tensor.numpy())
    return (np.asarray(tensor.float().numpy()).view("<u4") >> 16).astype("<u2")


def _heads(given: object, name: str, start: int | None = None) -> Heads:
    """Heads over an array (n, heads, dim) or (n, dim); from global row `start` on, as of a pipe, if that is given."""
    array = _array(given)
    _check_dtype(array, name)
    if array.ndim not in (2, 3):
        raise InputMalformed(f"{name}: shape {array.shape} found, expected (rows, heads, dim) or (rows, dim)")
    tensor = MemoryTensor(array, "THD" if array.ndim == 3 else "TD", name)
    heads = whole(tensor, tensor.extent)
    return heads if start is None else replace(heads, tensor=ContinuedTensor(tensor, start))


def _check_dtype(array: np.ndarray, name: str) -> None:
    if array.dtype.str not in DTYPES:
        raise WrongDtype(
            f"{name}: dtype {array.dtype} found, expected float16, float32 or float64 (uint16: bfloat16 bit patterns); "
            "convert it with array.astype('float32')"
        )


def _request(settings: dict[str, object], **asked: object) -> RunRequest:
    """The run with these settings; `asked`: causal, audit and rope. Raises WrongSetting."""
    return _read(RunRequest, settings, **asked)


def _read(kind: type[R], settings: dict[str, object], **asked: object) -> R:
    """The same of any request: a setting is one of its fields, too."""
    hints = get_type_hints(kind)
    known = [name for name in SETTINGS if name in hints]
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise WrongSetting(f"unknown setting {', '.join(unknown)}; there are {', '.join(known)}")
    if settings.get("scale") is not None:
        settings = {**settings, "scale": str(settings["scale"])}
    typed = {name: _word(settings[name]) for name in TYPED if settings.get(name) is not None}
    settings = {**settings, **typed}
    reads = {name: described.read for name, _, described in options_of(kind)}
    try:
        read: dict[str, Any] = {}
        for name, value in settings.items():
            of_word = reads[name]
            read[name] = of_word(value) if of_word and isinstance(value, str) else _typed(name, value, hints[name])
        if read.get("scale") is not None:
            scale_value(read["scale"], dim=1)
        read |= {name: _typed(name, value, hints[name]) for name, value in asked.items()}
        return kind(InputSpec(), **read)
    except UsageError as error:
        raise WrongSetting(str(error)) from None


def _word(value: object) -> str:
    """A number, or several, as the command takes them."""
    return value if isinstance(value, str) else ",".join(map(str, np.atleast_1d(_array(value)).tolist()))


def _typed(name: str, value: Any, hint: type) -> object:
    """The value as one of the types of a hint such as `int | None`; UsageError where it is none of them."""
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if kind is bool and isinstance(value, (bool, np.bool_)):
        return bool(value)
    try:
        if kind is str and isinstance(value, str):
            return value
        if kind not in (str, bool) and not isinstance(value, (str, bool, np.bool_)):
            return index(value) if kind is int else kind(value)
    except (TypeError, ValueError):
        pass
    words = {int: "a whole number", float: "a number", str: "a word", bool: "True or False"}[kind]
    raise UsageError(f"{name}={value!r} found, expected {words}" + (" or None" if type(None) in kinds else ""))


def _unwatched(plan: Plan) -> Watch:
    return Watch(lambda event: None, Interrupts(), allowed=plan.allowed)
