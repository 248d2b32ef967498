"""What the config.json of a transformers model says of its attention, read as JSON: the same words as attributes of a file.

Sources: configuration_*.py and modeling_*.py of transformers, older names of fields included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import log, sqrt

from streamattn_cli.errors import CannotMeet, InputMalformed, InputMissing, StreamattnError, UsageError
from streamattn_cli.rows.inputs import modeltypes as types
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.heads import Heads

LONGEST = 16 << 20  # bytes
LAYERS = 1 << 14  # at most
WHOLE = ("full_attention", "attention", "global", "full")
WINDOWED = ("sliding_attention", "local", "sliding_window_attention")


@dataclass(frozen=True)
class ModelConfig:
    """What a config.json says of one layer. attrs: as attributes of a file have it. unclear: what it does not say although
    the model has it, by the option that does, with the sentence for who omits that. dims: of keys, all that may be."""

    name: str
    told: str
    attrs: dict
    unclear: dict[str, str]
    heads: int
    key_heads: int
    dims: tuple[int, ...]
    value_dim: int
    notes: tuple[str, ...] = ()
    taken: dict = field(default_factory=dict)  # those of attrs that the file does not say itself

    def beside(self, heads: dict[str, Heads], said: dict, spec: InputSpec, notes: list[str]) -> ModelConfig:
        """The same beside heads and attributes of a file; what is taken, and where they differ, goes into the notes. Raises
        InputMalformed for rows of another model."""
        notes += [self.told, *self.notes]
        for part, found in heads.items():
            there, told = len(found) // found.batch, self.sizes_of(part)[0]
            if part != "v" and found.dim not in self.dims and spec.dim is None:
                raise InputMalformed(
                    f"{found.tensor.name}: {part} heads of {found.dim} items found, {self.name} says {self.dims[0]}; give the "
                    "config of the model that they are of, or omit --config"
                )
            if there != told and not spec.like:
                notes.append(f"{self.name} says {told} heads for {part}, {found.tensor.name} has {there}")
        for name in said.keys() & self.attrs.keys():
            if said[name] != self.attrs[name]:
                notes.append(f"{self.name} says {name} {self.attrs[name]}, and the file {said[name]}, which is taken")
        return replace(self, taken={name: value for name, value in self.attrs.items() if name not in said})

    def sizes_of(self, part: str) -> tuple[int, int]:
        """(heads, dim) of q, k or v."""
        return self.heads if part == "q" else self.key_heads, self.value_dim if part == "v" else self.dims[0]


def config_file(word: str) -> str:
    """The file of --config, which may be a model's folder."""
    return os.path.join(word, "config.json") if os.path.isdir(word) else word


def config_beside(spec: InputSpec) -> str | None:
    """The config.json in the folder of the input, where it is one of a model; it is offered, and never taken unasked."""
    word = spec.input or spec.k
    if spec.config or word is None or word == "-":
        return None
    path = os.path.join(os.path.dirname(word.rpartition(":")[0] if ":" in word else word), "config.json")
    try:
        read_config(path, None)
    except StreamattnError:
        return None
    return path


