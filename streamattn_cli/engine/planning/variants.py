"""Attention as models have it: windows that attention itself does not leave (--local), and learned sinks (--sink-logit)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamattn_cli.engine.request.settings import AttendRequest
from streamattn_cli.errors import InputMalformed, UsageError
from streamattn_cli.rows.inputs.numbers import decimals
from streamattn_cli.rows.inputs.open import Inputs
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.sketches.head import HeadParams

GROUPS = 3, 8  # of 8 to 256 rows


def local_window(request: AttendRequest, inputs: Inputs, notes: list[str]) -> int | None:
    """How many keys a row sees, itself included; None for all. From --local, or what the file says. Raises UsageError and
    InputMalformed."""
    word = request.local
    if word is None and "local" in inputs.attrs:
        said = inputs.attrs["local"]
        if isinstance(said, bool) or not str(said).isdecimal() or int(said) < 1:
            name = inputs.k.tensor.name if inputs.k else "the file"
            raise InputMalformed(
                f"{name}: attribute local is {said!r}, expected a number of rows, 1 or more; correct it"
            )
        notes.append(f"local {said} is taken from the file")
        return int(said)
    if word is None or word == "none":
        return None
    if ":" in word:
        raise UsageError(
            f"--local {word}: it names layers, so --layer must say which there are; or give the rows alone"
        )
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


def answered_by_window(request: AttendRequest, method: str, window: int) -> tuple[AttendRequest, str]:
    """The request of a local layer, whatever its method, and a note that says so."""
    told = "" if method == "window" else f", not by {method}"
    plain = replace(request, method="window", sinks=None, window=None)
    return (
        plain,
        f"attention is local: a row sees itself and the {window - 1} before it; its window answers exactly{told}",
    )


def sink_logits(request: AttendRequest, inputs: Inputs, growing: bool, notes: list[str]) -> tuple[float, ...]:
    """A logit for each query head, from --sink-logit or what the file says; empty for none.

    growing: of a sketch, whose queries come later: as many as they will be. Raises UsageError and InputMalformed.
    """
    word = request.sink_logit
    q, k, _ = inputs.parts
    if word == "none" or (word is None and "sink_logit" not in inputs.attrs):
        return ()
    if word is not None:
        found, name = decimals(word, "--sink-logit", request.inputs.input), f"--sink-logit {word}"
    else:
        said = inputs.attrs["sink_logit"]
        typed = said if isinstance(said, str) else ",".join(map(str, np.atleast_1d(said).tolist()))
        found, name = decimals(typed, "attribute sink_logit", None), f"{k.tensor.name}: attribute sink_logit"
        notes.append("sink_logit is taken from the file")
    if growing:
        heads = len(k) // k.batch
        if len(found) % heads:
            raise InputMalformed(
                f"{name}: {len(found)} logits found for {heads} key heads; expected one for each query head"
            )
        return tuple(map(float, found))
    return of_heads(tuple(map(float, found)), q, len(q) // len(k), request.inputs.select, name)


def of_heads(
    logits: tuple[float, ...], q: Heads, group: int, select: tuple[int, ...] | None, name: str
) -> tuple[float, ...]:
    """The logits of all query heads of `q`, in the order of its heads, from those of one batch, of which some key heads may be
    selected. Raises InputMalformed."""
    heads = len(q) // q.batch
    if select and len(logits) != heads and len(logits) >= (max(select) + 1) * group:
        logits = tuple(logits[h * group + g] for h in select for g in range(group))
    if len(logits) != heads:
        raise InputMalformed(
            f"{name}: {len(logits)} logits found, {q.tensor.name} has {heads} query heads; give one for each"
        )
    return logits * q.batch
