"""One HDF5 file with datasets q, k, v (those that are made, or those of several groups), each (rows, heads, dim), contiguous.

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
from streamattn_cli.rows.writers.hdf5out import contiguous, set_attributes
from streamattn_cli.rows.writers.temporary import Temporary, Unfinished, failing_as_output, or_abort


class Hdf5Dump(Unfinished):
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
        with failing_as_output(path):
            self._temporary = Temporary(path, going_on, tag)
        with self._or_abort(), h5py.File(self._temporary.path, "r" if going_on else "w") as file:
            if going_on:
                self._offsets = [int(file[name].id.get_offset()) for name, _, _ in parts]
                return
            kind = file_type(dtype)
            self._offsets = [contiguous(file, name, (rows, heads, dim), kind) for name, heads, dim in parts]
            for group, meta in (attributes or {}).items():
                set_attributes(file[group], meta)

    def write(self, start: int, arrays: list[np.ndarray], first: int = 0) -> None:
        """Rows start.. of the tensors from the one numbered `first` on, each (n, heads * dim) in storage dtype, C-contiguous."""
        with self._or_abort():
            for number, array in enumerate(arrays, first):
                place = self._offsets[number] + start * self._widths[number] * self._itemsize
                pwrite_all(self._temporary.fd, memoryview(array.reshape(-1)).cast("B"), place)

    def commit(self, meta: dict) -> None:
        """Add `meta` as the file's attributes and give the file its name."""
        with self._or_abort():
            if meta:
                with h5py.File(self._temporary.path, "r+") as file:
                    set_attributes(file, meta)
            self._temporary.commit()

    @contextmanager
    def _or_abort(self) -> Iterator[None]:
        """Any error removes the file; the library's own become OutputFailed."""
        with or_abort(self):
            try:
                yield
            except RuntimeError as error:  # what h5py raises where flushing or closing fails
                raise OutputFailed(f"{self.name}: cannot be written: {error}") from error


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
