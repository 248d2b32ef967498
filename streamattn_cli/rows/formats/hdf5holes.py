"""Rows of a dataset that no file stores: chunks that were never written, sources that are missing or too short.

The library gives a fill value for them, or leaves memory as it was, without a word.
"""

from __future__ import annotations

import os
import resource
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
        path = os.path.join(os.environ.get("HDF5_EXTFILE_PREFIX", ""), os.fsdecode(name))
        size = wanted - there if size >= h5py.h5f.UNLIMITED else size
        held = max(0, os.path.getsize(path) - offset) if os.path.isfile(path) else 0
        there += min(size, held)
        if held < size:
            break
    if there >= wanted:
        return []
    return [(there // (wanted // rows) if axis == 0 else 0, rows)]


def _of_sources(dataset: h5py.Dataset, axis: int) -> Intervals:
    """Items of every row that the sources hold, added up between the borders of the regions that they fill."""
    rows, sources = dataset.shape[axis], dataset.virtual_sources()
    if not _room_for({source.file_name for source in sources}):
        return [(0, rows)]
    change: dict[int, float] = {0: 0.0, rows: 0.0}
    for source in sources:
        if not _whole(dataset, source):
            continue
        low, high = (int(bound[axis]) for bound in source.vspace.get_select_bounds())
        density = source.vspace.get_select_npoints() / (high + 1 - low)
        change[low] = change.get(low, 0.0) + density
        change[high + 1] = change.get(high + 1, 0.0) - density
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


def _whole(dataset: h5py.Dataset, source: Source) -> bool:
    """Whether a source is there with all that the virtual dataset takes from it."""
    name = os.fsdecode(source.file_name)
    folder = os.path.dirname(os.path.abspath(os.fsdecode(dataset.file.filename)))
    if name == ".":
        return _holds(dataset.file, source)
    for place in (os.environ.get("HDF5_VDS_PREFIX", folder), folder, ""):
        path = os.path.join(place, name)
        if os.path.isfile(path):
            try:
                with h5py.File(path, "r") as file:
                    return _holds(file, source)
            except OSError:
                return False
    return False


def _holds(file: h5py.File, source: Source) -> bool:
    found = file.get(source.dset_name)
    if not isinstance(found, h5py.Dataset):
        return False
    asked = source.src_space.get_simple_extent_dims()
    if asked:
        enough = len(asked) == len(found.shape) and all(a <= b for a, b in zip(asked, found.shape, strict=True))
    else:  # all of it
        enough = found.size >= source.vspace.get_select_npoints()
    return enough and not holes(found, 0)


def _room_for(files: set[str]) -> bool:
    """Whether so many files can be open at a time; the limit is raised where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(files) + SPARE_FILES
    if soft != resource.RLIM_INFINITY and wanted > soft:
        if hard != resource.RLIM_INFINITY and wanted > hard:
            return False
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True
