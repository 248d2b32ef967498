"""HDF5: datasets by name, told without loading h5py."""

from __future__ import annotations

import os

import numpy as np

from streamattn_cli.errors import InputMissing
from streamattn_cli.rows.formats.format import Format
from streamattn_cli.rows.formats.names import find_parts
from streamattn_cli.rows.tensors.stored import Stored

MAGIC = b"\x89HDF\r\n\x1a\n"
_LAST = 1 << 24  # where a user block ends at the latest


def _sniff(path: str, start: bytes) -> bool:
    """Whether it begins like one, perhaps behind a user block of 512, 1024, 2048 ... bytes."""
    if start.startswith(MAGIC):
        return True
    with open(path, "rb") as file:
        size, at = os.fstat(file.fileno()).st_size, 512
        while at + len(MAGIC) <= min(size, _LAST):
            if os.pread(file.fileno(), len(MAGIC), at) == MAGIC:
                return True
            at *= 2
    return False


def _names(path: str) -> list[str]:
    from streamattn_cli.rows.formats.hdf5arrays import dataset_names

    return dataset_names(path)


def _arrays(path: str, names: dict[str, str], wanted: str | None) -> dict[str, Stored]:
    from streamattn_cli.rows.formats.hdf5arrays import hdf5_arrays

    return hdf5_arrays(path, {key: "/" + name.lstrip("/") for key, name in names.items()}, wanted)


def _parts(path: str, parts: tuple[str, ...], group: str | None) -> dict[str, str]:
    """/q or /GROUP/q where it is there, else what find_parts finds; where that is nothing, the first again."""
    prefix = "/" + group.strip("/") + "/" if group and group.strip("/") else "/"
    plain = {part: prefix + part for part in parts}
    names = [name.lstrip("/") for name in _names(path)]
    absent = [part for part in parts if plain[part].lstrip("/") not in names]
    try:
        return plain | {part: "/" + name for part, name in find_parts(path, names, tuple(absent), group).items()}
    except InputMissing:
        return plain


def _integers(path: str, name: str, most: int) -> np.ndarray | None:
    from streamattn_cli.rows.formats.hdf5arrays import opened

    with opened(path) as file:
        found = file.get(name)
        if not hasattr(found, "shape") or found.dtype.kind not in "iub" or found.size > most:
            return None
        numbers: np.ndarray = found[()]
        return numbers


FORMAT = Format(
    name="hdf5", extensions=(".h5", ".hdf5"), sniff=_sniff, names=_names, arrays=_arrays, parts=_parts, integers=_integers
)  # fmt: skip
