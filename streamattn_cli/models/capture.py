"""The command `capture`: q, k and v of a model's layers, as its attention is given them, while it reads a text chunk by chunk."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamattn_cli.checkpoint.commit import CheckpointWriter
from streamattn_cli.checkpoint.container import read as read_state
from streamattn_cli.engine.jobs.ceremony import metering
from streamattn_cli.engine.saving.resume import part_tag
from streamattn_cli.engine.saving.saver import check_facts, check_sources, describe
from streamattn_cli.engine.watch.events import Finished, Listener, Outcome, Progress
from streamattn_cli.engine.watch.meter import Meter
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import CheckpointIncompatible, Interrupted, UsageError
from streamattn_cli.models.dump import Dump, is_file, names_of, open_dump
from streamattn_cli.models.footprint import ITEM, SLACK, chunk_bytes, kept_bytes
from streamattn_cli.models.interface import Answerer, ExactRows, LayerFacts
from streamattn_cli.models.load import Found, Model, find_model
from streamattn_cli.models.rowsfile import RowsFile
from streamattn_cli.models.settings import CaptureSettings, chosen_layers
from streamattn_cli.models.survey import Enough, Layer, attributes, read, survey
from streamattn_cli.models.text import token_ids
from streamattn_cli.rows.dtypes import DTYPES, storage_word
from streamattn_cli.rows.targets import refuse_existing

UNFINISHED = ".sattn"  # what is added to the name of an output that is not complete: how far it is
FREED = 24 << 20  # tensors that are free again and that the C library keeps, by run 0 to so much of them
CAPTURED = 4  # copies of a chunk of a layer on the way to its file


@dataclass(frozen=True)
class CaptureRequest:
    """What to capture of which text, and where to."""

    model: str
    texts: tuple[str, ...]
    output: str
    settings: CaptureSettings = field(default_factory=CaptureSettings)
    force: bool = False

    @property
    def dtype(self) -> str:
        """The storage dtype of the rows."""
        return storage_word(self.settings.dtype, "--dtype")


@dataclass
class _Job:
    """What is known once the model is loaded and the text is read."""

    request: CaptureRequest
    model: Model
    ids: np.ndarray
    layers: dict[int, Layer]  # up to the last one that is wanted
    wanted: list[int]
    projected: int  # bytes beside the weights

    @property
    def facts(self) -> dict:
        """What decides the bytes."""
        heads = {str(at): list(self.layers[at].chosen) for at in self.wanted}
        return {
            "method": "capture", "seed": 0, "tokens": len(self.ids), "heads": heads, "dtype": self.request.dtype,
            "chunk": self.request.settings.chunk, "output": os.path.basename(self.request.output),
        }  # fmt: skip

    @property
    def sources(self) -> dict[str, dict]:
        """What the bytes come from."""
        return {
            "the text": {"content": hashlib.sha256(self.ids.tobytes()).hexdigest()},
            "the model": _stamp(self.model.name),
        }

    @property
    def kept(self) -> dict[int, tuple[int, int, int]]:
        """The layers whose keys and values later rows need: all before the last one."""
        return {at: (l.key_heads, l.dim, l.value_dim) for at, l in self.layers.items() if at != self.wanted[-1]}


def run_capture(request: CaptureRequest, listener: Listener, interrupts: Interrupts) -> Outcome:
    """Capture, and say so to the listener, too.

    Raises the errors of loading a model, UsageError, NonFinite, MemoryBudget, OutputFailed, BrokenPipeError, those of a
    checkpoint that does not fit, and Interrupted: then, and after any failure, a capture into files is continued by `resume`.
    """
    job = _prepare(request)
    with ExitStack() as stack:
        work = stack.enter_context(metering(listener, interrupts))
        saved = _Saved(job, stack) if is_file(request.output) else None
        done = saved.done if saved else 0
        rows = saved.rows if saved else None
        attrs = {at: attributes(job.model, job.layers[at], len(job.ids)) for at in job.wanted}
        wanted = {at: job.layers[at] for at in job.wanted}
        with interrupts.at_once(not saved):
            dump = open_dump(request.output, len(job.ids), wanted, attrs, request.dtype, saved.tag if saved else "",
                             saved.parts if saved else {}, done)  # fmt: skip
        stack.callback(dump.abort)
        tell = _Teller(listener, work.meter, job, done)
        try:
            _pass(job, dump, rows, done, lambda reached: _reached(reached, saved, dump, tell, interrupts))
        except Interrupted as stop:
            if saved and saved.commits:
                stop.saved(saved.name)
            raise
        dump.commit()
        if saved:
            saved.remove()
        more = {"bytes_read": tell.bytes, "rows_before": done}
        outcome = work.told(
            "capture", {"params": _params(job)}, len(job.ids), request.output, {"projected": job.projected}, **more
        )
    listener(Finished(outcome))
    return outcome


def _prepare(request: CaptureRequest) -> _Job:
    """Everything that can be refused, before a row is read."""
    given = request.settings
    if request.output == "-" and request.settings.resume:
        raise UsageError("--resume: a pipe cannot be resumed; write to a file")
    found = find_model(request.model, given.threads)
    count = len(found.types)
    wanted = chosen_layers(given.layer, request.model, list(range(count)), count)
    outputs = names_of(request.output, wanted)
    if read := {os.path.realpath(name) for name in outputs} & {
        os.path.realpath(name) for name in (request.model, *request.texts)
    }:
        raise UsageError(f"-o {read.pop()}: is an input; write to another file")
    refuse_existing(outputs, request.force or request.settings.resume)
    ids = token_ids(found.tokenizer, request.texts, given.tokens)
    projected = _text_bytes(found, request, wanted, len(ids))
    model = found.load(given.memory, projected, f"reading {len(ids)} tokens up to layer {wanted[-1]}")
    return _Job(request, model, ids, survey(model, wanted[-1], request.settings.heads), wanted, projected)


def _text_bytes(found: Found, request: CaptureRequest, wanted: list[int], tokens: int) -> int:
    """What reading so many tokens takes beside the weights; in a pipe keys and values are kept in memory, too."""
    shapes, chunk = found.shapes, request.settings.chunk
    before = [] if is_file(request.output) else range(wanted[-1])
    captured = CAPTURED * ITEM * chunk * (shapes.heads * shapes.dim) + CAPTURED * chunk * shapes.row
    return SLACK + FREED + chunk_bytes(shapes, chunk, tokens) + captured + kept_bytes(shapes, before, chunk, tokens)


def _pass(job: _Job, dump: Dump, rows: RowsFile | None, done: int, reached: Callable[[int], None]) -> None:
    """Read the rest of the text; reached(number of tokens) is called at the start and after each chunk."""
    ids, chunk, last = job.ids, job.request.settings.chunk, job.wanted[-1]
    answerers: dict[int, Answerer] = {}
    for a in range(done, len(ids), chunk):

        def reading(facts: LayerFacts, a: int = a) -> Answerer:
            at = facts.index
            if at not in answerers and at != last:
                answerers[at] = rows.layer(at) if rows else ExactRows(len(ids))
            layer = job.layers[at] if at in job.wanted else None
            return _Capturing(layer, answerers.get(at), dump, a)

        read(job.model, ids[a : a + chunk], a, reading)
        reached(min(a + chunk, len(ids)))


class _Capturing:
    """Writes the rows of a layer, if it is wanted, and lets another one answer; without one nothing more is needed."""

    nbytes = 0

    def __init__(self, layer: Layer | None, other: Answerer | None, dump: Dump, start: int):
        self._layer, self._other, self._dump, self._start = layer, other, dump, start

    def answer(self, facts: LayerFacts, q: Any, k: Any, v: Any) -> Any:
        if self._layer:
            keys = list(self._layer.chosen)
            self._dump.write(facts.index, self._start, q[self._layer.query_heads], k[keys], v[keys])
        if self._other is None:
            raise Enough
        return self._other.answer(facts, q, k, v)


class _Saved:
    """How far a capture into files is, in a checkpoint beside them, and the keys and values of the text so far in a file of their
    own. Opening one takes up what an earlier run left, or begins."""

    def __init__(self, job: _Job, stack: ExitStack):
        self._job, self.name, self.commits, self.done = job, job.request.output + UNFINISHED, 0, 0
        self.parts: dict[str, str] = {}
        if os.path.exists(self.name) and not job.request.settings.resume and not job.request.force:
            raise UsageError(
                f"{self.name}: an earlier capture is not complete; continue it with --resume, or start again with --force"
            )
        self._writer = stack.enter_context(CheckpointWriter(self.name))
        self.tag = part_tag(self._writer)
        folder, base = os.path.split(os.path.realpath(self.name))
        path = os.path.join(folder, f".{base}.{self.tag}.rows")
        if job.request.settings.resume and os.path.exists(self.name):
            self._take_up(path)
        elif job.request.settings.resume:
            refuse_existing(names_of(job.request.output, job.wanted), job.request.force)
        self.rows = RowsFile(path, len(job.ids), job.kept, self.done)
        stack.callback(self._close)

    def _take_up(self, path: str) -> None:
        _, meta = read_state(self.name)
        check_facts(self.name, meta, self._job.facts)
        check_sources(self.name, meta, self._job.sources)
        self.done, self.commits = int(meta["rows"]), 1
        complete = self.done == len(self._job.ids)
        for output, part in json.loads(meta["output"]).items():
            there = os.path.exists(os.path.join(os.path.dirname(os.path.realpath(output)), part))
            if there:
                self.parts[output] = part
            if not (there or (complete and os.path.exists(output))) or not os.path.exists(path):
                raise CheckpointIncompatible(f"{self.name}: the unfinished files beside {output} are gone; put them back, or "
                                             "start again with --force")  # fmt: skip

    def commit(self, done: int, dump: Dump) -> None:
        """So many tokens are captured. Raises OutputFailed."""
        self.rows.sync()
        parts = dump.keep()
        self._writer.commit({}, describe(self._job.facts, "capture", done, self._job.sources, parts))
        self.commits += 1

    def remove(self) -> None:
        """The outputs have their names."""
        for path in (self.rows.path, self._writer.path):
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _close(self) -> None:
        self.rows.close()
        if not self.commits:
            with suppress(FileNotFoundError):
                os.unlink(self.rows.path)


class _Teller:
    """Tells the listener where the text is."""

    def __init__(self, listener: Listener, meter: Meter, job: _Job, done: int):
        self._listener, self._meter, self._job, self._done = listener, meter, job, done
        parts = [part for at in job.wanted for part in job.layers[at].parts]
        item = DTYPES[job.request.dtype].itemsize
        self._row, self._began, self.bytes = item * sum(heads * dim for _, heads, dim in parts), time.monotonic(), 0

    def __call__(self, reached: int) -> None:
        """So many tokens are captured."""
        self.bytes = (reached - self._done) * self._row
        self._listener(
            Progress(
                phase=Phase.CAPTURE, rows=reached, total=len(self._job.ids), bytes=self.bytes,
                seconds=time.monotonic() - self._began, memory_now=self._meter.now(), memory_peak=self._meter.peak(),
                rows_before=self._done,
            )
        )  # fmt: skip


def _reached(reached: int, saved: _Saved | None, dump: Dump, tell: _Teller, interrupts: Interrupts) -> None:
    if saved:
        saved.commit(reached, dump)
    tell(reached)
    interrupts.check()


def _stamp(name: str) -> dict:
    """What tells a model from another or a changed one."""
    files = [os.path.join(name, file) for file in sorted(os.listdir(name))] if os.path.isdir(name) else [name]
    stats = [(os.path.basename(file), os.stat(file)) for file in files]
    return {"files": ",".join(f"{file} {s.st_size} {s.st_mtime_ns}" for file, s in stats)}


def _params(job: _Job) -> dict:
    request, given = job.request, job.request.settings
    return {
        "model": request.model, "texts": list(request.texts), "layers": job.wanted, "dtype": request.dtype,
        "chunk": given.chunk, "heads": list(given.heads) if given.heads else None,
    }  # fmt: skip
