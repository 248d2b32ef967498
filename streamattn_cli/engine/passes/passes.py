"""The passes of one run: over keys, over queries, or over both together; with what they work on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import numpy as np

from streamattn_cli.engine.audit.audit import Auditor
from streamattn_cli.engine.audit.exactrows import ExactRows, ExactSequences, exact_rows, read_queries
from streamattn_cli.engine.audit.live_error import ErrorSoFar
from streamattn_cli.engine.audit.repair import Repairs
from streamattn_cli.engine.passes.calibration import Beginnings, Calibration
from streamattn_cli.engine.passes.pump import Teller, Watch, pump
from streamattn_cli.engine.planning.footprint import LENT, OUTPUTS, SLOTS, repair_batch, work_spec
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.saving.resume import Saved
from streamattn_cli.engine.saving.saver import stack_heads, unstack_heads
from streamattn_cli.engine.watch.events import Audit
from streamattn_cli.engine.watch.meter import trim
from streamattn_cli.engine.workers.lanes import Answers, Lane, Part
from streamattn_cli.engine.workers.pool import Batch, Workers
from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.readahead import Block, ReadAhead
from streamattn_cli.rows.writers.topk import BestRows
from streamattn_cli.rows.writers.writer import Writer
from streamattn_cli.sketches.exact import ExactQueries
from streamattn_cli.sketches.head import HeadAttention, allocate

TRIMMED = 1 << 20  # bytes of a pass from which on they are given back after it
ANSWERING = ("queries", "rows", "exact")  # phases whose rows are answered


class Run:
    """The passes of one run and what they work on."""

    def __init__(self, plan: Plan, watch: Watch, writer: Writer, doubts: Writer | None = None):
        self.plan, self.watch, self.writer, self.doubts = plan, watch, writer, doubts
        self.passed: Callable[[str, int], None] | None = None  # told after every block that could be gone on from
        self.phase, self.done = "", 0  # where to go on: the phase, and how many of its rows are done
        self.answered = 0  # rows that the run which is gone on with has answered
        self.problem = problem = plan.problem
        self.lanes = [Lane(problem, i) for i in range(len(problem.k))]
        self._k, self._v = (Part(name, getattr(problem, name), 0, len(self.lanes), False) for name in "kv")
        self.workers = Workers(plan.threads, work_spec(problem))
        self.sketches = [HeadAttention(problem.params) for _ in self.lanes] if problem.params else []
        rows = 0 if problem.method == "exact" else plan.query_block_rows
        shape = OUTPUTS, rows, len(problem.q)
        room = allocate({"rows": ((*shape, problem.v.dim), problem.precision), "doubt": (shape, "f4")})
        self._outputs = deque(map(Answers, room["rows"], room["doubt"]))
        # blocks in work, and what follows them
        self._flying: deque[tuple[Block, Batch, Callable[[], None] | None]] = deque()
        self._pen, self._written = ThreadPoolExecutor(1, "streamattn-writer"), None
        self.repairs = Repairs(plan.repair_rows) if plan.repair_rows else None
        self.repaired = 0
        self.auditor = None
        self._reading = threading.Lock()  # held by whoever reads rows
        self.calibration = Calibration(problem, self.sketches)
        self.beginnings = None
        if problem.sequences and self.sketches:
            self.beginnings = Beginnings(self.calibration, len(self.lanes), self._reading)
        if plan.audit_rows:
            self.auditor = self._make_auditor()
            watch.error = ErrorSoFar(self.auditor)

    def go(self) -> tuple[int, Audit | None, str | None]:
        """All passes: rows answered, the audit, and why there is none."""
        if self.problem.method == "exact":
            return self._exact(), None, self.plan.audit_reason
        if not self.phase:
            self.first_rows()
            trim()
        if self.problem.causal:
            rows = self._causal()
        elif self.problem.sequences:
            rows = self._whole_sequences() if self.plan.whole_sequences else self._each_sequence()
        else:
            if self.phase != "queries":
                self.absorb_keys()
                self.finish()
            rows = self.answer_queries()
        second = self._second_pass() if self.auditor else None
        if self.repairs:
            self._repair()
        if not self.auditor:
            return rows, None, self.plan.audit_reason
        return rows, *self.auditor.estimate(second, self.workers.works[0], bool(self.repairs))

    def _make_auditor(self) -> Auditor:
        return Auditor(self.problem, self.lanes, self.plan.audit_rows)

    def _second_pass(self) -> ExactRows | ExactSequences | None:
        """The pass over the keys for what the audit has still to answer exactly."""
        second = self.auditor.second()
        if second:
            self._keys_again(second, "audit")
        return second

    def _keys_again(self, held: ExactRows | ExactSequences, phase: str) -> None:
        """A pass over the keys that some rows see. What it drops was counted before."""
        with self._uncounted("lane.dropped"):
            self._keys(held.see, phase, int(held.rows[-1]) + 1 if self.problem.causal else None)

    @contextmanager
    def _uncounted(self, *names: str) -> Iterator[None]:
        """Inside, these tallies do not grow."""
        counts = [work[name] for work in self.workers.works for name in names]
        before = [count.copy() for count in counts]
        yield
        for count, old in zip(counts, before, strict=True):
            count[:] = old

    def _repair(self) -> None:
        """Answer the most doubtful rows exactly and write them once more, a batch with each pass over the keys."""
        for rows in self.repairs.batches(repair_batch(self.plan)):
            held = exact_rows(self.problem, self.lanes, rows, read_queries(self.problem, self.lanes, rows), means=False)
            self._keys_again(held, "repair")
            answers = held.finish(self.workers.works[0])
            for row, answer in zip(rows, answers, strict=True):
                self.writer.patch(int(row), answer[None])
                if self.doubts:
                    self.doubts.patch(int(row), np.zeros((1, 1, len(self.problem.q)), "f4"))
            if self.auditor:
                self.auditor.repaired(rows, answers)
            self.repaired += len(rows)

    def go_on(self, saved: Saved) -> None:
        """Take up the state of a checkpoint, before `go`."""
        self.phase, self.done = saved.phase, saved.done
        self.answered = saved.done if saved.phase in ANSWERING else 0
        self.load(saved.state, saved.name)
        saved.state.clear()  # it is held twice no longer than that

    def save(self) -> dict:
        """The state of everything, as named arrays (or lists of one array per key head); views, not copies."""
        state = self.save_sketch()
        state["tally"] = np.concatenate([np.ravel(self.workers.total(name)) for name in self._tallies()])
        state |= stack_heads([best.state() for best in self._heaps()], "best")
        state |= stack_heads([self.repairs.state] if self.repairs else [], "repair")
        state |= {"clipped_before": self.beginnings.clipped} if self.beginnings else {}
        return state | (self.auditor.save() if self.auditor else {})

    def load(self, state: dict, name: str) -> None:
        """Take back what `save` gave; `name` is the checkpoint's, for messages."""
        self.load_sketch(state, name)
        at = 0
        for tally in self._tallies():
            counts = self.workers.works[0][tally]
            saved = state["tally"][at : at + len(counts)]
            counts[: len(saved)] = saved  # versions before counted less
            at += len(counts)
        unstack_heads(state, [best.state() for best in self._heaps()], "best", name)
        unstack_heads(state, [self.repairs.state] if self.repairs else [], "repair", name)
        if self.beginnings:
            self.beginnings.clipped[:] = state["clipped_before"]
        if (self._heaps() or not hasattr(self.writer, "part")) and self.phase in ANSWERING:
            self.writer.rows_written = self.done
        if self.auditor:
            self.auditor.load(state, name)

    def save_sketch(self) -> dict:
        """The state of the sketches alone."""
        return stack_heads([s.state for s in self.sketches], "head")

    def load_sketch(self, state: dict, name: str) -> None:
        """Take back what `save_sketch` gave."""
        unstack_heads(state, [s.state for s in self.sketches], "head", name)

    def _tallies(self) -> list[str]:
        return ["lane.dropped"] + (["counts"] if self.sketches else []) + ["lane.answers"]

    def _heaps(self) -> list[BestRows]:
        """The heaps of --top-k, where rows are produced."""
        best = getattr(self.writer, "best", None)
        return [best] if best else []

    def absorb_keys(self) -> int:
        """The pass over keys and values into the sketches; returns the rows absorbed."""
        return self._keys(self._absorb, start=self.done, passed=self.passed, leap=self._leap)

    def absorb_range(self, first: int, stop: int) -> int:
        """Absorb rows [first, stop) alone, as a shard of the keys; returns how many were dropped."""
        self.begin(first)
        self._keys(self._absorb, "keys", stop, first, leap=self._leap)
        return int(self.workers.total("lane.dropped")[0])

    def begin(self, row: int) -> None:
        """The first row to come has this number in the stream that this is a shard of."""
        for sketch in self.sketches:
            sketch.begin(row)

    def finish(self) -> None:
        """The keys are complete: make the sketches ready for queries."""
        self.workers.run(lambda lane, work: self.sketches[lane.index].finish(work), self.lanes)
        self.phase, self.done = "queries", 0

    def counts(self) -> dict[str, int]:
        """What was clipped, guarded or dropped."""
        dropped = self.workers.total("lane.dropped")
        counts = {"dropped_keys": int(dropped[0]), "dropped_queries": int(dropped[1])}
        if self.sketches:
            clipped, guarded, unanswered = self.workers.total("counts")
            counts |= {
                "clipped_keys": sum(s.clipped for s in self.sketches) + self._clipped_before,
                "clipped_queries": int(clipped),
                "guarded_queries": int(guarded),
                "unanswered_queries": int(unanswered),
            }
        repaired = {"repaired_rows": self.repaired} if self.repairs else {}
        return counts | repaired | self.answer_counts()

    @property
    def _clipped_before(self) -> int:
        return int(self.beginnings.clipped.sum()) if self.beginnings else 0

    def answer_counts(self) -> dict[str, int]:
        """How many answers are doubted or not finite, and of `exact` how many saw no token."""
        doubted, not_finite, unseen = map(int, self.workers.total("lane.answers"))
        counts = {"doubted_answers": doubted, "not_finite_answers": not_finite}
        return counts if self.sketches else {"unanswered_queries": unseen} | counts

    def close(self) -> None:
        """Stop the threads."""
        self._pen.shutdown(wait=True)
        self.workers.close()

    def settle(self) -> None:
        """Wait until all blocks so far are done and their answers written; raises what went wrong."""
        self._land()
        self._dry()

    def _dry(self) -> None:
        """Wait for the writer."""
        written, self._written = self._written, None
        if written:
            written.result()

    # --- passes

    def first_rows(self) -> None:
        """Show every sketch the first rows and some queries. Where there are several sequences this is done as they begin."""
        if self.beginnings or not self.calibration.needed:
            return
        with self.watch.interrupts.at_once():
            stored = self.calibration.read()
        for lane in self.lanes:
            self.calibration.show(lane, stored, self.workers.works[0])

    def _begin(self, lane: Lane, row: int, work: dict) -> None:
        """Make the lane's sketch new if this row of the stream is the first of a sequence."""
        number, local = self.problem.k.sequences.local(row)
        if local == 0:
            self.beginnings.begin(lane, number, row, work)

    def _keys(
        self,
        use: Callable,
        phase: str = "keys",
        stop: int | None = None,
        start: int = 0,
        passed: Callable[[str, int], None] | None = None,
        leap: Callable[[Block], int] | None = None,
    ) -> int:
        """A pass over keys and values: use(lane, k, c, row, work) for the rows of every lane, in order.

        leap(block) says how many of a block's first rows it has taken care of.
        """
        p = self.problem

        def take(block: Block) -> bool:
            k, v = block.arrays

            def step_task(item: tuple, work: dict) -> None:
                lane, a, b = item
                row = block.start + a
                use(lane, *lane.keys(k, v, a, b, row, work), row, work)

            done = leap(block) if leap else 0
            return done < block.rows and self._fly(block, step_task, self._steps(block, done, p.k))

        for work in self.workers.works if start == 0 else ():
            work["lane.dropped"][0] = 0  # the last pass over the keys sees all of them: each is counted once
        stop = p.k.rows if stop is None else stop
        rows = start + self._pump([p.k.tensor, p.v.tensor], take, phase, stop, start, passed=passed)
        if rows == 0:
            raise InputMalformed(f"{p.k.tensor.name}: no rows")
        return rows

    def _absorb(self, lane: Lane, k: np.ndarray, c: np.ndarray, row: int, work: dict) -> None:
        self.sketches[lane.index].absorb(k, c, work)
        if self.auditor:
            self.auditor.see(lane, k, c, row, work)

    def _leap(self, block: Block) -> int:
        """Where only windows see a block: take it in as it is stored if all of it is finite, or else only count what is not
        among the rows that they leave behind within it. Returns how many of its first rows are done."""
        (k, v), p = block.arrays, self.problem
        if p.params.history or (self.auditor and self.auditor.drawn):
            return 0
        self._land()
        bad = self._k.bad(k, 0, block.rows) or self._v.bad(v, 0, block.rows)
        if not bad and p.k.tensor.dtype == p.v.tensor.dtype == p.params.stored:
            for lane, sketch in zip(self.lanes, self.sketches, strict=True):
                sketch.keep(lane.k.stored(k), lane.v.stored(v))
            return block.rows
        idle = [sketch.skip(block.rows) for sketch in self.sketches][0]  # all have the same settings
        if bad and idle:
            self.workers.run(lambda lane, work: lane.pass_over(k, v, idle, block.start, work), self.lanes)
        return idle

    def answer_queries(self, stop: int | None = None) -> int:
        """The pass over the queries of full attention, to the end or up to `stop`: answer, write, audit."""
        p = self.problem

        def take(block: Block) -> bool:
            (q,) = block.arrays
            answers = self._next_output(block)

            def step_task(item: tuple, work: dict) -> None:
                lane, a, b = item
                self._answer_step(lane, q, a, b, block.start + a, answers, work)

            def landed() -> None:
                self._write_behind(block.start, answers, q)

            apart = [[step] for chain in self._steps(block, heads=p.q) for step in chain]
            return self._fly(block, step_task, apart, landed)

        size = self.plan.query_block_rows
        stop = p.q.rows if stop is None else stop
        rows = self.done + self._pump([p.q.tensor], take, "queries", stop, self.done, size, self.passed)
        self.settle()
        return rows

    def _answer_step(self, lane: Lane, q: np.ndarray, a: int, b: int, row: int, answers: Answers, work: dict) -> None:
        """Answer rows [a, b) of a block of queries, the first of which has this number in the stream."""
        queries = lane.queries(q, a, b, row, work)
        out, doubt = lane.answers(b - a, work)
        self.sketches[lane.index].answer(queries, self.problem.q.local(row), out, work, doubt)
        lane.put(out, doubt, answers, a, b, work)

    def _each_sequence(self) -> int:
        """Full attention of one sequence after the other: its keys, then its queries."""
        keys, queries = self.problem.k.sequences.edges, self.problem.q.sequences.edges
        phase, done, number = self.phase, self.done, 0
        if phase:  # a resumed run is within this one, or at its end
            number = int(np.searchsorted(keys if phase == "keys" else queries, done, side="left")) - 1 if done else 0
        for at in range(number, len(keys) - 1):
            if keys[at] == keys[at + 1]:
                continue
            if phase != "queries":
                self.done = done if phase == "keys" else int(keys[at])
                if self.done == keys[at]:
                    self.workers.run(
                        lambda lane, work, at=at: self.beginnings.begin(lane, at, int(keys[at]), work), self.lanes
                    )
                if self.done < keys[at + 1]:  # else a checkpoint was written at its end
                    self._keys(self._absorb, "keys", int(keys[at + 1]), self.done, self.passed, self._leap)
                self.finish()
                done = int(queries[at])
            self.done, phase = done, ""
            if done < queries[at + 1]:
                self.answer_queries(int(queries[at + 1]))
        return self.problem.q.rows

    def _whole_sequences(self) -> int:
        """Full attention of sequences that fit into a block, q, k and v of several of them together."""
        p, sequences = self.problem, self.problem.k.sequences

        def take(block: Block) -> bool:
            q, k, v = block.arrays
            answers = self._next_output(block)

            def step_task(item: tuple, work: dict) -> None:
                lane, first, last = item
                self._begin(lane, block.start + first, work)
                steps = [(first + a, first + b) for a, b in lane.steps(0, last - first)]
                for a, b in steps:
                    row = block.start + a
                    self._absorb(lane, *lane.keys(k, v, a, b, row, work), row, work)
                self.sketches[lane.index].finish(work)
                for a, b in steps:
                    self._answer_step(lane, q, a, b, block.start + a, answers, work)

            start, stop = block.start, block.start + block.rows
            cuts = [(piece.first - start, piece.last - start) for piece in sequences.pieces(start, stop)]
            chains = [[(lane, *cut) for cut in cuts] for lane in self.lanes]
            return self._fly(block, step_task, chains, lambda: self._write_behind(block.start, answers, q))

        tensors = [p.q.tensor, p.k.tensor, p.v.tensor]
        rows = self.done + self._pump(
            tensors, take, "rows", p.k.rows, self.done, passed=self.passed, ends=sequences.whole_end
        )
        self.settle()
        return rows

    def _causal(self) -> int:
        """The pass over q, k and v together."""
        p = self.problem

        def take(block: Block) -> bool:
            q, k, v = block.arrays
            answers = self._next_output(block)

            def step_task(item: tuple, work: dict) -> None:
                lane, a, b = item
                row = block.start + a
                if self.beginnings:
                    self._begin(lane, row, work)
                keys, values = lane.keys(k, v, a, b, row, work)
                queries = lane.queries(q, a, b, row, work)
                out, doubt = lane.answers(b - a, work)
                self.sketches[lane.index].step(queries, keys, values, out, work, doubt)
                lane.put(out, doubt, answers, a, b, work)
                if self.auditor:
                    self.auditor.see(lane, keys, values, row, work)

            chains = self._steps(block, heads=p.k)
            return self._fly(block, step_task, chains, lambda: self._write_behind(block.start, answers))

        stop = p.k.rows if p.q.rows is None else p.q.rows
        tensors = [p.q.tensor, p.k.tensor, p.v.tensor]
        rows = self.done + self._pump(tensors, take, "rows", stop, self.done, passed=self.passed, ends=self._ends())
        self.settle()
        if rows == 0:
            raise InputMalformed(f"{p.k.tensor.name}: no rows")
        return rows

    def _exact(self) -> int:
        """Exact attention: for one batch of queries after the other, a pass over the keys that they see."""
        p, done = self.problem, self.done
        while done < p.q.rows:
            (first, last), (key, end) = self._sequence_of(done)
            count = min(self.plan.query_rows, last - done)
            held, lost = self._hold(done, count, first)

            def see(lane: Lane, k: np.ndarray, c: np.ndarray, row: int, work: dict, held: list = held) -> None:
                held[lane.index].absorb(k, c, work)

            again = p.sequences and done + count < last
            with self._uncounted("lane.dropped") if again else nullcontext():
                self._keys(see, stop=key + done - first + count if p.causal else end, start=key)
            answers = np.empty((len(p.q), count, p.v.dim), p.precision)
            for lane in self.lanes:
                held[lane.index].finish(self.workers.works[0])
                unseen = held[lane.index].outputs(answers[lane.query_heads])
                told = 0, lane.not_finite(answers[lane.query_heads]), unseen
                self.workers.works[0]["lane.answers"] += told
            answers[lost] = np.nan
            self._write(done, Answers(answers.transpose(1, 0, 2), np.where(lost, np.float32(np.inf), np.float32(0)).T))
            done += count
            if self.passed:
                self.passed("exact", done)
        return done

    def _sequence_of(self, row: int) -> tuple[tuple[int, int], tuple[int, int | None]]:
        """First and last row (exclusive) of the queries, and of the keys, of the sequence that a row of queries belongs to."""
        p = self.problem
        if not p.sequences:
            return (0, p.q.rows), (0, None)
        number = p.q.sequences.number(row)
        queries, keys = (tuple(map(int, h.sequences.edges[number : number + 2])) for h in (p.q, p.k))
        return queries, keys

    def _hold(self, first: int, count: int, begin: int) -> tuple[list[ExactQueries], np.ndarray]:
        """Read queries [first, first + count) into memory; and which of them are dropped, (heads, count) bool. begin: the
        first row of their sequence."""
        p, work = self.problem, self.workers.works[0]
        q = np.empty((len(p.q), count, p.q.dim), p.precision)
        lost = np.zeros((len(p.q), count), bool)

        def take(block: Block) -> None:
            for lane in self.lanes:
                for a, b in lane.steps(block.start, block.rows, p.q.sequences):
                    at = block.start - first
                    q[lane.query_heads, at + a : at + b] = lane.queries(block.arrays[0], a, b, block.start + a, work)
                    if lane.q.drop:
                        lost[lane.query_heads, at + a : at + b] = lane.lost(b - a, work)

        self._pump([p.q.tensor], take, "queries", first + count, first, self.plan.query_block_rows)
        positions = np.arange(first - begin, first - begin + count) if p.causal else None
        return [ExactQueries(q[lane.query_heads], positions, p.v.dim, p.scale) for lane in self.lanes], lost

    # --- what passes share

    def _pump(
        self,
        tensors: list,
        take: Callable[[Block], bool | None],
        phase: str,
        stop: int | None,
        start: int = 0,
        block_rows: int | None = None,
        passed: Callable[[str, int], None] | None = None,
        ends: Callable[[int, int], int] | None = None,
    ) -> int:
        size, total = block_rows or self.plan.block_rows, stop
        if self.problem.sequences:
            size, total = min(size, stop - start), tensors[0].rows
        self._blocks = ReadAhead(
            tensors, start, stop, size, SLOTS, self.watch.interrupts.check, LENT, ends, self._reading
        )
        self._teller = Teller(self.watch, self._blocks, phase, total, start)
        rows = pump(self._blocks, take, self.watch, self._teller, passed)
        self._land()
        given_back = self._blocks.bytes_held >= TRIMMED
        del self._blocks
        if given_back:
            trim()  # the next phase may take what this one took
        return rows

    def _ends(self) -> Callable[[int, int], int] | None:
        """Where blocks end, if there are several sequences: at the end of one, or (of a method that learns from whole
        groups of queries) so many groups of rows into it."""
        sequences = self.problem.sequences
        if not sequences:
            return None
        group = self.problem.params.group if self.calibration.learns else 1
        return lambda first, rows: sequences.block_end(first, rows, group)

    def _steps(self, block: Block, first: int = 0, heads: Heads | None = None) -> list[list[tuple[Lane, int, int]]]:
        """The steps (lane, a, b) of every lane through a block of these heads, from its row `first` on."""
        sequences = heads.sequences if heads else None
        cuts = [(lane, lane.steps(block.start + first, block.rows - first, sequences)) for lane in self.lanes]
        return [[(lane, first + a, first + b) for a, b in steps] for lane, steps in cuts]

    def _fly(self, block: Block, task: Callable, chains: list, landed: Callable[[], None] | None = None) -> bool:
        """Begin with the steps of a block, and end with the block before it: a lane that is early need not wait for the
        others. `landed` is called when all its steps are done; then it is told. Where the input is late, end with this
        block, too: who sends it may be waiting for answers. Returns True: the block is in work."""
        batch = self.workers.start(task, chains)
        self._flying.append((block, batch, landed))
        self._land(1)
        if batch.done.is_set() or not self._blocks.ready:
            self._land()
        return True

    def _land(self, left: int = 0) -> None:
        """Wait for all blocks in work but the last `left`, in order; raises what went wrong."""
        while len(self._flying) > left:
            block, batch, landed = self._flying.popleft()
            batch.wait()
            if landed:
                landed()
            self._teller(block)

    def _next_output(self, block: Block) -> Answers:
        """Room for the answers to a block."""
        self._outputs.rotate(1)
        room = self._outputs[0]
        return Answers(room.rows[: block.rows], room.doubt[: block.rows])

    def _write_behind(self, start: int, answers: Answers, q: np.ndarray | None = None) -> None:
        """Write to a file while the next block is answered. A pipe may keep a writer waiting: that is left to this thread,
        which signals reach."""
        self._dry()
        if not hasattr(self.writer, "part"):
            self._write(start, answers, q)
            return
        self._written = self._pen.submit(self._put, start, answers)
        self._hear(start, answers, q)

    def _write(self, start: int, answers: Answers, q: np.ndarray | None = None) -> None:
        self._put(start, answers)
        self._hear(start, answers, q)

    def _put(self, start: int, answers: Answers) -> None:
        self.writer.write(start, answers.rows)
        if self.doubts:
            self.doubts.write(start, answers.doubt[:, None])

    def _hear(self, start: int, answers: Answers, q: np.ndarray | None = None) -> None:
        if self.auditor:
            self.auditor.hear(start, answers, q)
        if self.repairs:
            self.repairs.offer(start, answers)
