"""`evict`: keep the rows that attention has dwelt on, forget the others (H2O; METHODS.md (B4), (B9), (B10)).

Causal: every row carries the attention mass that it received, exponentially forgotten; when a group of new rows
needs room, the rows of the least mass go, the `recent` newest ones excepted. Full: no query has passed while keys do,
and a few queries known beforehand (probes) say instead which rows matter; without any, the newest rows stay. The score
`expected` asks a model of the queries instead. With `bits`, rows are rounded once they are no longer recent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from streamattn_cli.errors import UsageError
from streamattn_cli.options import one_of
from streamattn_cli.sketches.budget import BUDGETED, keeper_params
from streamattn_cli.sketches.coding.codedrows import BITS, CodedRows
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.sketches.histories.bank import RowHistory, bank_spec, live
from streamattn_cli.sketches.histories.keptrows import KeptRows
from streamattn_cli.sketches.histories.querymodel import QueryModel
from streamattn_cli.sketches.method import Load, Method, MethodOptions
from streamattn_cli.sketches.partial import Partial

WINDOW_SHARE = 0.15  # of the rows; tuned on real heads
PROBES = 32  # queries held for full attention
SCORES = ("mass", "last", "expected")  # what decides which rows stay
LAST = 16.0  # rows after which a query counts 1/e with the score `last`


@dataclass(frozen=True)
class EvictParams:
    """How many rows are kept, how many newest ones in any case, and how fast attention is forgotten (in rows)."""

    rows: int
    recent: int
    forget: float = 128.0
    probes: int = 0  # queries held for full attention
    storage: str = "f4"
    bits: int = 0  # of a number of a row that is not recent; 0: as it is stored
    score: str = "mass"  # of SCORES

    def to_dict(self) -> dict:
        """JSON-able form; what earlier versions did not know only where it is used."""
        plain = {"bits": 0, "score": "mass"}
        return {name: value for name, value in asdict(self).items() if name not in plain or value != plain[name]}


class EvictHistory(RowHistory):
    """The kept rows of one key head, oldest first. State arrays: see `state_spec`."""

    learns = True

    def __init__(self, params: EvictParams, dim: int, value_dim: int, scale: float, dtype: str, state: dict):
        super().__init__(params, dim, value_dim, scale, dtype, state)
        self.held = KeptRows(self.bank, CodedRows(state, dim, params.bits) if params.bits else None, state["held"])
        self.model = QueryModel(state) if params.score == "expected" else None

    @property
    def kept(self) -> int:
        """How many rows it keeps."""
        return int(self.state["held"][0])

    @property
    def rounding(self) -> float:
        """That of a row whose largest number is three times the root mean square, once there are rounded ones."""
        rounded = self.params.bits and self.kept > self.state["held"][2]
        return float(3 / np.sqrt(12) / (2 ** (self.params.bits - 1) - 1)) if rounded else 0.0

    @staticmethod
    def state_spec(params: EvictParams, dim: int, value_dim: int) -> dict[str, tuple[tuple[int, ...], str]]:
        plain = min(params.recent, params.rows) if params.bits else params.rows
        expects = params.score == "expected"
        spec = {
            "rows": bank_spec(plain, dim, value_dim, params.storage),
            "mass": ((0 if params.probes or expects else params.rows,), "f4"),
            # rows kept, probes known; of these rows those that are not rounded, and 1 once their means are known
            "held": ((4 if params.bits else 2,), "i8"),
            "probes": ((params.probes, dim), "f4"),
            "normaliser": ((params.probes,), "f4"),  # log of the sum of each probe's weights over all rows so far
        }
        if params.bits:
            spec |= CodedRows.spec(params.rows - plain, dim, value_dim, params.bits)
        return spec | (QueryModel.state_spec(dim) if expects else {})

    @staticmethod
    def transient_bytes(params: EvictParams, dim: int, value_dim: int, group: int, queries: int) -> int:
        """Bound on the bytes that are held for a while: keys widened, and the weights of a tile of queries on them."""
        model = 4 * QueryModel.scratch_size(dim, queries) + 8 * dim * dim if params.score == "expected" else 0
        return 8 * params.rows * (4 * (dim + value_dim) + 2 * max(queries, params.probes)) + model

    @staticmethod
    def merging_bytes(params: EvictParams, dim: int, value_dim: int) -> int:
        """Bound on the bytes that are held while another history is merged in: the rows of both, widened."""
        return 8 * params.rows * (6 * (dim + value_dim) + 2 * params.probes)

    def calibrate(self, k: np.ndarray, c: np.ndarray, q: np.ndarray | None) -> None:
        """Take probes, or the model, from the queries q (r, d) of full attention."""
        if q is not None and self.model:
            self.model.learn(q, np.zeros(len(q), "f4"), 0, np.empty(QueryModel.scratch_size(self.dim, len(q)), "f4"))
        elif q is not None and self.params.probes:
            chosen = np.linspace(0, len(q) - 1, min(len(q), self.params.probes)).astype(int)
            self.state["probes"][: len(chosen)] = q[chosen]
            self.state["normaliser"][:] = -np.inf
            self.state["held"][1] = len(chosen)

    def learn(self, q: np.ndarray, share: np.ndarray, rows: float, work: dict) -> None:
        """Take in causal queries q (r, d) of `rows` rows, and the part of their mass (r,) that fell on this history."""
        if self.model:
            self.model.learn(q, share, rows, np.empty(QueryModel.scratch_size(self.dim, len(q)), "f4"))
            return
        count, mass = self.kept, self.state["mass"]
        mass[:count] *= np.float32(np.exp(-rows / self.params.forget))
        if count and len(mass):
            weights = self.scale * q @ self.held.load()[0].T
            weights -= weights.max(axis=1, keepdims=True)
            np.exp(weights, out=weights)
            mass[:count] += (share / weights.sum(axis=1)) @ weights

    def absorb(self, k: np.ndarray, c: np.ndarray, work: dict) -> int:
        """Take in one group of rows, k (n, d), c (n, dv + 1). Returns the number of keys clipped: none."""
        s, room = self.state, self.params.rows
        k, c = live(k, c)
        if s["held"][1] and len(k):
            known = s["normaliser"][: s["held"][1]]
            known[:] = np.logaddexp(known, np.logaddexp.reduce(self._logits(k), axis=1))
        k, c = k[-room:] if room else k[:0], c[-room:] if room else c[:0]
        over = self.kept + len(k) - room
        if over > 0:  # as many recent rows are about to come
            self._keep(self._stay(*self.held.load(), s["mass"][: self.kept], over, self.params.recent - over))
        self._put(k, c, np.zeros(len(k), "f4"))
        return 0

    def merge(self, other: EvictHistory) -> None:
        """Take in the kept rows of other, later rows; of all of them those of the most mass stay, and the newest."""
        s, theirs, mine = self.state, other.state, self.kept
        if s["held"][1] and theirs["held"][1]:
            s["normaliser"][:] = np.logaddexp(s["normaliser"], theirs["normaliser"])
        if self.model and other.model:
            self.model.merge(other.model)
        later = other.held.load()
        k, c = (np.concatenate(both) for both in zip(self.held.load(), later, strict=True))
        mass = np.concatenate([s["mass"][:mine], theirs["mass"][: other.kept]])
        stay = self._stay(k, c, mass, max(0, len(k) - self.params.rows), min(self.params.recent, self.params.rows))
        self._keep(stay[:mine])
        new = stay[mine:]
        self._put(later[0][new], later[1][new], theirs["mass"][: other.kept][new] if len(s["mass"]) else None)

    def partial(self, q: np.ndarray, work: dict, out: Partial) -> int:
        """Answer a tile of queries (their scaled form is work["scaled"]) into `out`. No query is clipped: 0."""
        self.held.partial(work, out)
        return 0

    def _keep(self, stay: np.ndarray) -> None:
        """Drop the rows that are not to stay (n,)."""
        if len(self.state["mass"]):
            self.state["mass"][: int(stay.sum())] = self.state["mass"][: len(stay)][stay]
        self.held.keep(stay)

    def _put(self, k: np.ndarray, c: np.ndarray, mass: np.ndarray | None) -> None:
        """Append rows and their mass (n,)."""
        if len(self.state["mass"]):
            self.state["mass"][self.kept : self.kept + len(k)] = mass
        self.held.put(k, c)

    def _stay(self, k: np.ndarray, c: np.ndarray, mass: np.ndarray, over: int, recent: int) -> np.ndarray:
        """Which of the rows k (n, d), c (n, dv + 1) stay (n,) when `over` must go and the last `recent` should not: of those
        of equal mass the later ones."""
        count, probes = len(k), int(self.state["held"][1])
        if self.model:
            mass = self._expected(self.model, k, c)
        elif probes:
            weights = self._logits(k) - self.state["normaliser"][:probes, None]
            mass = np.exp(weights, out=weights).sum(axis=0)
        elif not len(mass):
            mass = np.zeros(count)
        old = min(count, max(over, count - max(recent, 0)))
        stay = np.ones(count, bool)
        stay[np.argsort(mass[:old], kind="stable")[:over]] = False
        return stay

    def _logits(self, k: np.ndarray) -> np.ndarray:
        """Logits (probes, n) of the known probes."""
        logits: np.ndarray = self.scale * self.state["probes"][: self.state["held"][1]].astype(np.float64) @ k.T
        return logits

    def _expected(self, model: QueryModel, k: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Log of each row's expected weight, relative to the mean key, times the length of its value (n,): METHODS.md (B10)."""
        factor, direction = np.empty((self.dim, self.dim), "f4"), np.empty(self.dim, "f4")
        model.factor(factor, direction)
        along = self.scale * (k - k.mean(axis=0)) @ np.triu(factor).astype(np.float64).T  # s R^T k, of covariance R R^T
        length = np.linalg.norm(c[:, :-1], axis=1)
        mean = along @ direction + 0.5 * (along * along).sum(axis=1)
        expected: np.ndarray = mean + np.log(np.maximum(length, 1e-30))
        return expected


