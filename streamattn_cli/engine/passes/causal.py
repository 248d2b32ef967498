"""Causal attention: queries, keys and values of a row together, each query after the keys that it sees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamattn_cli.engine.passes.full import Keys
from streamattn_cli.engine.passes.parts import Pass
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.tensors.ranges import RangeTensor
from streamattn_cli.rows.tensors.readahead import Block


class Causal(Pass):
    """See Pass. The state of a sketch grows and answers step by step. Blocks count rows of queries; the keys before that of
    the first query (--first-query) are absorbed before."""

    _beside = 0  # row of the key stream that row 0 of the queries' stands beside

    def go(self) -> int:
        d, p, first = self.driver, self.problem, self.problem.first_query
        if d.phase is None:
            self.sketches.show_first_rows()
        if first and d.phase != Phase.ROWS:
            Keys(d, self.sketches, self.auditor).absorb(first, d.done)
            d.at(Phase.ROWS, 0)
        if first and d.done == 0:
            self.sketches.enter()
        # nobody knows how many rows a pipe has: all must end together, or queries would stand beside other keys than in files
        apart = None in (p.q.rows, p.k.rows, p.v.rows) and p.request.first_query is None
        rows = self._step(None if apart else p.q.rows, first, self._ends())
        if rows == 0:
            raise InputMalformed(f"{p.k.tensor.name}: no rows")
        return rows

    def _step(self, stop: int | None, beside: int, ends: Callable[[int, int], int] | None) -> int:
        """Take in and answer rows from where the driver is to row `stop` of the queries, whose row 0 would stand beside row
        `beside` of the keys; returns the row after the last one."""
        d, p, self._beside = self.driver, self.problem, beside
        tensors = [p.q.tensor, p.k.tensor, p.v.tensor]
        if beside:
            shifted = {id(tensor): RangeTensor(tensor, beside, None) for tensor in tensors[1:]}  # k and v may share one
            tensors[1:] = [shifted[id(tensor)] for tensor in tensors[1:]]
        rows = d.done + d.pump(tensors, self._take, Phase.ROWS, stop, d.done, resumable=True, ends=ends)
        self.output.settle()
        return rows

    def _take(self, block: Block) -> bool:
        (q, k, v), first = block.arrays, self._beside
        answers = self.output.room(block.rows)

        def step_task(item: tuple, work: dict) -> None:
            lane, a, b = item
            row = first + block.start + a
            self.sketches.begin_sequence(lane, row, work)
            keys, values = lane.keys(k, v, a, b, row, work)
            queries = lane.queries(q, a, b, row - first, work)
            out, doubt = lane.answers(b - a, work)
            self.sketches.heads[lane.index].step(queries, keys, values, out, work, doubt)
            lane.put(out, doubt, answers, a, b, work)
            if self.auditor:
                self.auditor.see(lane, keys, values, row, work)

        steps = self.driver.steps(block, heads=self.problem.k, beside=first)
        return self.driver.start(block, step_task, steps, lambda: self.output.write_behind(block.start, answers))

    def _ends(self) -> Callable[[int, int], int] | None:
        """Where blocks end, if there are several sequences: at the end of one, or (of a method that learns from whole
        groups of queries) so many groups of rows into it. Where the first query is beside a later key: at such a group's end."""
        sequences, beside = self.problem.sequences, self.problem.first_query
        if beside:
            return self._group_ends(self.problem.q.count, beside)
        if not sequences:
            return None
        return lambda first, rows: sequences.block_end(first, rows, self._group)

    def _group_ends(self, last: int, beside: int) -> Callable[[int, int], int] | None:
        """The same up to row `last` of the queries, of which row 0 would stand beside row `beside` of the sequence's keys."""
        if self._group == 1:
            return None

        def ends(first: int, rows: int) -> int:
            end = min(first + rows, last)
            return end if end == last else end - (beside + end) % self._group

        return ends

    @property
    def _group(self) -> int:
        """Of how many rows blocks must hold whole groups."""
        return self.problem.head.group if self.sketches.calibration.learns else 1


class CausalSequences(Causal):
    """See Pass. Of sequences with fewer queries than keys one after the other: its keys before the first query, then the rows
    of its queries."""

    def go(self) -> int:
        d, p = self.driver, self.problem
        keys, queries = p.k.several.edges, p.q.several.edges
        phase, done, number = d.phase, d.done, 0
        if phase:  # a resumed run is within this one, or at its end
            edges = keys if phase == Phase.KEYS else queries
            number = int(np.searchsorted(edges, done, side="left")) - 1 if done else 0
        for at in range(number, len(keys) - 1):
            if queries[at] == queries[at + 1]:
                continue
            first, start, stop = p.first_of(at), int(queries[at]), int(queries[at + 1])
            if phase != Phase.ROWS:
                self._absorb(int(keys[at]), first, done if phase == Phase.KEYS else int(keys[at]))
                done = start
            if done == start and first:
                self.sketches.enter()
            d.at(Phase.ROWS, done)
            phase = None
            if done < stop:
                beside = int(keys[at + 1]) - stop
                self._step(stop, beside, self._group_ends(stop, first - start))
        return p.q.count

    def _absorb(self, start: int, first: int, done: int) -> None:
        """Absorb the first keys of the sequence that begins at row `start` of the stream, from row `done` on."""
        if first and done == start:
            self.driver.workers.run(
                lambda lane, work: self.sketches.begin_sequence(lane, start, work), self.driver.lanes
            )
        if done < start + first:
            Keys(self.driver, self.sketches, self.auditor).absorb(start + first, done)
