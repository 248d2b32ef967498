"""What each command is asked: a request of the groups of settings that it knows, and no others."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from streamattn_cli.engine.request.settings import (
    AnswerSettings,
    AttentionSettings,
    BudgetSettings,
    ChanceSettings,
    CheckpointSettings,
    DoubtSettings,
    EngineSettings,
    JobSettings,
    LogitSettings,
    MachineSettings,
    MethodSettings,
    OutputSettings,
    PaperSettings,
    ResumeSettings,
    RunSettings,
    ShardSettings,
    ShareSettings,
    SizeSettings,
    StreamSettings,
    TuningSettings,
)
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
    ShareSettings,
    DoubtSettings,
    AnswerSettings,
    RunSettings,
    PaperSettings,
    SizeSettings,
    StreamSettings,
    TuningSettings,
    BudgetSettings,
    MethodSettings,
    AttentionSettings,
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
class AttendRequest(JobSettings, EngineSettings, CheckpointSettings, RunRequest):
    """Of `attend`. output: FILE, FILE:DATASET or -."""

    output: str = "-"


@dataclass(frozen=True)
class SketchRequest(
    ShardSettings,
    ResumeSettings,
    RunSettings,
    StreamSettings,
    TuningSettings,
    BudgetSettings,
    MethodSettings,
    LogitSettings,
    Request,
):
    """Of `sketch`. output: the sketch file; append: whether it is there, and gets more rows."""

    output: str = "sketch.sattn"
    append: bool = False


@dataclass(frozen=True)
class QueryRequest(EngineSettings, OutputSettings, AnswerSettings, RunSettings, Request):
    """Of `query`. sketch: the file that answers; output: as of `attend`."""

    sketch: str = ""
    output: str = "-"


Answering = AttendRequest | QueryRequest  # what can be cut into pieces


@dataclass(frozen=True)
class CompareRequest(
    EngineSettings, ChanceSettings, MachineSettings, StreamSettings, TuningSettings, AttentionSettings, Request
):
    """Of `compare`. budgets: resident rows of a key head, or `by_bytes` bytes of all key heads; audit: rows that errors are
    measured on."""

    methods: str = ""
    budgets: tuple[int, ...] = (1024,)
    by_bytes: bool = False
    audit: int = 128


@dataclass(frozen=True)
class PlanRequest(MachineSettings, TuningSettings, BudgetSettings, AttentionSettings, Request):
    """Of `plan`."""
