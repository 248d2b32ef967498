"""What a run tells whoever watches it. The engine emits these; report/ renders them; nothing here prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Protocol


@dataclass(frozen=True)
class Started:
    """The run begins: the plan as a JSON-able dict (see engine/planning/sizing.py)."""

    plan: dict


@dataclass(frozen=True)
class Progress:
    """Where a pass is. Emitted whenever a block is finished; listeners decide how often to show it."""

    phase: str  # "keys", "queries", "rows" (causal), "audit", "generate", "scan"
    rows: int  # rows done in this phase, also by a run that is gone on with
    total: int | None  # rows of this phase, None when the stream does not say
    bytes: int  # input bytes of the rows that this run did in this phase
    seconds: float  # since this run began with the phase
    sketch_bytes: int = 0
    memory_now: int = 0  # anonymous bytes above the baseline
    memory_peak: int = 0
    memory_allowed: int | None = None
    unsaved_seconds: float | None = None  # since the last checkpoint, or the start; None without checkpoints
    error: float | None = None  # relative error of the audited rows that are complete, as far as that can be told
    rows_before: int = 0  # of `rows`, done before this run: no rate counts them
    sheets: int = 0  # layers of a run over several; 0 where there are none
    sheets_done: int = 0


@dataclass(frozen=True)
class Note:
    """One line the user should know: an inference made, a fallback taken."""

    text: str

    @property
    def decides(self) -> bool:
        """Whether it is about a choice on which the result depends and which nobody made: told even when all is quiet."""
        return isinstance(self.text, Decision)


class Decision(str):
    """The text of such a note."""

    __slots__ = ()


@dataclass(frozen=True)
class ErrorEstimate:
    """Relative Frobenius error, its 95% interval, and row errors (all relative, no unit).

    enough: whether the audited rows suffice for the interval; where one of them stands for much of a total, they do not.
    """

    error: float
    low: float
    high: float
    median_row: float
    p95_row: float
    enough: bool = True


@dataclass(frozen=True)
class WorstRow:
    """A row and head that was answered badly, with its error relative to its own exact answer; where there are several
    sequences, the row within its sequence."""

    row: int
    head: int
    error: float
    sequence: int | None = None


@dataclass(frozen=True)
class Flagged:
    """Rows that the method itself does not answer for (doubt of 1 or more): how many there are, how many of them were
    audited, and their error; None where none was. norm: about the Frobenius norm of the exact answers to them."""

    rows: int
    audited: int
    error: ErrorEstimate | None
    norm: float = 0.0


@dataclass(frozen=True)
class SequenceError:
    """How wrong the audited rows of one sequence are: over all query heads, and by query head. norm, norms: about the Frobenius
    norms of the exact answers to all its rows. None: not audited."""

    sequence: int
    audited: int
    error: float
    norm: float
    heads: tuple[float | None, ...]


@dataclass(frozen=True)
class Audit:
    """The answer to 'how wrong is it?': `method` against exact attention, `trivial` is the mean of the values.

    heads: the same by query head. edges (pieces + 1) cut the stream into pieces; by_position[head][piece] is the error
    there, None where no row was audited. worst: the worst rows, worst first. history_mass: by query head, the mean share
    of the audited rows' exact attention that falls on rows which are neither sinks nor recent: what only the history
    answers, and `window` not at all. Empty where that is not known. flagged: rows that the method does not answer for.
    before: the error before --repair. norm: about the Frobenius norm of the exact answers to all rows; norms: the same by
    query head.
    """

    rows: int
    method: ErrorEstimate
    trivial: ErrorEstimate
    heads: tuple[ErrorEstimate, ...] = ()
    edges: tuple[int, ...] = ()
    by_position: tuple[tuple[float | None, ...], ...] = ()
    worst: tuple[WorstRow, ...] = ()
    history_mass: tuple[float, ...] = ()
    flagged: Flagged | None = None
    before: ErrorEstimate | None = None
    norm: float = 0.0
    norms: tuple[float, ...] = ()
    sequences: tuple[SequenceError, ...] = ()  # those of which rows were audited, where there are several

    def summary(self) -> dict:
        """What is kept beside an output: the figures without their division by head and position; strict JSON."""
        figures = {"method": asdict(self.method), "trivial": asdict(self.trivial)}
        if self.flagged and self.flagged.error:
            figures["flagged"] = {"rows": self.flagged.rows, **asdict(self.flagged.error)}
        plain = {name: {k: v if isfinite(v) else None for k, v in f.items()} for name, f in figures.items()}
        mass = {"history_mass": sum(self.history_mass) / len(self.history_mass)} if self.history_mass else {}
        return {"rows": self.rows, **plain, **mass}


@dataclass(frozen=True)
class Failed:
    """Why there is nothing of a layer: the message, and the exit code that it would have ended a run with."""

    message: str
    code: int


@dataclass(frozen=True)
class LayerResult:
    """What a run over several layers has to say of one: its error, and that of every query head, if it was audited. head_rows:
    resident rows of every key head, where they have numbers of their own. failed: of a layer that did not finish."""

    number: int
    group: str
    rows: int
    seconds: float
    peak: int | None
    output: str | None
    error: ErrorEstimate | None
    heads: tuple[float, ...] = ()
    head_rows: tuple[int, ...] = ()
    failed: Failed | None = None


@dataclass(frozen=True)
class SheetResult:
    """One sequence of one layer: rows answered, how many of them were audited, and their error, by query head, too; None where
    none was. layer, sequence: None where there is only one."""

    layer: int | None
    sequence: int | None
    rows: int
    audited: int
    error: float | None
    heads: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class WorstStream:
    """A query head of a sequence of a layer that is answered badly."""

    layer: int | None
    sequence: int | None
    head: int
    error: float


@dataclass(frozen=True)
class Streams:
    """All streams (key heads of sequences of layers) of a job in few numbers: how many there are; of the query heads in them
    that were audited their number, quantiles of their errors (5, 25, 50, 75, 95%), and the worst ten."""

    count: int
    measured: int
    quantiles: tuple[float, ...]
    worst: tuple[WorstStream, ...]


@dataclass(frozen=True)
class Outcome:
    """Everything a finished run has to say. `to_dict` is the stable JSON interface."""

    command: str
    facts: dict  # method, params, mode, scale, shapes, seed, threads, versions
    rows: int
    seconds: float
    wait_seconds: float  # the engine waiting on input
    bytes_read: int
    memory: dict  # allowed, reserved, projected, peak (bytes)
    counts: dict = field(default_factory=dict)  # clipped_keys, clipped_queries, guarded_rows, dropped_rows, ...
    audit: Audit | None = None
    audit_reason: str | None = None  # why there is no audit
    output: str | None = None
    notes: tuple[str, ...] = ()
    rows_before: int = 0  # of `rows`, done by the run that was gone on with, or there before: no rate counts them
    series: dict = field(default_factory=dict)  # seconds, phase, rows, memory: lists, see engine/watch/series.py
    inputs: dict = field(default_factory=dict)  # part -> name, of q, k and v
    command_line: str | None = None  # as it was typed, where a command line asked for the run
    finished: str | None = None  # when, in UTC

    layers: tuple[LayerResult, ...] = ()  # of a run over several
    sheets: tuple[SheetResult, ...] = ()  # of a run over several layers or sequences of at most MOST_STREAMS streams
    streams: Streams | None = None  # of a run over several layers or sequences

    @property
    def code(self) -> int:
        """The exit code: that of the worst layer, where some failed and the others went on."""
        return max((layer.failed.code for layer in self.layers if layer.failed), default=0)

    def to_dict(self) -> dict:
        """JSON-able form, keys in a fixed order."""
        several = asdict(self)
        for name in ("layers", "sheets", "streams"):
            if not several[name]:
                del several[name]
        if self.audit:
            del several["audit"]["sequences"]  # they are in `sheets`
        return {"type": "outcome", **several, "notes": list(self.notes)}


class Result(Protocol):
    """What a finished run has to say: an Outcome, or another one with a JSON interface."""

    def to_dict(self) -> dict:
        """JSON-able form."""


@dataclass(frozen=True)
class Finished:
    """The run is over."""

    outcome: Result


Event = Started | Progress | Note | Finished
Listener = Callable[[Event], None]
