""".npz archives of numpy.savez: stored members are read in place, compressed ones (savez_compressed) inflated on the way."""

from __future__ import annotations

import io
from math import prod

import numpy as np

from streamattn_cli.errors import InputMalformed, damaged
from streamattn_cli.rows.formats.format import Format
from streamattn_cli.rows.formats.inflate import InflatedTensor, Member, members
from streamattn_cli.rows.formats.names import check_there
from streamattn_cli.rows.npyheader import read_header, shape_and_dtype
from streamattn_cli.rows.tensors.file import FileTensor
from streamattn_cli.rows.tensors.layout import Extent
from streamattn_cli.rows.tensors.stored import Stored
from streamattn_cli.rows.tensors.tensor import RowTensor

MAGIC = b"PK\x03\x04"
HEADER = 1 << 14  # bytes, more than any .npy header


def npz_names(path: str) -> list[str]:
    """The arrays of an archive, sorted, without .npy. InputMalformed for an archive of anything else."""
    found = members(path)
    names = sorted(name.removesuffix(".npy") for name in found if name.endswith(".npy"))
    if not names:
        listed = ", ".join(sorted(found)[:8]) or "nothing"
        raise InputMalformed(f"{path}: a zip archive without .npy members ({listed}); expected one of numpy.savez")
    return names


def npz_arrays(path: str, names: dict[str, str], wanted: str | None = None) -> dict[str, Stored]:
    """The arrays `names` (key -> name). InputMissing lists what is there."""
    there = members(path)
    check_there(path, names.values(), npz_names(path))
    return {key: _stored(path, name, there[f"{name}.npy"], wanted) for key, name in names.items()}


def _stored(path: str, name: str, member: Member, wanted: str | None) -> Stored:
    label = f"{path}:{name}"
    header = read_header(io.BytesIO(member.read(HEADER)).read, label, wanted)
    needed = header.size + header.payload
    if needed != member.size:
        told = f"shape {header.shape} of {header.dtype} needs {needed} bytes, the member has {member.size}"
        raise damaged(label, told)

    def open_(extent: Extent) -> RowTensor:
        if member.deflated:
            return InflatedTensor(member, header.size, extent, header.dtype)
        return FileTensor(path, member.offset + header.size, extent, header.dtype, label)

    notes = [header.note] if header.note else []
    if member.deflated:
        notes.append(f"{label}: is compressed, and inflated again for every pass; numpy.savez without it reads faster")
    return Stored(label, header.shape, header.dtype, open_, notes=tuple(notes))


def _integers(path: str, name: str, most: int) -> np.ndarray | None:
    member = members(path).get(f"{name}.npy")
    if member is None or member.size > most * 8 + HEADER:
        return None
    data = member.read(member.size)
    shape, dtype, at = shape_and_dtype(io.BytesIO(data).read, f"{path}:{name}")
    if dtype.kind not in "iub" or prod(shape) * dtype.itemsize != len(data) - at:
        return None
    return np.frombuffer(data, dtype, offset=at).reshape(shape)


FORMAT = Format(
    name="npz",
    integers=_integers,
    extensions=(".npz",),
    sniff=lambda path, start: start.startswith(MAGIC),
    names=npz_names,
    arrays=npz_arrays,
)
