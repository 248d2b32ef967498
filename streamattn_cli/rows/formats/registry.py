"""Which file formats there are: ours, one line for each, and those of other packages.

Another package joins with an entry point of the group `streamattn.formats`, whose object is a FORMAT. They are asked about
files that none of ours recognises. Modules are imported when a file is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from streamattn_cli.errors import InputMalformed

if TYPE_CHECKING:
    from streamattn_cli.rows.formats.format import Format

FORMATS = "streamattn_cli.rows.formats"
BUILT_IN = {  # in the order in which they are asked
    "npy": f"{FORMATS}.npy",
    "hdf5": f"{FORMATS}.hdf5",
    "pytorch": f"{FORMATS}.pytorch",
    "npz": f"{FORMATS}.npz",
    "safetensors-index": f"{FORMATS}.shards",
    "safetensors": f"{FORMATS}.safetensors",
}
GROUP = "streamattn.formats"


@cache
def find(name: str) -> Format:
    """The format of that name. Raises InputMalformed for one of a broken package, KeyError for an unknown one."""
    return import_module(BUILT_IN[name]).FORMAT if name in BUILT_IN else _installed(name)


def of_file(path: str, start: bytes) -> Format | None:
    """The format of a file, told by its first bytes (16, or all that there are); None for an unknown one."""
    return next((found for found in _all() if found.sniff(path, start)), None)


def of_extension(extension: str) -> Format | None:
    """The format of ours whose files are named so ('.npy')."""
    return next((found for found in map(find, BUILT_IN) if extension.lower() in found.extensions), None)


def _all() -> Iterator[Format]:
    yield from map(find, BUILT_IN)
    yield from map(find, _points())


@cache
def _points() -> dict[str, object]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP) if point.name not in BUILT_IN}


def _installed(name: str) -> Format:
    from streamattn_cli.rows.formats.format import Format

    point = _points()[name]
    try:
        found = point.load()
    except Exception as error:
        raise InputMalformed(
            f"format {name} of {point.value}: {type(error).__name__}: {error}; update or remove that package"
        ) from error
    if not isinstance(found, Format) or found.name != name:
        raise InputMalformed(f"format {name}: {point.value} is no Format of that name; update or remove that package")
    return found
