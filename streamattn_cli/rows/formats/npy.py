""".npy files: one array, read in place."""

from __future__ import annotations

import os

from streamattn_cli.errors import InputMalformed, damaged
from streamattn_cli.rows.attributes import plain
from streamattn_cli.rows.formats.format import Format
from streamattn_cli.rows.npyheader import MAGIC, read_header
from streamattn_cli.rows.tensors.file import FileTensor
from streamattn_cli.rows.tensors.stored import Stored


def npy_array(path: str, wanted: str | None = None) -> Stored:
    """The array of an .npy file. `wanted` says what uint16 or V2 items are.

    Raises InputMalformed for a header that cannot be read or does not agree with the file's size.
    """
    with open(path, "rb") as file:
        header = read_header(file.read, path, wanted)
        there = os.fstat(file.fileno()).st_size
        needed = header.size + header.payload
        extra = os.pread(file.fileno(), len(MAGIC), needed) if needed < there else b""
    if there < needed:
        raise damaged(
            path, f"truncated: shape {header.shape} of {header.dtype} needs {needed} bytes, the file has {there}"
        )
    if extra == MAGIC:
        raise InputMalformed(f"{path}: holds more than one .npy record; give it on standard input: ... - < {path}")
    if there > needed:
        raise InputMalformed(
            f"{path}: shape {header.shape} of {header.dtype} needs {needed} bytes, the file has "
            f"{there}: the header does not belong to this data; write it again"
        )
    return Stored(
        name=path,
        shape=header.shape,
        dtype=header.dtype,
        open=lambda extent: FileTensor(path, header.size, extent, header.dtype),
        attrs=plain(header.attrs.items(), path),
        notes=(header.note,) if header.note else (),
        parts=header.parts,
    )


FORMAT = Format(
    name="npy",
    extensions=(".npy",),
    sniff=lambda path, start: start.startswith(MAGIC),
    names=lambda path: [""],
    arrays=lambda path, names, wanted: {key: npy_array(path, wanted) for key in names},
    parts=lambda path, parts, group: dict.fromkeys(parts, ""),
    unnamed=True,
)
