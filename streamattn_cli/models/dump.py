"""Where captured rows go: one HDF5 file with a group for each layer, .npy files of rows side by side, or a pipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamattn_cli.errors import NonFinite, UsageError
from streamattn_cli.models.survey import Layer
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.inputs.layers import PLACE
from streamattn_cli.rows.targets import split_target
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.packedout import open_packed
from streamattn_cli.rows.writers.writer import check_target


def names_of(target: str, layers: list[int]) -> list[str]:
    """The outputs of a target. Raises UsageError where layers need a file each and have none, and OutputFailed."""
    if split_target(target)[1] or (PLACE in target and is_hdf5(target)):
        raise UsageError(f"-o {target}: give FILE.h5, which gets a group for each layer, or FILE-{PLACE}.npy")
    if PLACE in target:
        names = [target.replace(PLACE, str(layer)) for layer in layers]
    else:
        names = [target]
        if len(layers) > 1 and not is_hdf5(target):
            raise UsageError(f"-o {target}: {len(layers)} layers; choose one with --layer, or give FILE.h5 (a group for each) or "
                             f"FILE-{PLACE}.npy")  # fmt: skip
    for name in names:
        if name != "-" and check_target(name) == "special" and len(names) > 1:
            raise UsageError(f"-o {name}: is not a file; choose one layer with --layer")
    return names


def is_hdf5(target: str) -> bool:
    """Whether this is one HDF5 file."""
    return os.path.splitext(target)[1].lower() in (".h5", ".hdf5") and (
        not os.path.exists(target) or os.path.isfile(target)
    )


def is_file(target: str) -> bool:
    """Whether rows have places there, so that a capture can be resumed."""
    return target != "-" and (PLACE in target or not os.path.exists(target) or os.path.isfile(target))


class Dump:
    """Takes the rows of layers, block by block: rows q | k | v that say what they hold, in a file or pipe for each layer."""

    def __init__(self, writers: Mapping[int, Writer], dtype: str):
        self._writers, self._dtype = writers, dtype

    def write(self, layer: int, start: int, q: Any, k: Any, v: Any) -> None:
        """Rows start.. of a layer, tensors (heads, n, dim) of the chosen heads. Raises NonFinite and OutputFailed."""
        if layer in self._writers:  # else it was complete when an earlier run ended
            self._writers[layer].write(start, np.concatenate(stored(layer, self._dtype, q, k, v), axis=1)[:, None])

    def keep(self) -> dict[str, str]:
        """Make the rows durable, and let the unfinished files outlive a failure: their names by those of the outputs."""
        return {writer.name: writer.keep() for writer in self._writers.values() if writer.placed}

    def commit(self) -> None:
        """All rows are there: give the files their names."""
        for writer in self._writers.values():
            writer.commit({})

    def abort(self) -> None:
        """Leave nothing behind but what was kept; does nothing after `commit`."""
        for writer in self._writers.values():
            writer.abort()


class Hdf5Layers(Dump):
    """A Dump into one file: /layerN/q, k and v, with attributes of the group."""

    def __init__(
        self, path: str, rows: int, layers: Mapping[int, Layer], attrs: Mapping[int, dict], dtype: str, tag: str,
        parts: Mapping[str, str],
    ):  # fmt: skip
        from streamattn_cli.rows.writers.hdf5dump import Hdf5Dump

        self._path, self._dtype, self._first = path, dtype, {layer: 3 * at for at, layer in enumerate(layers)}
        named = [(f"layer{at}/{name}", heads, dim) for at, layer in layers.items() for name, heads, dim in layer.parts]
        groups = {
            f"layer{at}": {name: np.array(v) if isinstance(v, list) else v for name, v in found.items()}
            | {"layout": "THD"}
            for at, found in attrs.items()
        }
        self._file = Hdf5Dump(path, rows, named, dtype, groups, tag, parts.get(path))

    def write(self, layer: int, start: int, q: Any, k: Any, v: Any) -> None:
        self._file.write(start, stored(layer, self._dtype, q, k, v), self._first[layer])

    def keep(self) -> dict[str, str]:
        return {self._path: self._file.keep()}

    def commit(self) -> None:
        self._file.commit({})

    def abort(self) -> None:
        self._file.abort()


def open_dump(
    target: str, rows: int, layers: Mapping[int, Layer], attrs: Mapping[int, dict], dtype: str, tag: str,
    parts: Mapping[str, str], done: int,
) -> Dump:  # fmt: skip
    """The Dump of a target. parts: unfinished files of an earlier run by the names of the outputs, of which `done` rows count; a
    file that is not among them, where there are any, has its name already."""
    if is_hdf5(target):
        return Hdf5Layers(target, rows, layers, attrs, dtype, tag, parts)
    writers: dict[int, Writer] = {}
    for at, layer in layers.items():
        name = target.replace(PLACE, str(at))
        if parts and name not in parts:
            continue
        going_on = (parts[name], done) if parts else None
        try:
            writers[at] = open_packed(name, rows, layer.parts, dtype, attrs[at], tag, going_on)
        except BaseException:
            Dump(writers, dtype).abort()
            raise
    return Dump(writers, dtype)


def stored(layer: int, dtype: str, *tensors: Any) -> list[np.ndarray]:
    """Tensors (heads, n, dim) as rows (n, heads * dim) in a storage dtype, float16 and bfloat16 as bit patterns. NonFinite for
    numbers that it does not have."""
    import torch

    kind = getattr(torch, DTYPES[dtype].title)
    found = []
    for name, tensor in zip("qkv", tensors, strict=True):
        rows = tensor.transpose(0, 1).to(kind).contiguous()
        if not torch.isfinite(rows).all():
            least = f"{float(tensor.abs().max()):.3g}"
            raise NonFinite(f"layer {layer}: {name} has numbers of size {least}, which are not finite in {DTYPES[dtype].title}; "
                            "take --dtype bf16 or f32")  # fmt: skip
        items = rows.view(torch.int16) if rows.element_size() == 2 else rows
        found.append(items.numpy().view(DTYPES[dtype].holder).reshape(rows.shape[0], -1))
    return found
