"""What every run does around its rows: it says what is planned, gets kernels ready, measures itself, and tells the outcome."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from streamattn_cli.engine.passes.pump import Watch
from streamattn_cli.engine.passes.warm import give_back, warm
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.watch.events import Listener, Note, Outcome, Started
from streamattn_cli.engine.watch.meter import Meter
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.versions import versions

MEMORY = "allowed", "reserved", "projected", "peak"  # in this order


@dataclass(frozen=True)
class Measured:
    """Work that is measured since it `began`."""

    watch: Watch
    meter: Meter
    began: float

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def told(
        self, command: str, facts: dict, rows: int, output: str, planned: dict[str, int | None], **more: Any
    ) -> Outcome:
        """What there is to say when it is done. planned: `allowed` and `projected` memory; more: fields that only some have."""
        memory = {**planned, "reserved": self.meter.baseline, "peak": self.meter.peak()}
        known: dict[str, Any] = {
            "seconds": self.seconds, "wait_seconds": self.watch.wait_seconds, "bytes_read": self.watch.bytes_read,
            "memory": {name: memory[name] for name in MEMORY if name in memory},
        }  # fmt: skip
        return Outcome(command=command, facts=facts, rows=rows, output=output, **{**known, **more})


@dataclass(frozen=True)
class Ceremony(Measured):
    """A run of a plan that is measured; `began` is when its kernels were ready."""

    plan: Plan

    def outcome(self, command: str, rows: int, counts: dict[str, int], output: str, **more: Any) -> Outcome:
        """What the run has to say when it is done; more: fields that only some runs have."""
        plan = self.plan
        facts = {"threads": plan.threads, "versions": versions()}
        known: dict[str, Any] = {"facts": plan.problem.facts() | facts, "notes": plan.problem.notes, **more}
        planned = {"allowed": plan.allowed, "projected": plan.projected}
        return self.told(command, rows=rows, output=output, planned=planned, counts=counts, **known)


def announce(plan: Plan, listener: Listener, notes: Iterable[str] = (), **more: object) -> None:
    """Tell what is planned, and what is to be known of it; notes: besides those of the problem, more: besides the plan."""
    listener(Started(plan.to_dict() | more))
    for note in dict.fromkeys((*plan.problem.notes, *notes)):
        listener(Note(note))


@contextmanager
def metering(
    listener: Listener, interrupts: Interrupts, allowed: int | None = None, sketch_bytes: int = 0
) -> Iterator[Measured]:
    """Measure what is done."""
    began = time.monotonic()
    with Meter() as meter:
        yield Measured(Watch(listener, interrupts, meter, allowed, sketch_bytes), meter, began)


@contextmanager
def measured(
    plan: Plan, listener: Listener, interrupts: Interrupts, like: Plan | None = None, again: bool = False
) -> Iterator[Ceremony]:
    """Compile and load the kernels of a plan (like: of another one that has the same), and measure what is done then.

    again: other runs in this process came before, and what they left must not count: it is given back.
    """
    warm(like or plan, (lambda event: None) if again else listener)
    if again:
        give_back()
    with metering(listener, interrupts, plan.allowed, plan.sketch_bytes) as found:
        yield Ceremony(found.watch, found.meter, found.began, plan)
