"""`rows`: ROWS, the number of rows and of items as 32-bit numbers, then q, k and v as float32."""

from __future__ import annotations

from streamattn_cli.errors import InputMissing
from streamattn_cli.rows.formats.format import Format
from streamattn_cli.rows.tensors.file import FileTensor
from streamattn_cli.rows.tensors.stored import Stored

MAGIC = b"ROWS"


def _arrays(path: str, names: dict[str, str], wanted: str | None) -> dict[str, Stored]:
    with open(path, "rb") as file:
        header = file.read(12)
    shape = tuple(int.from_bytes(header[at : at + 4], "little") for at in (4, 8))
    found = {}
    for key, name in names.items():
        if name not in ("q", "k", "v"):
            raise InputMissing(f"{path}: no {name}; there are q, k and v")
        offset = len(header) + "qkv".index(name) * shape[0] * shape[1] * 4
        found[key] = Stored(f"{path}:{name}", shape, "f4", lambda extent, at=offset: FileTensor(path, at, extent, "f4"))
    return found


FORMAT = Format(
    name="rows",
    extensions=(".rows",),
    sniff=lambda path, start: start.startswith(MAGIC),
    names=lambda path: ["k", "q", "v"],
    arrays=_arrays,
    parts=lambda path, parts, group: {part: part for part in parts},
)

RAISES = Format(
    name="aaa-raises",
    extensions=(),
    sniff=lambda path, start: start[40] == 0 if start.startswith(b"RAISE") else False,
    names=lambda path: [],
    arrays=_arrays,
    parts=lambda path, parts, group: {},
)
