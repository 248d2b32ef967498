"""Rows of a dataset that no file stores: chunks that were never written, sources that are missing or too short.

The library gives a fill value for them, or leaves memory as it was, without a word.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from math import ceil, prod
from typing import Protocol

import h5py
import numpy as np

from streamattn_cli.rows.formats.missing import Intervals, merged

SPARE_FILES = 64  # descriptors that are left to others where a virtual dataset opens all of its sources


def holes(dataset: h5py.Dataset, axis: int) -> Intervals:
    """The rows (items along `axis`) of a dataset that are not stored, or not all of them."""
    rows, layout = dataset.shape[axis], dataset.id.get_create_plist().get_layout()
    if not dataset.size:
        return []
    if layout == h5py.h5d.CHUNKED:
        return _of_chunks(dataset, axis)
    if layout == h5py.h5d.CONTIGUOUS:
        return _of_one_piece(dataset, axis)
    if layout == h5py.h5d.VIRTUAL:
        return _of_sources(dataset, axis)
    return [] if layout == h5py.h5d.COMPACT else [(0, rows)]


def _of_chunks(dataset: h5py.Dataset, axis: int) -> Intervals:
    grid = [ceil(items / chunk) for items, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
    if dataset.id.get_num_chunks() == prod(grid):
        return []
    size, stored = dataset.chunks[axis], np.zeros(grid[axis], np.int64)

    def count(info: h5py.h5d.StoreInfo) -> None:
        stored[info.chunk_offset[axis] // size] += 1

    dataset.id.chunk_iter(count)
    lacking = np.flatnonzero(stored < prod(grid) // grid[axis])
    return merged((int(i) * size, min((int(i) + 1) * size, dataset.shape[axis])) for i in lacking)


def _of_one_piece(dataset: h5py.Dataset, axis: int) -> Intervals:
    rows, plist = dataset.shape[axis], dataset.id.get_create_plist()
    if plist.get_external_count() == 0:
        return [] if dataset.id.get_storage_size() else [(0, rows)]
    there, wanted = 0, dataset.size * dataset.dtype.itemsize
    for index in range(plist.get_external_count()):
        name, offset, size = plist.get_external(index)
        path = _raw_file(name)
        size = wanted - there if size >= h5py.h5f.UNLIMITED else size
        held = max(0, os.path.getsize(path) - offset) if os.path.isfile(path) else 0
        there += min(size, held)
        if held < size:
            break
    if there >= wanted:
        return []
    return [(there // (wanted // rows) if axis == 0 else 0, rows)]


def _raw_file(name: bytes) -> str:
    return os.path.join(os.environ.get("HDF5_EXTFILE_PREFIX", ""), os.fsdecode(name))


def other_files(dataset: h5py.Dataset) -> tuple[str, ...]:
    """Files that hold rows of a dataset, beside its own: the sources of a virtual one, and raw ones."""
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        found = (_file_of(dataset, source) for source in dataset.virtual_sources())
        return tuple(dict.fromkeys(filter(None, found)))
    return tuple(_raw_file(plist.get_external(index)[0]) for index in range(plist.get_external_count()))


def _of_sources(dataset: h5py.Dataset, axis: int) -> Intervals:
    """Items of every row that the sources hold, added up between the borders of the regions that they fill."""
    rows, sources = dataset.shape[axis], dataset.virtual_sources()
    if not _room_for({source.file_name for source in sources}):
        return [(0, rows)]
    change: dict[int, float] = {0: 0.0, rows: 0.0}
    for source in sources:
        low, high = (int(bound[axis]) for bound in source.vspace.get_select_bounds())
        density = source.vspace.get_select_npoints() / (high + 1 - low)
        for first, last, sign in ((low, high + 1, 1), *((*hole, -1) for hole in _lacking(dataset, source, axis))):
            change[first] = change.get(first, 0.0) + sign * density
            change[last] = change.get(last, 0.0) - sign * density
    full, held, found = dataset.size // rows, 0.0, []
    borders = sorted(border for border in change if border <= rows)
    for first, last in zip(borders, borders[1:], strict=False):
        held += change[first]
        if round(held) < full:
            found.append((first, last))
    return merged(found)


class Source(Protocol):
    """One source of a virtual dataset, as h5py tells of it."""

    file_name: str
    dset_name: str
    src_space: h5py.h5s.SpaceID
    vspace: h5py.h5s.SpaceID


def _lacking(dataset: h5py.Dataset, source: Source, axis: int) -> Intervals:
    """The rows of a virtual dataset that are not stored of those that it takes from this source."""
    if os.fsdecode(source.file_name) == ".":
        return _lacking_in(dataset.file, source, axis)
    if path := _file_of(dataset, source):
        with suppress(OSError), h5py.File(path, "r") as file:
            return _lacking_in(file, source, axis)
    low, high = (int(bound[axis]) for bound in source.vspace.get_select_bounds())
    return [(low, high + 1)]


def _file_of(dataset: h5py.Dataset, source: Source) -> str | None:
    """Where the library looks for the file of a source; None: nowhere is one."""
    folder = os.path.dirname(os.path.abspath(os.fsdecode(dataset.file.filename)))
    places = (os.environ.get("HDF5_VDS_PREFIX", folder), folder, "")
    paths = (os.path.join(place, os.fsdecode(source.file_name)) for place in places)
    return next(filter(os.path.isfile, paths), None)


def _lacking_in(file: h5py.File, source: Source, axis: int) -> Intervals:
    found = file.get(source.dset_name)
    low, high = (int(bound[axis]) for bound in source.vspace.get_select_bounds())
    nothing = [(low, high + 1)]
    if not isinstance(found, h5py.Dataset):
        return nothing
    asked = source.src_space.get_simple_extent_dims()
    if asked:
        enough = len(asked) == len(found.shape) and all(a <= b for a, b in zip(asked, found.shape, strict=True))
    else:  # all of it
        enough = found.size >= source.vspace.get_select_npoints()
    if not enough:
        return nothing
    along = _along(source, found, axis)
    if along is None:
        return nothing if holes(found, 0) else []
    moved = [(first + low - along[1], last + low - along[1]) for first, last in holes(found, along[0])]
    return [(max(first, low), min(last, high + 1)) for first, last in moved if first <= high and last > low]


def _along(source: Source, found: h5py.Dataset, axis: int) -> tuple[int, int] | None:
    """The axis of the source that runs along `axis`, and its first item that is taken, where boxes of the same shape but for
    axes of one item are taken; None elsewhere."""
    first, shapes = [0] * found.ndim, [found.shape]
    for space in (source.src_space, source.vspace):
        if space.get_simple_extent_dims():
            low, high = space.get_select_bounds()
            shape = tuple(int(b) - int(a) + 1 for a, b in zip(low, high, strict=True))
            if prod(shape) != space.get_select_npoints():
                return None
            shapes.append(shape)
            first = list(map(int, low)) if space is source.src_space else first
    there, here = shapes[-2:]
    wide = [[i for i, size in enumerate(shape) if size > 1] for shape in (here, there)]
    if [here[i] for i in wide[0]] != [there[i] for i in wide[1]] or axis not in wide[0]:
        return None
    place = wide[1][wide[0].index(axis)]
    return place, first[place]


def _room_for(files: set[str]) -> bool:
    """Whether so many files can be open at a time; the limit is raised where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(files) + SPARE_FILES
    if soft != resource.RLIM_INFINITY and wanted > soft:
        if hard != resource.RLIM_INFINITY and wanted > hard:
            return False
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True
