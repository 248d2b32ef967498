"""What a word like `dump.h5:/k` or `-` means: which file, of which kind, and which array in it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.formats import registry
from streamattn_cli.rows.formats.hdf5 import MAGIC as HDF5_MAGIC
from streamattn_cli.rows.npyheader import MAGIC

if TYPE_CHECKING:
    from streamattn_cli.rows.formats.format import Format

SNIFFED = 16  # bytes
OLD_PYTORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # torch.save before version 1.6


@dataclass(frozen=True)
class Place:
    """A file and perhaps an array in it. kind: the name of a format, 'raw', or 'pipe' (fifo or device)."""

    path: str
    inside: str | None
    kind: str
    note: str | None = None

    @property
    def format(self) -> Format | None:
        """The format of a file that has one."""
        return None if self.kind in ("raw", "pipe") else registry.find(self.kind)

    @property
    def held(self) -> Format:
        """The format of a file that is known to have one."""
        return registry.find(self.kind)

    @property
    def names_arrays(self) -> bool:
        """Whether its arrays have names."""
        return self.format is not None and not self.format.unnamed


def find(word: str, raw: bool = False) -> Place:
    """The file that a word names, its kind told by its first bytes.

    Raises InputMissing for a file that is not there, is a folder or may not be read; InputMalformed for a kind that is
    not read.
    """
    path, inside = _split(word)
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        held = registry.of_folder(path)
        if held is None:
            raise InputMissing(
                f"{path}: is a folder, expected a file (.npy, .npz, .h5, .safetensors, .pt) or a Zarr folder"
            )
        return Place(path, inside, held.name)
    if not os.access(path, os.R_OK):
        raise InputMissing(f"{path}: no permission to read it; see ls -l")
    if not stat.S_ISREG(mode):
        return Place(path, None, "pipe")
    if raw:
        return Place(path, None, _check_raw(path))
    kind = _kind(path)
    expected = registry.of_extension(os.path.splitext(path)[1])
    note = f"{path}: is a {kind} file whatever its name says" if expected and expected.name != kind else None
    if inside is not None and registry.find(kind).unnamed:
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
        if file.read(8).startswith((MAGIC, HDF5_MAGIC)):
            raise UsageError(f"{path}: has a header of its own, it is not made of raw rows; omit --raw")
    return "raw"


def _kind(path: str) -> str:
    """The kind by first bytes."""
    with open(path, "rb") as file:
        start = file.read(SNIFFED)
    if not start:
        raise InputMalformed(f"{path}: is empty, expected an array")
    found = registry.of_file(path, start)
    if found:
        return found.name
    if start.startswith(OLD_PYTORCH):
        raise InputMalformed(f"{path}: torch.save wrote it before version 1.6; load it and save it again")
    by_name = registry.of_extension(os.path.splitext(path)[1])
    if by_name:
        raise InputMalformed(
            f"{path}: does not begin like a {by_name.name} file (found {start[:9]!r}): damaged or truncated"
        )
    raise InputMalformed(
        f"{path}: not an .npy, .npz, HDF5, safetensors or PyTorch file (it begins with {start[:9]!r}); headerless rows "
        f"need --raw and --dim"
    )
