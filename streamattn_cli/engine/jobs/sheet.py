"""A sheet of a job that is answered in pieces: its outputs, and what the pieces have come to together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from glob import escape as glob_escape
from glob import glob

from streamattn_cli.engine.audit.together import numbered, of_heads, of_sequences
from streamattn_cli.engine.jobs.attend import written_of
from streamattn_cli.engine.jobs.piece_run import Answered, Job, PieceTask, Saving
from streamattn_cli.engine.jobs.pieces import Piece, narrow
from streamattn_cli.engine.jobs.query import told
from streamattn_cli.engine.jobs.shares import resident_bytes, with_rows
from streamattn_cli.engine.jobs.sheets import Joint, dataset_of, into
from streamattn_cli.engine.jobs.streams import with_sheets
from streamattn_cli.engine.jobs.summary import summed
from streamattn_cli.engine.jobs.tasks import portable
from streamattn_cli.engine.passes.open_run import open_doubt
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.requests import Answering, AttendRequest, QueryRequest
from streamattn_cli.engine.saving.resume import check_saveable
from streamattn_cli.engine.watch.events import Audit, Outcome
from streamattn_cli.engine.watch.meter import Meter
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import StreamattnError
from streamattn_cli.rows.inputs.fingerprint import check_unchanged
from streamattn_cli.rows.inputs.layers import Layer
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.inputs.several_files import absolute
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.fileout import PlacedWriter
from streamattn_cli.rows.writers.writer import open_writer
from streamattn_cli.versions import versions

OF_KEYS = ("dropped_keys", "clipped_keys")  # counts


@dataclass(frozen=True)
class Outputs:
    """What the outputs of all sheets are made with. stack, interrupts: what removes them when the job ends early; tag: of a job
    that is saved."""

    job: Job
    joint: Joint | None
    stack: ExitStack
    interrupts: Interrupts
    tag: str | None


@dataclass(eq=False)
class Sheet:
    """One layer of a job, or the whole input where there are no layers: its pieces, and what they have come to."""

    layer: Layer | None
    request: Answering
    problem: Problem
    pieces: list[Piece]
    sources: dict[str, dict]
    files: dict[str, tuple[int, ...]]
    writer: PlacedWriter | None = None
    doubts: PlacedWriter | None = None
    done: dict[int, Answered] = field(default_factory=dict)  # by the number of the piece
    resident: list[int] | None = None  # rows of every key head, where they have numbers of their own
    failed: list[StreamattnError] = field(default_factory=list)
    parts: dict[str, str] = field(
        default_factory=dict
    )  # its unfinished files that a checkpoint knows of, by "out" and "doubt"
    finished: bool = False  # by an earlier run, whose outputs have their names
    before: float = 0.0  # rows that an earlier run has answered
    sketches: dict[int, str] = field(
        default_factory=dict
    )  # files of a job that is not saved, by the piece of their keys

    @property
    def left(self) -> list[int]:
        """Numbers of the pieces that are not answered."""
        return [at for at in range(len(self.pieces)) if at not in self.done]

    @property
    def rows_done(self) -> float:
        """Rows that are answered; some heads of a row are a share of it."""
        return sum(self.rows_of(at) for at in self.done if not self.pieces[at].keys)

    @property
    def rows(self) -> int:
        """Of queries, and of keys where these are pieces of their own."""
        return (self.problem.q.rows or 0) + (self.problem.k.count if self.pieces[0].keys else 0)

    def rows_of(self, at: int) -> float:
        """Those of one piece that is done."""
        first, stop = self.pieces[at].query_heads(self.problem)
        return self.done[at].rows * (stop - first) / len(self.problem.q)

    def keys_of(self, at: int) -> int | None:
        """The piece with the keys of a piece of queries, or of the same one if it is that; None where there is none."""
        alike = (n for n, piece in enumerate(self.pieces) if piece.keys and piece.heads == self.pieces[at].heads)
        return next(alike, None)

    def give(self, resident: list[int], *notes: str) -> None:
        """Let every key head have so many resident rows."""
        self.resident = resident
        self.problem = replace(self.problem, notes=self.problem.notes + notes)

    def take_up(self, done: dict[int, Answered], parts: dict[str, str], finished: bool) -> None:
        """Go on from what an earlier run has left: the pieces that it answered, and its unfinished files."""
        self.done, self.parts, self.finished = done, parts, finished
        self.before = self.rows_done

    def keep(self) -> None:
        """Make the outputs durable as they are, and let them outlive a failure."""
        for name, writer in (("out", self.writer), ("doubt", self.doubts)):
            if writer:
                self.parts[name] = writer.keep()

    @property
    def attended(self) -> AttendRequest:
        """The request, of a sheet of `attend`."""
        assert isinstance(self.request, AttendRequest), "a sheet of query"
        return self.request

    @property
    def name(self) -> str:
        """For messages; empty where there are no layers."""
        return f"layer {self.layer.number}" if self.layer else ""

    def plans(self, memory: int | None) -> Iterator[Plan]:
        """The plans of its pieces in a budget, but of heads alone that of the most. A sketch that is queried is read first."""
        largest = self.at(max(self.resident)) if self.resident else self.problem
        held = self.problem.sketch_bytes if isinstance(self.request, QueryRequest) else 0
        memory = memory and max(1, memory - held)
        problem = replace(largest, request=replace(largest.request, threads=1, memory=memory))
        for piece in self._largest():
            narrowed = narrow(problem, piece)
            plan, read = make_plan(narrowed), held or narrowed.sketch_bytes * self.pieces[0].keys
            yield replace(plan, parts=plan.parts | {"held_by_inputs": plan.parts["held_by_inputs"] + read})

    def _largest(self) -> list[Piece]:
        """The pieces of which one takes most memory: of those of heads, the ones of most heads and rows. The first does all
        that any of them does."""
        if not self.pieces[0].heads and not self.pieces[0].keys:
            return self.pieces
        kinds = [[piece for piece in self.pieces if piece.keys == keys] for keys in (False, True)]
        return [max(kind, key=self._size) for kind in kinds if kind]

    def _size(self, piece: Piece) -> tuple[int, int]:
        """Heads and rows of a piece."""
        heads, rows = piece.query_heads(self.problem), piece.rows(self.problem)
        return heads[1] - heads[0], rows[1] - rows[0]

    def at(self, resident: int) -> Problem:
        """The problem with other resident rows."""
        with open_inputs(self.request.inputs, apart=True) as inputs:
            return resolve(with_rows(self.attended, resident), inputs)

    def facts(self) -> dict:
        """Those of the problem; of key heads with rows of their own, these."""
        if not self.resident:
            return self.problem.facts()
        bytes_ = resident_bytes(self.attended, self.resident)
        mine = {"share": "adaptive", "resident_bytes": sum(bytes_), "head_rows": self.resident}
        return self.problem.facts() | {"params": mine}

    def open(self, made: Outputs) -> Job:
        """Make its outputs, or open what an earlier run has left of them, and say where they are."""
        q, p = self.problem.q, self.problem
        there = {name: (part, p.q.count) for name, part in self.parts.items()}
        opened = into(made.joint, self.layer) if made.joint and self.layer else open_writer
        self.writer = writer = _in_file(
            opened(
                self.request.output, q.rows, len(q), p.v.dim, p.out_dtype, q.layout, q.batch, sequences=q.sequences,
                going_on=there.get("out"), tag=made.tag,
            )
        )  # fmt: skip
        complete = "out" in there and "doubt" not in there
        doubts = None if complete else open_doubt(p, there.get("doubt"), made.tag)
        self.doubts = _in_file(doubts) if doubts else None
        for each in filter(None, (self.writer, self.doubts)):
            if made.tag:
                check_saveable(each)
            made.stack.callback(each.abort)
            made.stack.callback(made.interrupts.on_abort(each.abort))
        place = self.doubts.share() if self.doubts else None
        out, own = writer.share(), f"keys-{self.layer.number}" if self.layer else "keys"
        self.sketches = {at: f"{out.path}.{own}-{at}" for at, piece in enumerate(self.pieces) if piece.keys}
        made.stack.callback(self.forget)
        made.stack.callback(made.interrupts.on_abort(self.forget))
        return replace(self.of(made.job), out=out, doubts=place)

    def forget(self) -> None:
        """Remove the sketches of its keys, and what workers that were killed have left beside them."""
        for path in self.sketches.values():
            folder, name = os.path.split(path)
            for each in (
                path,
                *glob(os.path.join(glob_escape(folder), f".{glob_escape(name)}.*"), include_hidden=True),
            ):
                with suppress(FileNotFoundError):
                    os.unlink(each)

    def of(self, job: Job) -> Job:
        """The job of its pieces, without outputs."""
        request = replace(job.request, inputs=absolute(self.request.inputs), output=self.request.output)
        if isinstance(request, QueryRequest):
            request = replace(request, sketch=os.path.abspath(request.sketch))
        else:
            request = replace(request, checkpoint=None, resume=False)
        sources = {part: portable(one) for part, one in self.sources.items()}
        return replace(job, request=request, sheet=self.name, sources=sources)

    def tasks(self, job: Job, saving: Callable[[Sheet, int], Saving] | None) -> Iterator[PieceTask | None]:
        """The pieces that are left as tasks, and None while the keys of the next one are not done; saving: how each of them is
        saved."""
        for at in self.left:
            keys = self.keys_of(at)
            while keys not in (None, at) and keys not in self.done and not self.failed:
                yield None
            own = saving(self, at) if saving else None
            sketch = "" if keys is None else saving(self, keys).path if saving else self.sketches[keys]
            yield PieceTask(job, self.pieces[at], self.resident[at] if self.resident else None, own, sketch)

    def audit(self) -> tuple[Audit | None, str | None]:
        """The audits of its pieces as one, or why there is none."""
        answered = [at for at in sorted(self.done) if not self.pieces[at].keys]
        if not all(self.done[at].audit for at in answered):
            return None, next(self.done[at].audit_reason for at in answered if not self.done[at].audit)
        groups: dict[object, list[int]] = {}
        for at in answered:
            groups.setdefault(self.pieces[at].heads, []).append(at)
        return of_heads([self._audit_of(group) for group in groups.values()]), None

    def _audit_of(self, group: list[int]) -> Audit:
        """The audit of all rows of some heads, which these pieces have answered."""
        ranges = [self.pieces[at].rows(self.problem) for at in group]
        found = [audit for at in group if (audit := self.done[at].audit)]
        if self.pieces[group[0]].queries:  # rows of a sequence are told with its number
            found = [numbered(audit, first) for audit, (first, _) in zip(found, ranges, strict=True)]
        return of_sequences(found, [0, *(stop for _, stop in ranges)])

    def counts(self) -> dict[str, int]:
        """Those of its pieces together; of keys that several pieces of queries have seen, those of the first."""
        seen, found = set(), []
        for at, each in sorted(self.done.items()):
            piece = self.pieces[at]
            again = bool(piece.queries) and piece.heads in seen
            seen.add(piece.heads)
            found.append({name: n for name, n in each.counts.items() if not (again and name in OF_KEYS)})
        return summed(found)

    def end(self, plan: Plan, meter: Meter, joint: Joint | None, apart: bool) -> Outcome | StreamattnError:
        """All pieces are answered, or one of them failed, and the job goes on without them."""
        self.forget()
        if not self.failed:
            return self.finish(plan, meter, apart)
        for writer in filter(None, (self.writer, self.doubts)):
            writer.abort()
        self.writer = self.doubts = None
        if joint and self.layer:
            joint.remove(dataset_of(self.layer))
        return self.failed[0]

    def finish(self, plan: Plan, meter: Meter, apart: bool) -> Outcome:
        """All pieces are answered: commit the outputs. apart: by other processes."""
        check_unchanged(self.files)
        audit, reason = self.audit()
        counts = self.counts()
        queried = isinstance(self.request, QueryRequest)
        if isinstance(self.request, QueryRequest):
            written = {**self.problem.facts(), "versions": versions()}
            said = told(self.problem, self.request.sketch, counts, audit, reason)
        else:
            written = written_of(self.problem) | self.facts()
            said = {**written, "counts": counts, "audit": audit.summary() if audit else None, "audit_reason": reason}
        for writer in filter(None, (self.doubts, self.writer)):
            writer.commit(said)
        self.writer = self.doubts = None
        memory: dict[str, int | None] = {"allowed": plan.allowed, "projected": plan.projected}
        if not apart:  # what other processes take, nobody measures here
            memory |= {"reserved": meter.baseline, "peak": meter.peak()}
        outcome = Outcome(
            command="query" if queried else "attend",
            facts=written | {"threads": plan.threads},
            rows=self.problem.q.rows or 0,
            seconds=sum(each.seconds for each in self.done.values()),
            wait_seconds=sum(each.wait_seconds for each in self.done.values()),
            bytes_read=sum(each.bytes_read for each in self.done.values()),
            memory=memory,
            counts=counts,
            audit=audit,
            audit_reason=reason,
            output=self.request.output,
            notes=self.problem.notes,
            rows_before=round(self.before),
        )
        return with_sheets(outcome, self.problem)


def _in_file(writer: Writer) -> PlacedWriter:
    """The writer of a file, as all outputs of a job are."""
    assert isinstance(writer, PlacedWriter), f"{writer.name} is no file"
    return writer
