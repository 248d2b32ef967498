"""Several files, or a pattern such as 'dump-*.h5', as one stream of keys and values."""

from __future__ import annotations

import glob
import os
import re
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.inputs.checks import check_rows, range_notes, with_ranges
from streamattn_cli.rows.inputs.ondemand import MOST_OPEN, OpenFiles
from streamattn_cli.rows.inputs.open import Inputs, open_inputs
from streamattn_cli.rows.inputs.padding import refuse_padding
from streamattn_cli.rows.inputs.paths import find
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.concat import ConcatTensor
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.tensor import RowTensor


def open_stream(spec: InputSpec, need_q: bool = False) -> Inputs:
    """`open_inputs` of keys and values whose words may name several files: their rows follow one another.

    With `need_q`, queries come from `spec.q`, one file, or (`spec.own_queries`) from all files of the stream, or else
    from the first one. Raises what `open_inputs` does, and InputMalformed for files that are not alike.
    """
    specs = single_files(spec)
    if len(specs) == 1:
        one = open_inputs(specs[0], need_q=need_q)
        try:
            refuse_padding(specs[0], one.heads["k"])
        except BaseException:
            one.close()
            raise
        return one
    with ExitStack() as stack:
        opened = _open_all(specs, need_q, stack)
        attrs = _same_attributes(specs, opened)
        made: dict[tuple[int, ...], ConcatTensor] = {}
        heads = {part: _joined([inputs.heads[part] for inputs in opened], made) for part in "kv"}
        if need_q:
            queries = [inputs.heads["q"] for inputs in (opened if spec.own_queries else opened[:1])]
            heads["q"] = _joined(queries, made) if spec.own_queries else queries[0]
        heads = with_ranges(spec if spec.own_queries else replace(spec, q_rows=None), heads)
        check_rows(heads)
        order = f"{len(specs)} files are one stream, in this order: {_named(specs)}"
        notes = dict.fromkeys([*opened[0].notes, order, *range_notes(heads.values())])
        return Inputs(heads.get("q"), heads["k"], heads["v"], attrs, tuple(notes), opened[0].config, stack.pop_all())


def wants_queries(spec: InputSpec) -> bool:
    """Whether a stream of keys and values is to be opened with queries."""
    return spec.q is not None or spec.own_queries


def with_own_queries(spec: InputSpec) -> InputSpec:
    """The spec of a stream of keys and values with the queries that all its files hold beside them, if they do.

    All of them, whatever --rows are taken: sketches of different rows of a file then learn from the same ones, and
    merge. Raises the errors of finding the files.
    """
    if spec.q or (spec.k and spec.v) or not all(map(_holds_queries, single_files(spec))):
        return spec
    return replace(spec, own_queries=True, q_rows=(0, None) if spec.rows else None)


def _holds_queries(spec: InputSpec) -> bool:
    if spec.input is None or spec.input == "-":
        return False
    place = find(spec.input, raw=spec.raw is not None)
    if not place.names_arrays or place.inside:
        return place.kind != "pipe" and "q" in (spec.record or "")
    try:
        place.held.arrays(place.path, place.held.names_of(place.path, ("q",), spec.group), None)
    except (InputMissing, InputMalformed):
        return False
    return True


def single_files(spec: InputSpec) -> list[InputSpec]:
    """One InputSpec for each file of a stream, patterns resolved, in order; rows are still to be chosen.

    Raises InputMissing where a pattern fits nothing, UsageError where k and v name different numbers of files.
    """
    words = {"input": _files(spec.input, *spec.more), "k": _files(spec.k), "v": _files(spec.v)}
    count = max(map(len, words.values()), default=0)
    if count <= 1:
        one: dict[str, Any] = {part: found[0] for part, found in words.items() if found}
        return [replace(spec, more=(), **one)]
    for part, found in words.items():
        if found and len(found) != count:
            raise UsageError(
                f"{spec.input or spec.k}: {count} files, but {part} names {len(found)}; every file of a stream needs its "
                "keys and its values"
            )
    if "-" in (word for found in words.values() for word in found):
        raise UsageError("standard input (-) cannot be one of several files of a stream")
    singles = []
    for at in range(count):
        own: dict[str, Any] = {part: found[at] for part, found in words.items() if found}
        if at:
            own |= {"q": None, "q_rows": None}
        singles.append(replace(spec, more=(), rows=None, **own))
    return singles


