"""Causal attention: queries, keys and values of a row together, each query after the keys that it sees."""

from __future__ import annotations

from collections.abc import Callable

from streamattn_cli.engine.passes.parts import Pass
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.tensors.readahead import Block


class Causal(Pass):
    """See Pass. The state of a sketch grows and answers step by step."""

    def go(self) -> int:
        """See Pass."""
        d, p = self.driver, self.problem
        if d.phase is None:
            self.sketches.show_first_rows()
        stop = p.k.rows if p.q.rows is None else p.q.rows
        tensors = [p.q.tensor, p.k.tensor, p.v.tensor]
        rows = d.done + d.pump(tensors, self._take, Phase.ROWS, stop, d.done, resumable=True, ends=self._ends())
        self.output.settle()
        if rows == 0:
            raise InputMalformed(f"{p.k.tensor.name}: no rows")
        return rows

    def _take(self, block: Block) -> bool:
        q, k, v = block.arrays
        answers = self.output.room(block.rows)

        def step_task(item: tuple, work: dict) -> None:
            lane, a, b = item
            row = block.start + a
            self.sketches.begin_sequence(lane, row, work)
            keys, values = lane.keys(k, v, a, b, row, work)
            queries = lane.queries(q, a, b, row, work)
            out, doubt = lane.answers(b - a, work)
            self.sketches.heads[lane.index].step(queries, keys, values, out, work, doubt)
            lane.put(out, doubt, answers, a, b, work)
            if self.auditor:
                self.auditor.see(lane, keys, values, row, work)

        steps = self.driver.steps(block, heads=self.problem.k)
        return self.driver.start(block, step_task, steps, lambda: self.output.write_behind(block.start, answers))

    def _ends(self) -> Callable[[int, int], int] | None:
        """Where blocks end, if there are several sequences: at the end of one, or (of a method that learns from whole
        groups of queries) so many groups of rows into it."""
        sequences = self.problem.sequences
        if not sequences:
            return None
        group = self.problem.head.group if self.sketches.calibration.learns else 1
        return lambda first, rows: sequences.block_end(first, rows, group)
