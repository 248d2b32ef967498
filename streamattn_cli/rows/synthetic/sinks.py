"""Where made-up rows go: packed rows to one output, or q, k, v side by side."""

from __future__ import annotations

import os

import numpy as np

from streamattn_cli.errors import UsageError
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.synthetic.generated import SyntheticSpec, SyntheticTensor
from streamattn_cli.rows.targets import side_of
from streamattn_cli.rows.tensors.readahead import Block
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.writer import is_special, open_raw, open_writer


def names_of(emit: str, target: str, raw: bool) -> list[str]:
    """The files that `open_sink` makes."""
    apart = "{}" in target and not raw and not target.lower().endswith((".h5", ".hdf5"))
    names = [target.replace("{}", part) for part in emit] if apart else [target]
    return names + ([] if raw else [side for name in names if (side := side_of(name))])


def open_sink(spec: SyntheticSpec, emit: str, target: str, raw: bool) -> Sink:
    """The sink for a target: '-', a fifo or a device (packed rows), FILE.npy (packed), FILE.npy with '{}' in its name
    (one file per tensor), FILE.h5 (datasets q, k, v), or any name for raw rows. Raises UsageError and OutputFailed."""
    packed = SyntheticTensor(spec, emit)
    if raw:
        writer = open_raw(target, spec.rows, packed.width, np.dtype(DTYPES[spec.dtype].holder))
        return Sink([packed], [writer], [(1, packed.width)])
    extension = os.path.splitext(target)[1].lower()
    if extension in (".h5", ".hdf5") and not is_special(target):
        return Hdf5Sink(spec, emit, target)
    dtype = DTYPES[spec.dtype]
    if not dtype.numpy:
        raise UsageError(
            f"--dtype {dtype.words[0]} and {target}: .npy has no {dtype.title}; use --raw, FILE.h5 or another --dtype"
        )
    if "{}" in target:
        return _one_file_each(spec, emit, target)
    writer = open_writer(target, spec.rows, 1, packed.width, spec.dtype, "TD")
    return Sink([packed], [writer], [(1, packed.width)])


def _one_file_each(spec: SyntheticSpec, emit: str, target: str) -> Sink:
    tensors = [SyntheticTensor(spec, part) for part in emit]
    shapes = [_heads(spec, part) for part in emit]
    writers: list[Writer] = []
    try:
        for part, (heads, dim) in zip(emit, shapes, strict=True):
            name = target.replace("{}", part)
            writers.append(open_writer(name, spec.rows, heads, dim, spec.dtype, "THD" if heads > 1 else "TD"))
    except BaseException:
        for writer in writers:
            writer.abort()
        raise
    return Sink(tensors, writers, shapes)


def _heads(spec: SyntheticSpec, part: str) -> tuple[int, int]:
    """(heads, dim) of one of q, k, v."""
    heads = spec.heads if part == "q" else spec.kv_heads
    return heads, spec.width(part) // heads


class Sink:
    """Takes the blocks of `tensors`, read in step, and gives each to its Writer as (n, heads, dim)."""

    def __init__(self, tensors: list[SyntheticTensor], writers: list[Writer], shapes: list[tuple[int, int]]):
        self.tensors, self._writers, self._shapes = tensors, writers, shapes

    def take(self, block: Block) -> None:
        """Write one block. Raises OutputFailed or BrokenPipeError."""
        for writer, array, shape in zip(self._writers, block.arrays, self._shapes, strict=True):
            items = array.view(DTYPES[self.tensors[0].dtype].numpy or array.dtype)
            writer.write(block.start, items.reshape(block.rows, *shape))

    def commit(self, meta: dict) -> None:
        """Everything is there: make it visible, one file after the other, with `meta` where there is a place for it."""
        for writer in self._writers:
            writer.commit(meta)

    def abort(self) -> None:
        """Leave nothing behind; does nothing after `commit`."""
        for writer in self._writers:
            writer.abort()


class Hdf5Sink(Sink):
    """Datasets q, k, v of one HDF5 file."""

    def __init__(self, spec: SyntheticSpec, emit: str, target: str):
        from streamattn_cli.rows.writers.hdf5dump import Hdf5Dump

        super().__init__([SyntheticTensor(spec, part) for part in emit], [], [])
        self._dump = Hdf5Dump(target, spec.rows, [(part, *_heads(spec, part)) for part in emit], spec.dtype)

    def take(self, block: Block) -> None:
        self._dump.write(block.start, [array[0] for array in block.arrays])

    def commit(self, meta: dict) -> None:
        self._dump.commit(meta | {"layout": "THD"})

    def abort(self) -> None:
        self._dump.abort()
