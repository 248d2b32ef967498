"""`nystrom`: a streaming coreset of the history that is fitted to the queries (methods.md 3; our own method).

The history is a set of atoms (k_a, C_a), C_a = [y_a, w_a]; a query's partial answer is sum_a e^(s q.k_a) C_a. Rows that
leave the window become atoms with C = [v, 1]. When there are too many, a slice of them that moves round the set is
compressed together with the new ones: those survive, with new coefficients, that keep the answers of future queries
(a Gaussian learnt from past ones) best. Atoms are kept in eight bits, so that a byte budget holds about twice as many
as half-precision rows. Until the bank is full it holds exact rows, and nothing is lost.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from streamattn_cli.kernels import atoms as kernel
from streamattn_cli.sketches.compress import compress
from streamattn_cli.sketches.partial import Partial
from streamattn_cli.sketches.querymodel import QueryModel
from streamattn_cli.sketches.rowstore import HOLDER, get, put

CENTRE_ROWS = 64  # int8 keys are relative to the mean of the first rows that come
MERGE_ROWS = 64  # another history's atoms come in so many at a time (larger portions: 10% more error),
MERGE_ACTIVE = 1024  # and are compressed with so many of ours


@dataclass(frozen=True)
class NystromParams:
    """Settings of `nystrom`: how many atoms are kept, and how many of them take part in one compression."""

    atoms: int
    active: int = 192
    bits: int = 8  # of a coefficient, 8 or 16
    temper: float = 0.8  # see compress; 1 where the queries are known beforehand
    storage: str = "f4"  # dtype of the exact rows that the bank holds at first

    def to_dict(self) -> dict:
        """JSON-able form."""
        return asdict(self)


def atom_bytes(dim: int, value_dim: int, bits: int) -> int:
    """Bytes of one atom: int8 key, coefficients of 8 or 16 bits, a bfloat16 scale for each, float32 weight."""
    return dim + value_dim * bits // 8 + 2 * 2 + 4


class NystromHistory:
    """The atoms of one key head. State arrays: see `state_spec`."""

    learns = True

    def __init__(self, params: NystromParams, dim: int, value_dim: int, scale: float, dtype: str, state: dict):
        self.params, self.dim, self.value_dim, self.scale, self.state = params, dim, value_dim, scale, state
        self.queries = QueryModel(state)
        m, bank = params.atoms, state["bank"]
        self.weights = bank[: 4 * m].view(np.float32)
        self.scales = bank[4 * m : 8 * m].view(np.uint16).reshape(m, 2)
        coefs = 8 * m + m * value_dim * params.bits // 8
        self.coefs = bank[8 * m : coefs].view(f"i{params.bits // 8}").reshape(m, value_dim)
        self.keys = bank[coefs:].view(np.int8).reshape(m, dim)
        holder = np.dtype(HOLDER[params.storage])
        capacity = len(bank) // ((dim + value_dim) * holder.itemsize)
        self.exact = bank[: capacity * (dim + value_dim) * holder.itemsize].view(holder).reshape(capacity, -1)

    @staticmethod
    def state_spec(params: NystromParams, dim: int, value_dim: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of every state array."""
        return {
            # weights f4 | scales u2 x 2 | coefficients | keys i1, each for all atoms; exact rows until it is full
            "bank": ((params.atoms * atom_bytes(dim, value_dim, params.bits),), "u1"),
            "held": ((4,), "i8"),  # atoms (or exact rows), 1 once they are atoms, first of the next slice, stores so far
            "centre": ((dim,), "f4"),
        } | QueryModel.state_spec(dim)

    @staticmethod
    def work_spec(params: NystromParams, dim: int, value_dim: int, queries: int, dtype: str) -> dict:
        """Name -> (shape, dtype) of the scratch arrays of one thread; compression allocates its own."""
        return {"everything": ((2, queries), "i8")}

    @staticmethod
    def transient_bytes(params: NystromParams, dim: int, value_dim: int, group: int, queries: int) -> int:
        """Bound on the bytes that one compression holds for a while."""
        n = params.active + group
        return 8 * (5 * n * n + 4 * n * (dim + value_dim + 1) + 12 * dim * dim)

    def calibrate(self, k: np.ndarray, c: np.ndarray, q: np.ndarray | None) -> None:
        """Take the queries q (r, d) of full attention as the model of all queries."""
        if q is not None:
            self.queries.learn(q, np.zeros(len(q)), 0)

    def learn(self, q: np.ndarray, share: np.ndarray, rows: float, work: dict) -> None:
        """Take in causal queries q (r, d) of `rows` rows, and the part of their mass (r,) that fell on this history."""
        self.queries.learn(q, share, rows)

    def absorb(self, k: np.ndarray, c: np.ndarray, work: dict) -> int:
        """Take in one group of rows, k (n, d), c (n, dv + 1). Returns the number of keys clipped: none."""
        alive = c[:, -1] != 0
        if not alive.all():
            k, c = k[alive], c[alive]
        held = self.state["held"]
        if not held[1]:
            if held[0] + len(k) <= len(self.exact):
                put(self.exact[held[0] : held[0] + len(k)], k, c, self.params.storage)
                held[0] += len(k)
                return 0
            self._become_atoms()
        if len(k):
            self._insert(k.astype(np.float64), c.astype(np.float64), self.params.active)
        return 0

    def merge(self, other: NystromHistory) -> None:
        """Take in the history of other rows (same parameters, dims and scale); the query models are pooled."""
        self.queries.merge(other.queries)
        mine, theirs = self.state["held"], other.state["held"]
        a, b = int(mine[0]), int(theirs[0])
        if not mine[1] and not theirs[1] and a + b <= len(self.exact):
            self.exact[a : a + b] = other.exact[:b]
            mine[0] += b
            return
        if not mine[1]:
            self._become_atoms()
        k, c = other._atoms()
        for first in range(0, b, MERGE_ROWS):
            part = slice(first, first + MERGE_ROWS)
            self._insert(k[part], c[part], MERGE_ACTIVE)

    def partial(self, q: np.ndarray, work: dict, out: Partial) -> int:
        """Answer a tile of queries (their scaled form is work["scaled"]) into `out`. No query is clipped: 0."""
        out.clear()
        low, high = work["everything"][:, : len(q)]
        low[:] = 0
        count, tile = int(self.state["held"][0]), len(work["tile_k"])
        for first in range(0, count, tile):
            n = min(tile, count - first)
            if self.state["held"][1]:
                k, c = work["tile_k"][:n], work["tile_c"][:n]
                kernel.load(self.keys, self.coefs, self.scales, self.weights, self.state["centre"], first, k, c)
            else:
                k, c = get(self.exact[first : first + n], self.params.storage, work["tile_k"], work["tile_c"])
            high[:] = n
            out.attend(work["scaled"], k, c, low, high, work["logits"], work["product"])
        return 0

    def mean_value(self) -> np.ndarray:
        """What to answer when nothing else can (dv,): 0."""
        return np.zeros(self.value_dim)

    def _become_atoms(self) -> None:
        """The bank is full of exact rows: turn every one of them into an atom, which takes less room."""
        k, c = self._atoms()
        self.state["centre"][:] = k[:CENTRE_ROWS].mean(axis=0) if len(k) else 0
        self.state["held"][1] = 1
        self._store(np.arange(len(k)), k, c)

    def _atoms(self) -> tuple[np.ndarray, np.ndarray]:
        """All atoms, or the exact rows, as k (n, d) and c (n, dv + 1), float64."""
        count = int(self.state["held"][0])
        if self.state["held"][1]:
            return self._load(np.arange(count))
        k, c = np.empty((count, self.dim), np.float32), np.empty((count, self.value_dim + 1), np.float32)
        get(self.exact[:count], self.params.storage, k, c)
        return k.astype(np.float64), c.astype(np.float64)

    def _insert(self, k: np.ndarray, c: np.ndarray, active: int) -> None:
        """Make atoms of new rows; where there is no room, compress them with the next slice of `active` atoms."""
        held, m = self.state["held"], self.params.atoms
        count = int(held[0])
        if count + len(k) <= m:
            self._store(np.arange(count, count + len(k)), k, c)
            held[0] += len(k)
            return
        slice_ = (held[2] + np.arange(min(active, count))) % count
        held[2] = (held[2] + active) % m
        old_k, old_c = self._load(slice_)
        room = np.concatenate([slice_, np.arange(count, m)])
        k, c = np.concatenate([old_k, k]), np.concatenate([old_c, c])
        index, c = compress(k, c, *self.queries.moments(), self.scale, self.params.temper, len(room))
        self._store(room, k[index], c)
        held[0] = m

    def _load(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Atoms at these places as k (n, d) and c (n, dv + 1), float64."""
        scales = (self.scales[at].astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
        k = self.keys[at] * scales[:, :1] + self.state["centre"]
        return k, np.concatenate([self.coefs[at] * scales[:, 1:], self.weights[at, None].astype(np.float64)], axis=1)

    def _store(self, at: np.ndarray, k: np.ndarray, c: np.ndarray) -> None:
        """Quantise atoms k (n, d), c (n, dv + 1), float64, into these places."""
        keys, coefs = np.empty(k.shape, np.int8), np.empty((len(c), self.value_dim), self.coefs.dtype)
        scales = np.empty((2, len(k)), np.uint16)
        kernel.quantise(k - self.state["centre"], keys, scales[0])
        values = np.ascontiguousarray(c[:, :-1])
        if self.params.bits == 8:
            kernel.quantise(values, coefs, scales[1])
        else:
            with np.errstate(over="ignore"):  # unsigned products wrap around on purpose
                kernel.quantise_at_random(values, 32767.0, np.uint64(self.state["held"][3]), coefs, scales[1])
        self.state["held"][3] += 1
        self.keys[at], self.coefs[at], self.scales[at], self.weights[at] = keys, coefs, scales.T, c[:, -1]
