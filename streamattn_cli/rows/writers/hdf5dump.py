"""One HDF5 file with datasets q, k, v (those that are made, or those of several groups), each (rows, heads, dim), contiguous.

This module imports h5py; import it only where such a file is about to be written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import h5py
import numpy as np

from streamattn_cli.errors import OutputFailed
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.writers.fdio import pwrite_all
from streamattn_cli.rows.writers.hdf5out import set_attributes
from streamattn_cli.rows.writers.temporary import Temporary, failing_as_output


class Hdf5Dump:
    """Rows of several tensors into one temporary file that gets its name at `commit`."""

    def __init__(
        self, path: str, rows: int, parts: list[tuple[str, int, int]], dtype: str, attributes: dict[str, dict] | None = None,
        tag: str | None = None, going_on: str | None = None,
    ):  # fmt: skip
        """parts: (name, heads, dim) for each tensor; dtype: a storage dtype, bf16 becoming a custom HDF5 float. attributes:
        of groups, by their names; tag: see Temporary; going_on: the unfinished file of an earlier run of the same."""
        self.name = path
        self._itemsize = DTYPES[dtype].itemsize
        self._widths = [heads * dim for _, heads, dim in parts]
        self._lasting = False
        with failing_as_output(path):
            self._temporary = Temporary(path, going_on, tag)
        with self._or_abort(), h5py.File(self._temporary.path, "r" if going_on else "w") as file:
            if going_on:
                self._offsets = [int(file[name].id.get_offset()) for name, _, _ in parts]
                return
            kind = file_type(dtype)
            self._offsets = [_reserve(file, name, (rows, heads, dim), kind) for name, heads, dim in parts]
            for group, meta in (attributes or {}).items():
                set_attributes(file[group], meta)

    def write(self, start: int, arrays: list[np.ndarray], first: int = 0) -> None:
        """Rows start.. of the tensors from the one numbered `first` on, each (n, heads * dim) in storage dtype, C-contiguous."""
        with self._or_abort():
            for number, array in enumerate(arrays, first):
                place = self._offsets[number] + start * self._widths[number] * self._itemsize
                pwrite_all(self._temporary.fd, memoryview(array.reshape(-1)).cast("B"), place)

    def keep(self) -> str:
        """See rows.writers.base.Writer."""
        with failing_as_output(self.name):
            os.fdatasync(self._temporary.fd)
        self._lasting = True
        return self._temporary.part

    def commit(self, meta: dict) -> None:
        """Add `meta` as the file's attributes and give the file its name."""
        with self._or_abort():
            if meta:
                with h5py.File(self._temporary.path, "r+") as file:
                    set_attributes(file, meta)
            self._temporary.commit()

    def abort(self) -> None:
        """Leave nothing behind but what `keep` let last; does nothing after `commit`."""
        if self._lasting:
            self._temporary.keep()
        else:
            self._temporary.abort()

    @contextmanager
    def _or_abort(self) -> Iterator[None]:
        """Any error removes the file; the library's own become OutputFailed."""
        try:
            with failing_as_output(self.name):
                yield
        except RuntimeError as error:  # what h5py raises where flushing or closing fails
            self.abort()
            raise OutputFailed(f"{self.name}: cannot be written: {error}") from error
        except BaseException:
            self.abort()
            raise


def file_type(dtype: str) -> h5py.h5t.TypeID:
    """The HDF5 type of a storage dtype, little-endian."""
    found = DTYPES[dtype]
    if found.numpy:
        return h5py.h5t.py_create(np.dtype(found.numpy))
    kind = h5py.h5t.IEEE_F32LE.copy()
    # sign, exponent and mantissa; the size can shrink only after that
    kind.set_fields(found.exponent + found.mantissa, found.mantissa, found.exponent, 0, found.mantissa)
    kind.set_size(found.itemsize)
    kind.set_ebias(found.bias)
    return kind


def _reserve(file: h5py.File, name: str, shape: tuple[int, ...], kind: h5py.h5t.TypeID) -> int:
    """Create a dataset with its room reserved, and return where its bytes lie."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)  # equal rows are equal bytes
    file.require_group(name.rpartition("/")[0] or "/")
    dataset = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plist)
    return int(dataset.get_offset())
