"""HDF5 outputs: a dataset `out`, with how it was made as the file's attributes; or a dataset that is added to a file, with
attributes of its own.

This module imports h5py; import it only where an HDF5 file is about to be written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from streamattn_cli.errors import SourceChanged, UsageError
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.fileout import Format, PlacedWriter, clear_padding
from streamattn_cli.rows.writers.hdf5file import PatientFile
from streamattn_cli.rows.writers.outshape import OutShape
from streamattn_cli.rows.writers.temporary import Temporary, Unfinished, failing_as_output, or_abort

_CHUNK_BYTES = 1 << 18


def set_attributes(file: h5py.Group | h5py.Dataset, meta: dict) -> None:
    """Plain values and arrays as they are, everything else as JSON."""
    for key, value in meta.items():
        plain = isinstance(value, (str, int, float, bool, np.ndarray))
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


def check_dataset(path: str, dataset: str, force: bool) -> None:
    """Refuse (UsageError) a dataset that cannot be added to the file, or is there already and may not be replaced."""
    if not os.path.exists(path):
        return
    advice = f"choose another name after {path}:"
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = file.get(dataset)
            if isinstance(found, h5py.Group):
                raise UsageError(f"{path}: {dataset} is a group, expected the name of a dataset; {advice}")
            if found is not None and not force:
                raise UsageError(f"{path}: there is a dataset {dataset} already; --force replaces it, or {advice}")
            above = dataset
            while above := above.rpartition("/")[0]:
                if isinstance(file.get(above), h5py.Dataset):
                    raise UsageError(f"{path}: {above} is a dataset, in which there can be no {dataset}; {advice}")
    except OSError as error:
        raise UsageError(f"{path}: no HDF5 file that can be read ({error}), to which {dataset} could be added; name another "
                         "file") from error  # fmt: skip


class _Base:
    """The file that a dataset is added to: copied when the run begins, and the same when it ends."""

    def __init__(self, temporary: Temporary):
        self._path = temporary.final
        self.there = os.path.isfile(self._path)
        self._state = self._now()
        if self.there:
            with open(self._path, "rb") as file, os.fdopen(os.dup(temporary.fd), "wb") as copy:
                shutil.copyfileobj(file, copy, _CHUNK_BYTES)

    def check(self) -> None:
        """Refuse (SourceChanged) to replace what somebody else has written meanwhile."""
        if self._now() != self._state:
            raise SourceChanged(
                f"{self._path}: changed while a dataset was made for it; it was left as it is. Run again"
            )

    def _now(self) -> tuple[int, ...] | None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _put(file: h5py.File, dataset: str) -> None:
    """Make room for a dataset: without one of its name, and in groups that are there."""
    if dataset in file:
        del file[dataset]
    if above := dataset.rpartition("/")[0]:
        file.require_group(above)


def contiguous(file: h5py.File, name: str, shape: tuple[int, ...], kind: h5py.h5t.TypeID) -> int:
    """Create a dataset with its room reserved, and return where its bytes lie."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)  # equal results are equal bytes
    _put(file, name)
    made = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plist)
    return int(made.get_offset() or 0)


def _for_answers(file: h5py.File, name: str, shape: OutShape, rows: int | None) -> int:
    return contiguous(file, name, shape.shape(rows or 0), h5py.h5t.py_create(shape.dtype))


class Hdf5Format(Format):
    """A contiguous dataset, laid out by the library and filled by plain writes."""

    def __init__(self, added: str | None = None):
        """added: the dataset that is added to a file; None for a file of its own."""
        self.adds = added is not None
        self._name = added or "/out"
        self._base: _Base | None = None

    def begin(self, temporary: Temporary, shape: OutShape, rows: int | None) -> int:
        """Create the dataset with its room reserved, and return where its bytes lie."""
        self._base = _Base(temporary) if self.adds else None
        with _edited(temporary.fd, "r+" if self._base and self._base.there else "w") as file:
            return _for_answers(file, self._name, shape, rows)

    def again(self, temporary: Temporary) -> int:
        """Where the dataset's bytes lie."""
        with _edited(temporary.fd, "r+") as file:
            return file[self._name].id.get_offset() or 0

    def finish(self, temporary: Temporary, shape: OutShape, rows: int, meta: dict) -> None:
        """Add the attributes and commit."""
        with _edited(temporary.fd, "r+") as file:
            set_attributes(file[self._name] if self.adds else file, meta)
        if self._base:
            self._base.check()
        temporary.commit()


