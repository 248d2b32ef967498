"""Arrow IPC files and streams (.arrow, .feather, .arrows): columns of fixed-size lists, one row per token."""

from __future__ import annotations

from types import ModuleType

from streamattn_cli.errors import UsageError
from streamattn_cli.rows.formats.flatbuffer import LONGEST, MAGIC
from streamattn_cli.rows.formats.format import Format


def _sniff(path: str, start: bytes) -> bool:
    """A file, or a stream, whose first message begins with a mark and its length."""
    length = int.from_bytes(start[4:8], "little")
    return start.startswith(MAGIC) or (start[:4] == b"\xff" * 4 and 8 <= length < LONGEST and length % 8 == 0)


def _library(path: str) -> ModuleType:
    try:
        from streamattn_cli.rows.formats import arrowarrays
    except ImportError:
        raise no_package(path) from None
    return arrowarrays


def no_package(path: str) -> UsageError:
    """The error where pyarrow is not installed."""
    return UsageError(
        f"{path}: is an Arrow or Parquet file, whose package is missing: pip install 'streamattn-cli[arrow]'"
    )


FORMAT = Format(
    name="arrow",
    extensions=(".arrow", ".feather", ".arrows"),
    sniff=_sniff,
    names=lambda path: _library(path).ipc_names(path),
    arrays=lambda path, names, wanted: _library(path).ipc_arrays(path, names, wanted),
)
