"""The one place that loops over blocks, and what watches it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from streamattn_cli.engine.events import Listener, Progress
from streamattn_cli.engine.meter import Meter
from streamattn_cli.engine.series import Series
from streamattn_cli.engine.signals import Interrupts
from streamattn_cli.rows.readahead import Block, ReadAhead


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
    unsaved: Callable[[], float | None] = lambda: None  # seconds
    error: Callable[[], float | None] = lambda: None  # of the rows audited so far


def pump(
    blocks: ReadAhead,
    take: Callable[[Block], None],
    watch: Watch,
    phase: str,
    total: int | None,
    passed: Callable[[str, int], None] | None = None,
) -> int:
    """Feed every block to `take`, in order; returns the number of rows. Stops between blocks when a signal asks.

    After each block `passed` is told the phase and the global row that has been reached.
    """
    began = time.monotonic()
    rows = 0
    with blocks:
        for block in blocks:
            watch.interrupts.check()
            take(block)
            rows += block.rows
            if passed:
                passed(phase, block.start + block.rows)
            memory_now = watch.meter.now() if watch.meter else 0
            watch.series.add(phase, rows, memory_now)
            watch.listener(
                Progress(
                    phase=phase,
                    rows=rows,
                    total=total,
                    bytes=blocks.bytes_read,
                    seconds=time.monotonic() - began,
                    sketch_bytes=watch.sketch_bytes,
                    memory_now=memory_now,
                    memory_peak=watch.meter.peak() if watch.meter else 0,
                    memory_allowed=watch.allowed,
                    unsaved_seconds=watch.unsaved(),
                    error=watch.error(),
                )
            )
        watch.interrupts.check()
    watch.wait_seconds += blocks.wait_seconds
    watch.bytes_read += blocks.bytes_read
    return rows
