"""Parquet files: columns of fixed-size lists, one row per token."""

from __future__ import annotations

from types import ModuleType

from streamattn_cli.rows.formats.arrow import no_package
from streamattn_cli.rows.formats.format import Format

MAGIC = b"PAR1"


def _library(path: str) -> ModuleType:
    try:
        from streamattn_cli.rows.formats import parquetarrays
    except ImportError:
        raise no_package(path) from None
    return parquetarrays


FORMAT = Format(
    name="parquet",
    extensions=(".parquet", ".pq"),
    sniff=lambda path, start: start.startswith(MAGIC),
    names=lambda path: _library(path).parquet_names(path),
    arrays=lambda path, names, wanted: _library(path).parquet_arrays(path, names, wanted),
)