def _settings(head: HeadParams, options: MethodOptions, causal: bool, stream: int | None) -> HeadParams:
    """The window lies in the history, whose newest rows it never drops: attention on them must be counted."""
    bits, score = options.bits or 0, options.score
    if options.bits is not None and bits not in BITS:
        raise UsageError(f"--bits {bits}: use {one_of(tuple(map(str, BITS)))}, or omit it to keep rows as they are")
    if score == "last" and not causal:
        raise UsageError(
            "--score last is of causal attention, where queries pass with their keys; use mass or expected"
        )

    def history(rows: int, window: int, storage: str) -> EvictParams:
        plain = EvictParams(rows, min(window, rows), storage=storage, bits=bits, score=score)
        if score == "last":
            return replace(plain, forget=LAST)
        return replace(plain, probes=0 if causal or score == "expected" else PROBES)

    return keeper_params("evict", head, options, causal, WINDOW_SHARE, history, window_inside=True)


def _micros(load: Load) -> float:
    history, group = load.params.history, load.params.group
    found = load.keeping(history.rows, 1.8, 78, 0.0, 2.7e-5)
    if history.score == "expected":
        found = load.keeping(history.rows, 3.3, 70 + 1e-3 * group * load.dim * load.dim, 0.0, 0.0)
    coded = 0.0041 * load.width * history.rows if history.bits else 0.0  # of a group, which reads them
    return float(found + coded * load.rows / group)


METHOD = Method(
    name="evict",
    settings=_settings,
    options=BUDGETED | {"bits", "score"},
    params=EvictParams,
    history=EvictHistory,
    micros=_micros,
)
