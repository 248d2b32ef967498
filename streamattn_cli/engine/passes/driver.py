"""What all passes of a run share: lanes, threads, blocks in work, and where the run is."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from streamattn_cli.engine.passes.pump import Teller, Watch, pump
from streamattn_cli.engine.planning.footprint import IN_WORK, SLOTS, work_spec
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.watch.meter import trim
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.workers.lanes import Lane
from streamattn_cli.engine.workers.pool import Batch, Workers
from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.readahead import Block, ReadAhead
from streamattn_cli.rows.tensors.tensor import RowTensor

TRIMMED = 1 << 20  # bytes of a pass from which on they are given back after it

Reached = Callable[[Phase, int], None]
UseKeys = Callable[[Lane, np.ndarray, np.ndarray, int, dict], None]  # lane, k, c, row, work


class Driver:
    """Feeds blocks of rows to the threads, and ends blocks in their order.

    reached: told the phase and its row after every block from which the run could be resumed. error: of the rows audited
    so far, for progress.
    """

    def __init__(
        self,
        plan: Plan,
        watch: Watch,
        lanes: list[Lane],
        reached: Reached | None = None,
        error: Callable[[], float | None] | None = None,
    ):
        self.plan, self.watch, self.lanes = plan, watch, lanes
        self.problem = plan.problem
        self.workers = Workers(plan.threads, work_spec(plan.problem))
        self.reading = threading.Lock()  # held by whoever reads rows
        self.phase: Phase | None = None  # where the run begins or is resumed; None at its beginning
        self.done = 0  # rows of that phase
        self._reached, self._error = reached, error
        self._in_work: deque[tuple[Block, Batch, Callable[[], None] | None]] = deque()

    def at(self, phase: Phase | None, done: int) -> None:
        """The run is at row `done` of a phase."""
        self.phase, self.done = phase, done

    def reach(self, phase: Phase, done: int) -> None:
        """Row `done` of a phase has been reached, and the run could be resumed from here."""
        if self._reached:
            self._reached(phase, done)

    def pump(
        self,
        tensors: list[RowTensor],
        take: Callable[[Block], bool | None],
        phase: Phase,
        stop: int | None,
        start: int = 0,
        block_rows: int | None = None,
        resumable: bool = False,
        ends: Callable[[int, int], int] | None = None,
    ) -> int:
        """A pass over rows [start, stop) of tensors: take(block) for each block, True where it is still in work. Returns the
        number of rows."""
        size, total = block_rows or self.plan.block_rows, stop
        if stop is None:
            total = next((tensor.rows for tensor in tensors if tensor.rows is not None), None)
        if self.problem.sequences:
            assert stop is not None, "sequences are of known rows"
            size, total = min(size, stop - start), tensors[0].rows
        self._blocks = ReadAhead(
            tensors,
            start,
            stop,
            size,
            SLOTS,
            self.watch.interrupts.check,
            lent=IN_WORK,
            ends=ends,
            reading=self.reading,
        )
        self._teller = Teller(self.watch, self._blocks, phase, total, start, self._error)
        rows = pump(self._blocks, take, self.watch, self._teller, self._reached if resumable else None)
        self.wait()
        given_back = self._blocks.bytes_held >= TRIMMED
        del self._blocks
        if given_back:
            trim()  # the next phase may take what this one took
        return rows

    def keys(
        self,
        use: UseKeys,
        phase: Phase = Phase.KEYS,
        stop: int | None = None,
        start: int = 0,
        resumable: bool = False,
        shortcut: Callable[[Block], int] | None = None,
        heads: tuple[Heads, Heads] | None = None,
        block_rows: int | None = None,
    ) -> int:
        """A pass over keys and values: use(lane, k, c, row, work) for the rows of every lane, in order. Returns the row after
        the last one.

        shortcut(block) says how many of a block's first rows it has taken care of. heads: instead of the problem's.
        """
        keys, values = heads or (self.problem.k, self.problem.v)

        def take(block: Block) -> bool:
            k, v = block.arrays

            def step_task(item: tuple, work: dict) -> None:
                lane, a, b = item
                row = block.start + a
                wide_k, wide_c = lane.keys(k, v, a, b, row, work)
                use(lane, wide_k, wide_c, row, work)

            done = shortcut(block) if shortcut else 0
            return done < block.rows and self.start(block, step_task, self.steps(block, done, keys))

        for work in self.workers.works if start == 0 else ():
            work["lane.dropped"][0] = 0  # the last pass over the keys sees all of them: each is counted once
        if stop is None and values.rows is not None:  # else both are read to their ends, which must agree
            stop = keys.rows
        rows = start + self.pump([keys.tensor, values.tensor], take, phase, stop, start, block_rows, resumable)
        if rows == 0:
            raise InputMalformed(f"{keys.tensor.name}: no rows")
        return rows

    def keys_again(self, use: UseKeys, phase: Phase, stop: int | None = None) -> None:
        """A pass over keys that have passed before: what it drops is not counted again."""
        with self.uncounted("lane.dropped"):
            self.keys(use, phase, stop)

    def steps(
        self, block: Block, first: int = 0, heads: Heads | None = None, beside: int = 0
    ) -> list[list[tuple[Lane, int, int]]]:
        """The steps (lane, a, b) of every lane through a block of these heads, from its row `first` on. beside: the row that
        row 0 of the blocks is to be cut as."""
        sequences, row = heads.sequences if heads else None, beside + block.start + first
        cuts = [(lane, lane.steps(row, block.rows - first, sequences)) for lane in self.lanes]
        return [[(lane, first + a, first + b) for a, b in steps] for lane, steps in cuts]

    def start(self, block: Block, task: Callable, chains: list, ended: Callable[[], None] | None = None) -> bool:
        """Start the steps of a block, and end the block before it: a lane that is early need not wait for the others.

        `ended` is called when all steps of the block are done. Where the input is late, the block itself is ended, too: who
        sends it may be waiting for answers. Returns True: the block is in work.
        """
        batch = self.workers.start(task, chains)
        self._in_work.append((block, batch, ended))
        self.wait(1)
        if batch.done.is_set() or not self._blocks.ready:
            self.wait()
        return True

    def wait(self, left: int = 0) -> None:
        """Wait for all blocks in work but the last `left`, in order; raises what went wrong."""
        while len(self._in_work) > left:
            block, batch, ended = self._in_work.popleft()
            batch.wait()
            if ended:
                ended()
            self._teller(block)

    @contextmanager
    def uncounted(self, *names: str, unless_done: bool = False) -> Iterator[None]:
        """Inside, these tallies do not grow, also where a signal ends it: what is saved then is what was counted before.
        unless_done: they do where its end is reached."""
        counts = [work[name] for work in self.workers.works for name in names]
        before, done = [count.copy() for count in counts], False
        try:
            yield
            done = unless_done
        finally:
            self.wait()
            for count, old in zip(counts, [] if done else before, strict=not done):
                count[:] = old

    def close(self) -> None:
        """Stop the threads."""
        self.workers.close()
