"""The phases of a run, as progress, checkpoints and series name them."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """What the pass under way reads and what for; SKETCH and DONE are where a checkpoint may stand besides."""

    KEYS = "keys"
    VALUES = "values"
    KEYS_AND_VALUES = "keys and values"
    QUERIES = "queries"
    ROWS = "rows"  # queries, keys and values together
    EXACT = "exact"
    AUDIT = "audit"
    REPAIR = "repair"
    TRUTH = "truth"
    RECOVERY = "audit of recovery"
    SHARDS = "shards"
    PIECES = "pieces"  # of a job that is spread over workers
    SKETCH = "sketch"  # keys are absorbed, and more may follow
    DONE = "done"
    GENERATE = "generate"  # of the commands that only make rows,
    SCAN = "scan"  # or only look at them
    CAPTURE = "capture"  # tokens that pass through a model

    @property
    def answers(self) -> bool:
        """Whether rows are answered in it."""
        return self in (Phase.QUERIES, Phase.ROWS, Phase.EXACT)
