"""One HDF5 file with the datasets q, k, v (those that are made), each (rows, heads, dim), contiguous.

This module imports h5py; import it only where such a file is about to be written.
"""

from __future__ import annotations

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
    """Rows of several tensors into one temporary file that gets its name at `commit`.

    parts: (name, heads, dim) for each tensor; dtype: a storage dtype, bf16 becoming a custom HDF5 float.
    """

    def __init__(self, path: str, rows: int, parts: list[tuple[str, int, int]], dtype: str):
        self.name = path
        self._itemsize = DTYPES[dtype].itemsize
        self._widths = [heads * dim for _, heads, dim in parts]
        with failing_as_output(path):
            self._temporary = Temporary(path)
        with self._or_abort(), h5py.File(self._temporary.path, "w") as file:
            kind = file_type(dtype)
            self._offsets = [_reserve(file, name, (rows, heads, dim), kind) for name, heads, dim in parts]

    def write(self, start: int, arrays: list[np.ndarray]) -> None:
        """Rows start.. of every tensor, each (n, heads * dim) in storage dtype and C-contiguous."""
        with self._or_abort():
            for array, offset, width in zip(arrays, self._offsets, self._widths, strict=True):
                place = offset + start * width * self._itemsize
                pwrite_all(self._temporary.fd, memoryview(array.reshape(-1)).cast("B"), place)

    def commit(self, meta: dict) -> None:
        """Add `meta` as the file's attributes and give the file its name."""
        with self._or_abort():
            with h5py.File(self._temporary.path, "r+") as file:
                set_attributes(file, meta)
            self._temporary.commit()

    def abort(self) -> None:
        """Leave nothing behind; does nothing after `commit`."""
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
    dataset = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plist)
    return int(dataset.get_offset())
