"""Files of torch.save (.pt, .pth), read without PyTorch and without running what is in them.

Such a file is a zip archive with a pickle that describes objects, and a member for the bytes of each storage. Of a pickle
only tensors, containers and numbers are made; instances of other classes, such as a KV cache, become bags of attributes;
whatever would call anything else is refused.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from streamattn_cli.errors import InputMalformed, InputMissing
from streamattn_cli.rows.file import FileTensor
from streamattn_cli.rows.formats.format import Format
from streamattn_cli.rows.formats.inflate import Member, members
from streamattn_cli.rows.formats.names import SHOWN, find_parts
from streamattn_cli.rows.formats.strided import StridedTensor, in_order
from streamattn_cli.rows.layout import Extent
from streamattn_cli.rows.stored import Stored
from streamattn_cli.rows.tensor import STORAGE, RowTensor

MAGIC = b"PK\x03\x04"
LONGEST = 1 << 26  # bytes of a pickle: the bytes of tensors are not in it
DEEPEST = 16  # containers within containers
STORAGES = {"HalfStorage": "f2", "BFloat16Storage": "bf16", "FloatStorage": "f4", "DoubleStorage": "f8"}
ALONE = "tensor"  # the name of a tensor that was saved without a container


@dataclass(frozen=True)
class StorageType:
    """A class of storages, by its name."""

    name: str


@dataclass(frozen=True)
class Place:
    """A storage: its class, the member that holds it, and how many items there are."""

    kind: StorageType
    key: str
    items: int


@dataclass(frozen=True)
class Tensor:
    """A tensor as the pickle describes it; offset and strides in items."""

    storage: Place
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Class(type):
    """The type of stand-ins for classes that are not made: they may be created empty and given attributes, not called."""

    def __call__(cls, *args: object, **named: object) -> object:
        raise InputMalformed(f"the pickle calls {cls.__qualname__}, which is not run")


class Bag(metaclass=_Class):
    """An instance of another class: its attributes, and nothing that does anything."""

    def __setstate__(self, state: object) -> None:
        both = state if isinstance(state, tuple) else (state,)
        for part in both:
            if isinstance(part, dict):
                self.__dict__.update((str(name), value) for name, value in part.items())

    def __setitem__(self, name: object, value: object) -> None:
        self.__dict__[str(name)] = value

    def append(self, value: object) -> None:
        """Items of a subclass of list."""
        self.__dict__[str(len(self.__dict__))] = value

    def extend(self, values: list) -> None:
        """Items of a subclass of list."""
        for value in values:
            self.append(value)


def _tensor(storage: object, offset: object, shape: object, strides: object, *_others: object) -> Tensor:
    """What torch._utils._rebuild_tensor and _rebuild_tensor_v2 are given."""
    whole = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    numbers = (offset, *shape, *strides) if whole else (None,)
    if not isinstance(storage, Place) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise InputMalformed("a tensor without a sane storage, offset, shape or strides")
    return Tensor(storage, offset, shape, strides)


class Nothing:
    """In place of what says where a tensor was, or how an object was made."""

    def __init__(self, *_args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


CALLED = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *others: data,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    ("torch", "device"): Nothing,
    ("functools", "partial"): Nothing,
}


class _Reader(pickle.Unpickler):
    """Makes what CALLED and STORAGES name, and bags of all other classes."""

    def find_class(self, module: str, name: str) -> object:
        """What stands for a class or function."""
        if (module, name) in CALLED:
            return CALLED[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return StorageType(name)
        return _Class(name, (Bag,), {"__qualname__": f"{module}.{name}"})

    def persistent_load(self, pid: object) -> Place:
        """The storage that ('storage', class, key, device, items) names."""
        whole = isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"
        if not whole or not isinstance(pid[1], StorageType) or not isinstance(pid[2], str) or type(pid[4]) is not int:
            raise InputMalformed(f"a storage {str(pid)[:60]} that is not one of torch.save")
        return Place(pid[1], pid[2], pid[4])


def _pickle(path: str) -> tuple[dict[str, Member], str | None]:
    """The members of an archive, and the prefix of those of torch.save; None where it has none."""
    found = members(path)
    prefix = next((name.removesuffix("data.pkl") for name in found if name.split("/", 1)[-1] == "data.pkl"), None)
    return found, prefix


def _sniff(path: str, start: bytes) -> bool:
    return start.startswith(MAGIC) and _pickle(path)[1] is not None


def _read(path: str) -> tuple[dict[str, Tensor], dict[str, Member], str]:
    """(tensors by name, members, prefix). InputMalformed for anything out of place."""
    found, prefix = _pickle(path)
    if prefix is None:
        raise InputMalformed(f"{path}: a zip archive without data.pkl; expected one of torch.save")
    text = found[f"{prefix}data.pkl"]
    if text.size > LONGEST:
        raise InputMalformed(
            f"{path}: a pickle of {text.size} bytes, expected at most {LONGEST}; is it a file of tensors?"
        )
    order = found.get(f"{prefix}byteorder")
    if order and order.read(8) != b"little":
        raise InputMalformed(f"{path}: is big-endian, expected little-endian; save it again on the other machine")
    try:
        whole = _Reader(io.BytesIO(text.read(text.size))).load()
    except InputMalformed as error:
        raise InputMalformed(
            f"{path}: {error}; save a dict of plain tensors: torch.save({{'q': q, 'k': k, 'v': v}}, ...)"
        ) from error
    except Exception as error:  # of a damaged pickle there is no telling
        raise InputMalformed(f"{path}: unreadable pickle: {type(error).__name__}: {error}; save it again") from error
    tensors = dict(_walk(whole, "", 0))
    if not tensors:
        raise InputMalformed(f"{path}: no tensors found in it")
    return tensors, found, prefix


def _walk(found: object, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all within; names of containers are joined by dots."""
    if isinstance(found, Tensor):
        yield name or ALONE, found
        return
    if depth > DEEPEST:
        return
    if isinstance(found, Bag):
        found = vars(found)
    if isinstance(found, list | tuple):
        found = dict(enumerate(found))
    if isinstance(found, dict):
        for key, value in found.items():
            yield from _walk(value, f"{name}.{key}" if name else str(key), depth + 1)


