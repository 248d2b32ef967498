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


class Tensor:
    """A tensor over a NumPy array, which may be a view: `base` is its storage. uint16 stands for bfloat16."""

    def __init__(self, array):
        self.array, base = array, array
        while base.base is not None:
            base = base.base
        self.base = base

    def __reduce__(self):
        item = self.array.itemsize
        offset = (self.array.__array_interface__["data"][0] - self.base.__array_interface__["data"][0]) // item
        strides = tuple(stride // item for stride in self.array.strides)
        arguments = (Storage(self.base), offset, self.array.shape, strides, False, OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


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
    names = ("torch", "torch._utils", "transformers", "transformers.cache_utils")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: ModuleType(name) for name in names})
    try:
        _named("torch._utils", "_rebuild_tensor_v2", None)
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
            return (
                "storage",
                getattr(sys.modules["torch"], TYPES[thing.base.dtype.str]),
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