def read_config(word: str, layer: int | None) -> ModelConfig:
    """What is said of a layer (None: nobody knows which one). Raises InputMissing, InputMalformed, UsageError for a layer that is
    not there, and CannotMeet where attention is not causal softmax over q.k."""
    path = config_file(word)
    try:
        with open(path, "rb") as file:
            text = file.read(LONGEST + 1)
        found = json.loads(text) if len(text) <= LONGEST else None
    except OSError as error:
        raise InputMissing(
            f"{path}: {error.strerror}; --config takes a config.json of transformers or a folder with one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputMalformed(f"{path}: not a config.json of transformers: {error}") from error
    if not isinstance(found, dict):
        raise InputMalformed(f"{path}: not a config.json of transformers: expected an object with model_type")
    return _Reading(path, _of_text(found)).config(layer)


def _of_text(found: dict) -> dict:
    """The part of the language model, where a config has several."""
    for name in types.PARTS:
        if isinstance(found.get(name), dict):
            inner = _of_text(found[name])
            return inner | {"model_type": inner.get("model_type") or found.get("model_type")}
    return found


class _Reading:
    """The steps from fields to facts."""

    def __init__(self, path: str, found: dict):
        self._path = path
        self._kind = str(found.get("model_type"))
        usual = types.DEFAULTS.get(self._kind, {})
        self._found = {name: value for name, value in (usual | found).items() if value is not None}
        self._nulls = {name for name, value in found.items() if value is None}
        inner = self._found.get("attn_config")
        self._inner: dict = inner if isinstance(inner, dict) else {}  # of MPT and DBRX

    def config(self, layer: int | None) -> ModelConfig:
        """All that is said."""
        self._refuse()
        layers, heads = self._whole("num_hidden_layers", "n_layer", "n_layers", "num_layers"), self._whole(*types.HEADS)
        if layers > LAYERS:
            raise InputMalformed(f"{self._path}: {layers} layers found, expected at most {LAYERS}")
        if layer is not None and layer >= layers:
            raise UsageError(
                f"{self._path}: layer {layer} is not there, the model has {layers}; is it the config of another one?"
            )
        key_heads = self._key_heads(heads)
        dim = self._whole("head_dim", default=self._whole("hidden_size", "n_embd", "d_model", default=0) // heads)
        dims: tuple[int, ...] = (dim,)
        value_dim = dim
        if "qk_nope_head_dim" in self._found:  # latent attention: rows as they are, or as kept in the cache
            rotary, latent = self._whole("qk_rope_head_dim"), self._whole("kv_lora_rank")
            dims = (self._whole("qk_nope_head_dim") + rotary, latent + rotary)
            value_dim, key_heads = self._whole("v_head_dim"), heads
        if not min(*dims, value_dim):
            raise InputMalformed(
                f"{self._path}: heads without items, expected head_dim, or a hidden_size of {heads} items or more"
            )
        self._dim, self._layers = dims[0], layers
        unclear = dict(self._unsaid(heads))
        attrs = {"causal": True} | self._softcap() | ({"logit_bias": "slope"} if self._slopes(heads, unclear) else {})
        attrs |= self._of_layers(layer, unclear)
        kind = self._kind if layer is None else f"{self._kind}, layer {layer}"
        told = f"{self._path}: {kind}, {heads} query heads and {key_heads} key heads of {dims[0]}"
        notes = () if types.is_among(self._kind, types.TRIED) else (
            f"{self._path}: model type {self._kind} is not a known one; its attention is taken as that of most models: causal, "
            "its fields as they are usually meant (--scale, --local and --softcap decide)",)  # fmt: skip
        return ModelConfig(self._path, told, attrs, unclear, heads, key_heads, dims, value_dim=value_dim, notes=notes)

    def _refuse(self) -> None:
        """Raise CannotMeet for models whose attention is another one."""
        kind, found = self._kind, self._found
        why = types.refusal(kind)
        if not why and found.get("is_encoder_decoder"):
            why = "it has an encoder and a decoder, and does not say of which the rows are"
        if not why and types.is_among(kind, types.ENCODERS) and not found.get("is_decoder"):
            why = "it is an encoder, whose rows see all others"
        names = found.get("architectures")
        names = names if isinstance(names, list) else []
        causal = any("CausalLM" in str(n) or "ConditionalGeneration" in str(n) for n in names)
        if not why and not causal and not types.is_among(kind, types.TRIED):
            why = "it is not known to be a causal language model"
        if why:
            raise CannotMeet(f"{self._path}: model type {kind}: {why}; omit --config, and say what the attention is by options "
                             "(--causal or --full, --scale, --local ...)")  # fmt: skip

    # --- fields

    def _whole(self, *names: str, default: int | None = None) -> int:
        """The first of these fields that is there."""
        for name in names:
            value = self._found.get(name)
            if isinstance(value, list) and value and len({*map(str, value)}) == 1:
                value = value[0]  # one for each layer
            if value is None:
                continue
            if type(value) is not int or not (default is None) <= value < 1 << 31:
                raise InputMalformed(f"{self._path}: {name} is {str(value)[:80]}, expected a whole number above 0")
            return value
        if default is None:
            raise InputMalformed(
                f"{self._path}: lacks {names[0]}; expected a config.json of a transformers language model"
            )
        return default

    def _number(self, name: str, where: dict | None = None) -> float | None:
        """A field that is a number, None where it is not there or null."""
        value = (self._found if where is None else where).get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise InputMalformed(f"{self._path}: {name} is {str(value)[:80]}, expected a number above 0")
        return float(value)

    def _key_heads(self, heads: int) -> int:
        if self._found.get("multi_query") and not self._found.get("new_decoder_architecture"):
            return 1
        found = self._inner.get("kv_n_heads")
        if type(found) is not int:
            found = self._whole("num_key_value_heads", "num_kv_heads", "n_head_kv", default=heads)
        if not found or heads % found:
            raise InputMalformed(f"{self._path}: {heads} query heads and {found} key heads, expected a multiple")
        return found

    # --- facts of the model

    def _softcap(self) -> dict:
        cap = self._number("attn_logit_softcapping")
        return {"softcap": cap} if cap else {}

    def _slopes(self, heads: int, unclear: dict[str, str]) -> bool:
        """Whether it has the standard slopes of ALiBi; others are unclear."""
        found = self._found
        alibi = found.get("alibi") or self._inner.get("alibi") or found.get("position_embedding_type") == "alibi"
        if self._kind == "bloom":
            return True
        if not alibi:
            return False
        if self._kind == "mpt" and heads & (heads - 1) == 0 and self._inner.get("alibi_bias_max", 8) == 8:
            return True
        unclear["logit_bias"] = (
            f"{self._path}: {self._kind} has ALiBi with slopes that are not the standard ones; give them: --logit-bias NUMBERS "
            "(one of each query head, as they are added to logits after the scale)"
        )
        return False

    def _unsaid(self, heads: int) -> Iterator[tuple[str, str]]:
        if self._kind in types.SINKS:
            told = "has learned sinks, which are weights (self_attn.sinks) and not in its config.json"
            yield "sink_logit", f"{self._path}: {self._kind} {told}; give the {heads} of this layer: --sink-logit FILE"
        if self._kind in types.SCALED_QUERIES:
            told = "multiplies q by 1/sqrt(dim) before its attention; say whether these were: --scale 1, or --scale sqrt if not"
            yield "scale", f"{self._path}: {self._kind} {told}"

    # --- facts of a layer

    def _of_layers(self, layer: int | None, unclear: dict[str, str]) -> dict:
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
            return window if at >= self._whole("max_window_layers", default=self._layers) else None
        return window

    def _scale(self, at: int) -> float | None:
        """The factor of q.k where it is not 1/sqrt(dim)."""
        if self._kind in types.UNSCALED:
            return 1.0
        if scalar := self._number("query_pre_attn_scalar"):
            return float(scalar**-0.5)
        if scale := self._number("attention_multiplier") or self._number("softmax_scale", self._inner):
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
        kind, all_dim = rope.get("rope_type", rope.get("type", "default")), self._number("mscale_all_dim", rope)
        if kind != "default" and all_dim:
            factor = self._number("factor", rope) or 1.0
            more = 0.1 * all_dim * log(factor) + 1 if factor > 1 else 1.0
            scale *= more * more
        return scale

    def _rope_fields(self, kind: str) -> dict | None:
        """rope_parameters of a kind of layers, in the words of all versions; None where there is no rotation."""
        found = self._found
        if "rope_parameters" in self._nulls:
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
        usual = 4 if self._kind in ("llama4_text", "llama4", "smollm3") else 0
        step = every if type(every) is int and every > 0 else usual
        return [not step or (at + 1) % step != 0 for at in range(self._layers)]

    def _rope(self, at: int) -> dict:
        """Of a layer that sees all rows: the rotation, where it is the plain one over all of a head's items."""
        fields = self._rope_fields("full_attention")
        if not fields or not self._turned()[at] or self._kind in types.NO_ROPE_IN_FULL:
            return {}
        theta = self._number("rope_theta", fields)
        plain = fields.get("rope_type", fields.get("type", "default")) == "default"
        share = [
            self._found.get("partial_rotary_factor"),
            self._found.get("rotary_pct"),
            fields.get("partial_rotary_factor"),
        ]
        partly = self._kind in types.PARTLY_TURNED or any(one not in (None, 1) for one in share)
        if theta is None or theta <= 1 or not plain or partly or "qk_nope_head_dim" in self._found:
            return {}
        pairs = {"rope_pairs": "interleaved" if self._kind in types.INTERLEAVED else "half"}
        return {"rope_theta": theta} | (pairs if types.is_among(self._kind, types.TRIED) else {})
