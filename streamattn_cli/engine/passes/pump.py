"""The one place that loops over blocks, and what watches it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from streamattn_cli.engine.saving.saver import Saver
from streamattn_cli.engine.watch.events import Listener, Progress
from streamattn_cli.engine.watch.meter import Meter
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.engine.watch.series import Series
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.rows.tensors.readahead import Block, ReadAhead


@dataclass
class Watch:
    """Who is told about a run, who may stop it, and what it has cost so far (over all its passes)."""

    listener: Listener
    interrupts: Interrupts
    meter: Meter | None = None
    allowed: int | None = None
    sketch_bytes: int = 0
    wait_seconds: float = 0.0
    bytes_read: int = 0
    series: Series = field(default_factory=Series)
    unsaved: Callable[[], float] | None = None  # seconds since the last checkpoint

    def saved_by(self, saver: Saver | None) -> None:
        """Ask this one how much is not saved."""
        self.unsaved = saver.unsaved if saver else None

    def count(self, bytes_read: int, wait_seconds: float = 0.0) -> None:
        """Add what a pass has read, and waited for."""
        self.bytes_read += bytes_read
        self.wait_seconds += wait_seconds


class Teller:
    """Tells the listener where a pass over blocks is, whenever one of them is finished (which may be after the next ones
    were begun)."""

    def __init__(
        self,
        watch: Watch,
        blocks: ReadAhead,
        phase: Phase,
        total: int | None,
        start: int = 0,
        error: Callable[[], float | None] | None = None,
    ):
        """error: of the rows audited so far."""
        self.watch, self.phase, self.total, self.start, self._error = watch, phase, total, start, error
        self.row_bytes = blocks.row_bytes  # not the blocks themselves, whose buffers must go when the pass is over
        self.began = time.monotonic()

    def __call__(self, block: Block) -> None:
        """All rows up to the end of this block are done."""
        watch, rows = self.watch, block.start + block.rows
        memory_now = watch.meter.now() if watch.meter else 0
        watch.series.add(self.phase, rows, memory_now)
        watch.listener(
            Progress(
                phase=self.phase,
                rows=rows,
                total=self.total,
                bytes=(rows - self.start) * self.row_bytes,
                seconds=time.monotonic() - self.began,
                sketch_bytes=watch.sketch_bytes,
                memory_now=memory_now,
                memory_peak=watch.meter.peak() if watch.meter else 0,
                memory_allowed=watch.allowed,
                unsaved_seconds=watch.unsaved() if watch.unsaved else None,
                error=self._error() if self._error else None,
                rows_before=self.start,
            )
        )


def pump(
    blocks: ReadAhead,
    take: Callable[[Block], bool | None],
    watch: Watch,
    tell: Teller,
    reached: Callable[[Phase, int], None] | None = None,
) -> int:
    """Feed every block to `take`, in order; returns the number of rows. Stops between blocks when a signal asks.

    After each block `reached` is told the phase and the global row that has been reached; then `tell` is, unless `take` says
    (True) that the block is still in work and will be told later.
    """
    rows = 0
    with blocks:
        for block in blocks:
            watch.interrupts.check()
            in_work = take(block)
            rows += block.rows
            if reached:
                reached(tell.phase, block.start + block.rows)
            if not in_work:
                tell(block)
        watch.interrupts.check()
    watch.count(blocks.bytes_read, blocks.wait_seconds)
    return rows
