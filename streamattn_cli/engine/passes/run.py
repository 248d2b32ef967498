"""A run: its pass, then what the audit and --repair read again; and its state for checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamattn_cli.engine.audit.audit import Auditing, Auditor
from streamattn_cli.engine.audit.exactrows import ExactRows, ExactSequences
from streamattn_cli.engine.audit.live_error import ErrorSoFar
from streamattn_cli.engine.audit.repair import ExactAnswers, Repairs
from streamattn_cli.engine.passes.driver import Driver
from streamattn_cli.engine.passes.full import Keys
from streamattn_cli.engine.passes.lane_sketches import LaneSketches
from streamattn_cli.engine.passes.output import Output
from streamattn_cli.engine.passes.parts import Parts, Pass
from streamattn_cli.engine.passes.pump import Watch
from streamattn_cli.engine.planning.footprint import repair_batch
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.saving.resume import Saved, answered_rows
from streamattn_cli.engine.saving.saver import Saver, State, stack_heads, unstack_heads
from streamattn_cli.engine.watch.events import Audit
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.workers.lanes import Lane
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.topk import BestRows


class Run:
    """One run from its first row, or the row of a checkpoint, to its audit.

    make_pass: the class of its pass. auditor: None where nothing is audited. saver: told where the run could be resumed.
    """

    def __init__(
        self,
        plan: Plan,
        watch: Watch,
        make_pass: Callable[[Parts], Pass],
        writer: Writer,
        doubts: Writer | None = None,
        lanes: list[Lane] | None = None,
        auditor: Auditing | None = None,
        saver: Saver | None = None,
    ):
        """lanes: those of the auditor. doubts: the writer of --doubt."""
        self.plan, self.problem, self.auditor, self.saver = plan, plan.problem, auditor, saver
        self.answered = 0  # rows that an earlier run, which this one resumes, has answered
        self.repaired = 0
        self.repairs = (
            Repairs(plan.repair_rows * len(plan.problem.q), len(plan.problem.q)) if plan.repair_rows else None
        )
        lanes = lanes or lanes_of(plan)
        error = ErrorSoFar(auditor) if isinstance(auditor, Auditor) else None
        self.driver = Driver(plan, watch, lanes, self._reached if saver else None, error)
        self.sketches = LaneSketches(self.driver)
        self.output = Output(plan, writer, doubts, [hearer for hearer in (auditor, self.repairs) if hearer])
        self.rows = make_pass(Parts(self.driver, self.sketches, self.output, auditor))

    def go(self) -> tuple[int, Audit | None, str | None]:
        """All passes: rows answered, the audit, and why there is none."""
        rows = self.rows.go()
        self.sketches.check_range()
        second = self._second_pass() if self.auditor else None
        if self.repairs:
            self._repair(self.repairs)
        if not self.auditor:
            return rows, None, self.plan.audit_reason
        return rows, *self.auditor.estimate(second, self.driver.workers.works[0], bool(self.repairs))

    def counts(self) -> dict[str, int]:
        """What was clipped, guarded or dropped, and how many answers are repaired, doubted or not finite."""
        doubted, not_finite, _ = map(int, self.driver.workers.total("lane.answers"))
        repaired = {"repaired_answers": self.repaired} if self.repairs else {}
        return self.rows.counts() | repaired | {"doubted_answers": doubted, "not_finite_answers": not_finite}

    def resume(self, saved: Saved) -> None:
        """Take up the state of a checkpoint, before `go`."""
        phase = Phase(saved.phase)
        self.driver.at(phase, saved.done)
        self.answered = answered_rows(self.problem, phase, saved.done)
        self._load(saved.state, saved.name)
        saved.state.clear()  # it is held twice no longer than that

    def settle(self) -> None:
        """Wait until all blocks so far are done and their answers written; raises what went wrong."""
        self.driver.wait()
        self.output.settle()

    def save(self) -> State:
        """The state of everything, as named arrays (or lists of one array per key head); views, not copies."""
        state = self.sketches.save() | self.rows.save()
        state["tally"] = np.concatenate([np.ravel(self.driver.workers.total(name)) for name in self._tallies()])
        state |= stack_heads([best.state() for best in self._heaps()], "best")
        state |= stack_heads([self.repairs.state] if self.repairs else [], "repair")
        if self.sketches.beginnings:
            state["clipped_before"] = self.sketches.beginnings.clipped
        return state | (self.auditor.save() if self.auditor else {})

    def close(self) -> None:
        """Stop the threads."""
        self.output.close()
        self.driver.close()

    def _load(self, state: State, name: str) -> None:
        """Take back what `save` gave; `name` is the checkpoint's, for messages."""
        self.sketches.load(state, name)
        self.rows.load(state, name)
        at = 0
        for tally in self._tallies():
            counts = self.driver.workers.works[0][tally]
            saved = state["tally"][at : at + len(counts)]
            counts[: len(saved)] = saved  # versions before counted less
            at += len(counts)
        unstack_heads(state, [best.state() for best in self._heaps()], "best", name)
        unstack_heads(state, [self.repairs.state] if self.repairs else [], "repair", name)
        if self.sketches.beginnings:
            self.sketches.beginnings.clipped[:] = state["clipped_before"]
        writer = self.output.writer
        if self.answered and (self._heaps() or not writer.placed):
            writer.resume(self.answered)
        if self.auditor:
            self.auditor.load(state, name)

    def _reached(self, phase: Phase, done: int) -> None:
        if self.saver:
            self.saver.reached(phase, done, self)

    def _tallies(self) -> list[str]:
        return ["lane.dropped", *self.sketches.tallies, "lane.answers", *self.rows.tallies]

    def _heaps(self) -> list[BestRows]:
        """The heaps of --top-k, where rows are produced."""
        return [self.output.writer.best] if self.output.writer.best else []

    def _second_pass(self) -> ExactRows | ExactSequences | None:
        """The pass over the keys for what the audit has still to answer exactly."""
        second = self.auditor.second() if self.auditor else None
        if second:
            self._see_keys(second, Phase.AUDIT)
        return second

    def _see_keys(self, held: ExactRows | ExactSequences | ExactAnswers, phase: Phase) -> None:
        """A pass over the keys that some rows see."""
        self.driver.keys_again(held.see, phase, self.problem.keys_of(int(held.rows[-1])))

    def _repair(self, repairs: Repairs) -> None:
        """Make the most doubtful answers exactly and write them once more, a batch with each pass over the keys."""
        for numbers in repairs.batches(repair_batch(self.plan) * repairs.heads):
            held = ExactAnswers(self.problem, self.driver.lanes, numbers)
            self._see_keys(held, Phase.REPAIR)
            answers = held.finish(self.driver.workers.works[0])
            for row, head, answer in zip(held.rows, held.heads, answers, strict=True):
                self.output.patch(int(row), int(head), answer)
            if self.auditor:
                self.auditor.repaired(held.rows, held.heads, answers)
            self.repaired += len(numbers)