def absolute(spec: InputSpec) -> InputSpec:
    """The same files, by names that hold in other folders, for workers that run elsewhere."""

    def full(word: str) -> str:
        return word if word == "-" else os.path.abspath(word)

    def there(word: str) -> str:
        """The same of what may be numbers, or the name of a dataset."""
        return full(word) if word and any(map(os.path.lexists, (word, word.rpartition(":")[0]))) else word

    named: dict[str, Any] = {
        part: full(word) for part in ("input", *"qkv") if (word := getattr(spec, part)) is not None
    }
    named |= {
        part: there(word)
        for part in ("lengths", "starts", "q_lengths", "q_starts", "config")
        if (word := getattr(spec, part)) is not None
    }
    return replace(spec, more=tuple(map(full, spec.more)), **named)


def _files(*words: str | None) -> list[str]:
    """The words with every pattern replaced by the names that fit it, dump-2 before dump-10; :DATASET stays."""
    found: list[str] = []
    for word in words:
        if word is None:
            continue
        if not any(letter in word for letter in "*?[") or os.path.lexists(word):
            found.append(word)
            continue
        pattern, colon, inside = word.partition(":")
        names = sorted(glob.glob(pattern), key=_by_number)
        if not names:
            raise InputMissing(f"{word}: no file has such a name; check the pattern and the folder")
        found += [name + colon + inside for name in names]
    return found


def _by_number(name: str) -> tuple:
    """Digits count as numbers where names are sorted."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)), name


def _open_all(specs: list[InputSpec], need_q: bool, stack: ExitStack) -> list[Inputs]:
    """Every file as it is opened; of more than MOST_OPEN files only a few at a time."""
    most = MOST_OPEN * 2 // 3 if specs[0].own_queries else MOST_OPEN  # a file is open once for each of q, k and v
    pool = OpenFiles(most) if len(specs) > most else None
    if pool:
        stack.callback(pool.close)
    found = []
    for at, one in enumerate(specs):
        inputs = open_inputs(one, need_q=need_q and (at == 0 or one.own_queries))
        if pool is None or (need_q and at == 0 and not one.own_queries):
            stack.enter_context(inputs)
        else:
            inputs = pool.put_away(one, inputs, len(specs))
        found.append(inputs)
    return found


def _same_attributes(specs: list[InputSpec], opened: list[Inputs]) -> dict:
    """What the files say about themselves; InputMalformed where two of them say different things."""
    told: dict[str, tuple[object, str]] = {}
    for spec, inputs in zip(specs, opened, strict=True):
        name = spec.input or spec.k or "-"
        for key, value in inputs.attrs.items():
            before, where = told.setdefault(key, (value, name))
            if before != value:
                raise InputMalformed(
                    f"{name}: {key} is {value}, and {before} in {where}; files of one stream must be alike"
                )
    return {key: value for key, (value, _) in told.items()}


def _joined(parts: list[Heads], made: dict[tuple[int, ...], ConcatTensor]) -> Heads:
    """The heads of all files as one; k and v that share every file's tensor keep sharing one."""
    first = parts[0]
    for other in parts[1:]:
        if other.factors != first.factors:
            raise InputMalformed(
                f"{other.tensor.name}: has another scale than {first.tensor.name}; files of one stream must be alike"
            )
        if (other.outer, other.column, other.dim) != (first.outer, first.column, first.dim):
            raise InputMalformed(
                f"{other.tensor.name}: {len(other)} heads of {other.dim} found, expected them as in {first.tensor.name} "
                f"({len(first)} of {first.dim}); files of one stream must be alike"
            )
    tensors: list[RowTensor] = [part.tensor for part in parts]
    key = tuple(map(id, tensors))
    if key not in made:
        made[key] = ConcatTensor(tensors)
    return replace(first, tensor=made[key])


def _named(specs: list[InputSpec]) -> str:
    names = [spec.input or spec.k or "-" for spec in specs]
    return ", ".join(names if len(names) <= 4 else [*names[:2], "...", names[-1]])
