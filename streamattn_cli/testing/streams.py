"""Made-up streams for the conformance suite: keys off centre, values with a mean, logits of a few units."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Stream:
    """Queries q (heads, n, d), keys k (n, d) and values with their weights c (n, dv + 1), all of one float dtype."""

    q: np.ndarray
    k: np.ndarray
    c: np.ndarray

    @property
    def rows(self) -> int:
        """n."""
        return len(self.k)

    @property
    def v(self) -> np.ndarray:
        """The values (n, dv)."""
        return self.c[:, :-1]

    def head(self, rows: int) -> Stream:
        """The first rows."""
        return Stream(self.q[:, :rows], self.k[:rows], self.c[:rows])

    def with_keys(self, k: np.ndarray) -> Stream:
        """The same stream with other keys."""
        return replace(self, k=k.astype(self.k.dtype))

    def with_values(self, v: np.ndarray) -> Stream:
        """The same stream with other values; weights stay."""
        c = self.c.copy()
        c[:, :-1] = v
        return replace(self, c=c)


def make_stream(
    rows: int, dim: int, value_dim: int, dtype: str, heads: int = 2, spread: float = 1.0, seed: int = 0
) -> Stream:
    """A stream whose logits q.k have a standard deviation of about `spread` around their mean, before any scale."""
    generator = np.random.Generator(np.random.Philox(seed))
    q = generator.standard_normal((heads, rows, dim))
    k = generator.standard_normal((rows, dim)) * spread / np.sqrt(dim) + 0.3
    c = np.ones((rows, value_dim + 1))
    c[:, :-1] = generator.standard_normal((rows, value_dim)) + np.linspace(-1, 1, value_dim)
    return Stream(*(np.ascontiguousarray(array, dtype) for array in (q, k, c)))


def storable(array: np.ndarray, storage: str) -> np.ndarray:
    """The numbers of a float array as f2 or bf16 would keep them, in its own dtype; others as they are."""
    if storage == "f2":
        return array.astype(np.float16).astype(array.dtype)
    if storage == "bf16":
        bits = array.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(array.dtype)
    return array


def attention(stream: Stream, scale: float, causal: bool) -> np.ndarray:
    """Exact attention (heads, n, dv) in float64; rows of weight 0 count for nothing."""
    q, k, c = (array.astype(np.float64) for array in (stream.q, stream.k, stream.c))
    logits = scale * q @ k.T
    hidden = np.broadcast_to(c[:, -1] == 0, logits.shape[1:])
    if causal:
        hidden = hidden | ~np.tri(stream.rows, dtype=bool)
    logits = np.where(hidden, -np.inf, logits)
    y = np.exp(logits - logits.max(axis=2, keepdims=True)) @ c
    answers: np.ndarray = y[..., :-1] / y[..., -1:]
    return answers
