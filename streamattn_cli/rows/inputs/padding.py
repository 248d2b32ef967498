"""Arrays beside q, k and v that say which rows count, found by their names: attention_mask, lengths, cu_seqlens and their kin."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from streamattn_cli.errors import CannotMeet, InputMalformed
from streamattn_cli.rows.inputs.numbers import of_mask
from streamattn_cli.rows.inputs.paths import Place, find
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.layout import show

MASKS = ("attention_mask",)
LENGTHS = ("lengths", "seq_lens", "seqlens", "seq_lengths", "seqlens_k", "sequence_lengths")
STARTS = ("starts", "cu_seqlens", "cu_seqlens_k", "cu_seq_lens", "cu_seq_lens_k")
QUERY_STARTS = ("cu_seqlens_q", "cu_seq_lens_q")
TOKENS = 1 << 20  # numbers in such an array are at most so many more than there are rows


def said_beside(spec: InputSpec, heads: dict[str, Heads], apart: bool, notes: list[str]) -> InputSpec:
    """The spec with --lengths or --starts of such an array in the input, unless an option or an attribute says them. A note says
    what is taken, and what is there and is ignored. Raises InputMalformed for a mask that has holes."""
    k = heads.get("k")
    if spec.input is None or spec.input == "-" or spec.lengths or spec.starts or k is None:
        return spec
    place = find(spec.input, raw=spec.raw is not None)
    if not place.names_arrays or place.inside is not None:
        return spec
    found = _nearest(place, k.tensor.name)
    if not found:
        return spec
    if spec.rows or spec.q_rows or not apart:
        why = "rows were chosen by hand" if apart else "here all rows count"
        notes.append(f"{', '.join(found.values())} of {spec.input} ignored: {why}")
        return spec
    for kind, field in ((STARTS, "starts"), (MASKS, "lengths"), (LENGTHS, "lengths")):
        name = next((found[word] for word in kind if word in found), None)
        if name is None:
            continue
        why = _unfit(place, name, k, kind)
        if why:
            notes.append(f"{place.path}:{name} is ignored: {why}")
            continue
        more: dict[str, Any] = {field: f"{place.path}:{name}"}
        if kind is STARTS and (queries := next((found[word] for word in QUERY_STARTS if word in found), None)):
            more["q_starts"] = f"{place.path}:{queries}"
        notes.append(f"{place.path}:{name} says which rows count (--{field})")
        return replace(spec, **more)
    return spec


def refuse_padding(spec: InputSpec, k: Heads) -> None:
    """Refuse (CannotMeet) to take the rows of a padded batch as keys that all count, where its file says that some do not."""
    if spec.input is None or spec.input == "-" or spec.rows or k.batch == 1:
        return
    place = find(spec.input, raw=spec.raw is not None)
    if not place.names_arrays or place.inside is not None or place.held.integers is None:
        return
    found = _nearest(place, k.tensor.name)
    for kind in (MASKS, LENGTHS):
        for name in (found[word] for word in kind if word in found):
            array = place.held.integers(place.path, name, k.batch * k.count + TOKENS)
            if array is None or _unfit(place, name, k, kind):
                continue
            lengths, before = of_mask(array, name) if kind is MASKS else (array, None)
            short = np.flatnonzero(lengths < k.count)
            if len(short):
                at, each = int(short[0]), len(k) // k.batch
                first = 0 if before is None else int(before[at])
                heads = ",".join(str(at * each + head) for head in range(each))
                raise CannotMeet(
                    f"{place.path}:{name} says that rows of batch {at} do not count, and a sketch takes all rows of all batches; "
                    f"sketch it alone: --select {heads} --rows {first}:{first + int(lengths[at])}, and the others likewise"
                )


def _nearest(place: Place, keys: str) -> dict[str, str]:
    """Last component -> name of the arrays that are called so, the nearest of those in the group of the keys or in one above."""
    group = re.split(r"[./]", keys.removeprefix(f"{place.path}:").strip("/"))[:-1]
    found: dict[str, tuple[int, str]] = {}
    for name in place.held.names(place.path):
        *above, last = re.split(r"[./]", name.strip("/"))
        if last in MASKS + LENGTHS + STARTS + QUERY_STARTS and above == group[: len(above)]:
            found[last] = max(found.get(last, (-1, "")), (len(above), name))
    return {last: name for last, (_, name) in found.items()}


def _unfit(place: Place, name: str, k: Heads, kind: tuple[str, ...]) -> str:
    """Why an array does not say which of these rows count; empty where it does."""
    batch, rows, padded = k.batch, k.count, "B" in k.layout
    integers = place.held.integers
    if integers is None:
        return f"whole numbers are not read from {place.kind}; give --lengths or --starts"
    array = integers(place.path, name, batch * rows + TOKENS)
    if array is None:
        return "expected whole numbers, not many more than there are rows"
    if kind is MASKS:
        fits = array.shape == (batch, rows) or (not padded and array.shape == (rows,))
        if not fits or array.min() < 0 or array.max() > 1:
            return f"shape {show(array.shape)} found, expected {show((batch, rows))} of 0 and 1"
        if not padded and not array.all():
            raise InputMalformed(
                f"{place.path}:{name}: says that rows of one sequence do not count; choose those that do: --rows A:B"
            )
        of_mask(np.atleast_2d(array), f"{place.path}:{name}")
        return "" if padded else "all rows count"
    if array.ndim != 1 or not array.size or array.min() < 0:
        return f"shape {show(array.shape)} found, expected one axis of numbers that are not negative"
    if kind is STARTS:
        fits = bool(not padded and array[0] == 0 and array[-1] == rows and (np.diff(array.astype(np.int64)) >= 0).all())
        return "" if fits else f"expected numbers from 0 to the {rows} rows of {k.tensor.name}, which do not fall"
    fits = (len(array) == batch and array.max() <= rows) if padded else int(array.sum(dtype=np.int64)) == rows
    told = f"its {len(array)} numbers are not those of {batch} batches of {rows} rows, nor of packed sequences"
    return "" if fits else told
