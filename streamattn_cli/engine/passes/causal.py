"""Causal attention: queries, keys and values of a row together, each query after the keys that it sees."""

from __future__ import annotations

from collections.abc import Callable

from streamattn_cli.engine.passes.full import Keys
from streamattn_cli.engine.passes.parts import Pass
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.tensors.ranges import RangeTensor
from streamattn_cli.rows.tensors.readahead import Block


class Causal(Pass):
    """See Pass. The state of a sketch grows and answers step by step. Blocks count rows of queries; the keys before that of
    the first query (--first-query) are absorbed before."""

    def go(self) -> int:
        """See Pass."""
        d, p, first = self.driver, self.problem, self.problem.first_query
        if d.phase is None:
            self.sketches.show_first_rows()
        stop = p.k.rows if p.q.rows is None else p.q.rows
        tensors = [p.q.tensor, p.k.tensor, p.v.tensor]
        if first:
            if d.phase != Phase.ROWS:
                Keys(d, self.sketches, self.auditor).absorb(first, d.done)
                d.at(Phase.ROWS, 0)
            if d.done == 0:
                self.sketches.enter()
            beside = {id(tensor): RangeTensor(tensor, first, None) for tensor in tensors[1:]}  # k and v may share one
            tensors[1:] = [beside[id(tensor)] for tensor in tensors[1:]]
        rows = d.done + d.pump(tensors, self._take, Phase.ROWS, stop, d.done, resumable=True, ends=self._ends())
        self.output.settle()
        if rows == 0:
            raise InputMalformed(f"{p.k.tensor.name}: no rows")
        return rows

    def _take(self, block: Block) -> bool:
        (q, k, v), first = block.arrays, self.problem.first_query
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
        group = self.problem.head.group if self.sketches.calibration.learns else 1
        if beside and group > 1:
            last = self.problem.q.count

            def ends(first: int, rows: int) -> int:
                end = min(first + rows, last)
                return end if end == last else end - (beside + end) % group

            return ends
        if not sequences:
            return None
        return lambda first, rows: sequences.block_end(first, rows, group)
