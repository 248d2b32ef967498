"""What the config.json of a transformers model says of each of its layers: window, scale and rotary positions.

Sources: see modelconfig.py.
"""

from __future__ import annotations

from math import log, sqrt

from streamattn_cli.errors import CannotMeet, InputMalformed
from streamattn_cli.rows.inputs import modeltypes as types

WHOLE = ("full_attention", "attention", "global", "full")
WINDOWED = ("sliding_attention", "local", "sliding_window_attention")


class Fields:
    """The fields of a config.json: with those that its model type has where the file omits them, without null."""

    def __init__(self, path: str, found: dict):
        self.path = path
        self.kind = str(found.get("model_type"))
        usual = types.DEFAULTS.get(self.kind, {})
        self.found = {name: value for name, value in (usual | found).items() if value is not None}
        self.nulls = {name for name, value in found.items() if value is None}
        inner = self.found.get("attn_config")
        self.inner: dict = inner if isinstance(inner, dict) else {}  # of MPT and DBRX

    def whole(self, *names: str, default: int | None = None) -> int:
        """The first of these fields that is there."""
        for name in names:
            value = self.found.get(name)
            if isinstance(value, list) and value and len({*map(str, value)}) == 1:
                value = value[0]  # one for each layer
            if value is None:
                continue
            if type(value) is not int or not (default is None) <= value < 1 << 31:
                raise InputMalformed(f"{self.path}: {name} is {str(value)[:80]}, expected a whole number above 0")
            return value
        if default is None:
            raise InputMalformed(
                f"{self.path}: lacks {names[0]}; expected a config.json of a transformers language model"
            )
        return default

    def number(self, name: str, where: dict | None = None) -> float | None:
        """A field that is a number, None where it is not there or null."""
        value = (self.found if where is None else where).get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise InputMalformed(f"{self.path}: {name} is {str(value)[:80]}, expected a number above 0")
        return float(value)


