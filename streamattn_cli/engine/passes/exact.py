"""Exact attention: for one batch of queries after the other, a pass over the keys that they see."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np

from streamattn_cli.engine.passes.parts import Pass
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.workers.lanes import Answers, Lane
from streamattn_cli.rows.tensors.readahead import Block
from streamattn_cli.sketches.exact import ExactQueries


class Exact(Pass):
    """See Pass."""

    def go(self) -> int:
        d, p, done = self.driver, self.problem, self.driver.done
        while done < p.q.count:
            (first, last), (key, end), beside = self._sequence_of(done)
            count = min(d.plan.query_rows, last - done)
            with d.uncounted("lane.dropped", unless_done=True):  # a batch that is not finished begins again
                held, lost = self._hold(done, count, first, beside)

                def see(lane: Lane, k: np.ndarray, c: np.ndarray, row: int, work: dict, held: list = held) -> None:
                    held[lane.index].absorb(k, c, work)

                again = p.sequences and done + count < last
                with d.uncounted("lane.dropped") if again else nullcontext():
                    d.keys(see, stop=beside + key + done - first + count if p.causal else end, start=key)
            self._write(done, self._answers(held, lost))
            del held, see  # before the next batch is held
            done += count
            d.reach(Phase.EXACT, done)
        return done

    def counts(self) -> dict[str, int]:
        return super().counts() | {"unanswered_queries": int(self.driver.workers.total("lane.answers")[2])}

    def _write(self, start: int, answers: Answers) -> None:
        """Write answers by blocks, of which the writer and the audit make copies."""
        block = self.driver.plan.query_block_rows
        for a in range(0, len(answers.rows), block):
            self.output.write(start + a, Answers(answers.rows[a : a + block], answers.doubt[a : a + block]))

    def _answers(self, held: list[ExactQueries], lost: np.ndarray) -> Answers:
        """All keys have been seen: the answers, NaN where a query is `lost` (heads, n)."""
        p, work = self.problem, self.driver.workers.works[0]
        answers = np.empty((len(p.q), lost.shape[1], p.v.dim), p.precision)
        for lane in self.driver.lanes:
            mine = answers[lane.query_heads]
            held[lane.index].finish(work)
            unseen = held[lane.index].outputs(mine)
            lane.restore(mine)
            work["lane.answers"] += 0, lane.not_finite(mine), unseen
        answers[lost] = np.nan
        return Answers(answers.transpose(1, 0, 2), np.where(lost, np.float32(np.inf), np.float32(0)).T)

    def _sequence_of(self, row: int) -> tuple[tuple[int, int], tuple[int, int | None], int]:
        """First and last row (exclusive) of the queries, and of the keys, of the sequence that a row of queries belongs to; and
        which of its keys stands beside its first query."""
        p = self.problem
        if not p.sequences:
            return (0, p.q.count), (0, None), p.first_query
        at = p.q.several.number(row)
        queries, keys = p.q.several.edges, p.k.several.edges
        rows = (int(queries[at]), int(queries[at + 1])), (int(keys[at]), int(keys[at + 1]))
        return *rows, p.first_of(at)

    def _hold(self, first: int, count: int, begin: int, beside: int) -> tuple[list[ExactQueries], np.ndarray]:
        """Read queries [first, first + count) into memory; and which of them are dropped, (heads, count) bool. begin: the
        first row of their sequence, beside: of its keys that which stands beside that."""
        d, p, work = self.driver, self.problem, self.driver.workers.works[0]
        q = np.empty((len(p.q), count, p.q.dim), p.precision)
        lost = np.zeros((len(p.q), count), bool)

        def take(block: Block) -> None:
            for lane in d.lanes:
                for a, b in lane.steps(block.start, block.rows, p.q.sequences):
                    at = block.start - first
                    q[lane.query_heads, at + a : at + b] = lane.queries(block.arrays[0], a, b, block.start + a, work)
                    if lane.q.drop:
                        lost[lane.query_heads, at + a : at + b] = lane.lost(b - a, work)

        d.pump([p.q.tensor], take, Phase.QUERIES, first + count, first, d.plan.query_block_rows)
        positions = beside + np.arange(first - begin, first - begin + count) if p.causal else None
        held = [
            ExactQueries(
                q[lane.query_heads],
                positions,
                p.v.dim,
                p.scale,
                window=p.local,
                **p.logits_of(lane.query_heads),
            )
            for lane in d.lanes
        ]
        return held, lost
