"""The command line that `inspect` ends with: it runs what was found, as it was found."""

from __future__ import annotations

import shlex
from dataclasses import replace

from streamattn_cli.options import options_of, spelling
from streamattn_cli.rows.formats.names import layer_groups
from streamattn_cli.rows.inputs.layers import PLACE, layers_of
from streamattn_cli.rows.inputs.modelconfig import config_beside
from streamattn_cli.rows.inputs.open import Inputs
from streamattn_cli.rows.inputs.packedcache import cache_groups
from streamattn_cli.rows.inputs.paths import find
from streamattn_cli.rows.spec import InputSpec


def one_layer(spec: InputSpec, notes: list[str]) -> tuple[InputSpec, bool]:
    """The input as it is; of several layers in one file, or in files with {layer} in their names, the first that --layer asks
    for, with a note. And whether `--layer` takes them all."""
    if spec.layer or any(word and PLACE in word for word in (spec.input, spec.q, spec.k, spec.v)):
        layers = layers_of(spec)
        if len(layers) > 1:
            notes.append(f"{len(layers)} layers; layer {layers[0].number} is looked at")
        return layers[0].spec, True
    if spec.group or spec.input is None or spec.input == "-":
        return spec, False
    place = find(spec.input, raw=spec.raw is not None)
    if not place.names_arrays or place.inside is not None:
        return spec, False
    names = place.held.names(place.path)
    parts = tuple(part for part in "qkv" if getattr(spec, part) is None)
    for wanted in (parts, tuple(part for part in parts if part != "q")):
        groups = layer_groups(names, wanted) if wanted else {}
        if len(groups) > 1:
            number, group = next(iter(groups.items()))
            notes.append(f"{spec.input}: {len(groups)} layers; layer {number} is looked at (--group {group})")
            return replace(spec, group=group), wanted == parts
    caches = cache_groups(names)
    if len(caches) > 1:
        notes.append(f"{spec.input}: {len(caches)} packed caches; that of --group {caches[0]} is looked at")
        return replace(spec, group=caches[0]), False
    return spec, False


def bent(inputs: Inputs, layers: bool = False) -> bool:
    """Whether the file says something of logits that no method with a history can do; layers: of other layers, too."""
    return not inputs.attrs.keys().isdisjoint({"softcap", "logit_bias"}) and (layers or "local" not in inputs.attrs)


def command(spec: InputSpec, inputs: Inputs, layered: bool) -> str:
    """The command to paste: `attend`, of all layers where that can be, or `sketch` where there are no queries."""
    config = config_beside(spec) if "causal" not in inputs.attrs else None
    shown = replace(spec, group=None, layer=spec.layer or "all") if layered and inputs.q is not None else spec
    shown = replace(shown, config=config or spec.config)
    words = [shown.input] if shown.input is not None else []
    for name, default, described in options_of(InputSpec):
        value = getattr(shown, name)
        if value != default:
            words += [spelling(name, described), str(value)]
    if inputs.q is None:
        words += ["--method", "window"] if bent(inputs) else []
        return shlex.join(["streamattn", "sketch", *words, "-o", "keys.sattn"])
    words += ["--method", "exact"] if bent(inputs, shown.layer is not None) else []
    return shlex.join(["streamattn", "attend", *words, "-o", "out-{layer}.npy" if shown.layer else "out.npy"])
