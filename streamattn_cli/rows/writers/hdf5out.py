"""HDF5 outputs: a dataset `out`, with how it was made as the file's attributes.

This module imports h5py; import it only where an HDF5 file is about to be written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import h5py
import numpy as np

from streamattn_cli.rows.writers.hdf5file import PatientFile
from streamattn_cli.rows.writers.outshape import OutShape
from streamattn_cli.rows.writers.temporary import Temporary, failing_as_output

_CHUNK_BYTES = 1 << 18


def set_attributes(file: h5py.File, meta: dict) -> None:
    """Plain values as they are, everything else as JSON."""
    for key, value in meta.items():
        plain = isinstance(value, (str, int, float, bool))
        file.attrs[key] = value if plain else json.dumps(value, sort_keys=True)


@contextmanager
def _edited(fd: int, mode: str) -> Iterator[h5py.File]:
    """The file behind a descriptor, 'w' new or 'r+' as it is. Raises the OSError of any write that failed."""
    patient = PatientFile(fd)
    try:
        with h5py.File(patient, mode) as file:
            yield file
    finally:
        patient.check()  # the cause of whatever else went wrong


class Hdf5Format:
    """See fileout.Format: a contiguous dataset, laid out by the library and filled by plain writes."""

    def begin(self, temporary: Temporary, shape: OutShape, rows: int | None) -> int:
        """Create the dataset with its room reserved, and return where its bytes lie."""
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.CONTIGUOUS)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        plist.set_obj_track_times(False)  # equal results are equal bytes
        with _edited(temporary.fd, "w") as file:
            space = h5py.h5s.create_simple(shape.shape(rows))
            dataset = h5py.h5d.create(file.id, b"out", h5py.h5t.py_create(shape.dtype), space, plist)
            return dataset.get_offset() or 0

    def again(self, temporary: Temporary) -> int:
        """Where the dataset's bytes lie."""
        with _edited(temporary.fd, "r+") as file:
            return file["out"].id.get_offset() or 0

    def finish(self, temporary: Temporary, shape: OutShape, rows: int, meta: dict) -> None:
        """Add the attributes and commit."""
        with _edited(temporary.fd, "r+") as file:
            set_attributes(file, meta)
        temporary.commit()


class GrowingHdf5Writer:
    """A Writer of a chunked dataset that grows with its rows, for pipes that do not say how many come."""

    def __init__(self, path: str, shape: OutShape):
        self.name = path
        self.rows_written = 0
        self._shape = shape
        self._axis = shape.layout.index("T")
        self._file: h5py.File | None = None
        with failing_as_output(path):
            self._temporary = Temporary(path)
        self._patient = PatientFile(self._temporary.fd)
        with self._or_abort():
            self._file = h5py.File(self._patient, "w")
            self._dataset = self._create()

    def _create(self) -> h5py.Dataset:
        rows = max(1, _CHUNK_BYTES // self._shape.row_bytes)
        empty = self._shape.shape(0)
        limit = tuple(None if axis == self._axis else items for axis, items in enumerate(empty))
        chunks = self._shape.shape(rows)
        return self._file.create_dataset("out", empty, self._shape.dtype, chunks=chunks, maxshape=limit)

    @contextmanager
    def _or_abort(self) -> Iterator[None]:
        """Any error removes the file."""
        try:
            with failing_as_output(self.name):
                try:
                    yield
                finally:
                    self._patient.check()  # the cause of whatever else went wrong
        except BaseException:
            self.abort()
            raise

    def write(self, start: int, block: np.ndarray) -> None:
        """See writer.Writer."""
        self._shape.check(block, start, self.rows_written)
        stop = start + len(block)
        with self._or_abort():
            self._dataset.resize(stop, self._axis)
            place = (slice(None),) * self._axis + (slice(start, stop),)
            self._dataset[place] = self._shape.cut(block)[0].reshape(self._shape.shape(len(block)))
        self.rows_written = stop

    def commit(self, meta: dict) -> None:
        """See writer.Writer."""
        with self._or_abort():
            set_attributes(self._file, meta)
            self._file.close()
            self._patient.check()
            self._temporary.commit()

    def abort(self) -> None:
        """See writer.Writer."""
        try:
            if self._file is not None:
                self._file.close()  # before its descriptor
        finally:
            self._temporary.abort()
