"""What a word like `dump.h5:/k` or `-` means: which file, of which kind, and which array in it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.npyheader import MAGIC

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_EXTENSIONS = {".npy": "npy", ".h5": "hdf5", ".hdf5": "hdf5", ".safetensors": "safetensors"}


@dataclass(frozen=True)
class Place:
    """A file and perhaps an array in it. kind: 'npy', 'hdf5', 'safetensors', 'raw', or 'pipe' (fifo or device)."""

    path: str
    inside: str | None
    kind: str
    note: str | None = None


def find(word: str, raw: bool = False) -> Place:
    """The file that a word names, its kind told by its first bytes.

    Raises InputMissing for a file that is not there, is a folder or may not be read; InputMalformed for a kind that is
    not read.
    """
    path, inside = _split(word)
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        raise InputMissing(f"{path}: is a folder, expected a file (.npy, .h5, .safetensors)")
    if not os.access(path, os.R_OK):
        raise InputMissing(f"{path}: no permission to read it; see ls -l")
    if not stat.S_ISREG(mode):
        return Place(path, None, "pipe")
    if raw:
        return Place(path, None, _check_raw(path))
    kind = _kind(path)
    expected = _EXTENSIONS.get(os.path.splitext(path)[1].lower())
    note = f"{path}: is a {kind} file whatever its name says" if expected not in (None, kind) else None
    if inside is not None and kind == "npy":
        raise InputMalformed(f"{word}: an .npy file holds one array without a name; omit :{inside}")
    return Place(path, inside, kind, note)


def _split(word: str) -> tuple[str, str | None]:
    """FILE or FILE:DATASET; a file whose own name holds a colon wins."""
    if not os.path.lexists(word):
        head, colon, tail = word.rpartition(":")
        if colon and head and tail and os.path.lexists(head):
            return head, tail
    return word, None


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError as error:
        raise InputMissing(f"{path}: {error.strerror}; check the path") from error


def _check_raw(path: str) -> str:
    """A file with a header of its own read as raw rows would give nonsense."""
    with open(path, "rb") as file:
        if file.read(8).startswith((MAGIC, _HDF5_MAGIC)):
            raise UsageError(f"{path}: has a header of its own, it is not made of raw rows; omit --raw")
    return "raw"


def _kind(path: str) -> str:
    """The kind by magic bytes. HDF5 may start behind a user block of 512, 1024, 2048 ... bytes."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise InputMalformed(f"{path}: is empty, expected an array")
        start = file.read(9)
        at = 512
        while not start.startswith((MAGIC, _HDF5_MAGIC)) and at + 8 <= min(size, 1 << 24):
            if os.pread(file.fileno(), 8, at) == _HDF5_MAGIC:
                return "hdf5"
            at *= 2
    if start.startswith(MAGIC):
        return "npy"
    if start.startswith(_HDF5_MAGIC):
        return "hdf5"
    if start[8:9] == b"{":
        return "safetensors"
    if start.startswith(b"PK\x03\x04"):
        raise InputMalformed(f"{path}: is a zip archive (.npz?), expected .npy; save every array with numpy.save")
    by_name = _EXTENSIONS.get(os.path.splitext(path)[1].lower())
    if by_name:
        raise InputMalformed(f"{path}: does not begin like a {by_name} file (found {start!r}): damaged or truncated")
    raise InputMalformed(
        f"{path}: not an .npy, HDF5 or safetensors file (it begins with {start!r}); headerless rows "
        f"need --raw and --dim"
    )
