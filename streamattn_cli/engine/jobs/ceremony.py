"""What every run does around its rows: it says what is planned, gets kernels ready, measures itself, and tells the outcome."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from streamattn_cli.engine.passes.pump import Watch
from streamattn_cli.engine.passes.warm import warm
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.watch.events import Listener, Note, Outcome, Started
from streamattn_cli.engine.watch.meter import Meter
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.versions import versions


@dataclass(frozen=True)
class Ceremony:
    """A run that is measured; `began` is when its kernels were ready."""

    plan: Plan
    watch: Watch
    meter: Meter
    began: float

    def outcome(self, command: str, rows: int, counts: dict[str, int], output: str, **more: Any) -> Outcome:
        """What the run has to say when it is done; more: fields that only some runs have."""
        plan, meter = self.plan, self.meter
        facts = {
            **plan.problem.facts(),
            "threads": plan.threads,
            "versions": versions(),
        }
        memory = {
            "allowed": plan.allowed,
            "reserved": meter.baseline,
            "projected": plan.projected,
            "peak": meter.peak(),
        }
        known: dict[str, Any] = {
            "facts": facts, "seconds": time.monotonic() - self.began, "wait_seconds": self.watch.wait_seconds,
            "bytes_read": self.watch.bytes_read, "memory": memory, "notes": plan.problem.notes,
        }  # fmt: skip
        return Outcome(command=command, rows=rows, counts=counts, output=output, **{**known, **more})


def announce(plan: Plan, listener: Listener, notes: Iterable[str] = (), **more: object) -> None:
    """Tell what is planned, and what is to be known of it; notes: besides those of the problem, more: besides the plan."""
    listener(Started(plan.to_dict() | more))
    for note in dict.fromkeys((*plan.problem.notes, *notes)):
        listener(Note(note))


@contextmanager
def measured(plan: Plan, listener: Listener, interrupts: Interrupts, like: Plan | None = None) -> Iterator[Ceremony]:
    """Compile and load the kernels of a plan (like: of another one that has the same), and measure what is done then."""
    warm(like or plan, listener)
    began = time.monotonic()
    with Meter() as meter:
        watch = Watch(listener, interrupts, meter, plan.allowed, plan.sketch_bytes)
        yield Ceremony(plan, watch, meter, began)
