"""Files of torch.save (.pt, .pth), read without PyTorch and without running what is in them.

Such a file is a zip archive with a pickle that describes objects (plainpickle.py), and a member for the bytes of each
storage. Instances of classes, such as a KV cache, are searched for tensors as dicts are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import numpy as np

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.dtypes import DTYPES, EXPECTED
from streamattn_cli.rows.formats.format import Format
from streamattn_cli.rows.formats.inflate import Member, file_key, members
from streamattn_cli.rows.formats.names import check_there
from streamattn_cli.rows.formats.plainpickle import LONGEST, Bag, Name, Refused, load
from streamattn_cli.rows.formats.strided import StridedTensor, in_order
from streamattn_cli.rows.tensors.file import FileTensor
from streamattn_cli.rows.tensors.layout import Extent
from streamattn_cli.rows.tensors.stored import Stored
from streamattn_cli.rows.tensors.tensor import RowTensor

MAGIC = b"PK\x03\x04"
DEEPEST = 16  # containers within containers
VISITED = 500_000  # objects that are looked at for tensors, at most,
NAMED = 1 << 24  # and characters of their names in all,
NAME = 1000  # and of one
AXES = 16
STORAGES = {word: name for name, found in DTYPES.items() for word in found.torch}
WHOLE = {"LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
         "BoolStorage": "?"}  # fmt: skip
ALONE = "tensor"  # the name of a tensor that was saved without a container


@dataclass(frozen=True)
class Place:
    """A storage: its class, the member that holds it, and how many items there are."""

    kind: str
    key: str
    items: int


@dataclass(frozen=True)
class Tensor:
    """A tensor as the pickle describes it; offset and strides in items."""

    storage: Place
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: object, offset: object, shape: object, strides: object, *_others: object) -> Tensor:
    """What torch._utils._rebuild_tensor and _rebuild_tensor_v2 are given."""
    if (
        isinstance(storage, Place)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and isinstance(offset, int)
    ):
        numbers = (offset, *shape, *strides) if len(shape) == len(strides) <= AXES else (None,)
        if all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            return Tensor(storage, offset, shape, strides)
    raise Refused("a tensor without a sane storage, offset, shape or strides")


def _tensor_of_bytes(storage: object, offset: object, shape: object, strides: object, *others: object) -> Tensor:
    """What torch._utils._rebuild_tensor_v3 is given, of dtypes without a class of storages; the third of others names it."""
    if len(others) < 3 or not isinstance(others[2], Name):
        raise Refused("a tensor without a dtype")
    found = _tensor(storage, offset, shape, strides)
    return replace(found, storage=replace(found.storage, kind=others[2].name))


def _nothing(*_arguments: object) -> None:
    """In place of what says where a tensor was, or how an object was made."""


def _sizes(sizes: object = ()) -> tuple:
    return sizes if isinstance(sizes, tuple) else ()


CALLED: dict[tuple[str, str], Callable[..., object]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_bytes,
    ("torch._utils", "_rebuild_parameter"): lambda data, *others: data,
    ("collections", "OrderedDict"): lambda: {},
    ("torch", "Size"): _sizes,
    ("torch", "device"): _nothing,
    ("functools", "partial"): _nothing,
}


def _storage(pid: object) -> Place:
    """The storage that ('storage', class, key, device, items) names."""
    if isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage":
        _, kind, key, _, items = pid
        if isinstance(kind, Name) and isinstance(key, str) and type(items) is int:
            return Place(kind.name, key, items)
    raise Refused("a storage that is not one of torch.save")


def _pickle(path: str) -> tuple[dict[str, Member], str | None]:
    """The members of an archive, and the prefix of those of torch.save; None where it has none."""
    found = members(path)
    prefix = next((name.removesuffix("data.pkl") for name in found if name.split("/", 1)[-1] == "data.pkl"), None)
    return found, prefix


def _sniff(path: str, start: bytes) -> bool:
    return start.startswith(MAGIC) and _pickle(path)[1] is not None


def _read(path: str) -> tuple[dict[str, Tensor], dict[str, Member], str]:
    """(tensors by name, members, prefix). InputMalformed for anything out of place."""
    return _read_once(path, file_key(path))


@lru_cache(maxsize=1)
def _read_once(path: str, _key: tuple[int, ...]) -> tuple[dict[str, Tensor], dict[str, Member], str]:
    found, prefix = _pickle(path)
    if prefix is None:
        raise InputMalformed(f"{path}: a zip archive without data.pkl; expected one of torch.save")
    order = found.get(f"{prefix}byteorder")
    if order and order.read(8) != b"little":
        raise InputMalformed(f"{path}: is big-endian, expected little-endian; save it again on the other machine")
    try:
        whole = load(found[f"{prefix}data.pkl"].read(LONGEST + 1), CALLED, _storage)
        tensors = _Search().tensors(whole)
    except Refused as error:
        raise InputMalformed(
            f"{path}: {error}; save a dict of plain tensors: torch.save({{'q': q, 'k': k, 'v': v}}, ...)"
        ) from error
    if not tensors:
        raise InputMalformed(f"{path}: no tensors found in it")
    return tensors, found, prefix


class _Search:
    """Looks for tensors in containers and bags; names are joined by dots."""

    def __init__(self) -> None:
        self._found: dict[str, Tensor] = {}
        self._visited = self._named = 0

    def tensors(self, whole: object) -> dict[str, Tensor]:
        """All of them by name. Raises Refused where there is too much to look at."""
        self._look(whole, "", ())
        return self._found

    def _look(self, found: object, name: str, above: tuple[int, ...]) -> None:
        self._visited += 1
        self._named += len(name)
        if self._visited > VISITED or self._named > NAMED or len(name) > NAME:
            raise Refused("too many objects, or too long names, to look for tensors in")
        if isinstance(found, Tensor):
            self._found[name or ALONE] = found
        elif len(above) <= DEEPEST and id(found) not in above:
            for key, value in _items(found):
                self._look(value, f"{name}.{key}" if name else str(key), (*above, id(found)))


def _items(found: object) -> Iterator[tuple[object, object]]:
    if isinstance(found, Bag):
        found = found.items
    if isinstance(found, list | tuple):
        yield from enumerate(found)
    elif isinstance(found, dict):
        yield from found.items()


def pytorch_arrays(path: str, names: dict[str, str], wanted: str | None = None) -> dict[str, Stored]:
    """The tensors `names` (key -> name). InputMissing lists what is there."""
    tensors, found, prefix = _read(path)
    check_there(path, names.values(), tensors, "tensor")
    return {key: _stored(path, name, tensors[name], found, prefix) for key, name in names.items()}


def _stored(path: str, name: str, tensor: Tensor, found: dict[str, Member], prefix: str) -> Stored:
    label, storage = f"{path}:{name}", tensor.storage
    dtype = STORAGES.get(storage.kind)
    if dtype is None:
        raise InputMalformed(f"{label}: {storage.kind} found, expected {EXPECTED}")
    member = found.get(f"{prefix}data/{storage.key}")
    if member is None or member.deflated:
        raise InputMalformed(
            f"{label}: its data {prefix}data/{storage.key} are not there, or compressed; save it again"
        )
    item = DTYPES[dtype].itemsize
    last = tensor.offset + 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if prod(tensor.shape) and last * item > member.size:
        raise InputMalformed(
            f"{label}: needs {last * item} bytes of data, the archive has {member.size}; save it again"
        )
    offset = member.offset + tensor.offset * item

    def plain(extent: Extent) -> RowTensor:
        return FileTensor(path, offset, extent, dtype, label)

    def open_(extent: Extent) -> RowTensor:
        if in_order(tensor.shape, tensor.strides):
            return plain(extent)
        return StridedTensor(path, offset, tensor.shape, tensor.strides, extent, dtype, label)

    swapped = [(*axes[:-3], axes[-2], axes[-3], axes[-1]) for axes in (tensor.shape, tensor.strides) if len(axes) > 2]
    return Stored(label, tensor.shape, dtype, open_, turned=plain if swapped and in_order(*swapped) else None)


def _integers(path: str, name: str, most: int) -> np.ndarray | None:
    tensors, found, prefix = _read(path)
    tensor = tensors.get(name)
    dtype = np.dtype(WHOLE.get(tensor.storage.kind, "V1") if tensor else "V1")
    if tensor is None or dtype.kind == "V" or prod(tensor.shape) > most:
        return None
    member = found.get(f"{prefix}data/{tensor.storage.key}")
    last = tensor.offset + 1 + sum(max(n - 1, 0) * by for n, by in zip(tensor.shape, tensor.strides, strict=True))
    if member is None or member.deflated or last * dtype.itemsize > member.size or last > most:
        raise InputMalformed(f"{path}:{name}: its data are not there, or compressed; save it again")
    flat = np.fromfile(path, dtype, last - tensor.offset, offset=member.offset + tensor.offset * dtype.itemsize)
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, [by * dtype.itemsize for by in tensor.strides]).copy()


FORMAT = Format(
    name="pytorch",
    integers=_integers,
    extensions=(".pt", ".pth"),
    sniff=_sniff,
    names=lambda path: sorted(_read(path)[0]),
    arrays=pytorch_arrays,
)
