"""Sharded safetensors: an index, NAME.safetensors.index.json, that says which file holds which tensor."""

from __future__ import annotations

import json
import os

from streamattn_cli.errors import InputMalformed, InputMissing
from streamattn_cli.rows.formats.format import Format
from streamattn_cli.rows.formats.names import check_there
from streamattn_cli.rows.formats.safetensors import safetensors_arrays
from streamattn_cli.rows.tensors.stored import Stored

LONGEST = 1 << 26  # bytes of an index


def files_by_name(path: str) -> dict[str, str]:
    """Name of a tensor -> its file, which lies beside the index. InputMalformed for anything else."""
    with open(path, "rb") as file:
        text = file.read(LONGEST + 1)
    try:
        found = json.loads(text) if len(text) <= LONGEST else None
    except (ValueError, RecursionError) as error:
        raise InputMalformed(f"{path}: unreadable index of safetensors files: {error}") from error
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise InputMalformed(f"{path}: no weight_map from names to files found; expected an index of safetensors files")
    for name in places.values():
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise InputMalformed(f"{path}: names the file {name!r}, expected one in its own folder")
    folder = os.path.dirname(path)
    return {name: os.path.join(folder, file) for name, file in places.items()}


def _arrays(path: str, names: dict[str, str], wanted: str | None) -> dict[str, Stored]:
    files = files_by_name(path)
    found: dict[str, Stored] = {}
    check_there(path, names.values(), files, "tensor")
    for key, name in names.items():
        if not os.path.isfile(files[name]):
            raise InputMissing(f"{path}: {files[name]}, which holds {name}, is not there; copy it beside the index")
        found |= safetensors_arrays(files[name], {key: name}, wanted)
    return found


FORMAT = Format(
    name="safetensors-index",
    extensions=(".json",),
    sniff=lambda path, start: start.lstrip().startswith(b"{") and path.endswith(".json"),
    names=lambda path: sorted(files_by_name(path)),
    arrays=_arrays,
)
