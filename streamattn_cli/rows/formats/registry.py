"""Which file formats there are: ours, one line for each, and those of other packages.

Another package joins with an entry point of the group `streamattn.formats`, whose object is a FORMAT. They are asked about
files that none of ours recognises. Modules are imported when a file is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamattn_cli import plugins
from streamattn_cli.errors import InputMalformed, StreamattnError

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
    "llama-state": f"{FORMATS}.llamastate",
    "zarr": f"{FORMATS}.zarr",
    "arrow": f"{FORMATS}.arrow",
    "parquet": f"{FORMATS}.parquet",
}
GROUP = "streamattn.formats"


@cache
def find(name: str) -> Format:
    """The format of that name. Raises InputMalformed for one of a broken package, KeyError for an unknown one."""
    return import_module(BUILT_IN[name]).FORMAT if name in BUILT_IN else _installed(name)


def of_file(path: str, start: bytes) -> Format | None:
    """The format of a file, told by its first bytes (16, or all that there are); None for an unknown one.

    A package that fails does not keep others from being asked; raises InputMalformed, which names it, if none knows the file.
    """
    for name in BUILT_IN:
        if find(name).sniff(path, start):
            return find(name)
    failed: InputMalformed | None = None
    for name in _points():
        try:
            if find(name).sniff(path, start):
                return find(name)
        except InputMalformed as error:
            failed = failed or error
    if failed:
        raise failed
    return None


def of_folder(path: str) -> Format | None:
    """The format of ours that a folder is in; None for any other folder."""
    return next((found for found in map(find, BUILT_IN) if found.folder and found.folder(path)), None)


def of_extension(extension: str) -> Format | None:
    """The format of ours whose files are named so ('.npy')."""
    return next((found for found in map(find, BUILT_IN) if extension.lower() in found.extensions), None)


@cache
def _points() -> dict[str, Any]:
    return plugins.installed(GROUP, tuple(BUILT_IN))


def _installed(name: str) -> Format:
    """The format of another package, whose faults end in InputMalformed and name it."""
    from streamattn_cli.rows.formats.format import Format

    point = _points()[name]
    found: Format = plugins.load(point, Format, InputMalformed)

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except StreamattnError:
                raise
            except Exception as fault:
                raise InputMalformed(f"{arguments[0]}: {plugins.broken(point, fault)}") from fault

        return call

    asked = {part: getattr(found, part) for part in ("sniff", "names", "arrays", "parts")}
    functions: dict[str, Any] = {part: guarded(function) for part, function in asked.items() if function}
    return replace(found, **functions)
