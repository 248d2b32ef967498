"""Which rows a sketch was made of, so that none is counted twice and no changed file goes unnoticed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.errors import CheckpointIncompatible, SourceChanged
from streamattn_cli.rows.inputs.fingerprint import differences, identity_of, name_of
from streamattn_cli.rows.tensors.concat import files_of
from streamattn_cli.sketches.registry import history_of


def key_sources(problem: Problem, whole: bool = False) -> list[dict]:
    """Identities {"k": ..., "v": ...} of what the keys and values are read from, one entry for each file in order.

    The keys' layout is with them. Of a method that learns from queries "q" is where they came from. whole: by all of their
    bytes (--fingerprint).
    """
    keys, values = problem.k, problem.v
    parts = [[identity_of(heads, whole, tensor) for tensor in files_of(heads.tensor)] for heads in (keys, values)]
    if len(parts[0]) != len(parts[1]):
        parts = [[identity_of(keys, whole)], [identity_of(values, whole)]]
    queries = _queries(problem)
    layout = {"layout": problem.k.layout}
    return [{"k": k | layout, "v": v} | queries for k, v in zip(*parts, strict=True)]


def _queries(problem: Problem) -> dict:
    """{"q": ...}: the queries that a sketch learns from, kind none where it knows none; {} for methods that learn nothing."""
    if not (problem.params and problem.params.history and history_of(problem.params.history).learns):
        return {}
    if problem.request.query_model:
        word = problem.request.query_model
        file, colon, inside = (word, "", "") if os.path.exists(word) else word.rpartition(":")
        return {"q": {"kind": "file", "name": os.path.basename(file) + colon + inside}}
    tensor = problem.q.tensor
    return {"q": {"kind": "file", "name": name_of(tensor)} if tensor.width else {"kind": "none"}}


def check_same(name: str, before: Sequence[Mapping], now: Sequence[Mapping], advice: str) -> None:
    """Refuse (exit 9) files that are not those of `before`; times of modification are compared where both know them."""
    changed = [] if len(before) == len(now) else [f"number of files {len(before)}, now {len(now)}"]
    for number, (old, new) in enumerate(zip(before, now, strict=False)):
        where = f" of file {number + 1}" if len(now) > 1 else ""
        changed += [f"{word} of {part}{where}" for part in new for word in differences(old.get(part, {}), new[part])]
    if changed:
        raise SourceChanged(
            f"{name}: the input is not the one it was made from ({', '.join(changed[:6])} changed); {advice}"
        )


def absorbed(meta: Mapping[str, str]) -> list[dict]:
    """The sources that a checkpoint's metadata tells of."""
    found = json.loads(meta["source"])
    sources: list[dict] = found.get("absorbed", [found])
    return sources


def check_disjoint(sketches: Sequence[tuple[str, Sequence[Mapping]]]) -> None:
    """Refuse (exit 8) sketches, given as (name, sources), that hold the same rows of the same keys."""
    seen: list[tuple[str, Mapping]] = []
    for name, sources in sketches:
        for source in sources:
            for other_name, other in seen:
                if _overlap(source.get("k", {}), other.get("k", {})):
                    raise CheckpointIncompatible(
                        f"{other_name} and {name} hold the same rows of the same keys: these would count twice"
                    )
        seen += [(name, source) for source in sources]


def _overlap(a: Mapping, b: Mapping) -> bool:
    if a.get("kind") != "file" or b.get("kind") != "file":
        return False
    if any(a.get(key) != b.get(key) for key in ("size", "first", "last", "rows", "modified_ns")):
        return False
    (a0, a1), (b0, b1) = (_range(source) for source in (a, b))
    return a0 < b1 and b0 < a1


def _range(source: Mapping) -> tuple[int, int]:
    if "range" in source:
        first, last = source["range"].split(":")
        return int(first), int(last)
    return 0, int(source["rows"])