class SketchRun:
    """Keys and values into sketches that are kept, without queries."""

    def __init__(self, plan: Plan, watch: Watch, saver: Saver | None = None):
        """saver: told where the run could be resumed."""
        self.problem, self.saver = plan.problem, saver
        self.driver = Driver(plan, watch, lanes_of(plan), self._reached if saver else None)
        self.sketches = LaneSketches(self.driver)
        self._keys = Keys(self.driver, self.sketches)

    @property
    def rows(self) -> int:
        """Rows absorbed so far, those of earlier runs included."""
        return self.sketches.heads[0].rows

    def begin(self, row: int = 0) -> None:
        """Show the sketches their first rows, of which the first has this number in the stream."""
        self.sketches.show_first_rows()
        self.sketches.begin(row)

    def absorb(self, stop: int | None = None, start: int = 0) -> None:
        """Absorb rows [start, stop). Raises NonFinite, too, for values that can be absorbed and not be answered from."""
        self._keys.absorb(stop, start)
        self.driver.wait()
        self.sketches.check_range()

    def absorb_heads(self, k: Heads, v: Heads, start: int, block_rows: int) -> None:
        """Absorb all rows of other tensors like those of the problem, from this row on."""
        self._keys.absorb(None, start, (k, v), block_rows)

    def check(self, k: np.ndarray, v: np.ndarray, row: int) -> None:
        """Refuse (NonFinite) what absorbing these rows, blocks of (O, n, I), would refuse, before a sketch has seen any of them.
        row: the number of the first."""
        if self.problem.request.nan_policy != "drop":
            for lane in self.driver.lanes:
                lane.pass_over(k, v, k.shape[1], row, self.driver.workers.works[0])

    def resume(self, saved: Saved) -> None:
        """Take up the state of a checkpoint."""
        self.sketches.load(saved.state, saved.name)
        tally = self.driver.workers.works[0]
        dropped = len(tally["lane.dropped"])
        tally["lane.dropped"][:] = saved.state["tally"][:dropped]
        tally["counts"][:] = saved.state["tally"][dropped : dropped + len(tally["counts"])]
        saved.state.clear()

    def settle(self) -> None:
        """Wait until all blocks so far are absorbed; raises what went wrong."""
        self.driver.wait()

    def save(self) -> State:
        """The state of the sketches, and what was counted."""
        names = ["lane.dropped", *self.sketches.tallies, "lane.answers"]
        return self.sketches.save() | {
            "tally": np.concatenate([np.ravel(self.driver.workers.total(name)) for name in names])
        }

    def counts(self) -> dict[str, int]:
        """What was clipped or dropped."""
        dropped = self.driver.workers.total("lane.dropped")
        answers = {"doubted_answers": 0, "not_finite_answers": 0}
        return {"dropped_keys": int(dropped[0]), "dropped_queries": int(dropped[1])} | self.sketches.counts() | answers

    def close(self) -> None:
        """Stop the threads."""
        self.driver.close()

    def _reached(self, phase: Phase, done: int) -> None:
        if self.saver:
            self.saver.reached(phase, done, self)


def lanes_of(plan: Plan) -> list[Lane]:
    """A lane for each key head of a plan."""
    return [Lane(plan.problem, i) for i in range(len(plan.problem.k))]


def auditor_of(plan: Plan, lanes: list[Lane], again: bool = True, postponed: bool = False) -> Auditor | None:
    """The auditor of a plan, None where nothing is audited; see Auditor."""
    return Auditor(plan.problem, lanes, plan.audit_rows, again, postponed) if plan.audit_rows else None
