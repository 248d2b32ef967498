"""`evict`: keep the rows that attention has dwelt on, forget the others (H2O; METHODS.md (B4)).

Causal: every row carries the attention mass that it received, exponentially forgotten; when a group of new rows
needs room, the rows of the least mass go, the `recent` newest ones excepted. Full: no query has passed while keys do,
and a few queries known beforehand (probes) say instead which rows matter; without any, the newest rows stay.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from streamattn_cli.sketches.budget import BUDGETED, keeper_params
from streamattn_cli.sketches.head import HeadParams
from streamattn_cli.sketches.histories.bank import Bank, RowHistory, bank_spec, live
from streamattn_cli.sketches.method import Load, Method, MethodOptions
from streamattn_cli.sketches.partial import Partial

WINDOW_SHARE = 0.15  # of the rows; tuned on real heads
PROBES = 32  # queries held for full attention


@dataclass(frozen=True)
class EvictParams:
    """How many rows are kept, how many newest ones in any case, and how fast attention is forgotten (in rows)."""

    rows: int
    recent: int
    forget: float = 128.0
    probes: int = 0  # queries held for full attention
    storage: str = "f4"

    def to_dict(self) -> dict:
        """JSON-able form."""
        return asdict(self)


class EvictHistory(RowHistory):
    """The kept rows of one key head, oldest first. State arrays: see `state_spec`."""

    learns = True

    @property
    def kept(self) -> int:
        """How many rows it keeps."""
        return int(self.state["held"][0])

    @staticmethod
    def state_spec(params: EvictParams, dim: int, value_dim: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of every state array."""
        return {
            "rows": bank_spec(params.rows, dim, value_dim, params.storage),
            "mass": ((0 if params.probes else params.rows,), "f4"),
            "held": ((2,), "i8"),  # rows kept, probes known
            "probes": ((params.probes, dim), "f4"),
            "normaliser": ((params.probes,), "f4"),  # log of the sum of each probe's weights over all rows so far
        }

    @staticmethod
    def transient_bytes(params: EvictParams, dim: int, value_dim: int, group: int, queries: int) -> int:
        """Bound on the bytes that are held for a while: keys widened, and the weights of a tile of queries on them."""
        return 8 * params.rows * (4 * (dim + value_dim) + 2 * max(queries, params.probes))

    def calibrate(self, k: np.ndarray, c: np.ndarray, q: np.ndarray | None) -> None:
        """Take probes from the queries q (r, d) of full attention."""
        if q is not None and self.params.probes:
            chosen = np.linspace(0, len(q) - 1, min(len(q), self.params.probes)).astype(int)
            self.state["probes"][: len(chosen)] = q[chosen]
            self.state["normaliser"][:] = -np.inf
            self.state["held"][1] = len(chosen)

    def learn(self, q: np.ndarray, share: np.ndarray, rows: float, work: dict) -> None:
        """Take in causal queries q (r, d) of `rows` rows, and the part of their mass (r,) that fell on this history."""
        count, mass = int(self.state["held"][0]), self.state["mass"]
        mass[:count] *= np.float32(np.exp(-rows / self.params.forget))
        if count and len(mass):
            weights = self.scale * q @ self.bank.load(0, count)[0].T
            weights -= weights.max(axis=1, keepdims=True)
            np.exp(weights, out=weights)
            mass[:count] += (share / weights.sum(axis=1)) @ weights

    def absorb(self, k: np.ndarray, c: np.ndarray, work: dict) -> int:
        """Take in one group of rows, k (n, d), c (n, dv + 1). Returns the number of keys clipped: none."""
        s, room = self.state, self.params.rows
        k, c = live(k, c)
        if s["held"][1] and len(k):
            logits = self._logits(k)
            s["normaliser"][:] = np.logaddexp(s["normaliser"], np.logaddexp.reduce(logits, axis=1))
        k, c = k[-room:] if room else k[:0], c[-room:] if room else c[:0]
        count = int(s["held"][0])
        over = count + len(k) - room
        if over > 0:
            count = self._evict(count, over)
        self.bank.put(count, k, c)
        if len(s["mass"]):
            s["mass"][count : count + len(k)] = 0
        s["held"][0] = count + len(k)
        return 0

    def merge(self, other: EvictHistory) -> None:
        """Take in the kept rows of other, later rows; of all of them those of the most mass stay, and the newest."""
        s, theirs = self.state, other.state
        mine, count, room = int(s["held"][0]), int(theirs["held"][0]), self.params.rows
        if s["held"][1] and theirs["held"][1]:
            s["normaliser"][:] = np.logaddexp(s["normaliser"], theirs["normaliser"])
        rows = np.concatenate([s["rows"][:mine], theirs["rows"][:count]])
        mass = np.concatenate([s["mass"][:mine], theirs["mass"][:count]])
        both = Bank(rows, self.bank.dim, self.bank.storage)
        stay = self._stay(both, mass, max(0, mine + count - room), min(self.params.recent, room))
        left = int(stay.sum())
        s["rows"][:left], s["held"][0] = rows[stay], left
        if len(mass):
            s["mass"][:left] = mass[stay]

    def partial(self, q: np.ndarray, work: dict, out: Partial) -> int:
        """Answer a tile of queries (their scaled form is work["scaled"]) into `out`. No query is clipped: 0."""
        self.bank.partial(int(self.state["held"][0]), work, out)
        return 0

    def mean_value(self) -> np.ndarray:
        """What to answer when nothing else can (dv,): 0."""
        return np.zeros(self.value_dim)

    def _evict(self, count: int, over: int) -> int:
        """Drop the `over` rows of the least mass that are not recent, the oldest of equal ones; returns how many stay."""
        s = self.state
        held = Bank(self.bank.rows[:count], self.bank.dim, self.bank.storage)
        stay = self._stay(held, s["mass"][:count], over, self.params.recent - over)  # as many are about to come
        left = int(stay.sum())
        self.bank.rows[:left] = self.bank.rows[:count][stay]
        if len(s["mass"]):
            s["mass"][:left] = s["mass"][:count][stay]
        return left

    def _stay(self, bank: Bank, mass: np.ndarray, over: int, recent: int) -> np.ndarray:
        """Which rows of a bank stay (n,) when `over` must go and the last `recent` should not."""
        count, probes = len(bank.rows), int(self.state["held"][1])
        if probes:
            weights = self._logits(bank.load(0, count)[0]) - self.state["normaliser"][:probes, None]
            mass = np.exp(weights, out=weights).sum(axis=0)
        elif not len(mass):
            mass = np.zeros(count)
        old = min(count, max(over, count - max(recent, 0)))
        stay = np.ones(count, bool)
        stay[np.argsort(mass[:old], kind="stable")[:over]] = False
        return stay

    def _logits(self, k: np.ndarray) -> np.ndarray:
        """Logits (probes, n) of the known probes."""
        return self.scale * self.state["probes"][: self.state["held"][1]].astype(np.float64) @ k.T


def _settings(head: HeadParams, options: MethodOptions, causal: bool, stream: int | None) -> HeadParams:
    """The window lies in the history, whose newest rows it never drops: attention on them must be counted."""

    def history(rows: int, window: int, storage: str) -> EvictParams:
        return EvictParams(rows, min(window, rows), probes=0 if causal else PROBES, storage=storage)

    return keeper_params("evict", head, options, causal, WINDOW_SHARE, history, window_inside=True)


def _micros(load: Load) -> float:
    held = load.params.history.rows
    known = 0 if load.causal else 0.4 * held
    return load.answering(held) + load.full_groups(held) * (150 + known)


METHOD = Method(
    name="evict", settings=_settings, options=BUDGETED, params=EvictParams, history=EvictHistory, micros=_micros
)