class Layers:
    """The steps from fields to the facts of layers; dim: of keys."""

    def __init__(self, fields: Fields, layers: int, dim: int):
        self._fields, self._path, self._kind = fields, fields.path, fields.kind
        self._found, self._inner, self._layers, self._dim = fields.found, fields.inner, layers, dim

    def of(self, layer: int | None, unclear: dict[str, str]) -> dict:
        """Of one layer; of an unknown one what all have alike."""
        if layer is not None:
            return self._of_layer(layer)
        every, refused = [], ""
        for at in range(self._layers):
            try:
                every.append(self._of_layer(at))
            except CannotMeet as error:
                refused = str(error)
        if not every:
            raise CannotMeet(refused)
        shared = {name: every[0][name] for name in every[0] if all(one.get(name) == every[0][name] for one in every)}
        for name in ("local", "scale"):
            if name not in shared and (refused or any(name in one for one in every)):
                unclear[name] = (
                    f"{self._path}: layers differ ({'some are of other kinds' if refused else f'{name} of some'}), and nobody "
                    f"said which one this is; choose it with --layer or --group, or say --{name}"
                )
        return shared

    def _of_layer(self, at: int) -> dict:
        local = self._local(at)
        found: dict = {"local": local} if local else {}
        if (scale := self._scale(at)) is not None:
            found["scale"] = scale
        return found | ({} if local else self._rope(at))

    def _kinds(self) -> list | None:
        """The kind of attention of each layer, where that is said."""
        found = self._found
        for name in ("layer_types", "attention_layers"):
            if isinstance(found.get(name), list) and len(found[name]) >= self._layers:
                return list(found[name])
        if "attention_chunk_size" in found and self._kind in ("llama4_text", "llama4"):
            return ["full_attention" if not turned else "chunked_attention" for turned in self._turned()]
        return None

    def _local(self, at: int) -> int | None:
        """Rows that a row sees, None for all. Raises CannotMeet for a layer of another kind."""
        found, kinds = self._found, self._kinds()
        window = found.get("window_size") if self._kind == "gpt_neo" else found.get("sliding_window")
        if not window:  # null or 0: none
            window = None
        elif type(window) is not int or window < 0:
            raise InputMalformed(f"{self._path}: sliding_window is {str(window)[:80]}, expected a whole number")
        if kinds is not None:
            kind = kinds[at]
            if kind not in WHOLE + WINDOWED:
                raise CannotMeet(f"{self._path}: layer {at} is {kind}, which is not attention over all rows or a window of them; "
                                 "choose other layers (--layer), or omit --config")  # fmt: skip
            return window if kind in WINDOWED else None
        if window is None or self._kind in types.WITHOUT_WINDOWS or found.get("use_sliding_window") is False:
            return None
        pattern = found.get("sliding_window_pattern", types.PATTERNS.get(self._kind))
        if isinstance(pattern, str) and pattern:
            return window if pattern[at % len(pattern)] == "L" and at != self._layers - 1 else None
        if type(pattern) is int and pattern > 0:
            return window if (at + 1) % pattern else None
        if self._kind in types.FROM_LAYER:
            return window if at >= self._fields.whole("max_window_layers", default=self._layers) else None
        return window

    def _scale(self, at: int) -> float | None:
        """The factor of q.k where it is not 1/sqrt(dim)."""
        if self._kind in types.UNSCALED:
            return 1.0
        if scalar := self._fields.number("query_pre_attn_scalar"):
            return float(scalar**-0.5)
        if scale := self._fields.number("attention_multiplier") or self._fields.number("softmax_scale", self._inner):
            return scale
        if "qk_nope_head_dim" in self._found:
            return self._latent_scale()
        if self._kind in ("gpt2", "gpt-sw3", "gpt_bigcode", "imagegpt"):
            scale = 1 / sqrt(self._dim) if self._found.get("scale_attn_weights", True) else 1.0
            by_layer = self._found.get("scale_attn_by_inverse_layer_idx")
            return scale / (at + 1) if by_layer else None if scale != 1 else scale
        return None

    def _latent_scale(self) -> float:
        """Of DeepSeek's latent attention, whose cached rows are longer than those that the scale is of."""
        rope, scale = self._rope_fields("full_attention") or {}, 1 / sqrt(self._dim)
        kind, all_dim = rope.get("rope_type", rope.get("type", "default")), self._fields.number("mscale_all_dim", rope)
        if kind != "default" and all_dim:
            factor = self._fields.number("factor", rope) or 1.0
            more = 0.1 * all_dim * log(factor) + 1 if factor > 1 else 1.0
            scale *= more * more
        return scale

    def _rope_fields(self, kind: str) -> dict | None:
        """rope_parameters of a kind of layers, in the words of all versions; None where there is no rotation."""
        found = self._found
        if "rope_parameters" in self._fields.nulls:
            return None
        new = found.get("rope_parameters")
        if isinstance(new, dict):
            return new.get(kind) if any(isinstance(v, dict) or v is None for v in new.values()) else new
        old = found.get("rope_scaling")
        theta = found.get("rope_theta", found.get("rotary_emb_base"))
        return (old if isinstance(old, dict) else {}) | ({"rope_theta": theta} if theta is not None else {})

    def _turned(self) -> list[bool]:
        """Which layers have rotary positions."""
        listed, every = self._found.get("no_rope_layers"), self._found.get("no_rope_layer_interval")
        if isinstance(listed, list) and len(listed) >= self._layers:
            return [bool(one) for one in listed]
        step = (
            every
            if type(every) is int and every > 0
            else 4
            if self._kind in ("llama4_text", "llama4", "smollm3")
            else 0
        )
        return [not step or (at + 1) % step != 0 for at in range(self._layers)]

    def _rope(self, at: int) -> dict:
        """Of a layer that sees all rows: the rotation, where it is the plain one over all of a head's items."""
        fields = self._rope_fields("full_attention")
        if not fields or not self._turned()[at] or self._kind in types.NO_ROPE_IN_FULL:
            return {}
        theta = self._fields.number("rope_theta", fields)
        share = (
            fields.get("partial_rotary_factor"),
            *(self._found.get(n) for n in ("partial_rotary_factor", "rotary_pct")),
        )
        plain = (
            fields.get("rope_type", fields.get("type", "default")) == "default"
            and self._kind not in types.PARTLY_TURNED
        )
        if (
            theta is None
            or theta <= 1
            or not plain
            or any(one not in (None, 1) for one in share)
            or "qk_nope_head_dim" in self._found
        ):
            return {}
        known = types.is_among(self._kind, types.TRIED)
        return {"rope_theta": theta} | (
            {"rope_pairs": "interleaved" if self._kind in types.INTERLEAVED else "half"} if known else {}
        )
