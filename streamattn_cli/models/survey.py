"""What the layers of a model say about their attention, found out by a token that passes through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamattn_cli.errors import UsageError
from streamattn_cli.models.interface import LayerFacts, Reading, answered_by
from streamattn_cli.models.load import Model
from streamattn_cli.models.rotary import rope_of


class Enough(Exception):
    """The layers that follow are not needed."""


@dataclass(frozen=True)
class Layer:
    """One layer: its facts, and the heads of its rows after the rotary embedding. chosen: key heads that are wanted, with their
    query heads."""

    facts: LayerFacts
    heads: int
    key_heads: int
    dim: int
    value_dim: int
    chosen: tuple[int, ...] = ()

    @property
    def query_heads(self) -> list[int]:
        """The query heads of the chosen key heads."""
        group = self.heads // self.key_heads
        return [head * group + at for head in self.chosen for at in range(group)]

    @property
    def parts(self) -> tuple[tuple[str, int, int], ...]:
        """(name, heads, dim) of what is wanted of a row."""
        count = len(self.chosen)
        return ("q", len(self.query_heads), self.dim), ("k", count, self.dim), ("v", count, self.value_dim)


def survey(model: Model, last: int, heads: Sequence[int] | None = None) -> dict[int, Layer]:
    """Layer -> what it is, up to the one numbered `last`. heads: key heads to choose, None for all. Raises UsageError for heads
    that are not there, and what interface.attention raises."""
    found: dict[int, Layer] = {}

    class Looking:
        """Answers one token, whose attention is all its own."""

        nbytes = 0

        def answer(self, facts: LayerFacts, q: Any, k: Any, v: Any) -> Any:
            layer = Layer(facts, q.shape[0], k.shape[0], q.shape[2], v.shape[2])
            found[facts.index] = replace(layer, chosen=_chosen(heads, layer))
            if facts.index == last:
                raise Enough
            return v.repeat_interleave(q.shape[0] // v.shape[0], 0).transpose(0, 1)

    read(model, np.zeros(1, np.int64), 0, lambda facts: Looking())
    return found


def read(model: Model, ids: np.ndarray, first: int, reading: Reading) -> None:
    """The next tokens ids (n,) int64, of which the first has this number, pass through the layers, until Enough is raised."""
    import torch

    positions = torch.arange(first, first + len(ids))[None]
    try:
        with torch.inference_mode(), answered_by(reading):
            model.network.base_model(input_ids=torch.from_numpy(ids)[None], position_ids=positions, use_cache=False)
    except Enough:
        pass


def _chosen(heads: Sequence[int] | None, layer: Layer) -> tuple[int, ...]:
    found = tuple(range(layer.key_heads)) if heads is None else tuple(heads)
    if not found or len({*found}) != len(found) or not all(0 <= head < layer.key_heads for head in found):
        raise UsageError(f"--heads {','.join(map(str, found))}: choose different key heads; layer {layer.facts.index} has 0 to "
                         f"{layer.key_heads - 1}")  # fmt: skip
    return found


def attributes(model: Model, layer: Layer, tokens: int) -> dict:
    """Those of the rows of a layer, by which `attend` needs no options."""
    facts = layer.facts
    found: dict[str, Any] = {"causal": True, "scale": facts.scale, "layer": facts.index, "tokens": tokens}
    if facts.local:
        found["local"] = facts.local
    if facts.softcap is not None:
        found["softcap"] = float(facts.softcap)
    if facts.sinks is not None:
        found["sink_logit"] = [float(facts.sinks[head]) for head in layer.query_heads]
    if word := rope_of(model.network, layer.dim):
        theta, _, pairs = word.partition(":")
        found |= {"rope_theta": float(theta), "rope_pairs": pairs}
    return found
