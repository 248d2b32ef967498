"""Columns of Arrow tables that are rows of numbers: fixed-size lists, one in another, and fixed-shape tensors.

This module imports pyarrow; import it only where such a file is about to be opened.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError, damaged
from streamattn_cli.rows.attributes import plain
from streamattn_cli.rows.dtypes import storage_of
from streamattn_cli.rows.formats.names import NAMES_SHOWN
from streamattn_cli.rows.tensors.layout import Extent
from streamattn_cli.rows.tensors.stored import Stored
from streamattn_cli.rows.tensors.tensor import RowTensor

DEEPEST = 4  # lists in one another


def lists_of(kind: pa.DataType) -> tuple[pa.DataType, tuple[int, ...]]:
    """The type of the items of a column, and how many there are in each list, the outermost first."""
    sizes: list[int] = []
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    while pa.types.is_fixed_size_list(kind) and len(sizes) < DEEPEST:
        sizes.append(kind.list_size)
        kind = kind.value_type
    return kind, tuple(sizes)


def stored_columns(
    path: str, schema: pa.Schema, names: dict[str, str], rows: int, wanted: str | None,
    make: Callable[[str, Extent, str, str], RowTensor],
) -> dict[str, Stored]:  # fmt: skip
    """The columns `names` (key -> name) of a table. make(column, extent, storage dtype, label) opens one.

    Raises InputMissing for a column that is not there, and InputMalformed for one of other things than rows of numbers.
    """
    found = {}
    for key, name in names.items():
        label = f"{path}:{name}"
        if schema.names.count(name) != 1:
            listed = ", ".join(sorted(schema.names)[:NAMES_SHOWN]) or "none at all"
            raise InputMissing(f"{path}: {schema.names.count(name)} columns {name}, expected one; there are: {listed}")
        field = schema.field(name)
        item, shape = _shape(field.type, label)
        dtype, note = storage_of(item, label, wanted)
        attrs = plain(_texts((schema.metadata or {}) | (field.metadata or {})).items(), label)
        found[key] = Stored(
            label, (rows, *shape), dtype, _opener(make, name, dtype, label), attrs, (note,) if note else ()
        )
    return found


Make = Callable[[str, Extent, str, str], RowTensor]


def _opener(make: Make, name: str, dtype: str, label: str) -> Callable[[Extent], RowTensor]:
    def open_(extent: Extent) -> RowTensor:
        if extent.layout.index("T"):
            raise UsageError(
                f"{label}: each row of a table is one token, which layout {extent.layout} is not; give --layout THD or TC"
            )
        return make(name, extent, dtype, label)

    return open_


def _shape(kind: pa.DataType, label: str) -> tuple[np.dtype, tuple[int, ...]]:
    """NumPy dtype of the items of a column, and the axes of a row."""
    item, sizes = lists_of(kind)
    if isinstance(kind, pa.FixedShapeTensorType):
        if list(kind.permutation or []) != sorted(kind.permutation or []):
            raise InputMalformed(f"{label}: tensors with permuted axes found; store them in the order of their axes")
        sizes = tuple(kind.shape)
    if min(sizes, default=0) < 0:
        raise damaged(label, f"lists of {min(sizes)} items: the file is damaged")
    if not (pa.types.is_floating(item) or pa.types.is_integer(item)):
        raise InputMalformed(
            f"{label}: a column of {str(kind)[:80]} found, expected fixed-size lists of numbers; cast it, as with "
            "pyarrow.list_(pyarrow.float16(), SIZE)"
        )
    return np.dtype(item.to_pandas_dtype()), sizes


def _texts(metadata: dict[bytes, bytes]) -> dict[str, str]:
    """Metadata as text, without what other programs keep there for themselves."""
    found = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in metadata.items()}
    return {key: value for key, value in found.items() if ":" not in key and key not in ("pandas", "huggingface")}
