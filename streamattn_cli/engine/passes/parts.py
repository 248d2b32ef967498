"""What a pass is made of, and what a run asks of it."""

from __future__ import annotations

from dataclasses import dataclass

from streamattn_cli.engine.audit.audit import Auditing
from streamattn_cli.engine.passes.driver import Driver
from streamattn_cli.engine.passes.lane_sketches import LaneSketches
from streamattn_cli.engine.passes.output import Output
from streamattn_cli.engine.saving.saver import State


@dataclass(frozen=True)
class Parts:
    """What passes work with; auditor: None where nothing is audited."""

    driver: Driver
    sketches: LaneSketches
    output: Output
    auditor: Auditing | None


class Pass:
    """One way through the rows of a run. tallies: names of what its workers count, besides what all count."""

    tallies: tuple[str, ...] = ()

    def __init__(self, parts: Parts):
        self.parts, self.driver, self.sketches = parts, parts.driver, parts.sketches
        self.output, self.auditor, self.problem = parts.output, parts.auditor, parts.driver.problem

    def go(self) -> int:
        """Read the rows from where the driver is, and answer the queries; returns how many of these there are."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """What was dropped and clipped, and what was not answered."""
        dropped = self.driver.workers.total("lane.dropped")
        return {"dropped_keys": int(dropped[0]), "dropped_queries": int(dropped[1])} | self.sketches.counts()

    def save(self) -> State:
        """State beside that of the sketches, as arrays or lists of one array for each lane; views, not copies."""
        return {}

    def load(self, state: State, name: str) -> None:
        """Take back what `save` gave; `name` is the checkpoint's, for messages."""
