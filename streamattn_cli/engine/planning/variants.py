"""Attention as models have it: windows that attention itself does not leave (--local), learned sinks (--sink-logit),
softcapping (--softcap) and ALiBi (--logit-bias)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from streamattn_cli.engine.request.requests import RunRequest
from streamattn_cli.errors import CannotMeet, InputMalformed, UsageError
from streamattn_cli.options import spelling
from streamattn_cli.rows.inputs.numbers import decimals, said
from streamattn_cli.rows.inputs.open import Inputs
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.sketches.bend import SLOPE, Bend, standard_slopes
from streamattn_cli.sketches.headparams import HeadParams

GROUPS = 3, 8  # of 8 to 256 rows


def beside_config(
    request: RunRequest, inputs: Inputs, causal: bool | None, scale: float, local: int | None, bent: Bend
) -> list[str]:
    """Notes where options say something else than --config; what was decided is given, causal None for a sketch. Raises
    CannotMeet for what the model has, and neither its config nor an option says."""
    config = inputs.config
    if config is None:
        return []
    for name, why in config.unclear.items():
        if getattr(request, name) is None and name not in inputs.attrs:
            raise CannotMeet(why)
    usual = {"scale": 1 / math.sqrt(inputs.parts[1].dim)}
    notes = []
    facts = {"scale": scale, "local": local, "softcap": bent.cap or None} | (
        {} if causal is None else {"causal": causal}
    )
    for name, value in facts.items():
        said = config.attrs.get(name, usual.get(name))
        if getattr(request, name) is not None and said != value and name not in config.unclear:
            notes.append(
                f"{config.name} says {name} {said or 'none'}, and {spelling(name)} {value or 'none'}, which is taken"
            )
    return notes


def local_window(request: RunRequest, inputs: Inputs, causal: bool, notes: list[str]) -> int | None:
    """How many keys a row sees, itself included; None for all. From --local, or what the file says. Raises UsageError, also where
    attention is not causal, and InputMalformed."""
    window = _window(request, inputs, notes)
    if window and not causal:
        raise UsageError(
            f"{inputs.parts[1].tensor.name}: local attention is causal: a row sees itself and the rows before it; give --causal, "
            "or --local none"
        )
    return window


def _window(request: RunRequest, inputs: Inputs, notes: list[str]) -> int | None:
    word = request.local
    if word is None and "local" in inputs.attrs:
        said = inputs.attrs["local"]
        if isinstance(said, bool) or not str(said).isdecimal() or int(said) < 1:
            name = inputs.k.tensor.name if inputs.k else "the file"
            raise InputMalformed(
                f"{name}: attribute local is {said!r}, expected a number of rows, 1 or more; correct it"
            )
        notes.append(f"local {said} is taken from {inputs.source('local')}")
        return int(said)
    if word is None or word == "none":
        return None
    if ":" in word:
        raise UsageError(f"--local {word}: names layers; give --layer, too, or the number of rows alone")
    return read_local(word)


def read_local(word: str) -> int:
    """The rows of a --local word without layers. Raises UsageError."""
    if not word.isdecimal() or int(word) < 1:
        raise UsageError(
            f"--local {word}: give the rows that a query sees, 1 or more (W, or W:LAYERS with --layer), or none"
        )
    return int(word)


def local_params(head: HeadParams, window: int, stream: int | None) -> HeadParams:
    """Exact rows alone, as many as attention reaches back to; stream: rows that will come, None if nobody knows."""
    reach = window if stream is None else min(window, stream)
    group = 1 << int(np.clip(np.log2(max(reach, 1) / 16), *GROUPS))
    return replace(head, sinks=0, window=reach, group=group, local=True)


def answered_by_window(request: RunRequest, method: str, window: int) -> tuple[RunRequest, str]:
    """The request of a local layer, whatever its method, and a note that says so."""
    told = "" if method == "window" else f", not by {method}"
    plain = replace(request, method="window", sinks=None, window=None)
    return (
        plain,
        f"attention is local: a row sees itself and the {window - 1} before it; its window answers exactly{told}",
    )


def sink_logits(request: RunRequest, inputs: Inputs, growing: bool, notes: list[str]) -> tuple[float, ...]:
    """A logit for each query head, from --sink-logit or what the file says; empty for none. See `_of_each_head`."""
    return _of_each_head("sink_logit", request, inputs, growing, notes)


def bend(request: RunRequest, inputs: Inputs, causal: bool, growing: bool, notes: list[str]) -> Bend:
    """Softcapping and ALiBi, from --softcap and --logit-bias or what the file says. See `_of_each_head`."""
    if growing and not inputs.parts[0].tensor.width and (request.logit_bias or inputs.attrs.get("logit_bias")) == SLOPE:
        return Bend(_softcap(request, inputs, notes), standard=True)
    slopes = _of_each_head("logit_bias", request, inputs, growing, notes)
    if slopes and not (causal or growing):
        raise UsageError(
            f"{inputs.parts[1].tensor.name}: --logit-bias needs causal attention: it counts the rows back from the query; "
            "give --causal, or --logit-bias none"
        )
    return Bend(_softcap(request, inputs, notes), slopes)


def cannot_bend(bend: Bend, method: str, name: str) -> CannotMeet:
    """The refusal to bend the logits of a method with a history."""
    option = "--softcap" if bend.cap else "--logit-bias"
    return CannotMeet(
        f"{name}: {option} bends every logit by itself, and {method} has no single ones of older rows; use --method exact or "
        "window, or --local W for a layer with a sliding window"
    )


def _softcap(request: RunRequest, inputs: Inputs, notes: list[str]) -> float:
    """0 for none."""
    word, name = request.softcap, "--softcap"
    if word is None:
        if "softcap" not in inputs.attrs:
            return 0.0
        word, name = str(inputs.attrs["softcap"]), f"{inputs.parts[1].tensor.name}: attribute softcap"
        notes.append(f"softcap {word} is taken from {inputs.source('softcap')}")
    try:
        cap = 0.0 if word == "none" else float(word)
    except ValueError:
        cap = math.nan
    if not 0 <= cap < math.inf:
        kind = UsageError if request.softcap else InputMalformed
        raise kind(f"{name} {word}: give a number above 0 such as 50, or none")
    return cap


def _of_each_head(
    field: str, request: RunRequest, inputs: Inputs, growing: bool, notes: list[str]
) -> tuple[float, ...]:
    """A number for each query head, from the option of that name or what the file says; empty for none.

    growing: of a sketch, whose queries come later: as many as they will be. Raises UsageError and InputMalformed.
    """
    word, option = getattr(request, field), spelling(field)
    q, k, _ = inputs.parts
    if word == "none" or (word is None and field not in inputs.attrs):
        return ()
    name, beside = f"{option} {word}", request.inputs.input
    if word is None:
        name, option, beside = f"{k.tensor.name}: attribute {field}", f"attribute {field}", None
        word = SLOPE if inputs.attrs[field] == SLOPE else said(inputs.attrs[field], name)
        notes.append(f"{field} is taken from {inputs.source(field)}")
    if field == "logit_bias" and word == SLOPE:
        found = np.array(standard_slopes(q.of or len(q) // q.batch))
    else:
        found = decimals(word, option, beside)
    if growing:
        heads = len(k) // k.batch
        if len(found) % heads:
            raise InputMalformed(
                f"{name}: {len(found)} numbers found for {heads} key heads; expected one for each query head"
            )
        return tuple(map(float, found))
    return of_heads(tuple(map(float, found)), q, len(q) // len(k), request.inputs.select, name)


def of_heads(
    numbers: tuple[float, ...], q: Heads, group: int, select: tuple[int, ...] | None, name: str
) -> tuple[float, ...]:
    """The numbers of all query heads of `q`, in the order of its heads, from those of one batch, of which some key heads may be
    selected. Raises InputMalformed."""
    heads = len(q) // q.batch
    if select and len(numbers) != heads and len(numbers) >= (max(select) + 1) * group:
        numbers = tuple(numbers[h * group + g] for h in select for g in range(group))
    if len(numbers) != heads:
        raise InputMalformed(
            f"{name}: {len(numbers)} numbers found, {q.tensor.name} has {heads} query heads; give one for each"
        )
    return numbers * q.batch
