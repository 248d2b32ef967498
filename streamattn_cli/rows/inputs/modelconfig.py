"""What the config.json of a transformers model says of its attention, read as JSON: the same words as attributes of a file.

Sources: configuration_*.py and modeling_*.py of transformers, older names of fields included.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from streamattn_cli.errors import CannotMeet, InputMalformed, InputMissing, StreamattnError, UsageError
from streamattn_cli.rows.inputs import modeltypes as types
from streamattn_cli.rows.inputs.modellayers import Fields, Layers
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.heads import Heads

LONGEST = 16 << 20  # bytes
LAYERS = 1 << 14  # at most


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
    return _Reading(Fields(path, _of_text(found))).config(layer)


def _of_text(found: dict) -> dict:
    """The part of the language model, where a config has several."""
    for name in types.PARTS:
        if isinstance(found.get(name), dict):
            inner = _of_text(found[name])
            return inner | {"model_type": inner.get("model_type") or found.get("model_type")}
    return found


class _Reading:
    """The steps from fields to facts."""

    def __init__(self, fields: Fields):
        self._fields, self._path, self._kind = fields, fields.path, fields.kind
        self._found, self._inner = fields.found, fields.inner

    def config(self, layer: int | None) -> ModelConfig:
        """All that is said."""
        self._refuse()
        layers, heads = (
            self._fields.whole("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
            self._fields.whole(*types.HEADS),
        )
        if layers > LAYERS:
            raise InputMalformed(f"{self._path}: {layers} layers found, expected at most {LAYERS}")
        if layer is not None and layer >= layers:
            raise UsageError(
                f"{self._path}: layer {layer} is not there, the model has {layers}; is it the config of another one?"
            )
        key_heads = self._key_heads(heads)
        dim = self._fields.whole(
            "head_dim", default=self._fields.whole("hidden_size", "n_embd", "d_model", default=0) // heads
        )
        dims: tuple[int, ...] = (dim,)
        value_dim = dim
        if "qk_nope_head_dim" in self._found:  # latent attention: rows as they are, or as kept in the cache
            rotary, latent = self._fields.whole("qk_rope_head_dim"), self._fields.whole("kv_lora_rank")
            dims = (self._fields.whole("qk_nope_head_dim") + rotary, latent + rotary)
            value_dim, key_heads = self._fields.whole("v_head_dim"), heads
        if not min(*dims, value_dim):
            raise InputMalformed(
                f"{self._path}: heads without items, expected head_dim, or a hidden_size of {heads} items or more"
            )
        unclear = dict(self._unsaid(heads))
        attrs = {"causal": True} | self._softcap() | ({"logit_bias": "slope"} if self._slopes(heads, unclear) else {})
        attrs |= Layers(self._fields, layers, dims[0]).of(layer, unclear)
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

    def _key_heads(self, heads: int) -> int:
        if self._found.get("multi_query") and not self._found.get("new_decoder_architecture"):
            return 1
        found = self._inner.get("kv_n_heads")
        if type(found) is not int:
            found = self._fields.whole("num_key_value_heads", "num_kv_heads", "n_head_kv", default=heads)
        if not found or heads % found:
            raise InputMalformed(f"{self._path}: {heads} query heads and {found} key heads, expected a multiple")
        return found

    # --- facts of the model

    def _softcap(self) -> dict:
        cap = self._fields.number("attn_logit_softcapping")
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
