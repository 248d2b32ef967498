"""The attention of a model's layers, answered by what is asked for: a function registered with transformers.

The model runs without a cache of its own. Whatever answers a layer (`Answerer`) keeps what it needs of the rows before:
all of them, those of a window, or a sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from streamattn_cli.api_causal import CausalAttention
from streamattn_cli.errors import CannotMeet

NAME = "streamattn"
QUERIES = 256  # answered exactly at a time
SINKS = 4  # rows that a reference sees beside its window


@dataclass(frozen=True)
class LayerFacts:
    """What a layer says about its attention: its number, the factor of q.k, how many rows it looks back (None: all; the
    row itself among them), the bound of its logits (tanh), and the logit of each query head's sink (heads,) float32."""

    index: int
    scale: float
    local: int | None = None
    softcap: float | None = None
    sinks: np.ndarray | None = None


class Answerer(Protocol):
    """Answers the attention of one layer, block of rows by block of rows."""

    def answer(self, facts: LayerFacts, q: Any, k: Any, v: Any) -> Any:
        """q (query heads, n, dim), k (key heads, n, dim), v (key heads, n, value_dim), tensors of the next n rows after the
        rotary embedding; returns (n, query heads, value_dim)."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of what it keeps of the rows before."""
        ...


Reading = Callable[[LayerFacts], Answerer]
_reading: ContextVar[Reading] = ContextVar("streamattn_reading")


def register() -> None:
    """Make transformers know the attention function as NAME. No mask is made for it: it knows what a row may see."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)


@contextmanager
def answered_by(reading: Reading) -> Iterator[None]:
    """Inside, models loaded with NAME have their layers answered by what `reading` gives for each."""
    token = _reading.set(reading)
    try:
        yield
    finally:
        _reading.reset(token)


def attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None,
    *, sliding_window: int | None = None, softcap: float | None = None, s_aux: Any = None, **others: Any,
) -> tuple[Any, None]:  # fmt: skip
    """What transformers calls for each layer: query (1, heads, n, dim) and so on -> (1, n, heads, value_dim).

    Raises CannotMeet for what is not causal softmax over q.k.
    """
    where = f"layer {module.layer_idx} ({type(module).__name__})"
    if others.get("position_bias") is not None or not getattr(module, "is_causal", True):
        raise CannotMeet(f"{where}: its attention is not causal softmax over q.k alone, and cannot be answered here")
    facts = LayerFacts(
        module.layer_idx,
        float(scaling if scaling is not None else query.shape[-1] ** -0.5),
        sliding_window,
        softcap,
        None if s_aux is None else s_aux.detach().float().cpu().numpy(),
    )
    return _reading.get()(facts).answer(facts, query[0], key[0], value[0])[None], None


class ExactRows:
    """Exact attention over all rows, or over those of the layer's window, which alone are kept then.

    rows: of the whole text; room for all of them is taken at once. reference: a layer without a window sees the last so many
    rows, and the first SINKS ones, without which models lose themselves.
    """

    def __init__(self, rows: int, reference: int | None = None):
        self._reference = reference
        self._rows, self._first, self._next = rows, 0, 0  # first row kept, next row to come
        self._k: Any = None
        self._v: Any = None

    @property
    def nbytes(self) -> int:
        """See Answerer; of a reference that of the rows that it sees."""
        held = 0 if self._k is None else self._k.nbytes + self._v.nbytes
        return held * min(self._rows, self._reference + SINKS) // self._rows if self._reference else held

    def answer(self, facts: LayerFacts, q: Any, k: Any, v: Any) -> Any:
        import torch

        n = q.shape[1]
        self._keep(facts, k, v)
        local, sinks = (self._reference, SINKS) if self._reference and not facts.local else (facts.local, 0)
        out = torch.empty(n, q.shape[0], v.shape[2], dtype=q.dtype)
        for a in range(0, n, QUERIES):
            b = min(a + QUERIES, n)
            at = torch.arange(self._next - n + a, self._next - n + b)[:, None]  # of the queries
            low = max(self._first, int(at[0]) + 1 - (local or self._next))
            keys = torch.arange(low, self._next - n + b)
            part: Any = slice(low - self._first, self._next - n + b - self._first)
            if sinks and low:
                part = keys = torch.cat([torch.arange(min(sinks, low)), keys])
            seen = keys <= at
            if local:
                seen &= (keys > at - local) | (keys < sinks)
            out[a:b] = _exact(facts, q[:, a:b], self._k[:, part], self._v[:, part], seen).transpose(0, 1)
        return out

    def _keep(self, facts: LayerFacts, k: Any, v: Any) -> None:
        n = k.shape[1]
        if self._k is None:
            room = min(self._rows, facts.local + n) if facts.local else self._rows
            self._k, self._v = (part.new_empty(part.shape[0], room, part.shape[2]) for part in (k, v))
        if self._next - self._first + n > self._k.shape[1]:  # the window leaves rows behind
            first = max(self._first, self._next - (facts.local or self._rows) + 1)
            for part in (self._k, self._v):
                kept = part[:, first - self._first : self._next - self._first].clone()
                part[:, : kept.shape[1]] = kept
            self._first = first
        at = self._next - self._first
        self._k[:, at : at + n], self._v[:, at : at + n] = k, v
        self._next += n


def _exact(facts: LayerFacts, q: Any, k: Any, v: Any, seen: Any) -> Any:
    """Attention of q (heads, n, dim) to the keys that `seen` (n, keys) allows."""
    import torch

    if facts.softcap is None and facts.sinks is None:
        return torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=seen, scale=facts.scale, enable_gqa=q.shape[0] != k.shape[0]
        )[0]
    group = q.shape[0] // k.shape[0]
    logits = torch.matmul(q, k.repeat_interleave(group, 0).transpose(1, 2)) * facts.scale
    if facts.softcap is not None:
        logits = facts.softcap * torch.tanh(logits / facts.softcap)
    logits = logits.masked_fill(~seen, -torch.inf)
    if facts.sinks is not None:
        sinks = torch.from_numpy(facts.sinks).to(logits.dtype).reshape(-1, 1, 1).expand(-1, logits.shape[1], 1)
        logits = torch.cat([logits, sinks], dim=2)
    shares = torch.softmax(logits, dim=2)[:, :, : k.shape[1]]
    return torch.matmul(shares, v.repeat_interleave(group, 0))


def told(facts: LayerFacts) -> dict[str, Any]:
    """What a CausalAttention is told of a layer."""
    variants = {"scale": facts.scale, "local": facts.local, "sink_logit": facts.sinks, "softcap": facts.softcap}
    return {name: value for name, value in variants.items() if value is not None}


class Sketched:
    """Attention from a CausalAttention, in constant memory; settings are its."""

    def __init__(self, **settings: Any):
        self._settings = settings
        self.layer: CausalAttention | None = None

    @property
    def nbytes(self) -> int:
        return self.layer.nbytes if self.layer else 0

    def answer(self, facts: LayerFacts, q: Any, k: Any, v: Any) -> Any:
        """See Answerer. A layer with a local window is answered by it. Raises CannotMeet where a method does not know the softcap
        of a layer."""
        import torch

        if self.layer is None:
            self.layer = CausalAttention(**told(facts), **self._settings)
        out = self.layer.step(*(part.transpose(0, 1).contiguous() for part in (q, k, v)))
        return torch.from_numpy(out).to(q.dtype)
