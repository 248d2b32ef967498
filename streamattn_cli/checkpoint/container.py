"""The checkpoint file: a state of named arrays and its metadata, in safetensors form, sealed (FORMAT.md).

Only reading a state needs numpy; `read_header` does not.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from streamattn_cli.checkpoint.digest import RunningDigest
from streamattn_cli.checkpoint.foreign import FIRST, foreign_kind
from streamattn_cli.checkpoint.header import SEAL_BYTES, Header, damaged, header_length, make_header, parse_header
from streamattn_cli.errors import CheckpointCorrupt, InputMalformed, InputMissing, MemoryBudget, StreamattnError

if TYPE_CHECKING:
    import numpy as np

DTYPES = {
    "|u1": "U8", "|i1": "I8", "<u2": "U16", "<i2": "I16", "<f2": "F16", "<u4": "U32", "<i4": "I32", "<f4": "F32",
    "<u8": "U64", "<i8": "I64", "<f8": "F64",
}  # fmt: skip
_STRINGS = {name: string for string, name in DTYPES.items()}
_STEP = 1 << 20  # bytes that are read and hashed at a time: they stay in the processor's cache

State = Mapping[str, "np.ndarray | Sequence[np.ndarray]"]


def encode(state: State, meta: Mapping[str, str]) -> Generator[bytes | memoryview, None, None]:
    """The bytes of a checkpoint as buffers, most of them views of the state: it must not change until they are used up.

    A value of `state` is an array, or a sequence of arrays of one shape and dtype that become one tensor with a new
    first axis. Equal state and metadata give equal bytes. The digest is computed while the buffers are being consumed;
    close the iterator if it is not used up. Raises StreamattnError at once for what the format does not allow.
    """
    described: list[tuple[str, str, tuple[int, ...]]] = []
    arrays: dict[str, list[np.ndarray]] = {}
    for name, value in state.items():
        parts: list[np.ndarray] = [cast("np.ndarray", value)] if hasattr(value, "dtype") else list(value)
        if not parts or any(part.dtype != parts[0].dtype or part.shape != parts[0].shape for part in parts):
            raise StreamattnError(
                f"checkpoint tensor {name}: arrays of one shape and dtype expected, found "
                f"{sorted({f'{part.dtype} {part.shape}' for part in parts})[:4]}"
            )
        stacked = () if parts[0] is value else (len(parts),)
        described.append((name, DTYPES.get(parts[0].dtype.str, parts[0].dtype.str), (*stacked, *parts[0].shape)))
        arrays[name] = parts
    header = make_header(described, meta)
    return _sealed([header.text, *_data(header, arrays)])


def read_header(path: str) -> Header:
    """Metadata and tensors of a checkpoint, its structure checked, its seal not; needs no numpy.

    Raises InputMissing, InputMalformed (never was a checkpoint), CheckpointCorrupt, CheckpointIncompatible (newer
    container version).
    """
    with _opened(path) as (file, size):
        return _header(path, file, size)


def read(path: str, allowed: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """State and metadata of a checkpoint whose seal is intact; new writable arrays.

    `allowed`: bytes that the state may take. Nothing is allocated before the whole table has been checked against the
    size of the file. Raises InputMissing, InputMalformed, CheckpointCorrupt, CheckpointIncompatible, MemoryBudget.
    """
    with _opened(path) as (file, size):
        return decode(path, file, size, allowed)


def decode(
    name: str, file: BinaryIO, size: int, allowed: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """`read` from an open binary file of `size` bytes, called `name` in messages."""
    header = _header(name, file, size)
    if allowed is not None and header.state_bytes > allowed:
        raise MemoryBudget(
            f"{name}: state of {header.state_bytes} bytes found, expected at most {allowed}; allow at "
            f"least {header.state_bytes} bytes"
        )
    try:
        state = _read_state(name, file, header)
    except MemoryError:
        raise MemoryBudget(f"{name}: no memory for its state of {header.state_bytes} bytes") from None
    return state, header.meta


@contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, int]]:
    """An open regular file and its size; errors of the system become InputMissing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # or a pipe of that name would wait for a writer
        try:
            found = os.fstat(fd)
            if stat.S_ISDIR(found.st_mode):
                raise InputMissing(f"{path}: is a folder, expected a checkpoint file")
            if not stat.S_ISREG(found.st_mode):
                raise InputMissing(f"{path}: is not a regular file, expected a checkpoint file")
            with open(fd, "rb", buffering=0, closefd=False) as file:
                yield file, found.st_size
        finally:
            os.close(fd)
    except OSError as error:
        raise InputMissing(
            f"{path}: the checkpoint cannot be read: {error.strerror or error}; check the path and the permissions"
        ) from error


def _data(header: Header, arrays: dict[str, list[np.ndarray]]) -> Iterator[bytes | memoryview]:
    """The buffers of all tensors but the seal, in order. An array that is not contiguous is copied here."""
    for tensor in header.layout[:-1]:
        if tensor.padding:
            yield bytes(tensor.end - tensor.begin)
        else:
            yield from map(_bytes_of, arrays[tensor.name])


def _bytes_of(array: np.ndarray) -> memoryview:
    contiguous = array if array.flags.c_contiguous else array.copy(order="C")
    return memoryview(contiguous.reshape(-1).view("u1"))


def _sealed(buffers: list[bytes | memoryview]) -> Generator[bytes | memoryview, None, None]:
    """The buffers and then the seal, which another thread computes meanwhile."""
    with RunningDigest(buffers) as digest:
        yield from buffers
        yield digest.result()


def _header(name: str, file: BinaryIO, size: int) -> Header:
    try:
        start = _some(file, 8)
        text = _some(file, header_length(name, start, size))
        return parse_header(name, start + text, size)
    except CheckpointCorrupt:
        file.seek(0)
        kind = foreign_kind(_some(file, FIRST))
        if kind is None:
            raise
        raise InputMalformed(
            f"{name}: is {kind}, not a streamattn checkpoint; give a file that `streamattn sketch "
            "-o`, `merge -o` or `attend --checkpoint` wrote"
        ) from None


def _some(file: BinaryIO, n: int) -> bytes:
    """The next n bytes, or what is left."""
    found = bytearray()
    while len(found) < n:
        more = file.read(n - len(found))
        if not more:
            break
        found += more
    return bytes(found)


def _read_state(name: str, file: BinaryIO, header: Header) -> dict[str, np.ndarray]:
    import numpy as np

    digest = hashlib.sha256(header.text)
    state = {}
    for tensor in header.layout[:-1]:
        if tensor.padding:
            padding = bytearray(tensor.end - tensor.begin)
            _fill(name, file, memoryview(padding), digest)
            if any(padding):
                raise damaged(name, f"bytes that are not zero found in padding {tensor.name}")
            continue
        array = state[tensor.name] = np.empty(tensor.shape, _STRINGS[tensor.dtype])
        _fill(name, file, _bytes_of(array), digest)
    seal = _some(file, SEAL_BYTES)
    if seal != digest.digest():
        raise damaged(name, f"its seal is {seal.hex()[:16]}..., its content has {digest.hexdigest()[:16]}...")
    return state


def _fill(name: str, file: Any, view: memoryview, digest: hashlib._Hash) -> None:
    """Read into the whole view and hash it, a step at a time."""
    done = 0
    while done < len(view):
        n: int = file.readinto(view[done : done + _STEP])
        if not n:
            raise damaged(name, "the file became shorter while it was read")
        digest.update(view[done : done + n])
        done += n
