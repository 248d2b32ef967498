"""Whether an input is still the one it was: its size, its times, and a digest of what it holds."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable

import numpy as np

from streamattn_cli.errors import SourceChanged, UsageError
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.inputs.divide import SequenceTensor
from streamattn_cli.rows.targets import split_target
from streamattn_cli.rows.tensors.concat import ConcatTensor, files_of
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.ranges import RangeTensor
from streamattn_cli.rows.tensors.tensor import RowTensor, row_bytes, row_count

EDGE_ROWS = 64  # first and last rows that are always looked at
_BLOCK_BYTES = 4 << 20


def identity(tensor: RowTensor, whole: bool = False) -> dict[str, str]:
    """What tells this tensor from another or a changed one; with `whole`, a digest of every row as well.

    A pipe has none of this and gives only its shape. Times and sizes are those of the file that holds the tensor.
    """
    if isinstance(tensor, RangeTensor):
        return identity(tensor.base, whole) | {"range": f"{tensor.first}:{tensor.first + (tensor.rows or 0)}"}
    if isinstance(tensor, ConcatTensor):
        each = [identity(part, whole) for part in tensor.parts]
        joined = {key: ",".join(one[key] for one in each) for key in each[0]}
        return joined | {"kind": "file", "rows": str(tensor.rows)}
    found = {"dtype": tensor.dtype, "outer": str(tensor.outer), "width": str(tensor.width)}
    if not tensor.seekable:
        return found | {"kind": "pipe"}
    rows = row_count(tensor)
    found |= {"kind": "file", "rows": str(rows), "first": _digest(tensor, 0, min(EDGE_ROWS, rows))}
    found["last"] = _digest(tensor, max(0, rows - EDGE_ROWS), rows)
    if isinstance(tensor, SequenceTensor) and isinstance(tensor.base, RangeTensor):
        found["range"] = f"{tensor.base.first}:{tensor.base.first + row_count(tensor.base)}"
    path = tensor.path
    if path is not None:
        *_, size, modified = _state(path)
        found |= {"size": str(size), "modified_ns": str(modified), "name": name_of(tensor)}
    if whole:
        found["all"] = _digest(tensor, 0, rows)
    return found


def name_of(tensor: RowTensor) -> str:
    """What it is called, without the folder of its file: heads.h5:/k."""
    names = []
    for part in files_of(tensor):
        base = part.base if isinstance(part, RangeTensor) else part
        inside = base.name.removeprefix(base.path or "")
        names.append(os.path.basename(base.path) + inside if base.path else inside)
    return ", ".join(dict.fromkeys(names))


def identity_of(heads: Heads, whole: bool = False, tensor: RowTensor | None = None) -> dict[str, str]:
    """The same of heads, or of one tensor of theirs, with a digest of the scale of their rows."""
    found = identity(tensor or heads.tensor, whole)
    if heads.factors:
        found["scale"] = hashlib.sha256(np.array(heads.factors, "<f4").tobytes()).hexdigest()[:32]
    return found


def file_states(tensors: Iterable[RowTensor], *words: str | None) -> dict[str, tuple[int, ...]]:
    """Device, inode, size and time of modification of every file that rows are read from; words: FILE or FILE:DATASET of further
    ones, None is passed over."""
    named = [name for word in words if word for name in (word, word.rpartition(":")[0]) if os.path.isfile(name)]
    found: dict[str, tuple[int, ...]] = {name: _state(name) for name in named}
    for tensor in tensors:
        for part in files_of(tensor):
            base = part
            while isinstance(base, RangeTensor | SequenceTensor):
                base = base.base
            if base.path is not None and base.seekable:
                files = (base.path, *getattr(base, "others", ()))  # sources of a virtual dataset
                found |= {file: _state(file) for file in files if file not in found}
    return found


def _state(path: str) -> tuple[int, ...]:
    """Device, inode, size and time of modification of a file. Of a folder: the folder's own, a digest of the names and
    states of all files below it, how many bytes they are together, and the latest time."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    digest, size, latest = 0, 0, 0
    for folder, _, files in os.walk(path):
        for name in files:
            one = os.stat(os.path.join(folder, name))
            text = f"{folder}/{name} {one.st_ino} {one.st_size} {one.st_mtime_ns}"
            digest ^= int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest())  # in any order
            size, latest = size + one.st_size, max(latest, one.st_mtime_ns)
    return status.st_dev, status.st_ino, digest, size, latest


def check_unchanged(before: dict[str, tuple[int, ...]]) -> None:
    """Refuse (SourceChanged, 9) what was read from files that are not what they were. before: what `file_states` gave."""
    for path, state in before.items():
        try:
            now = _state(path)
        except OSError:
            now = ()
        if now != state:
            raise SourceChanged(
                f"{path}: changed while it was being read: no file was written, and answers in a pipe are not to be used; run "
                "again when it is complete"
            )


def refuse_inputs(outputs: Iterable[str | None], inputs: Iterable[str | None]) -> None:
    """Refuse (UsageError) outputs that are files which are read: the same by device and inode, whatever they are called.

    Words may be FILE:DATASET; - and None are passed over.
    """
    read = {}
    for word in inputs:
        for file in () if word is None or word == "-" else (word, word.rpartition(":")[0]):
            if os.path.isfile(file):
                status = os.stat(file)
                read[status.st_dev, status.st_ino] = file
    for output in outputs:
        name = output and split_target(output)[0]
        if not name or name == "-" or not os.path.isfile(name):
            continue
        status = os.stat(name)
        same = read.get((status.st_dev, status.st_ino))
        if same is not None:
            raise UsageError(f"{name}: is the input {same}, which would be overwritten; choose another name")


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What changed, in words; what only one of the two knows (a digest of everything) is not compared, nor are names and
    layouts."""
    words = {"modified_ns": "modification time", "first": "first rows", "last": "last rows", "all": "content"}
    return [
        words.get(key, key)
        for key in sorted((before.keys() & now.keys()) - {"name", "layout"})
        if before[key] != now[key]
    ]


def _digest(tensor: RowTensor, start: int, stop: int) -> str:
    """SHA-256 (32 hex digits of it) of rows [start, stop) as stored."""
    digest = hashlib.sha256()
    step = max(1, _BLOCK_BYTES // max(1, row_bytes(tensor)))
    for a in range(start, stop, step):
        block = np.empty((tensor.outer, min(step, stop - a), tensor.width), DTYPES[tensor.dtype].holder)
        tensor.read_into(block, a)
        digest.update(memoryview(block).cast("B") if block.size else b"")
    return digest.hexdigest()[:32]
