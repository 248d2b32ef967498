"""A run in the source paper's sketches: keys, values and queries pass on their own, in the order in which they come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamattn_cli.engine.passes.parts import Parts, Pass
from streamattn_cli.engine.passes.recovery import Entries, exact_norms, sparse_of
from streamattn_cli.engine.planning.first_rows import first_rows, peek_first
from streamattn_cli.engine.saving.saver import State, stack_heads, unstack_heads
from streamattn_cli.engine.watch.events import Note
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.workers.lanes import Answers, Lane
from streamattn_cli.errors import CannotMeet, InputMalformed
from streamattn_cli.rows.tensors.readahead import Block
from streamattn_cli.rows.writers.topk import BestRows, Sparse
from streamattn_cli.sketches.paper.ranges import row_count
from streamattn_cli.sketches.paper.sketched import SketchedHead, require_psi

UseAnswers = Callable[[int, Answers, np.ndarray], None]

PRODUCED = ("sk.counts", "lane.answers")  # tallies of rows that are produced
PHASES = {"k": Phase.KEYS, "v": Phase.VALUES, "q": Phase.QUERIES, "kv": Phase.KEYS_AND_VALUES}


class Paper(Pass):
    """See Pass. `heads` are the sketches of the key heads, `moments` [W | prod] of each, once all rows are in."""

    tallies = ("sk.counts",)

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.sketching = self.problem.sketching
        self.heads = [SketchedHead(self.sketching.params) for _ in self.driver.lanes]
        self.moments: list[np.ndarray] = []

    def go(self) -> int:
        """See Pass: all passes, in the order in which rows come."""
        d = self.driver
        if d.phase is None:
            self._calibrate()
        order = self.sketching.order
        shared = self.problem.k.tensor is self.problem.v.tensor and not self.problem.k.tensor.seekable
        steps = [order.replace("v", "")[0] + "v", "q"] if shared and "kv" in order else list(order)
        phases = [PHASES["kv" if step == "v" and self.sketching.kind == "phi" else step] for step in steps]
        resumed = phases.index(d.phase) if d.phase else 0
        rows = 0
        for at, (step, phase) in enumerate(zip(steps, phases, strict=True)):
            done = d.done if at == resumed else 0
            if step == "q" and self.sketching.heaps:
                self._complete()
                rows = done + self._answer(self.output.write, phase, done, resumable=True)
            elif at < resumed:
                continue
            elif step == "v" and self.sketching.kind == "phi":
                d.keys(self._absorb, phase, start=done, resumable=True)
            else:
                self._absorb_parts(step, phase, done)
        if not self.sketching.heaps:
            self._complete()
            self._recover()
            rows = row_count(self.heads[0].state["query_rows"])
        return rows

    def counts(self) -> dict[str, int]:
        clipped, guarded = self.driver.workers.total("sk.counts")
        return {
            "clipped_keys": sum(int(head.state["clipped"][0]) for head in self.heads),
            "clipped_queries": int(clipped),
            "guarded_queries": int(guarded),
        } | ({} if self.sketches.heads else {"unanswered_queries": 0})

    def save(self) -> State:
        return stack_heads([head.state for head in self.heads], "sketch")

    def load(self, state: State, name: str) -> None:
        unstack_heads(state, [head.state for head in self.heads], "sketch", name)

    # --- keys, values, queries

    def _calibrate(self) -> None:
        """Centre and bounds from the first rows; values are looked at only if they are there before the queries."""
        p = self.problem
        values = p.v.tensor.seekable or "v" in self.sketching.order.split("q")[0]
        d = self.driver
        with d.watch.interrupts.at_once():
            peeked = peek_first(p, values)
        for lane, k, c, q in first_rows(p, peeked):
            try:
                error = self.heads[lane.index].calibrate(k, c, q)
            except CannotMeet as refusal:
                raise CannotMeet(f"{p.k.tensor.name}: {refusal}") from None
            if self.sketches.heads:
                for name in ("mu", "radius"):
                    self.sketches.heads[lane.index].state["history." + name][:] = self.heads[lane.index].state[name]
            d.watch.listener(
                Note(f"head {lane.index}: the polynomial alone errs by about {error:.2g} on the first rows")
            )

    def _absorb(self, lane: Lane, k: np.ndarray, c: np.ndarray, row: int, work: dict) -> None:
        self.sketches.absorb(lane, k, c, work)

    def _absorb_parts(self, step: str, phase: Phase, done: int) -> None:
        """A pass, from row `done` on, over one of k, v and q, or over k and v that come in the same rows of a pipe."""
        tensors = {part: getattr(self.problem, part).tensor for part in step}
        known = [getattr(self.problem, part).rows for part in step]

        def take(block: Block) -> None:
            def lane_task(lane: Lane, work: dict) -> None:
                head = self.heads[lane.index]
                for a, b in lane.steps(block.start, block.rows):
                    row = block.start + a
                    for part, array in zip(step, block.arrays, strict=True):
                        if part == "q":
                            head.absorb_queries(lane.queries(array, a, b, row, work), row, work)
                        elif part == "k":
                            head.absorb_keys(lane.alone(part, array, a, b, row, work), row, work)
                        else:
                            head.absorb_values(lane.alone(part, array, a, b, row, work), row, work)

            d.workers.run(lane_task, d.lanes)

        d = self.driver
        size = d.plan.query_block_rows if step == "q" else d.plan.block_rows
        rows = done + d.pump(list(tensors.values()), take, phase, known[0], done, size, resumable=True)
        if rows == 0:
            raise InputMalformed(f"{tensors[step[0]].name}: no rows")

    def _complete(self) -> None:
        """All keys and values are in: join them, and refuse a Psi that is drowned by its own noise."""
        with self.driver.uncounted(*PRODUCED):
            self._join()

    def _join(self) -> None:
        p, work = self.problem, self.driver.workers.works[0]
        if self.sketching.kind == "phi":
            self.sketches.finish()
            for sketch, head in zip(self.sketches.heads, self.heads, strict=True):
                head.state["value_range"][:] = sketch.state["range"]
            self.moments = [
                np.column_stack([sketch.state["history.moments"][:, :-1], head.state["prod"]])
                for sketch, head in zip(self.sketches.heads, self.heads, strict=True)
            ]
            return
        for head in self.heads:
            head.check_values(p.k.tensor.name, p.v.tensor.name)
            self.moments.append(head.moments())
            error = head.psi_error(self.moments[-1], work, self._output_size(head, self.moments[-1]))
            require_psi(error, self.sketching.params, p.request.max_error)
            self.driver.watch.listener(
                Note(f"head {len(self.moments) - 1}: Psi alone errs by about {error:.2g} of the outputs")
            )

    def _output_size(self, head: SketchedHead, moments: np.ndarray) -> float | None:
        """The mean squared norm of a row of outputs, which Phi tells also where few rows are heavy."""
        phi = head.params.phi
        if not phi or not row_count(head.state["query_rows"]):
            return None
        norms = [phi.tail(head.outputs(moments, h)[0]) for h in range(self.problem.group)]
        return float((np.array(norms) ** 2).sum(axis=1).mean() / row_count(head.state["query_rows"]))

    def _answer(self, use: UseAnswers, phase: Phase, done: int = 0, resumable: bool = False) -> int:
        """A pass over the queries: use(start, answers (n, heads, dv), q) for every block from row `done` on; returns
        how many rows these have."""
        d, p = self.driver, self.problem
        bounded = self.sketching.heaps

        def take(block: Block) -> None:
            (q,) = block.arrays
            answers = self.output.room(block.rows)

            def step_task(item: tuple, work: dict) -> None:
                lane, a, b = item
                queries = lane.queries(q, a, b, block.start + a, work)
                out, doubt = lane.answers(b - a, work)
                moments = self.moments[lane.index]
                self.heads[lane.index].answer(queries, block.start + a, moments, out, work, bounded, doubt)
                lane.put(out, doubt, answers, a, b, work)

            d.workers.run(step_task, [(lane, a, b) for lane in d.lanes for a, b in lane.steps(block.start, block.rows)])
            use(block.start, answers, q)

        return d.pump([p.q.tensor], take, phase, p.q.rows, done, d.plan.query_block_rows, resumable)

    # --- the k-sparse result, and the truth

    def _recover(self) -> None:
        """Columns from Phi T; where the queries can be read again, --audit measures the recovery exactly."""
        p, sketching = self.problem, self.sketching
        k = p.request.top_k or 0
        n = row_count(self.heads[0].state["query_rows"])
        results = []
        for query_head in range(len(p.q)):
            lane = query_head // p.group
            z, mean = self.heads[lane].outputs(self.moments[lane], query_head % p.group)
            reference = mean if p.request.deviation else None
            if reference is not None:
                z -= np.outer(self.heads[lane].state["sk_one"], mean)
            results.append(sparse_of(sketching, z, n, k, reference))
        self._tell(results)
        joint = not sketching.per_column and p.v.dim > 1
        if not p.request.audit or not p.q.tensor.seekable:
            self.output.writer.recover(results, sketching.decoder, joint, n, measured=False)
            return
        best = BestRows(k, len(p.q), p.v.dim, p.request.deviation)
        held = [Entries(sparse) for sparse in results]

        def compare(start: int, answers: Answers, q: np.ndarray) -> None:
            best.offer(start, answers.rows)
            for head, taken in enumerate(held):
                taken.see(start, answers.rows[:, head])
            if self.auditor:
                self.auditor.observe(start, answers)

        with self.driver.uncounted(*PRODUCED):
            self._answer(compare, Phase.RECOVERY)
        norms = [exact_norms(s, taken, best, head) for head, (s, taken) in enumerate(zip(results, held, strict=True))]
        self.output.writer.recover(norms, sketching.decoder, joint, n, measured=True)

    def _tell(self, results: list[Sparse]) -> None:
        """Say so where the sketch is too small, or the outputs too flat, for what was asked."""
        found = sum(len(sparse.rows) for sparse in results)
        sure = sum(int(sparse.significant.sum()) for sparse in results)
        if sure < found:
            self.driver.watch.listener(
                Note(
                    f"only {sure} of {found} entries stand above the noise of Phi "
                    f"({self.sketching.recovering.counters} counters), the others may be noise: outputs without heavy "
                    "rows are served as well by nothing at all, or try --deviation; heavy rows that are "
                    "there need a larger --m2"
                )
            )
