"""Parquet files: columns of fixed-size lists, one row per token."""

from __future__ import annotations

from streamattn_cli.rows.formats.arrow import no_package
from streamattn_cli.rows.formats.format import Format
from streamattn_cli.rows.formats.names import find_parts
from streamattn_cli.rows.tensors.stored import Stored

MAGIC = b"PAR1"


def _names(path: str) -> list[str]:
    try:
        from streamattn_cli.rows.formats.parquetarrays import parquet_names
    except ImportError:
        raise no_package(path) from None
    return parquet_names(path)


def _arrays(path: str, names: dict[str, str], wanted: str | None) -> dict[str, Stored]:
    try:
        from streamattn_cli.rows.formats.parquetarrays import parquet_arrays
    except ImportError:
        raise no_package(path) from None
    return parquet_arrays(path, names, wanted)


FORMAT = Format(
    name="parquet",
    extensions=(".parquet", ".pq"),
    sniff=lambda path, start: start.startswith(MAGIC),
    names=_names,
    arrays=_arrays,
    parts=lambda path, parts, group: find_parts(path, _names(path), parts, group),
)
