"""The sketches of all lanes, from their first rows to their answers."""

from __future__ import annotations

import numpy as np

from streamattn_cli.engine.passes.calibration import Beginnings, Calibration, of_every_length
from streamattn_cli.engine.passes.driver import Driver
from streamattn_cli.engine.saving.saver import State, stack_heads, unstack_heads
from streamattn_cli.engine.watch.meter import trim
from streamattn_cli.engine.workers.lanes import Answers, Lane, Part
from streamattn_cli.errors import NonFinite
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.readahead import Block

FLOAT_MOST = float(np.finfo(np.float32).max)


def smaller(v: Heads | None) -> str:
    """What to do about values that are too large."""
    piped = v is not None and not v.tensor.seekable
    return "divide values by a power of two and multiply the answers by it" + (
        " (or read them from a file: there they are counted in powers of two)" if piped else ""
    )


class LaneSketches:
    """One HeadAttention for each lane; none where the method keeps none."""

    def __init__(self, driver: Driver):
        self._driver, self.problem = driver, driver.problem
        p = self.problem
        every = [of_every_length(p, p.logits_of(lane.query_heads)) for lane in driver.lanes] if p.params else []
        self.heads = [own[-1] for own in every]
        self._values = p.v.tensor.name if p.v.tensor.width else ""
        self.calibration = Calibration(p, self.heads)
        self.beginnings = None
        if p.sequences and self.heads:
            self.beginnings = Beginnings(self.calibration, every, driver.reading)

    def show_first_rows(self) -> None:
        """Show every sketch the first rows and some queries. Where there are several sequences this is done as they begin."""
        if self.beginnings or not self.calibration.needed:
            return
        with self._driver.watch.interrupts.at_once():
            stored = self.calibration.read()
        for lane in self._driver.lanes:
            self.calibration.show(lane, stored, self._driver.workers.works[0])
        del stored
        trim()

    def begin(self, row: int) -> None:
        """The first row to come has this number in the stream that this is a shard of."""
        for sketch in self.heads:
            sketch.begin(row)

    def enter(self) -> None:
        """Queries begin with the next row."""
        for sketch in self.heads:
            sketch.enter()

    def begin_sequence(self, lane: Lane, row: int, work: dict) -> None:
        """Make the lane's sketch new if this row of the stream is the first of a sequence."""
        if self.beginnings is None:
            return
        number, local = self.problem.k.several.local(row)
        if local == 0:
            self.beginnings.begin(lane, number, row, work)

    def absorb(self, lane: Lane, k: np.ndarray, c: np.ndarray, work: dict) -> None:
        """Take in the next keys (n, d) and values (n, dv + 1) of a lane."""
        self.heads[lane.index].absorb(k, c, work)

    def answer(self, lane: Lane, q: np.ndarray, a: int, b: int, row: int, answers: Answers, work: dict) -> None:
        """Answer rows [a, b) of a block of stored queries, of which row a has this number in the stream."""
        queries = lane.queries(q, a, b, row, work)
        out, doubt = lane.answers(b - a, work)
        self.heads[lane.index].answer(queries, self.problem.q.local(row), out, work, doubt)
        lane.put(out, doubt, answers, a, b, work)

    def finish(self) -> None:
        """The keys are complete: make the sketches ready for queries."""
        self._driver.workers.run(lambda lane, work: self.heads[lane.index].finish(work), self._driver.lanes)

    @property
    def tallies(self) -> list[str]:
        """Names of what workers count for them."""
        return ["counts"] if self.heads else []

    def counts(self) -> dict[str, int]:
        """What was clipped or guarded, and what could not be answered."""
        if not self.heads:
            return {}
        clipped, guarded, unanswered = self._driver.workers.total("counts")
        before = int(self.beginnings.clipped.sum()) if self.beginnings else 0
        return {
            "clipped_keys": sum(s.clipped for s in self.heads) + before,
            "clipped_queries": int(clipped),
            "guarded_queries": int(guarded),
            "unanswered_queries": int(unanswered),
        }

    def check_range(self) -> None:
        """Refuse (NonFinite) values of which rows that are turned may have gone beyond the range of float32 where they are
        coded, which nothing shows afterwards."""
        p = self.problem
        for head in self.heads if p.params and p.request.nan_policy != "drop" else ():
            top = np.abs(head.state["range"], dtype=np.float64).max(initial=0)
            if head.history and head.params.dtype == "f4" and FLOAT_MOST / p.v.dim < top < np.inf:
                raise NonFinite(f"{self._values}: values come to {top:.3g}, whose sums of {p.v.dim} go beyond the range of "
                                f"float32; {smaller(p.v)}")  # fmt: skip

    def save(self) -> State:
        """The state of all heads, as lists of one array per head; views, not copies."""
        kinds = {"kinds": self.beginnings.kinds} if self.beginnings and self.problem.shorter else {}
        return stack_heads([s.state for s in self.heads], "head") | kinds

    def load(self, state: State, name: str) -> None:
        """Take back what `save` gave; `name` is the checkpoint's, for messages."""
        if self.beginnings and self.problem.shorter:
            self.beginnings.choose(np.asarray(state["kinds"]))
        unstack_heads(state, [s.state for s in self.heads], "head", name)
        self._values = self._values or name


class StoredRows:
    """A shortcut where only windows see keys: blocks are taken in as they are stored, without being widened."""

    def __init__(self, driver: Driver, sketches: LaneSketches):
        self._driver, self._sketches = driver, sketches
        p = driver.problem
        self._k, self._v = (Part(name, getattr(p, name), 0, len(driver.lanes), False) for name in "kv")

    def take(self, block: Block) -> int:
        """How many of a block's first rows are done: all where they are finite and kept in the dtype in which they are
        stored, else those that no window will hold at the block's end."""
        (k, v), p, lanes = block.arrays, self._driver.problem, self._driver.lanes
        self._driver.wait()
        bad = self._k.bad(k, 0, block.rows) or self._v.bad(v, 0, block.rows)
        if not bad and not p.v.units and p.k.tensor.dtype == p.v.tensor.dtype == p.head.stored:
            for lane, sketch in zip(lanes, self._sketches.heads, strict=True):
                sketch.keep(lane.k.stored(k), lane.v.stored(v))
            return block.rows
        idle: int = [sketch.skip(block.rows) for sketch in self._sketches.heads][0]  # all have the same settings
        if bad and idle:
            self._driver.workers.run(lambda lane, work: lane.pass_over(k, v, idle, block.start, work), lanes)
        return idle
