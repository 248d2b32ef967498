"""Truth, and two methods that no stream can have because they know the future: bounds on what is to be gained."""

from __future__ import annotations

from unittest import mock

import numpy as np
from heads import Head

from streamattn_cli.kernels import atoms
from streamattn_cli.kernels.compress import RIDGE, eliminate
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams, allocate
from streamattn_cli.sketches.histories.nystrom import NystromHistory

BLOCK = 128  # queries that are answered at a time
AHEAD = 1024  # rows of the future that the oracles know


class Truth:
    """Exact answers (heads, n, dv); of causal attention also the logs of the normalisers and the mass of every key."""

    def __init__(self, head: Head, causal: bool):
        groups, n, _ = head.q.shape
        self.out = np.zeros((groups, n, head.c.shape[1] - 1), "f4")
        self.log_z = np.zeros((groups, n), "f4")
        self.mass = np.zeros((-(-n // BLOCK), n), "f4")  # of block b's queries on every key
        for a in range(0, n, BLOCK):
            b = min(a + BLOCK, n)
            seen = b if causal else n
            logits = head.scale * head.q[:, a:b] @ head.k[:seen].T
            if causal:
                logits[:, np.arange(a, b)[:, None] < np.arange(seen)[None]] = -np.inf
            top = logits.max(axis=2, keepdims=True)
            p = np.exp(logits - top)
            z = p.sum(axis=2, keepdims=True, dtype="f8").astype("f4")
            p /= z
            self.out[:, a:b] = p @ head.c[:seen, :-1]
            self.log_z[:, a:b] = (top + np.log(z))[..., 0]
            self.mass[a // BLOCK, :seen] = p.sum(axis=(0, 1))


def answers_at(head: Head, rows: np.ndarray, k: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Causal answers (heads, r, dv) of all keys k (n, d), c (n, dv + 1) to the queries of some rows (r,), which ascend."""
    out = np.empty((len(head.q), len(rows), c.shape[1] - 1), "f4")
    for a in range(0, len(rows), BLOCK):
        some = rows[a : a + BLOCK]
        seen = some[-1] + 1
        logits = head.scale * head.q[:, some] @ k[:seen].T
        logits[:, some[:, None] < np.arange(seen)] = -np.inf
        p = np.exp(logits - logits.max(axis=2, keepdims=True))
        out[:, a : a + BLOCK] = p @ c[:seen, :-1] / p.sum(axis=2, keepdims=True)
    return out


def evict_knowing(head: Head, truth: Truth, rows: int, group: int = 16) -> np.ndarray:
    """Causal answers when always those `rows` rows are kept that the next AHEAD queries will dwell on most."""
    groups, n, _ = head.q.shape
    out, kept = np.zeros_like(truth.out), np.arange(0)
    for a in range(0, n, group):
        b = min(a + group, n)
        kept = np.concatenate([kept, np.arange(a, b)])
        logits = head.scale * head.q[:, a:b] @ head.k[kept].T
        logits[:, np.arange(a, b)[:, None] < kept[None]] = -np.inf
        p = np.exp(logits - logits.max(axis=2, keepdims=True))
        out[:, a:b] = p @ head.c[kept, :-1] / p.sum(axis=2, keepdims=True)
        if len(kept) > rows - group:
            block = b // BLOCK
            score = truth.mass[block : block + 1 + AHEAD // BLOCK][:, kept].sum(axis=0)
            kept = np.sort(kept[np.argsort(-score, kind="stable")[: rows - group]])
    return out


def nystrom_knowing(head: Head, truth: Truth, params: HeadParams) -> np.ndarray:
    """Causal answers of `nystrom` whose kernel is that of the next AHEAD queries themselves instead of a Gaussian."""
    sketch, work = HeadAttention(params), allocate(params.work_spec())
    out = np.empty_like(truth.out)

    def insert(history, k, c, active, scratch, alive):
        held, most = history.state["held"], history.params.atoms
        count = int(held[0])
        taken = min(active, count) if count + len(k) > most else 0
        first = int(held[2]) if taken else 0
        alive = np.ones(taken + len(k), bool)
        keys, coefs = (np.empty((len(alive), width), "f4") for width in (k.shape[1], c.shape[1]))
        added = np.empty_like(k)
        asked = history.queries.typical(history.scale)  # nothing is learnt: 0
        atoms.gather(history.bank, history.state["centre"], asked, first, count, k, c, keys, coefs, added, alive)
        if taken:
            held[2] = (first + active) % most
            compress(keys, coefs, history.scale, taken + most - count, alive)
        history._store(added, coefs, alive, first, taken, count)
        held[0] = min(count + len(k), most)

    def compress(keys, coefs, scale, keep, alive):
        count = len(keys)
        logits = scale * head.q[:, a : a + AHEAD].reshape(-1, head.q.shape[2]) @ keys.T
        logits -= truth.log_z[:, a : a + AHEAD].reshape(-1, 1)
        logits += (
            scale * head.q[:, a : a + AHEAD].reshape(-1, head.q.shape[2]) @ sketch.state["history.centre"][:, None]
        )
        p = np.exp(logits).astype("f8")
        kernel = p.T @ p
        root = np.sqrt(np.maximum(np.diag(kernel), 1e-60))
        kernel /= root[:, None] * root
        kernel.reshape(-1)[:: count + 1] = 1 + RIDGE
        root /= root.max()
        w = coefs * root[:, None]
        scratch = np.empty((count - keep + 3) * count + 4 * w.shape[1])
        values, weights = np.ascontiguousarray(w[:, :-1]), w[:, -1].copy()
        eliminate(np.linalg.inv(np.linalg.cholesky(kernel)), values, weights, count - keep, scratch, alive)
        coefs[:] = np.concatenate([values, weights[:, None]], axis=1) / root[:, None]

    # group by group, so that the future moves on; nothing is learnt
    with mock.patch.multiple(NystromHistory, _insert=insert, step=None, learns=False):
        for a in range(0, head.rows, params.group):
            part = slice(a, a + params.group)
            sketch.step(head.q[:, part], head.k[part], head.c[part], out[:, part], work)
    return out
