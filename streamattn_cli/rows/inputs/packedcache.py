"""Arrays called kv_cache that hold keys and values: (2, ...) one after the other, or each row of a head with both."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from streamattn_cli.rows.inputs.paths import Place
from streamattn_cli.rows.tensors.layout import Extent, show
from streamattn_cli.rows.tensors.stored import Stored
from streamattn_cli.rows.tensors.tensor import RowTensor, SeekableTensor, check_buffer, row_count

NAME = "kv_cache"


class HalfTensor(SeekableTensor):
    """A RowTensor over the keys (0) or the values (1) of an array whose first axis is both."""

    def __init__(self, base: RowTensor, half: int, name: str):
        self.name, self.path, self.dtype, self.width = name, base.path, base.dtype, base.width
        self.outer, self.rows, self.held_bytes = base.outer // 2, row_count(base), base.held_bytes
        self._base, self._first = base, half * (base.outer // 2)

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        check_buffer(self, buf, segment)
        return self._base.read_into(buf, start, self._first + (segment or 0))

    def close(self) -> None:
        """Close the array underneath."""
        self._base.close()


def packed_cache(place: Place, group: str | None, wanted: str | None) -> Stored | None:
    """The array of a file that is a packed cache, of the group if there are several; None where there is not one."""
    names = list(filter(_is_cache, place.held.names(place.path)))
    if group is not None:
        names = [name for name in names if group_of(name) == group.strip("/").replace("/", ".")]
    if len(names) != 1:
        return None
    return place.held.arrays(place.path, {"cache": names[0]}, wanted)["cache"]


def cache_groups(names: list[str]) -> list[str]:
    """What --group chooses the packed caches among these arrays by."""
    return sorted(map(group_of, filter(_is_cache, names)))


def _is_cache(name: str) -> bool:
    return re.search(rf"(^|[./]){NAME}([./]\d+)?$", name) is not None


def group_of(name: str) -> str:
    """What --group chooses it by: what is before its name, or its number."""
    *before, last = re.split(r"[./]", name.strip("/"))
    return ".".join([*before[:-1], last] if last.isdigit() else before)


def halves(stored: Stored) -> dict[str, Stored] | None:
    """Keys and values of an array of (2, rows, items), (2, rows, heads, items) or (2, heads, rows, items); None for others."""
    if stored.shape[0] != 2 or len(stored.shape) not in (3, 4) or stored.scale:
        return None

    def opening(half: int, name: str) -> Callable[[Extent], RowTensor]:
        def open_(extent: Extent) -> HalfTensor:
            both = replace(extent, layout="B" + extent.layout, outer=2 * extent.outer, batch=2, apart=True)
            return HalfTensor(stored.open(both), half, name)

        return open_

    found = {}
    for half, part in enumerate("kv"):
        name = f"{stored.name}[{half}]"
        note = f"{stored.name}: {show(stored.shape)} is taken as keys and values, one after the other"
        notes = (*stored.notes, note) if part == "k" else ()
        found[part] = replace(
            stored, name=name, shape=stored.shape[1:], open=opening(half, name), notes=notes, turned=None
        )
    return found
