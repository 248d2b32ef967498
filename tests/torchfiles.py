"""Writes files as torch.save does, without PyTorch: the same pickle with the same names, in the same kind of archive."""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from types import ModuleType

import numpy as np

TYPES = {
    "<f2": "HalfStorage",
    "<u2": "BFloat16Storage",
    "<f4": "FloatStorage",
    "<f8": "DoubleStorage",
    "|i1": "CharStorage",
}
NEW = ("float8_e4m3fn", "float8_e5m2")  # dtypes that have no class of storages: the tensor names them


class Tensor:
    """A tensor over a NumPy array, which may be a view: `base` is its storage. uint16 stands for bfloat16; uint8 is of a
    dtype in NEW."""

    def __init__(self, array, dtype=None):
        self.array, base, self.dtype = array, array, dtype
        while base.base is not None:
            base = base.base
        self.base = base

    def __reduce__(self):
        item = self.array.itemsize
        offset = (self.array.__array_interface__["data"][0] - self.base.__array_interface__["data"][0]) // item
        strides = tuple(stride // item for stride in self.array.strides)
        arguments = (Storage(self.base), offset, self.array.shape, strides, False, OrderedDict())
        if self.dtype:
            arguments = *arguments, getattr(sys.modules["torch"], self.dtype)
            return sys.modules["torch._utils"]._rebuild_tensor_v3, arguments
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


class Dtype:
    """A torch.dtype, which pickles as its name."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return self.name


class Storage:
    """What the pickle names by a persistent id."""

    def __init__(self, base):
        self.base = base


def _named(module, name, kind=type):
    """A class or function that pickles as module.name."""
    if hasattr(sys.modules[module], name):
        return getattr(sys.modules[module], name)
    made = type(name, (), {}) if kind is type else (lambda *args: None)
    made.__module__, made.__qualname__, made.__name__ = module, name, name
    setattr(sys.modules[module], name, made)
    return made


@contextmanager
def pretended():
    """Modules named as PyTorch's, while a file is written."""
    names = ("torch", "torch._utils", "torch.storage", "transformers", "transformers.cache_utils")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: ModuleType(name) for name in names})
    try:
        for name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            _named("torch._utils", name, None)
        for name in NEW:
            made = Dtype(name)
            made.__module__ = "torch"
            setattr(sys.modules["torch"], name, made)
        _named("torch.storage", "UntypedStorage")
        for name in TYPES.values():
            _named("torch", name)
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def instance(name, **attributes):
    """An instance of transformers.cache_utils.NAME with attributes; only inside `pretended`."""
    made = _named("transformers.cache_utils", name)()
    vars(made).update(attributes)
    return made


def save(path, found):
    """torch.save(found, path); only inside `pretended`."""
    storages = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if not isinstance(thing, Storage):
                return None
            place = next((i for i, base in enumerate(storages) if base is thing.base), len(storages))
            if place == len(storages):
                storages.append(thing.base)
            kind = TYPES.get(thing.base.dtype.str)
            return (
                "storage",
                getattr(sys.modules["torch"], kind) if kind else sys.modules["torch.storage"].UntypedStorage,
                str(place),
                "cpu",
                thing.base.size,
            )

    text = io.BytesIO()
    Pickler(text, protocol=2).dump(found)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("dump/data.pkl", text.getvalue())
        archive.writestr("dump/byteorder", "little")
        for place, base in enumerate(storages):
            archive.writestr(f"dump/data/{place}", np.ascontiguousarray(base).tobytes())
        archive.writestr("dump/version", "3\n")
