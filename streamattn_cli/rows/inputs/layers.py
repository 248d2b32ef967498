"""The layers of a dump: groups of arrays with a number in their names, or files with one in theirs."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass, replace
from typing import Any

from streamattn_cli.errors import InputMissing, UsageError
from streamattn_cli.rows.formats.names import layer_groups
from streamattn_cli.rows.inputs.paths import find
from streamattn_cli.rows.spec import InputSpec

PLACE = "{layer}"
LAYERS_SHOWN = 12
IN_FILE = re.compile(r"(?:layers?|blocks?)[-_.]?(\d+)", re.IGNORECASE)  # the number of a layer in the name of a file


@dataclass(frozen=True)
class Layer:
    """One layer: its number, the name of its group (or its number), and where its q, k and v are."""

    number: int
    group: str
    spec: InputSpec


def layers_of(spec: InputSpec) -> list[Layer]:
    """The layers that --layer asks for, in the order of their numbers. Raises UsageError and InputMissing."""
    words = {name: word for name in ("input", "q", "k", "v") if (word := getattr(spec, name))}
    patterns = {name: word for name, word in words.items() if PLACE in word}
    there = _by_files(spec, patterns) if patterns else _by_groups(spec)
    chosen = [number for number in there if wanted(spec.layer or "all", number, f"--layer {spec.layer}")]
    if not chosen:
        listed = ", ".join(map(str, list(there)[:LAYERS_SHOWN])) + (", ..." if len(there) > LAYERS_SHOWN else "")
        raise InputMissing(
            f"{next(iter(words.values()), '-')}: no layer {spec.layer}; there are: {listed or 'none at all'}"
        )
    return [there[number] for number in chosen]


def number_of(spec: InputSpec) -> int | None:
    """The number of the layer that is read, by --layer, --group, FILE:DATASET or names of files such as layer3_q.npy; None where
    none of them says it."""
    if spec.number is not None or spec.layer:
        return spec.number
    words = [spec.group or "", *(w for w in (spec.input, spec.k, spec.q) if w and ":" in w and not os.path.lexists(w))]
    numbers = re.findall(r"\d+", next(filter(None, words), "").rpartition(":")[2])
    if numbers:
        return int(numbers[-1])
    files = {w for w in (spec.input, spec.q, spec.k, spec.v) if w and w != "-"}
    told = {int(found[1]) for w in files for found in IN_FILE.finditer(os.path.basename(w))}
    return told.pop() if len(told) == 1 else None


def wanted(word: str, number: int, option: str) -> bool:
    """Whether a word such as 3, 0:8 or 1,5 or all asks for a layer; option: what was typed, for messages."""
    if word == "all":
        return True
    try:
        for part in word.split(","):
            first, colon, last = part.partition(":")
            low = int(first) if first or not colon else 0
            if low <= number < ((int(last) if last else number + 1) if colon else low + 1):
                return True
    except ValueError:
        raise UsageError(f"{option}: give numbers such as 3, 0:8 (8 is not included) or 1,5, or all") from None
    return False


def _by_groups(spec: InputSpec) -> dict[int, Layer]:
    if spec.group:
        raise UsageError("--layer chooses groups by their numbers, --group names one; give one of them")
    if spec.input is None or spec.input == "-":
        raise UsageError(
            f"--layer {spec.layer}: give one file that holds the layers, or files with {PLACE} in their names"
        )
    place = find(spec.input)
    if not place.names_arrays or place.inside is not None:
        raise UsageError(f"{spec.input}: --layer {spec.layer}: it is one array; layers are found by names in .h5, .npz, .pt and "
                         f"safetensors, or by {PLACE} in the name of a file")  # fmt: skip
    parts = tuple(part for part in "qkv" if getattr(spec, part) is None)
    groups = layer_groups(place.held.names(place.path), parts)
    layers = {}
    for number, group in groups.items():
        layers[number] = Layer(number, group, replace(spec, group=group, layer=None, number=number))
    return layers


def _by_files(spec: InputSpec, patterns: dict[str, str]) -> dict[int, Layer]:
    first = next(iter(patterns.values()))
    head, _, tail = first.partition(PLACE)
    like = re.compile(re.escape(head) + r"(\d+)" + re.escape(tail.partition(":")[0] if not glob.glob(first) else tail))
    names = glob.glob(glob.escape(head) + "*" + glob.escape(tail.partition(":")[0]))
    numbers = {int(found[1]): found[1] for name in names if (found := like.fullmatch(name))}
    layers = {}
    for number, typed in sorted(numbers.items()):
        words: dict[str, Any] = {name: word.replace(PLACE, typed) for name, word in patterns.items()}
        layers[number] = Layer(number, str(number), replace(spec, layer=None, number=number, **words))
    return layers