class JointFile(Unfinished):
    """One HDF5 file of several datasets, each filled by a writer of its own; it gets its name when all are complete."""

    def __init__(
        self, path: str, shapes: dict[str, tuple[OutShape, int]], part: str | None = None, tag: str | None = None
    ):
        """shapes: dataset -> its shape and rows. part: the unfinished file of an earlier run; tag: see Temporary."""
        with failing_as_output(path):
            self._temporary = Temporary(path, part, tag)
        self.name, self.fd, self._places = path, self._temporary.fd, {}
        self._told: list[tuple[str, dict | None]] = []  # what is left to be done to the datasets
        new = []
        with or_abort(self):
            with _edited(self.fd, "r+" if part else "w") as file:
                for name, (shape, rows) in shapes.items():
                    if part and name in file:
                        self._places[name] = file[name].id.get_offset()
                    else:
                        self._places[name] = _for_answers(file, name, shape, rows)
                        new.append(name)
            for name in new:  # not when it is opened: what an earlier run has answered stays
                clear_padding(self.fd, self._places[name], *shapes[name])

    def open(self, dataset: str, shape: OutShape, rows: int) -> PlacedWriter:
        """A writer of one of the datasets, whose attributes say how it was made."""
        place = _OfJoint(self._places[dataset], dataset, self.tell)
        return PlacedWriter(self.name, rows, shape, place, temporary=_Kept(self._temporary))

    def tell(self, dataset: str, meta: dict) -> None:
        """A dataset is complete: `meta` will be its attributes."""
        self._told.append((dataset, meta))

    def remove(self, dataset: str) -> None:
        """A dataset will be left out, with the groups that would be empty."""
        self._told.append((dataset, None))

    def keep(self) -> str:
        """From now on `abort` leaves the unfinished file, for a later run to continue; returns its name in the folder."""
        self._lasting = True
        return self._temporary.part

    def commit(self) -> None:
        """All datasets are complete: give the file its name. Until then its structure stays as it was made, so that a job that
        is stopped and resumed makes the same file."""
        with failing_as_output(self.name):
            for dataset, meta in self._told:
                with _edited(self.fd, "r+") as file:
                    if meta is None:
                        _leave_out(file, dataset)
                    else:
                        set_attributes(file[dataset], meta)
            self._temporary.commit()


def _leave_out(file: h5py.File, dataset: str) -> None:
    while dataset and not (isinstance(file[dataset], h5py.Group) and len(file[dataset])):
        del file[dataset]
        dataset = dataset.rpartition("/")[0]


class _Kept(Temporary):
    """The unfinished file of a JointFile, as one of its writers sees it: it neither ends nor names it."""

    def __init__(self, all_: Temporary):
        self.fd, self.path = all_.fd, all_.path

    def keep(self) -> None:
        """It is kept anyway."""

    def abort(self) -> None:
        """The others go on."""


class _OfJoint(Format):
    """A dataset of a JointFile, which has its place already."""

    def __init__(self, offset: int, dataset: str, tell: Callable[[str, dict], None]):
        self._offset, self._dataset, self._tell = offset, dataset, tell

    def begin(self, temporary: Temporary, shape: OutShape, rows: int | None) -> int:
        """Where the dataset's bytes lie."""
        return self._offset

    def finish(self, temporary: Temporary, shape: OutShape, rows: int, meta: dict) -> None:
        """Leave the attributes to the whole file."""
        self._tell(self._dataset, meta)


class GrowingHdf5Writer(Unfinished, Writer):
    """A Writer of a chunked dataset that grows with its rows, for pipes that do not say how many come."""

    unresumable = "an .h5 output of unknown length cannot be resumed; use .npy"

    def __init__(self, path: str, shape: OutShape, added: str | None = None):
        """added: see Hdf5Format."""
        self.name = path
        self._added = added
        self.rows_written = 0
        self._shape = shape
        self._axis = shape.layout.index("T")
        self._file: Any = None  # h5py.File, once it is open
        with failing_as_output(path):
            self._temporary = Temporary(path)
        self._patient = PatientFile(self._temporary.fd)
        with self._or_abort():
            self._base = _Base(self._temporary) if added else None
            self._patient = PatientFile(self._temporary.fd)  # of the length that it has now
            self._file = h5py.File(self._patient, "r+" if self._base and self._base.there else "w")
            _put(self._file, added or "/out")
            self._dataset = self._create()

    def _create(self) -> h5py.Dataset:
        rows = max(1, _CHUNK_BYTES // self._shape.row_bytes)
        empty = self._shape.shape(0)
        limit = tuple(None if axis == self._axis else items for axis, items in enumerate(empty))
        chunks = self._shape.shape(rows)
        return self._file.create_dataset(self._added or "out", empty, self._shape.dtype, chunks=chunks, maxshape=limit)

    @contextmanager
    def _or_abort(self) -> Iterator[None]:
        """Any error removes the file."""
        with or_abort(self):
            try:
                yield
            finally:
                self._patient.check()  # the cause of whatever else went wrong

    def write(self, start: int, block: np.ndarray) -> None:
        self._shape.check(block, start, self.rows_written)
        stop = start + len(block)
        with self._or_abort():
            self._dataset.resize(stop, self._axis)
            place = (slice(None),) * self._axis + (slice(start, stop),)
            self._dataset[place] = self._shape.cut(block)[0].reshape(self._shape.shape(len(block)))
        self.rows_written = stop

    def commit(self, meta: dict) -> None:
        with self._or_abort():
            set_attributes(self._dataset if self._added else self._file, meta)
            self._file.close()
            self._patient.check()
            if self._base:
                self._base.check()
            self._temporary.commit()

    def abort(self) -> None:
        try:
            if self._file is not None:
                self._file.close()  # before its descriptor
        finally:
            super().abort()
