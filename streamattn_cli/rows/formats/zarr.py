"""Zarr folders, versions 2 and 3: which arrays there are, told from their metadata without loading the library.

Metadata: https://zarr-specs.readthedocs.io (v2, v3 core). An array is a folder with .zarray, or with a zarr.json that says so.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError, damaged
from streamattn_cli.rows.attributes import plain
from streamattn_cli.rows.formats.format import Format
from streamattn_cli.rows.formats.names import NAMES_SHOWN
from streamattn_cli.rows.tensors.stored import Stored

if TYPE_CHECKING:
    import numpy as np

MARKS = ("zarr.json", ".zgroup", ".zarray")
LONGEST = 1 << 24  # bytes of one file of metadata
MAX_FOLDERS = 100_000  # folders that are looked at


def is_zarr(path: str) -> bool:
    """Whether a folder is an array or a group."""
    return any(os.path.isfile(os.path.join(path, mark)) for mark in MARKS)


def zarr_names(path: str) -> list[str]:
    """Names of all arrays, sorted: their folders below `path`, "" for `path` itself."""
    found = []
    for visited, (folder, below, files) in enumerate(os.walk(path)):
        if visited >= MAX_FOLDERS:
            raise InputMalformed(
                f"{path}: more than {MAX_FOLDERS} folders to look for arrays in; name a group: {path}/GROUP"
            )
        if metadata(folder, files) is not None:
            name = os.path.relpath(folder, path)
            found.append("" if name == "." else name)
            below.clear()  # chunks
    return sorted(found)


def metadata(folder: str, files: list[str] | None = None) -> dict | None:
    """What is said of the array of a folder; None where there is no array. InputMalformed for what is no JSON object."""
    there = files if files is not None else [mark for mark in MARKS if os.path.isfile(os.path.join(folder, mark))]
    if "zarr.json" in there:
        found = _json(os.path.join(folder, "zarr.json"))
        return found if found.get("node_type") == "array" else None
    return _json(os.path.join(folder, ".zarray")) if ".zarray" in there else None


def _json(path: str) -> dict:
    try:
        with open(path, "rb") as file:
            text = file.read(LONGEST + 1)
        found = json.loads(text) if len(text) <= LONGEST else None
    except OSError as error:
        raise InputMissing(f"{path}: cannot be opened: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"unreadable metadata of a Zarr array: {error}") from error
    if not isinstance(found, dict):
        raise damaged(path, "metadata of a Zarr array expected")
    return found


def _attributes(path: str, name: str, label: str) -> dict:
    """Attributes of the root, the groups above an array and the array itself, the nearest winning."""
    above = name.split("/") if name else []
    items: list[tuple[str, object]] = []
    for depth in range(len(above) + 1):
        folder = os.path.join(path, *above[:depth])
        new, old = os.path.join(folder, "zarr.json"), os.path.join(folder, ".zattrs")
        found = _json(new).get("attributes") if os.path.isfile(new) else _json(old) if os.path.isfile(old) else None
        items += found.items() if isinstance(found, dict) else ()
    return plain(items, label)


def _arrays(path: str, names: dict[str, str], wanted: str | None) -> dict[str, Stored]:
    try:
        from streamattn_cli.rows.formats.zarrarrays import zarr_array
    except ImportError:
        raise UsageError(
            f"{path}: is a Zarr folder, whose package is missing: pip install 'streamattn-cli[zarr]'"
        ) from None

    found = {}
    for key, name in names.items():
        name = name.strip("/")
        described = metadata(os.path.join(path, name))
        if described is None:
            listed = ", ".join(zarr_names(path)[:NAMES_SHOWN]) or "none at all"
            raise InputMissing(f"{path}: no array {name}; there are: {listed}")
        label = f"{path}:{name}" if name else path
        found[key] = zarr_array(path, name, label, described, _attributes(path, name, label), wanted)
    return found


def _integers(path: str, name: str, most: int) -> np.ndarray | None:
    try:
        from streamattn_cli.rows.formats.zarrarrays import zarr_integers
    except ImportError:
        return None
    described = metadata(os.path.join(path, name))
    return None if described is None else zarr_integers(path, name, f"{path}:{name}", described, most)


FORMAT = Format(
    name="zarr",
    integers=_integers,
    extensions=(".zarr",),
    sniff=lambda path, start: False,
    folder=is_zarr,
    names=zarr_names,
    arrays=_arrays,
)
