"""The main job: q, k and v in, attention outputs out, in constant memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version

import numpy as np

from streamattn_cli.engine.audit import Auditor
from streamattn_cli.engine.events import Audit, Finished, Listener, Note, Outcome, Started
from streamattn_cli.engine.lanes import Lane
from streamattn_cli.engine.meter import Meter
from streamattn_cli.engine.plan import FIRST_ROWS, SLOTS, Plan, make_plan, work_spec
from streamattn_cli.engine.pool import Workers
from streamattn_cli.engine.pump import Watch, pump
from streamattn_cli.engine.request import AttendRequest, resolve
from streamattn_cli.engine.signals import Interrupts
from streamattn_cli.engine.warm import warm
from streamattn_cli.errors import CannotMeet, InputMalformed
from streamattn_cli.rows.open import open_inputs
from streamattn_cli.rows.readahead import Block, ReadAhead
from streamattn_cli.rows.sample import spread_rows
from streamattn_cli.rows.writers import Writer, open_writer
from streamattn_cli.sketches.exact import ExactQueries
from streamattn_cli.sketches.head import HeadAttention, allocate


def plan_attend(request: AttendRequest) -> Plan:
    """The plan of a run, from headers alone (of a pipe: its first record's)."""
    with open_inputs(request.inputs) as inputs:
        return make_plan(resolve(request, inputs))


def attend(request: AttendRequest, listener: Listener, interrupts: Interrupts) -> Outcome:
    """Run a request to its end. Raises the errors of errors.py; then nothing is left under the output's name."""
    with ExitStack() as stack:
        inputs = stack.enter_context(open_inputs(request.inputs))
        plan = make_plan(resolve(request, inputs))
        problem = plan.problem
        listener(Started(plan.to_dict()))
        for note in problem.notes:
            listener(Note(note))
        writer = open_writer(
            request.output, problem.q.rows, len(problem.q), problem.v.dim, problem.out_dtype, problem.q.layout,
            problem.q.batch,
        )  # fmt: skip
        stack.callback(writer.abort)
        stack.callback(interrupts.on_abort(writer.abort))
        warm(plan, listener)
        began = time.monotonic()
        with Meter() as meter:
            watch = Watch(listener, interrupts, meter, plan.allowed, plan.sketch_bytes)
            run = Run(plan, watch, writer)
            try:
                rows, audit, reason = run.go()
            finally:
                run.close()
        facts = {
            **problem.facts(),
            "threads": plan.threads,
            "versions": {name: version(name) for name in ("streamattn-cli", "numpy", "numba")},
        }
        counts = run.counts()
        writer.commit({**facts, "counts": counts, "audit": asdict(audit) if audit else None, "audit_reason": reason})
        outcome = Outcome(
            command="attend",
            facts=facts,
            rows=rows,
            seconds=time.monotonic() - began,
            wait_seconds=watch.wait_seconds,
            bytes_read=watch.bytes_read,
            memory={
                "allowed": plan.allowed,
                "reserved": meter.baseline,
                "projected": plan.projected,
                "peak": meter.peak(),
            },
            counts=counts,
            audit=audit,
            audit_reason=reason,
            output=request.output,
            notes=problem.notes,
        )
    listener(Finished(outcome))
    return outcome


class Run:
    """The passes of one run and what they work on."""

    def __init__(self, plan: Plan, watch: Watch, writer: Writer):
        self.plan, self.watch, self.writer = plan, watch, writer
        self.problem = problem = plan.problem
        self.lanes = [Lane(problem, i) for i in range(len(problem.k))]
        self.workers = Workers(plan.threads, work_spec(problem))
        self.sketches = [HeadAttention(problem.params) for _ in self.lanes] if problem.params else []
        rows = 0 if problem.method == "exact" else plan.query_block_rows
        self.output = allocate({"output": ((rows, len(problem.q), problem.v.dim), problem.precision)})["output"]
        self.auditor = None
        if plan.audit_rows:
            self.auditor = Auditor(problem, self.lanes, plan.audit_rows, reservoir=not problem.q.tensor.seekable)

    def go(self) -> tuple[int, Audit | None, str | None]:
        """All passes: rows answered, the audit, and why there is none."""
        if self.problem.method == "exact":
            return self._exact(), None, self.plan.audit_reason
        self._first_rows()
        if self.problem.causal:
            rows = self._causal()
        else:
            self._keys(self._absorb)
            self.workers.run(lambda lane, work: self.sketches[lane.index].finish(work), self.lanes)
            rows = self._queries()
        if not self.auditor:
            return rows, None, self.plan.audit_reason
        if self.auditor.reservoir:
            self.auditor.prepare()
            self._keys(self.auditor.see, "audit")
        return rows, *self.auditor.estimate(self.workers.works[0])

    def counts(self) -> dict[str, int]:
        """What was clipped, guarded or dropped."""
        dropped = self.workers.total("lane.dropped")
        counts = {"dropped_keys": int(dropped[0]), "dropped_queries": int(dropped[1])}
        if self.sketches:
            clipped, guarded, unanswered = self.workers.total("counts")
            counts |= {
                "clipped_keys": sum(int(s.state["counters"][3]) for s in self.sketches),
                "clipped_queries": int(clipped),
                "guarded_queries": int(guarded),
                "unanswered_queries": int(unanswered),
            }
        return counts

    def close(self) -> None:
        """Stop the threads."""
        self.workers.close()

    # --- passes

    def _first_rows(self) -> None:
        """Show every sketch the first rows and some queries, so that it can choose its settings and predict its error.

        A method that learns from queries as they pass needs none for causal attention; for full attention it gets
        queries from all over the input, where that can be read anywhere.
        """
        p = self.problem
        learns = p.params.history is not None and self.sketches[0].history.learns
        if not p.params.history or (learns and p.causal):
            return
        k, v = p.k.tensor.peek(FIRST_ROWS), p.v.tensor.peek(FIRST_ROWS)
        q = spread_rows(p.q.tensor, FIRST_ROWS)[0] if learns else p.q.tensor.peek(FIRST_ROWS)
        work = self.workers.works[0]
        for lane in self.lanes:
            n = min(k.shape[1], v.shape[1])
            first_k = np.empty((n, p.k.dim), p.precision)
            first_c = np.empty((n, p.v.dim + 1), p.precision)
            first_q = np.empty((p.group, q.shape[1], p.q.dim), p.precision)
            for a, b in lane.steps(0, n):
                first_k[a:b], first_c[a:b] = lane.keys(k, v, a, b, a, work)
            for a, b in lane.steps(0, q.shape[1]):
                first_q[:, a:b] = lane.queries(q, a, b, a, work)
            try:
                self.sketches[lane.index].calibrate(first_k, first_c, first_q.reshape(-1, p.q.dim))
            except CannotMeet as error:
                raise CannotMeet(f"{p.k.tensor.name}: {error}") from None
        work["lane.dropped"][:] = 0

    def _keys(self, use: Callable, phase: str = "keys", stop: int | None = None) -> int:
        """A pass over keys and values: use(lane, k, c, work) for the rows of every lane, in order."""
        p = self.problem

        def take(block: Block) -> None:
            k, v = block.arrays

            def lane_task(lane: Lane, work: dict) -> None:
                for a, b in lane.steps(block.start, block.rows):
                    use(lane, *lane.keys(k, v, a, b, block.start + a, work), work)

            self.workers.run(lane_task, self.lanes)

        for work in self.workers.works:
            work["lane.dropped"][0] = 0  # the last pass over the keys sees all of them: each is counted once
        stop = p.k.rows if stop is None else stop
        rows = self._pump([p.k.tensor, p.v.tensor], take, phase, stop)
        if rows == 0:
            raise InputMalformed(f"{p.k.tensor.name}: no rows")
        return rows

    def _absorb(self, lane: Lane, k: np.ndarray, c: np.ndarray, work: dict) -> None:
        self.sketches[lane.index].absorb(k, c, work)
        if self.auditor and not self.auditor.reservoir:
            self.auditor.see(lane, k, c, work)

    def _queries(self) -> int:
        """The pass over the queries of full attention: answer, write, audit."""
        p = self.problem

        def take(block: Block) -> None:
            (q,) = block.arrays
            answers = self.output[: block.rows]

            def step_task(item: tuple, work: dict) -> None:
                lane, a, b = item
                queries = lane.queries(q, a, b, block.start + a, work)
                out = work["lane.out"][:, : b - a]
                self.sketches[lane.index].answer(queries, block.start + a, out, work)
                lane.put(out, answers, a, b, work)

            steps = [(lane, a, b) for lane in self.lanes for a, b in lane.steps(block.start, block.rows)]
            self.workers.run(step_task, steps)
            self._write(block.start, answers)
            if self.auditor and self.auditor.reservoir:
                self.auditor.offer(block.start, q, answers)

        return self._pump([p.q.tensor], take, "queries", p.q.rows, block_rows=self.plan.query_block_rows)

    def _causal(self) -> int:
        """The pass over q, k and v together."""
        p = self.problem

        def take(block: Block) -> None:
            q, k, v = block.arrays
            answers = self.output[: block.rows]

            def lane_task(lane: Lane, work: dict) -> None:
                for a, b in lane.steps(block.start, block.rows):
                    row = block.start + a
                    keys, values = lane.keys(k, v, a, b, row, work)
                    queries = lane.queries(q, a, b, row, work)
                    out = work["lane.out"][:, : b - a]
                    self.sketches[lane.index].step(queries, keys, values, out, work)
                    lane.put(out, answers, a, b, work)
                    if self.auditor:
                        self.auditor.see(lane, keys, values, work)

            self.workers.run(lane_task, self.lanes)
            self._write(block.start, answers)

        stop = p.k.rows if p.q.rows is None else p.q.rows
        rows = self._pump([p.q.tensor, p.k.tensor, p.v.tensor], take, "rows", stop)
        if rows == 0:
            raise InputMalformed(f"{p.k.tensor.name}: no rows")
        return rows

    def _exact(self) -> int:
        """Exact attention: for one batch of queries after the other, a pass over the keys that they see."""
        p, done = self.problem, 0
        while done < p.q.rows:
            count = min(self.plan.query_rows, p.q.rows - done)
            held, lost = self._hold(done, count)

            def see(lane: Lane, k: np.ndarray, c: np.ndarray, work: dict, held: list = held) -> None:
                held[lane.index].absorb(k, c, work)

            self._keys(see, stop=done + count if p.causal else None)
            answers = np.empty((len(p.q), count, p.v.dim), p.precision)
            for lane in self.lanes:
                held[lane.index].finish(self.workers.works[0])
                held[lane.index].outputs(answers[lane.query_heads])
            answers[lost] = np.nan
            self._write(done, answers.transpose(1, 0, 2))
            done += count
        return done

    def _hold(self, first: int, count: int) -> tuple[list[ExactQueries], np.ndarray]:
        """Read queries [first, first + count) into memory; and which of them are dropped, (heads, count) bool."""
        p, work = self.problem, self.workers.works[0]
        q = np.empty((len(p.q), count, p.q.dim), p.precision)
        lost = np.zeros((len(p.q), count), bool)

        def take(block: Block) -> None:
            for lane in self.lanes:
                for a, b in lane.steps(block.start, block.rows):
                    at = block.start - first
                    q[lane.query_heads, at + a : at + b] = lane.queries(block.arrays[0], a, b, block.start + a, work)
                    if lane.q.drop:
                        lost[lane.query_heads, at + a : at + b] = lane.lost(b - a, work)

        self._pump([p.q.tensor], take, "queries", first + count, first, self.plan.query_block_rows)
        positions = np.arange(first, first + count) if p.causal else None
        return [ExactQueries(q[lane.query_heads], positions, p.v.dim, p.scale) for lane in self.lanes], lost

    # --- what passes share

    def _pump(
        self,
        tensors: list,
        take: Callable[[Block], None],
        phase: str,
        stop: int | None,
        start: int = 0,
        block_rows: int | None = None,
    ) -> int:
        size = block_rows or self.plan.block_rows
        blocks = ReadAhead(tensors, start, stop, size, SLOTS, self.watch.interrupts.check)
        return pump(blocks, take, self.watch, phase, None if stop is None else stop - start)

    def _write(self, start: int, answers: np.ndarray) -> None:
        self.writer.write(start, answers)
        if self.auditor and not self.auditor.reservoir:
            self.auditor.hear(start, answers)
