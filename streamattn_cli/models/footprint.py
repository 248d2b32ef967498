"""What a text takes beside the weights of a model, from the model's config: known before a weight is read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamattn_cli.api_causal import CausalAttention
from streamattn_cli.models.interface import QUERIES, SINKS

ITEM = 4  # bytes of a number, float32
SLICE = 64  # rows whose distributions are worked on at a time
SLICES = 5  # arrays of so many rows, at most
SLACK = 32 << 20  # what the allocator and torch keep for themselves (measured: up to 14 MiB)
SCALED_LOGITS = "final_logit_softcapping", "logit_scale", "logits_scaling"  # with one of them logits are written twice


@dataclass(frozen=True)
class Shapes:
    """The sizes of a model. windows: for each layer the rows that it looks back, None for all; wide: numbers of a row inside of a
    feed-forward layer; plain: attention without softcap and sinks, whose rows of q, k and v are of one size."""

    windows: tuple[int | None, ...]
    heads: int
    key_heads: int
    dim: int
    value_dim: int
    hidden: int
    wide: int
    vocabulary: int
    plain: bool
    logit_copies: int

    @property
    def row(self) -> int:
        """Bytes of a row of keys and values."""
        return ITEM * self.key_heads * (self.dim + self.value_dim)


def shapes_of(config: Any, types: Sequence[str]) -> Shapes:
    """Those that a config of transformers tells; types: those of the layers."""
    config = config.get_text_config()

    def told(name: str, otherwise: Any = None) -> Any:
        found = getattr(config, name, None)
        return otherwise if found is None else max(found) if isinstance(found, (list, tuple)) else found

    heads, hidden = told("num_attention_heads"), told("hidden_size")
    key_heads, dim = told("num_key_value_heads", heads), told("head_dim", hidden // heads)
    value_dim = dim
    if told("qk_nope_head_dim"):  # keys and values come from a latent row, for every query head
        key_heads, dim, value_dim = heads, told("qk_nope_head_dim") + told("qk_rope_head_dim"), told("v_head_dim")
    wide = told("intermediate_size", 4 * hidden) * told("num_local_experts", 1)
    experts = told("num_experts_per_tok", 0) + told("n_shared_experts", 0)
    wide = max(wide, told("moe_intermediate_size", 0) * experts)
    plain = dim == value_dim and told("attn_logit_softcapping") is None and told("num_local_experts") is None
    copies = 2 if any(told(name) for name in SCALED_LOGITS) else 1
    windows = tuple(told("sliding_window") if kind == "sliding_attention" else None for kind in types)
    return Shapes(
        windows=windows, heads=heads, key_heads=key_heads, dim=dim, value_dim=value_dim, hidden=hidden, wide=wide,
        vocabulary=told("vocab_size"), plain=plain, logit_copies=copies,
    )  # fmt: skip


def chunk_bytes(shapes: Shapes, chunk: int, tokens: int) -> int:
    """While a chunk passes through a layer: its rows before, in and after attention and the feed-forward part, and exact
    attention of some queries to all rows before."""
    row = 4 * shapes.hidden + 3 * shapes.wide + 4 * shapes.heads * (shapes.dim + shapes.value_dim)
    seen = max(tokens if window is None else min(tokens, window + chunk) for window in shapes.windows)
    queries = min(QUERIES, chunk)
    exact = 8 * queries * seen  # the mask, as bool and as numbers
    if not shapes.plain:
        exact += ITEM * shapes.heads * seen * (3 * queries + shapes.dim + shapes.value_dim)
    return min(chunk, tokens) * ITEM * row + exact


def logit_bytes(shapes: Shapes, chunk: int, samples: int) -> int:
    """Logits of a chunk, the exact distributions at the sampled positions, and what compares them."""
    rows = shapes.logit_copies * chunk + min(samples, chunk) + SLICES * min(SLICE, chunk)
    return ITEM * shapes.vocabulary * rows


def kept_bytes(shapes: Shapes, layers: Collection[int], chunk: int, tokens: int) -> int:
    """Keys and values that exact attention keeps in these layers; while a window moves on, the ones that stay are copied."""
    rows, moving = 0, 0
    for at in layers:
        window = shapes.windows[at]
        rows += tokens if window is None else min(tokens, window + chunk)
        moving = max(moving, min(tokens, window or 0))
    return (rows + moving) * shapes.row


def reference_bytes(shapes: Shapes, reference: int | None, chunk: int) -> int:
    """Rows that a reference of --reference-window copies for some queries."""
    return (reference + SINKS + min(QUERIES, chunk)) * shapes.row if reference else 0


def method_bytes(shapes: Shapes, layers: Collection[int], chunk: int, settings: dict) -> int:
    """Sketches of these layers, and a step of one of them. Raises the errors of CausalAttention for such settings and rows."""
    kept, step = 0, 0
    for window in {shapes.windows[at] for at in layers}:
        layer = began_layer(shapes, settings | ({"local": window} if window else {}))
        kept += layer.nbytes * sum(shapes.windows[at] == window for at in layers)
        step = max(step, layer.step_bytes(chunk))
    return kept + step


def began_layer(shapes: Shapes, settings: dict) -> CausalAttention:
    """A layer of these shapes before its first row. Raises the errors of CausalAttention."""
    layer = CausalAttention(**settings)
    heads = (shapes.heads, shapes.dim), (shapes.key_heads, shapes.dim), (shapes.key_heads, shapes.value_dim)
    layer.step(*(np.empty((0, *part), np.float32) for part in heads))
    return layer
