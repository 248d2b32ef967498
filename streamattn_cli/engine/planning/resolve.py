"""What the user asked for, in plain words; and what that means for the input at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from streamattn_cli.engine.planning.by_length import Kinds, differences, shorter_ones
from streamattn_cli.engine.planning.parameters import head_params, unused
from streamattn_cli.engine.planning.positions import beside_key
from streamattn_cli.engine.planning.value_units import in_units
from streamattn_cli.engine.planning.variants import (
    answered_by_window,
    bend,
    beside_config,
    cannot_bend,
    local_params,
    local_window,
    sink_logits,
)
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.requests import RunRequest
from streamattn_cli.engine.request.scale import scale_value
from streamattn_cli.engine.watch.events import Decision
from streamattn_cli.errors import CannotMeet, InputMalformed, UsageError
from streamattn_cli.rows.inputs.checks import range_notes
from streamattn_cli.rows.inputs.open import Inputs
from streamattn_cli.rows.tensors.heads import Heads, group_size
from streamattn_cli.rows.tensors.ranges import RangeTensor
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.sketches.rope import PAIRS, read_rope, rope_word

UNITS = "{}: values as far from 1 as 2^60 (float64: 2^480): they are counted in powers of two"


def resolve(request: RunRequest, inputs: Inputs, growing: bool = False) -> Problem:
    """Decide mode, method, scale and parameters. Raises UsageError (2), InputMalformed (4) or CannotMeet (11).

    `growing`: more rows may follow, or be merged in, so that a few rows are not simply kept whole.
    """
    if request.seed < 0:
        raise UsageError(f"--seed {request.seed}: must be 0 or more")
    q, k, v = inputs.parts
    group_size(q, k)
    if head_of(q, k, v, 1.0).dtype in ("f4", v.tensor.dtype) and not request.sketches:  # float32 is no end of float64
        v = in_units(v, (q, k))
    of_layer = request.memory_per_layer is not None
    request, shares = _of_layer(request, len(k), head_of(q, k, v, 1.0)) if of_layer else in_rows(request, inputs)
    notes = [*inputs.notes, *shares]
    causal = _causal(request, inputs, notes)
    notes += [UNITS.format(v.tensor.name)] if v.units else []
    scale = _scale(request.scale, inputs, k.dim, notes)
    local = local_window(request, inputs, causal or growing, notes)
    sinks = sink_logits(request, inputs, growing, notes)
    bent = bend(request, inputs, causal, growing, notes)
    notes += beside_config(request, inputs, None if growing else causal, scale, local, bent)
    method = request.method or ("poly" if request.sketches or request.eps else "nystrom")
    if local and method != "exact":
        request, why = answered_by_window(request, method, local)
        method = "window"
        notes.append(why)
    if not request.method:
        notes.append(f"--method {method} is the default; inspect tells whether poly suits this input")
    notes += unused(request, method)
    _check_streams(method, causal, q, k, v)
    notes += _check_sequences(request, method, causal, q, k)
    if causal and request.inputs.rows and not request.inputs.q_rows and _as_many(q, k):
        q = replace(q, tensor=RangeTensor(q.tensor, *request.inputs.rows))
        notes += range_notes([q])
    first_query = beside_key(request.first_query, causal, q, k, notes)
    head = head_of(q, k, v, scale)
    if method == "auto":
        from streamattn_cli.engine.planning.choose import decided  # which builds on this module

        request, why = decided(request, inputs, head, causal, first_query, bool(bent))
        notes.append(why)
        method = str(request.method)
    later = causal and bool(first_query or (k.sequences and q.sequences != k.sequences))
    request = replace(request, rope=_rope(request, inputs, method, causal and not later, notes))
    try:
        params, shorter = _parameters(request, method, head, causal, local, k, growing, notes)
    except UsageError as error:
        if of_layer:  # the advice is in rows
            raise UsageError(f"{shares[0]}; {error}; --resident-rows takes the place of --memory-per-layer") from None
        raise
    if bent and params and params.history:
        raise cannot_bend(bent, method, k.tensor.name)
    return Problem(
        request, q, k, v, causal, scale, method, head.dtype, params=params, notes=tuple(notes), local=local, sink_logits=sinks,
        bend=bent, first_query=first_query, shorter=shorter,
    )  # fmt: skip


def _parameters(
    request: RunRequest,
    method: str,
    head: HeadParams,
    causal: bool,
    local: int | None,
    k: Heads,
    growing: bool,
    notes: list[str],
) -> tuple[HeadParams | None, Kinds]:
    """The parameters of one head, and those of shorter sequences where they are others."""
    longest = k.sequences.longest if k.sequences else k.rows
    budgeted = not local and "resident_rows" in registry.find(method).options

    def fits(rows: int) -> bool:
        return budgeted and not growing and _all_fit(request, rows)

    def of_rows(rows: int | None) -> HeadParams | None:
        """Those for a sequence of so many keys."""
        params = head_params(request, method, head, causal, rows)
        if params and local:
            return local_params(head, local, None if growing else rows)
        return replace(head, sinks=0, window=rows, group=8) if rows is not None and fits(rows) else params

    params = of_rows(longest)
    shorter = shorter_ones(of_rows, k.sequences, params) if k.sequences and params else ()
    if longest is not None and fits(longest):
        of_each = " of every sequence" if k.sequences else ""
        notes.append(f"all {longest} rows{of_each} fit into --resident-rows: the answers are exact")
    elif budgeted and shorter:
        notes.append(differences(shorter))
    return params, shorter


def head_of(q: Heads, k: Heads, v: Heads, scale: float) -> HeadParams:
    """What the input decides of a sketch of one key head."""
    precision = "f8" if "f8" in (h.tensor.dtype for h in (q, k, v)) else "f4"
    return HeadParams(k.dim, v.dim, scale, precision, storage=k.kept if k.kept == v.kept else precision)


def _as_many(q: Heads, k: Heads) -> bool:
    """Whether queries of a tensor of their own are as many as the keys that --rows chose some of."""
    keys = k.tensor.base.rows if isinstance(k.tensor, RangeTensor) else k.rows
    return q.tensor is not k.tensor and (q.rows is None or keys is None or q.rows >= keys)


def _check_sequences(request: RunRequest, method: str, causal: bool, q: Heads, k: Heads) -> list[str]:
    """Refuse what several sequences cannot be asked; a note that says how many there are, nothing for one."""
    name, told = k.tensor.name, request.inputs.lengths or request.inputs.starts
    for option, given in (("--top-k", request.top_k), ("--sketches", request.sketches)):
        if given and (k.sequences or told):  # which are not told apart for these
            raise CannotMeet(f"{name}: {option} is for one sequence, here are several; choose its rows with --rows")
    if not k.sequences:
        return []
    count = len(k.several)
    if len(q.several) != count:
        raise InputMalformed(
            f"{q.tensor.name}: {len(q.several)} sequences found, {name} has {count} (where queries are fewer, --q-starts says "
            "where they begin)"
        )
    history = registry.find(method).history
    learns = causal and history is not None and history.learns
    if not (k.tensor.seekable or learns or method in ("window", "exact")):
        raise CannotMeet(
            f"{name}: {method} looks at the first rows of every sequence before it begins, and a pipe passes once; use a "
            "file, or --method nystrom or window with --causal"
        )
    lengths = np.diff(k.several.edges)
    rows = f"{lengths.min()} rows" if lengths.min() == lengths.max() else f"{lengths.min()} to {lengths.max()} rows"
    return [f"{name}: {count} sequences of {rows} each; attention stays within them"]


def in_rows(request: RunRequest, inputs: Inputs) -> tuple[RunRequest, list[str]]:
    """The request with --resident-rows as a number where it is a share of the keys, and a note that says how many."""
    word = request.resident_rows
    if not isinstance(word, str):
        return request, []
    _, k, _ = inputs.parts
    keys = k.sequences.longest if k.sequences else k.rows
    if keys is None:
        raise UsageError(f"--resident-rows {word}: {k.tensor.name} does not say how many keys will come; give a number")
    uneven = k.sequences and (np.diff(k.sequences.edges) != keys).any()
    whose = ", those of the longest sequence, for every sequence" if uneven else ""  # one memory serves them all
    (rows,), told = budgets_in_rows([word], keys, whose)
    return replace(request, resident_rows=rows), told


def budgets_in_rows(budgets: Sequence[int | str], keys: int, whose: str = "") -> tuple[tuple[int, ...], list[str]]:
    """Budgets, of which some are shares of so many keys, in rows; and what to say of those."""
    rows = {word: max(1, round(float(word[:-1]) / 100 * keys)) for word in budgets if isinstance(word, str)}
    told = [f"--resident-rows {word} of {keys} keys{whose}: {count}" for word, count in rows.items()]
    return tuple(rows[word] if isinstance(word, str) else word for word in budgets), told


def _of_layer(request: RunRequest, heads: int, head: HeadParams) -> tuple[RunRequest, list[str]]:
    """The request with the resident rows of one key head that --memory-per-layer has room for, and a note that says so."""
    bytes_, one = request.memory_per_layer or 0, heads * head.row_bytes
    if request.resident_rows is not None:
        raise UsageError("--memory-per-layer and --resident-rows say the same in other units; give one of them")
    if bytes_ < one:
        raise UsageError(f"--memory-per-layer {bytes_}: one row of {heads} key heads takes {one} bytes; give more")
    rows = bytes_ // one
    told = f"--memory-per-layer {bytes_}: {rows} resident rows for each of {heads} key heads"
    return replace(request, resident_rows=rows), [told]


def _all_fit(request: RunRequest, rows: int) -> bool:
    """Whether the budget holds every row, and no part of it was chosen by hand."""
    by_hand = (request.window, request.atoms, request.buffer)
    return by_hand == (None, None, None) and rows <= request.budget


def _causal(request: RunRequest, inputs: Inputs, notes: list[str]) -> bool:
    if request.causal is not None:
        return request.causal
    from streamattn_cli.rows.inputs.modelconfig import config_beside  # most runs say what they are

    said = inputs.attrs.get("causal")
    q, k, _ = inputs.parts
    interleaved = not q.tensor.seekable and q.tensor is k.tensor
    causal = bool(said) if said is not None else interleaved
    why = (
        f"{inputs.source('causal')} says so"
        if said is not None
        else "q, k and v come row by row"
        if causal
        else "the default"
    )
    text = f"attention is {'causal' if causal else 'full'} ({why}; --causal or --full decides)"
    beside = config_beside(request.inputs) if why == "the default" else None
    text += f"; {beside} says more of it: --config {beside}" if beside else ""
    notes.append(Decision(text) if why == "the default" else text)
    return causal


def _scale(word: str | None, inputs: Inputs, dim: int, notes: list[str]) -> float:
    if word is None:
        if "scale" in inputs.attrs:
            notes.append(f"scale {inputs.attrs['scale']:g} is taken from {inputs.source('scale')}")
            word = str(inputs.attrs["scale"])
        else:
            word = "sqrt"
    return scale_value(word, dim)


def _rope(request: RunRequest, inputs: Inputs, method: str, causal: bool, notes: list[str]) -> str | None:
    """Rotary positions as one word (see rope_word), None where there are none or they are of no use."""
    word = None
    if request.rope is not None:
        try:
            word = read_rope(request.rope)
        except ValueError:
            raise UsageError(
                f"--rope {request.rope}: it must be THETA:half or THETA:interleaved, THETA a number above 1 such as 10000, "
                "or none"
            ) from None
    if method != "nystrom":
        return None  # `unused` has said so
    learns = causal and not request.query_model
    if word and not learns:
        why = "with --query-model" if causal else "for full attention, or with --first-query"
        notes.append(f"--rope has no meaning {why}: the queries are known beforehand")
    if not learns:
        return None
    return (_rope_of_file(inputs, notes) if word is None else word) or None


def _rope_of_file(inputs: Inputs, notes: list[str]) -> str | None:
    theta, pairs = inputs.attrs.get("rope_theta"), inputs.attrs.get("rope_pairs")
    if theta is None:
        return None
    if pairs is None:
        notes.append(
            f"{inputs.source('rope_theta')} says rope_theta, but not rope_pairs: with --rope {theta}:half or :interleaved, "
            "whichever is true of it, nystrom errs by less"
        )
        return None
    try:
        word = rope_word(float(theta), str(pairs))
    except (TypeError, ValueError):
        raise InputMalformed(
            f"{inputs.parts[1].tensor.name}: attributes rope_theta {theta!r} and rope_pairs {pairs!r} are not rotary positions; "
            f"expected a number above 1 and {' or '.join(PAIRS)}; correct them, or say --rope"
        ) from None
    notes.append(f"rope {float(theta):g}:{pairs} is taken from {inputs.source('rope_theta')}")
    return word


def _check_streams(method: str, causal: bool, q: Heads, k: Heads, v: Heads) -> None:
    """Refuse what a pipe, which passes once, cannot serve."""
    piped = [h.tensor for h in (q, k, v) if not h.tensor.seekable]
    if not piped:
        return
    if not causal and any(q.tensor is h.tensor for h in (k, v)):
        raise CannotMeet(
            f"{q.tensor.name}: q comes interleaved with k and v, and full attention needs all keys before the first "
            "query is answered: the normaliser D is not known when q passes. Use --causal, or give q as a file (--q FILE)"
        )
    if method == "exact" and (causal or not q.tensor.seekable):
        raise CannotMeet(
            f"{piped[0].name}: exact {'causal ' if causal else ''}attention reads keys and values several times, and a "
            "pipe passes once. Write the rows to a file first, or use --method nystrom"
        )