def pytorch_arrays(path: str, names: dict[str, str], wanted: str | None = None) -> dict[str, Stored]:
    """The tensors `names` (key -> name). InputMissing lists what is there."""
    tensors, found, prefix = _read(path)
    for name in names.values():
        if name not in tensors:
            raise InputMissing(f"{path}: no tensor {name}; there are: {', '.join(sorted(tensors)[:SHOWN])}")
    return {key: _stored(path, name, tensors[name], found, prefix) for key, name in names.items()}


def _stored(path: str, name: str, tensor: Tensor, found: dict[str, Member], prefix: str) -> Stored:
    label, storage = f"{path}:{name}", tensor.storage
    dtype = STORAGES.get(storage.kind.name)
    if dtype is None:
        raise InputMalformed(f"{label}: {storage.kind.name} found, expected float16, bfloat16, float32 or float64")
    member = found.get(f"{prefix}data/{storage.key}")
    if member is None or member.deflated:
        raise InputMalformed(
            f"{label}: its data {prefix}data/{storage.key} are not there, or compressed; save it again"
        )
    item = STORAGE[dtype].itemsize
    last = tensor.offset + 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if prod(tensor.shape) and last * item > member.size:
        raise InputMalformed(
            f"{label}: needs {last * item} bytes of data, the archive has {member.size}; save it again"
        )
    offset = member.offset + tensor.offset * item

    def open_(extent: Extent) -> RowTensor:
        if in_order(tensor.shape, tensor.strides):
            return FileTensor(path, offset, extent, dtype, label)
        return StridedTensor(path, offset, tensor.shape, tensor.strides, extent, dtype, label)

    return Stored(label, tensor.shape, dtype, open_)


FORMAT = Format(
    name="pytorch",
    extensions=(".pt", ".pth"),
    sniff=_sniff,
    names=lambda path: sorted(_read(path)[0]),
    arrays=pytorch_arrays,
    parts=lambda path, parts, group: find_parts(path, _read(path)[0], parts, group),
)
