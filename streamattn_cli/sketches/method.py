"""What a method is: what it keeps of old rows, how options become its settings, and what is known about its cost.

A method is one file with a `Params` class, a `History` and a `METHOD`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from streamattn_cli.sketches.partial import Partial

Spec = dict[str, tuple[tuple[int, ...], str]]  # name -> (shape, dtype) of arrays

# Options that only some methods know, in the order in which notes about them come.
OPTIONS = (
    "degree", "polynomial", "beta", "max_error", "effort", "query_model", "rope", "bits", "score", "resident_rows",
    "atoms", "buffer", "window", "sinks",
)  # fmt: skip


class HistoryParams(Protocol):
    """Settings of a history: a frozen dataclass, which is made again from what `to_dict` gives."""

    def to_dict(self) -> dict:
        """JSON-able form."""
        ...


class PlainParams:
    """The base of settings that are stored field by field."""

    def to_dict(self) -> dict:
        """JSON-able form."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


class History:
    """What a method keeps of the rows of one key head that are neither sinks nor recent.

    `absorb` takes in groups of rows, `partial` answers queries over all of them. The rest has defaults. `state` are arrays
    whose shapes and dtypes follow from the parameters: checkpoints, projections and merging know no others.
    """

    learns = False  # from queries, which `learn` shows it a whole group at a time
    doubts_weights = False  # what `partial` says of its doubt is of sums of weights: see METHODS.md (N15)
    step: Callable[..., None] | None = None  # takes in rows and answers them in one go: see HeadAttention.step
    answer: Callable[..., None] | None = None  # answers queries where nothing is exact: see HeadAttention.answer

    def __init__(self, params: Any, dim: int, value_dim: int, scale: float, dtype: str, state: dict):
        self.params, self.dim, self.value_dim = params, dim, value_dim
        self.scale, self.dtype, self.state = scale, dtype, state

    @property
    def centres(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What its keys (d,) and values (dv,) are relative to, once it is compressed: recent rows in few bits are so, too."""
        return None

    @property
    def kept(self) -> int | None:
        """Rows of the stream that it keeps as they are; None for a method that keeps none."""
        return None

    @staticmethod
    def state_spec(params: Any, dim: int, value_dim: int) -> Spec:
        """Name -> (shape, dtype) of every state array."""
        raise NotImplementedError

    @staticmethod
    def work_spec(params: Any, dim: int, value_dim: int, group: int, queries: int, dtype: str) -> Spec:
        """Name -> (shape, dtype) of the scratch arrays of one thread, here those that `Bank.partial` needs."""
        return {"everything": ((2, queries), "i8")}

    @staticmethod
    def transient_bytes(params: Any, dim: int, value_dim: int, group: int, queries: int) -> int:
        """Bound on the bytes that are held for a while, when rows are taken in."""
        return 0

    @staticmethod
    def reduced(params: Any, rows: int) -> Any:
        """Settings that are enough for a stream of so few rows that all of them find a place; None where they do not, or
        nobody knows."""
        return None

    @staticmethod
    def merging_bytes(params: Any, dim: int, value_dim: int) -> int:
        """Bound on the bytes that are held while another history is merged in."""
        return 0

    @staticmethod
    def merges(params: Any, other: Any) -> bool:
        """Whether a history of parameters `other` can be merged into one of `params`."""
        return bool(params == other)

    @staticmethod
    def calibration_bytes(rows: int, dim: int, value_dim: int, group: int) -> int | None:
        """Bound on the bytes that `calibrate` and its caller hold for `rows` first rows and `group` query heads; None for
        the usual bound."""
        return None

    @property
    def rounding(self) -> float:
        """The relative error of the rows that it keeps."""
        return 0.0

    def calibrate(self, k: np.ndarray, c: np.ndarray, q: np.ndarray | None) -> float | None:
        """Look at the first rows, k (n, d) and c (n, dv + 1), and at queries q (r, d). Returns a predicted relative error,
        or None."""
        return None

    def begin(self, row: int) -> None:
        """The first row to come has this number in the stream of which this is a shard."""

    def compress_for(self, rows: int) -> bool:
        """Compress what is there if so many more rows would not fit into it as they are; returns whether it did."""
        return False

    def absorb(self, k: np.ndarray, c: np.ndarray, work: dict) -> int:
        """Take in one group of rows, k (n, d), c (n, dv + 1). Returns the number of keys clipped."""
        raise NotImplementedError

    def learn(self, q: np.ndarray, share: np.ndarray, rows: float, work: dict) -> None:
        """Look at a tile of queries q (r, d) that were answered, of which the history had `share` (r,) of the attention."""

    def merge(self, other: Any) -> None:
        """Take in the history of the rows that follow."""
        raise NotImplementedError

    def partial(self, q: np.ndarray, work: dict, out: Partial) -> int:
        """Answer a tile of queries (their scaled form is work["scaled"]) into `out`. Returns the number of queries clipped."""
        raise NotImplementedError

    def mean_value(self) -> np.ndarray:
        """What a query is answered that no token answers (dv,)."""
        return np.zeros(self.value_dim)


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What the user may say about a method; see engine/request/settings.py for each. None: decide for me."""

    sinks: int | None = None
    window: int | None = None
    resident_rows: int | None = None
    effort: str = "default"
    buffer: int | None = None
    atoms: int | None = None
    degree: int = 4
    polynomial: str = "hermite"
    beta: float | None = None
    max_error: float = 0.25
    rope: str | None = None
    bits: int | None = None
    score: str = "mass"
    seed: int = 0

    @classmethod
    def of(cls, request: object) -> MethodOptions:
        """Those of a request, which has a field for each."""
        return cls(**{f.name: getattr(request, f.name) for f in fields(cls)})


@dataclass(frozen=True)
class Load:
    """What one thread does for one key head in a whole run, for estimates of its time in microseconds."""

    params: Any  # HeadParams
    rows: float  # of the mean sequence
    queries: float
    group: int  # query heads
    dim: int
    value_dim: int
    causal: bool
    lanes: int  # key heads that wait for one another in the interpreter

    @property
    def width(self) -> int:
        """Items of a key and its value."""
        return self.dim + self.value_dim

    def beside(self, held: int = 0) -> float:
        """Rows that a query is compared with: sinks, window and half a group, and `held` of the history; all, where no
        parameters say more."""
        p = self.params
        return float(p.sinks + p.window + p.group / 2 + held) if p else self.rows

    def full_groups(self, held: int) -> float:
        """Groups that come when the history of `held` rows is full."""
        return float(max(0.0, self.rows - self.beside(held)) / self.params.group)

    def answering(self, held: int = 0) -> float:
        """Microseconds of answering over what is exact and `held` rows, of taking rows in, and of the way of their groups through
        the interpreter."""
        beside = min(self.beside(held), self.rows)
        attended = beside * (1 - beside / (2 * self.rows) if self.causal else 1.0)
        answer = (1.7 if self.causal else 0.83) + attended * (1.4e-4 + 2.2e-5 * self.width)
        groups = self.rows / (self.params.group if self.params else 256)
        return float(self.queries * self.group * answer + 15 * self.lanes * groups + 0.012 * self.rows * self.width)

    def keeping(self, held: int, answering: float, once: float, row: float, item: float) -> float:
        """The same of a method that keeps `held` rows, `answering` times as long, and of choosing them when all are there:
        `once` for each group, `row` for each pair of its rows and those held, and `item` for each item of such a pair."""
        of_group = once + self.params.group * held * (row + item * self.width)
        return float(answering * self.answering(held) + self.full_groups(held) * of_group)


def _usual_miniature(params: Any) -> Any:
    return replace(
        params,
        group=32,
        window=min(params.window, 33),
        sinks=min(params.sinks, 4),
        history=replace(params.history, rows=64),
    )


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method, by which registry.py finds it.

    `name`: of --method and in checkpoints. `options`: those of OPTIONS that it knows; with "resident_rows" it is given a
    budget. `settings`(head, options, causal, stream): a HeadParams with its settings, from one that the input decides;
    stream is the number of rows that will come, None if nobody knows. Raises UsageError. `micros`: time of a Load.
    `miniature`: the same HeadParams small, to compile kernels with. `compared`: by `compare` where no methods are named.
    `blind`: what to say of a sketch of a method that learns from queries, where none are known.
    """

    name: str
    settings: Callable[[Any, MethodOptions, bool, int | None], Any]
    micros: Callable[[Load], float]
    options: frozenset[str] = frozenset()
    params: type | None = None
    history: type[History] | None = None
    miniature: Callable[[Any], Any] = _usual_miniature
    blind: str | None = None
    compared: bool = True
