"""Full attention: all keys and values into the sketches, then the queries."""

from __future__ import annotations

import numpy as np

from streamattn_cli.engine.audit.audit import Auditing
from streamattn_cli.engine.passes.driver import Driver
from streamattn_cli.engine.passes.lane_sketches import LaneSketches, StoredRows
from streamattn_cli.engine.passes.parts import Parts, Pass
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.workers.lanes import Lane
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.readahead import Block


class Keys:
    """The pass over keys and values into the sketches."""

    def __init__(self, driver: Driver, sketches: LaneSketches, auditor: Auditing | None = None):
        self._driver, self._sketches, self._auditor = driver, sketches, auditor
        windows_alone = not driver.problem.head.history and not (auditor and auditor.drawn)
        self._shortcut = StoredRows(driver, sketches).take if windows_alone else None

    def absorb(
        self,
        stop: int | None = None,
        start: int = 0,
        heads: tuple[Heads, Heads] | None = None,
        block_rows: int | None = None,
    ) -> int:
        """Absorb rows [start, stop), of `heads` instead of the problem's if they are given; returns the row after the last
        one."""
        return self._driver.keys(self.take, Phase.KEYS, stop, start, True, self._shortcut, heads, block_rows)

    def take(self, lane: Lane, k: np.ndarray, c: np.ndarray, row: int, work: dict) -> None:
        """Absorb one step of a lane."""
        self._sketches.absorb(lane, k, c, work)
        if self._auditor:
            self._auditor.see(lane, k, c, row, work)


class Queries(Pass):
    """See Pass. The keys have passed: only queries are answered."""

    def go(self) -> int:
        return self.answer()

    def answer(self, stop: int | None = None) -> int:
        """Answer the queries from where the driver is, up to row `stop` or all; returns the row after the last one."""
        d, p = self.driver, self.problem

        def take(block: Block) -> bool:
            (q,) = block.arrays
            answers = self.output.room(block.rows)

            def step_task(item: tuple, work: dict) -> None:
                lane, a, b = item
                self.sketches.answer(lane, q, a, b, block.start + a, answers, work)

            apart = [[step] for chain in d.steps(block, heads=p.q) for step in chain]
            return d.start(block, step_task, apart, lambda: self.output.write_behind(block.start, answers, q))

        stop, size = p.q.rows if stop is None else stop, d.plan.query_block_rows
        rows = d.done + d.pump([p.q.tensor], take, Phase.QUERIES, stop, d.done, size, resumable=True)
        self.output.settle()
        return rows


class Full(Queries):
    """See Pass. Keys, then queries, of one sequence."""

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.keys = Keys(parts.driver, parts.sketches, parts.auditor)

    def go(self) -> int:
        d = self.driver
        if d.phase is None:
            self.sketches.show_first_rows()
        if d.phase != Phase.QUERIES:
            self.keys.absorb(start=d.done)
            self.sketches.finish()
            d.at(Phase.QUERIES, 0)
        return self.answer()


class FullSequences(Full):
    """See Pass. One sequence after the other: its keys, then its queries."""

    def go(self) -> int:
        d = self.driver
        keys, queries = self.problem.k.several.edges, self.problem.q.several.edges
        phase, done, number = d.phase, d.done, 0
        if phase == Phase.ROWS:  # of WholeSequences, with larger blocks: at the end of a sequence
            phase = Phase.QUERIES
        if phase:  # a resumed run is within this one, or at its end
            edges = keys if phase == Phase.KEYS else queries
            number = int(np.searchsorted(edges, done, side="left")) - 1 if done else 0
        for at in range(number, len(keys) - 1):
            if keys[at] == keys[at + 1]:
                continue
            if phase != Phase.QUERIES:
                self._absorb(at, done if phase == Phase.KEYS else int(keys[at]))
                done = int(queries[at])
            d.at(Phase.QUERIES, done)
            phase = None
            if done < queries[at + 1]:
                self.answer(int(queries[at + 1]))
        return self.problem.q.count

    def _absorb(self, number: int, done: int) -> None:
        """Absorb the keys of a sequence, from row `done` of the stream on."""
        first, last = map(int, self.problem.k.several.edges[number : number + 2])
        if done == first:
            self.driver.workers.run(
                lambda lane, work: self.sketches.begin_sequence(lane, first, work), self.driver.lanes
            )
        if done < last:  # else a checkpoint was written at its end
            self.keys.absorb(last, done)
        self.sketches.finish()


class WholeSequences(FullSequences):
    """See Pass. Sequences that fit into a block: q, k and v of several of them together."""

    def go(self) -> int:
        d, p = self.driver, self.problem
        if d.phase in (Phase.KEYS, Phase.QUERIES):  # resumed within a sequence, which did not fit then
            return super().go()
        tensors, ends = [p.q.tensor, p.k.tensor, p.v.tensor], p.k.several.whole_end
        rows = d.done + d.pump(tensors, self._take, Phase.ROWS, p.k.rows, d.done, resumable=True, ends=ends)
        self.output.settle()
        return rows

    def _take(self, block: Block) -> bool:
        q, k, v = block.arrays
        answers = self.output.room(block.rows)
        start, stop = block.start, block.start + block.rows

        def step_task(item: tuple, work: dict) -> None:
            lane, first, last = item
            self.sketches.begin_sequence(lane, start + first, work)
            steps = [(first + a, first + b) for a, b in lane.steps(0, last - first)]
            for a, b in steps:
                keys, values = lane.keys(k, v, a, b, start + a, work)
                self.keys.take(lane, keys, values, start + a, work)
            self.sketches.heads[lane.index].finish(work)
            for a, b in steps:
                self.sketches.answer(lane, q, a, b, start + a, answers, work)

        cuts = [(piece.first - start, piece.last - start) for piece in self.problem.k.several.pieces(start, stop)]
        chains = [[(lane, *cut) for cut in cuts] for lane in self.driver.lanes]
        return self.driver.start(block, step_task, chains, lambda: self.output.write_behind(start, answers, q))
