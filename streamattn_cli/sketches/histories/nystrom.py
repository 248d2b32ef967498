"""`nystrom`: a coreset of the history, fitted to the queries (METHODS.md (N1) to (N27); our own method).

The history is a set of atoms (k_a, C_a), C_a = [y_a, w_a]; a query's partial answer is sum_a e^(s q.k_a) C_a. Rows that
leave the window become atoms with C = [v, 1]. When there are too many, a slice of them that moves round the set is
compressed together with the new ones: those survive, with new coefficients, that keep the answers of future queries
(a Gaussian learnt from past ones) best. Atoms are kept in six bits, so that a byte budget holds two and a half times as
many as half-precision rows. Until the bank is full it holds exact rows, and nothing is lost.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamattn_cli.kernels import atoms, blas
from streamattn_cli.kernels import nystrom as kernel
from streamattn_cli.rows.convert import not_a_number
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.sketches.budget import BUDGETED
from streamattn_cli.sketches.coding.rowstore import get, kind, put
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.sketches.histories.bank import live
from streamattn_cli.sketches.histories.nystromparams import NystromParams, atom_bytes, coded_bytes, settings
from streamattn_cli.sketches.histories.querymodel import LOOKBACK, QueryModel
from streamattn_cli.sketches.method import History, Load, Method
from streamattn_cli.sketches.partial import Partial
from streamattn_cli.sketches.rope import rotation

CENTRE_ROWS = 64  # int8 keys are relative to the mean of the first rows that come
MERGE_ROWS = 64  # another history's atoms come in so many at a time (larger portions: 10% more error),
MERGE_ACTIVE = 1024  # and are compressed with so many of ours
BLOCK = 32  # of kernels/linear.py
SCRATCH = (
    "tile",
    "scaled",
    "logits",
    "product",
    "bounds",
    "share",
    "m",
    "y",
    "doubt",
    "tile_k",
    "tile_c",
)


def insert_size(atoms: int, dim: int, width: int, new: int, rope: str = "") -> int:
    """Numbers of scratch for compressing up to `atoms` atoms, of which up to `new` are new and go; width = dv + 1."""
    fixed = 2 * (atoms * (atoms + dim + 1) + dim * dim + min(max(atoms, dim), BLOCK) ** 2)
    inside = fixed + (new + 4 + width) * atoms + 4 * (width - 1)
    return dim * (dim + 1) + new * dim + atoms * (dim + width) + inside + ((atoms + 2) * dim if rope else 0)


class NystromHistory(History):
    """The atoms of one key head. State arrays: see `state_spec`."""

    learns = True
    doubts_weights = True

    def __init__(self, params: NystromParams, dim: int, value_dim: int, scale: float, dtype: str, state: dict):
        super().__init__(params, dim, value_dim, scale, dtype, state)
        self.rope = (*rotation(params.rope, dim), params.turns)
        self.queries = QueryModel(state, self.rope)
        m, bank = params.atoms, state["bank"]
        weights, scales = bank[: 4 * m].view(np.float32), bank[4 * m : 8 * m].view(np.uint16).reshape(m, 2)
        end = m * (8 + coded_bytes(dim, value_dim, params.bits)[1])
        keys, coefs = ("u1", "u1") if params.bits == 6 else ("i1", f"i{params.bits // 8}")
        self.mean = state.get("mean", np.empty(0, np.float32))
        self.bank = (
            bank[end:].view(keys).reshape(m, -1),
            bank[8 * m : end].view(coefs).reshape(m, -1),
            scales,
            weights,
            self.mean,
        )
        holder = np.dtype(DTYPES[params.storage].holder)
        capacity = len(bank) // ((dim + value_dim) * holder.itemsize)
        self.exact = bank[: capacity * (dim + value_dim) * holder.itemsize].view(holder).reshape(capacity, -1)

    @staticmethod
    def state_spec(params: NystromParams, dim: int, value_dim: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of every state array."""
        return {
            # weights f4 | scales u2 x 2 | coefficients | keys, each for all atoms; exact rows until it is full
            "bank": ((params.atoms * atom_bytes(dim, value_dim, params.bits),), "u1"),
            "held": (
                (4,),
                "i8",
            ),  # atoms (or exact rows), 1 once they are atoms, first of the next slice, stores so far
            "centre": ((dim,), "f4"),
            **({"mean": ((value_dim,), "f4")} if params.bits == 6 else {}),  # of values
        } | QueryModel.state_spec(dim, bool(params.rope), params.model_bits)

    @staticmethod
    def work_spec(params: NystromParams, dim: int, value_dim: int, group: int, queries: int, dtype: str) -> dict:
        """Name -> (shape, dtype) of the scratch arrays of one thread."""
        atoms = params.active + group
        size = max(insert_size(atoms, dim, value_dim + 1, group, params.rope), QueryModel.scratch_size(dim, queries))
        return {"fit": ((size,), "f4"), "alive": ((atoms,), "?")}

    @staticmethod
    def transient_bytes(params: NystromParams, dim: int, value_dim: int, group: int, queries: int) -> int:
        """Bound on the bytes held for a while: the exact rows widened and centred, when they become atoms."""
        rows = (
            params.atoms
            * atom_bytes(dim, value_dim, params.bits)
            // ((dim + value_dim) * DTYPES[params.storage].itemsize)
        )
        rest = NystromHistory._rest_size(params, dim, value_dim)
        return rows * (4 * (dim + value_dim + 1) * (2 if rest else 1) + 1) + 4 * rest + 2 * params.active

    @staticmethod
    def merging_bytes(params: NystromParams, dim: int, value_dim: int) -> int:
        """Bound on the bytes held while another history is merged in: its atoms, and scratch to compress them with ours."""
        scratch = insert_size(MERGE_ACTIVE + MERGE_ROWS, dim, value_dim + 1, MERGE_ROWS)
        return 4 * (scratch + params.atoms * (dim + value_dim + 1))

    @staticmethod
    def merges(params: NystromParams, other: NystromParams) -> bool:
        """Equal ones; and those of a version that kept atoms, the model or recent rows in more bits, so that as many bytes hold
        fewer."""
        fits = replace(other, bits=params.bits, model_bits=params.model_bits, recent_bits=params.recent_bits)
        return params == (other if fits == other else replace(fits, atoms=params.atoms, active=params.active))

    def calibrate(self, k: np.ndarray, c: np.ndarray, q: np.ndarray | None) -> None:
        """Take the queries q (r, d) of full attention as the model of all queries."""
        if q is not None:
            scratch = np.empty(QueryModel.scratch_size(self.dim, len(q)), "f4")
            self.queries.learn(q, np.zeros(len(q), "f4"), 0, scratch)

    @property
    def centres(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Of keys and values, once the bank is full and holds atoms."""
        return (self.state["centre"], self.mean) if self.state["held"][1] else None

    def compress_for(self, rows: int) -> bool:
        """Turn the exact rows into atoms if so many more would not fit beside them; returns whether it did."""
        held = self.state["held"]
        full = not held[1] and held[0] + rows > len(self.exact)
        if full:
            self._become_atoms()
        return bool(full)

    def absorb(self, k: np.ndarray, c: np.ndarray, work: dict) -> int:
        """Take in one group of rows, k (n, d), c (n, dv + 1). Returns the number of keys clipped: none."""
        held = self.state["held"]
        self.compress_for(len(k))
        k, c = live(k, c)
        if not held[1]:
            put(self.exact[held[0] : held[0] + len(k)], k, c, self.params.storage)
            held[0] += len(k)
            return 0
        self._insert(k, c, self.params.active, work["fit"], work["alive"])
        return 0

    def merge(self, other: NystromHistory) -> None:
        """Take in the history of other rows (see `merges`; same dims and scale); the query models are pooled."""
        self.queries.merge(other.queries)
        mine, theirs = self.state["held"], other.state["held"]
        a, b = int(mine[0]), int(theirs[0])
        if not mine[1] and not theirs[1] and a + b <= len(self.exact):
            self.exact[a : a + b] = other.exact[:b]
            mine[0] += b
            return
        if not mine[1]:
            self._become_atoms()
        most = MERGE_ACTIVE + MERGE_ROWS
        scratch = np.empty(insert_size(most, self.dim, self.value_dim + 1, MERGE_ROWS, self.params.rope), "f4")
        alive = np.empty(most, bool)
        k, c = other._atoms()
        for first in range(0, b, MERGE_ROWS):
            part = slice(first, first + MERGE_ROWS)
            self._insert(k[part], c[part], MERGE_ACTIVE, scratch, alive)

    def step(
        self,
        head: HeadAttention,
        q: np.ndarray,
        k: np.ndarray,
        c: np.ndarray,
        out: np.ndarray,
        work: dict,
        doubt: np.ndarray,
    ) -> None:
        """HeadAttention.step without the interpreter."""
        p, s, a = head.params, head.state, 0
        answers, doubts = (x if x.flags.c_contiguous else np.empty(x.shape, x.dtype) for x in (out, doubt))
        shape = p.group, p.early_window, p.window, p.stack, self.params.active, kind(p.stored)
        numbers = self.scale, self.params.temper, -1 / self.params.forget, LOOKBACK
        settings = shape, numbers, self.rope, not_a_number(p.stored), self.mean_value(), head.sink_logits
        given = blas.address(p.dtype), blas.address("f4"), *settings
        rows = np.ascontiguousarray(q), k, c, answers, doubts, work["counts"]
        recent = head.recent.plain, head.recent.codes
        held = (s["counters"], s["sinks"], *recent, s["range"]), *self._arrays(), self.queries.arrays
        scratch = tuple(work[name] for name in SCRATCH), work["fit"], work["alive"]
        while True:
            with np.errstate(over="ignore"):  # without the compiler: unsigned products wrap around on purpose
                a = kernel.step(*given, a, *rows, *held, *scratch)
            if a == len(k):
                break
            head.make_room(work)
        for made, asked in ((answers, out), (doubts, doubt)):
            if made is not asked:
                asked[:] = made

    def partial(self, q: np.ndarray, work: dict, out: Partial) -> int:
        """Answer a tile of queries (their scaled form is work["scaled"]) into `out`. No query is clipped: 0."""
        gemm, stored = blas.address(work["scaled"].dtype.str[1:]), kind(self.params.storage)
        scratch = (work[name] for name in ("tile_k", "tile_c", "logits", "product"))
        kernel.answer(gemm, work["scaled"], *self._arrays(), stored, *scratch, out.m, out.y, out.doubt)
        return 0

    def mean_value(self) -> np.ndarray:
        """What to answer when nothing else can (dv,): 0."""
        return np.zeros(self.value_dim)

    def _become_atoms(self) -> None:
        """The bank is full of exact rows: turn every one of them into an atom, which takes less room, but for rows of a few
        numbers. Of these there are more than atoms have room, and the others are compressed."""
        k, c = self._atoms()
        rest = k[self.params.atoms :].copy(), c[self.params.atoms :].copy()
        first = len(k) if len(self.mean) else CENTRE_ROWS
        self.state["centre"][:] = k[:first].mean(axis=0) if len(k) else 0
        self.state["held"][1] = 1
        k -= self.state["centre"]
        if len(self.mean):
            self.mean[:] = c[:, :-1].mean(axis=0) if len(c) else 0
            atoms.prepare(k, c, self.mean)
            asked = self.queries.typical(self.scale)
            atoms.round_keys(k, c, asked, np.empty(self.dim, np.float32))
        k, c = k[: self.params.atoms], c[: self.params.atoms]
        self.state["held"][0] = len(k)
        self._store(k, c, np.ones(len(k), bool), 0, 0, 0)
        active = self.params.active
        scratch, alive = (
            np.empty(self._rest_size(self.params, self.dim, self.value_dim), "f4"),
            np.empty(2 * active, bool),
        )
        for a in range(0, len(rest[0]), active):
            self._insert(rest[0][a : a + active], rest[1][a : a + active], active, scratch, alive)

    @staticmethod
    def _rest_size(params: NystromParams, dim: int, value_dim: int) -> int:
        """Numbers of scratch for rows that become no atoms of their own; 0 where there are none."""
        row, active = (dim + value_dim) * DTYPES[params.storage].itemsize, params.active
        fits = row >= atom_bytes(dim, value_dim, params.bits)
        return 0 if fits else insert_size(2 * active, dim, value_dim + 1, active, params.rope)

    def _atoms(self) -> tuple[np.ndarray, np.ndarray]:
        """All atoms, or the exact rows, as k (n, d) and c (n, dv + 1), float32."""
        count = int(self.state["held"][0])
        k, c = np.empty((count, self.dim), np.float32), np.empty((count, self.value_dim + 1), np.float32)
        if self.state["held"][1]:
            atoms.load(self.bank, 0, count, k, c)
            if len(self.mean):
                atoms.restore(k, c, self.mean)
            k += self.state["centre"]
            return k, c
        return get(self.exact[:count], self.params.storage, k, c)

    def _insert(self, k: np.ndarray, c: np.ndarray, active: int, scratch: np.ndarray, alive: np.ndarray) -> None:
        """Make atoms of new rows; where there is no room, compress them with the next slice of `active` atoms."""
        held, centre, bank, _ = self._arrays()
        numbers = active, self.scale, self.params.temper, self.rope
        with np.errstate(over="ignore"):
            kernel.insert(blas.address("f4"), k, c, *numbers, held, centre, bank, self.queries.arrays, scratch, alive)

    def _arrays(self) -> tuple:
        """Of the state: counters, centre, atoms, and the rows that are there before them."""
        return self.state["held"], self.state["centre"], self.bank, self.exact

    def _store(self, k: np.ndarray, c: np.ndarray, alive: np.ndarray, first: int, taken: int, size: int) -> None:
        """Put what is alive of the slice of `taken` atoms from `first` on and of new keys k into their places."""
        held = self.state["held"]
        with np.errstate(over="ignore"):  # unsigned products wrap around on purpose
            atoms.store(
                k, c, alive, first, taken, size, np.uint64(held[3]), self.bank, np.empty(self.value_dim, np.float32)
            )
        held[3] += 1


def _micros(load: Load) -> float:
    p, history = load.params, load.params.history
    reads = history.atoms * (0.03 + 2e-4 * load.width) * (history.bits == 6) + 87 * (not load.causal)
    n, dim = history.active + p.group, load.dim
    one_position = n * (4.5e-4 * load.width + 2.9e-5 * dim * dim) + n * n * 1.3e-5 * dim + 1.9e-5 * dim**3
    full = max(history.turns, 1) * one_position + 2e-3 * n * n + 8.9e-6 * n**3
    learning = 7.1e-5 * dim * dim * load.queries * load.group
    answers = 0.94 * load.answering(history.atoms) - 1.4 * load.queries * load.group * load.causal
    groups = load.rows / p.group * reads + load.full_groups(history.atoms) * full
    return float(answers + groups + learning)


def _miniature(params: HeadParams) -> HeadParams:
    assert isinstance(params.history, NystromParams)
    history = replace(params.history, atoms=64, active=32)
    return replace(params, group=32, window=33, sinks=min(params.sinks, 4), history=history)


METHOD = Method(
    name="nystrom",
    settings=settings,
    options=BUDGETED | {"effort", "query_model", "rope"},
    params=NystromParams,
    history=NystromHistory,
    micros=_micros,
    miniature=_miniature,
    blind="no queries are known (--q FILE): nystrom takes any direction to be as likely as another",
)
