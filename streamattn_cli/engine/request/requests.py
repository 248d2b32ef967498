"""What each command is asked: a request of the groups of settings that it knows, and no others."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from streamattn_cli.engine.request import settings as group
from streamattn_cli.options import check_choices
from streamattn_cli.rows.spec import InputSpec


@dataclass(frozen=True)
class Request:
    """What all requests have. Raises UsageError for words that are no choice."""

    inputs: InputSpec = field(default_factory=InputSpec)

    def __post_init__(self) -> None:
        check_choices(self)

    def run(self, **decided: Any) -> RunRequest:
        """The run over rows that a command asks for; what it does not know is as usual, or `decided`."""
        known = {f.name for f in fields(RunRequest)}
        return RunRequest(**{f.name: getattr(self, f.name) for f in fields(self) if f.name in known} | decided)


@dataclass(frozen=True)
class RunRequest(
    group.ShareSettings,
    group.DoubtSettings,
    group.AnswerSettings,
    group.RunSettings,
    group.PaperSettings,
    group.SizeSettings,
    group.StreamSettings,
    group.TuningSettings,
    group.BudgetSettings,
    group.MethodSettings,
    group.AttentionSettings,
    Request,
):
    """One run over rows, of whatever command: what a `Problem` is made of."""

    @property
    def budget(self) -> int:
        """Resident rows of a key head, when `in_rows` (engine/planning/resolve.py) has turned a share of the keys into rows."""
        from streamattn_cli.sketches.budget import DEFAULT_ROWS  # which imports NumPy

        assert not isinstance(self.resident_rows, str), "a share of unknown keys"
        return self.resident_rows or DEFAULT_ROWS


@dataclass(frozen=True)
class AttendRequest(group.JobSettings, group.EngineSettings, group.CheckpointSettings, RunRequest):
    """Of `attend`. output: FILE, FILE:DATASET or -."""

    output: str = "-"


@dataclass(frozen=True)
class SketchRequest(
    group.ShardSettings,
    group.ResumeSettings,
    group.RunSettings,
    group.StreamSettings,
    group.TuningSettings,
    group.BudgetSettings,
    group.MethodSettings,
    group.LogitSettings,
    Request,
):
    """Of `sketch`. output: the sketch file; append: whether it is there, and gets more rows."""

    output: str = "sketch.sattn"
    append: bool = False


@dataclass(frozen=True)
class QueryRequest(group.EngineSettings, group.OutputSettings, group.AnswerSettings, group.RunSettings, Request):
    """Of `query`. sketch: the file that answers; output: as of `attend`."""

    sketch: str = ""
    output: str = "-"


Answering = AttendRequest | QueryRequest  # what can be cut into pieces


@dataclass(frozen=True)
class CompareRequest(
    group.EngineSettings,
    group.ChanceSettings,
    group.MachineSettings,
    group.StreamSettings,
    group.TuningSettings,
    group.AttentionSettings,
    Request,
):
    """Of `compare`. budgets: resident rows of a key head, or P% of the keys, or `by_bytes` bytes of all key heads; audit: rows
    that errors are measured on."""

    methods: str = ""
    budgets: tuple[int | str, ...] = (1024,)
    by_bytes: bool = False
    audit: int = 128


@dataclass(frozen=True)
class PlanRequest(group.MachineSettings, group.TuningSettings, group.BudgetSettings, group.AttentionSettings, Request):
    """Of `plan`."""
