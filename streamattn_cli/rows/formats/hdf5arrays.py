"""HDF5: contiguous datasets are read in place like any raw file, the others band by band through the library.

This module imports h5py; import it only where an HDF5 file is about to be opened.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, prod

import h5py
import numpy as np

from streamattn_cli.errors import InputMalformed, InputMissing, damaged
from streamattn_cli.rows.attributes import plain
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.formats.hdf5holes import holes, other_files
from streamattn_cli.rows.formats.hdf5types import file_storage
from streamattn_cli.rows.formats.missing import PartlyStored, within
from streamattn_cli.rows.formats.names import advice, fused_advice
from streamattn_cli.rows.tensors.file import FileTensor
from streamattn_cli.rows.tensors.layout import Extent
from streamattn_cli.rows.tensors.stored import Stored

_FILTERS = {307: "bzip2", 32000: "lzf", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp",
            32015: "zstd", 32026: "blosc2"}  # fmt: skip


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems on which nothing can be locked


@contextmanager
def opened(path: str) -> Iterator[h5py.File]:
    """The file open for reading; InputMalformed where HDF5 cannot make sense of it."""
    try:
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            file = h5py.File(path, "r", locking=False)  # nobody else can have locked it either
    except OSError as error:
        raise InputMalformed(
            f"{path}: not readable as HDF5 (damaged, truncated, or still open for writing?): {error}"
        ) from error
    with file, readable(path):
        yield file


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns what h5py raises, whatever it is, where it meets damaged structures into InputMalformed."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise damaged(name, f"damaged or truncated HDF5 file: {error}") from error


def hdf5_arrays(path: str, names: dict[str, str], wanted: str | None = None) -> dict[str, Stored]:
    """The datasets `names` (key -> path in the file, '/k') of one file, with its attributes.

    Raises InputMissing listing the datasets that are there, and InputMalformed for unreadable ones.
    """
    with opened(path) as file:
        found = datasets_of(file)
        for dataset in names.values():
            if not isinstance(file.get(dataset), h5py.Dataset):
                alike = [name for name in found if name.rpartition("/")[2] == dataset.rpartition("/")[2]]
                name_it = f", or name one of them: {path}:{alike[0]}" if alike else fused_advice(path, found)
                told = advice(alike) + name_it
                raise InputMissing(
                    f"{path}: no dataset {dataset}; there are: {', '.join(found) or 'none at all'}{told}"
                )
        return {key: _stored(path, file[dataset], wanted) for key, dataset in names.items()}


def dataset_names(path: str) -> list[str]:
    """Paths of all datasets of a file, sorted."""
    with opened(path) as file:
        return datasets_of(file)


def datasets_of(file: h5py.File) -> list[str]:
    """Paths of all datasets of an open file, sorted."""
    found: list[str] = []

    def look(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            found.append("/" + name)
        else:
            len(item)  # raises for a damaged group, in which the library would go round for ever

    look("", file)
    file.visititems(look)
    return sorted(found)


def _stored(path: str, dataset: h5py.Dataset, wanted: str | None) -> Stored:
    name = f"{path}:{dataset.name}"
    dtype, native, note = file_storage(dataset.id.get_type(), name, wanted)
    _check_filters(dataset, name)
    offset = dataset.id.get_offset() if native and dataset.id.get_create_plist().get_external_count() == 0 else None
    inside, shape = dataset.name, dataset.shape
    if shape is None or (shape == () and offset is None):
        raise InputMalformed(f"{name}: a dataset without axes, expected rows; choose another dataset")
    path = os.fsdecode(dataset.file.filename)  # another file where the name is an external link

    def open_(extent: Extent) -> FileTensor | ChunkedTensor:
        if offset is not None:
            return FileTensor(path, offset, extent, dtype, name)
        return ChunkedTensor(path, inside, shape, extent, dtype)

    return Stored(name, shape, dtype, open_, _attributes(dataset, name), (note,) if note else ())


def _check_filters(dataset: h5py.Dataset, name: str) -> None:
    """Every filter of the dataset must be there before a byte is read."""
    plist = dataset.id.get_create_plist()
    for index in range(plist.get_nfilters()):
        code, _, _, label = plist.get_filter(index)
        if h5py.h5z.filter_avail(code) or _plugin_provides(code):
            continue
        known = _FILTERS.get(code) or label.decode("utf-8", "replace") or "unknown"
        raise InputMalformed(
            f"{name}: compressed with HDF5 filter {code} ({known}), which is not installed; "
            f"pip install 'streamattn-cli[filters]', or repack the file with h5repack -f GZIP=1"
        )


def _plugin_provides(code: int) -> bool:
    """Importing hdf5plugin registers its filters."""
    try:
        import hdf5plugin  # noqa: F401
    except ImportError:
        return False
    return bool(h5py.h5z.filter_avail(code))


def _attributes(dataset: h5py.Dataset, name: str) -> dict:
    """Attributes of one value of the root, the dataset's groups and the dataset itself, the nearest winning.

    Raises InputMalformed where one that is heard is of another kind.
    """
    groups = [dataset.file["/"], *(dataset.file[part] for part in _parents(dataset.name)), dataset]
    return plain((item for owner in groups for item in owner.attrs.items()), name)


def _parents(name: str) -> list[str]:
    """'/a/b/k' -> ['/a', '/a/b']."""
    parts = name.strip("/").split("/")[:-1]
    return ["/" + "/".join(parts[: i + 1]) for i in range(len(parts))]


class ChunkedTensor(PartlyStored):
    """A RowTensor over a dataset that only the library can read: chunked, compressed, compact or virtual.

    Reads are cut at chunk borders and the chunk cache holds one band (all chunks that share rows), so that every chunk
    is decompressed once per pass. Memory and file type are the same: the library copies bits, it converts nothing
    (its half precision conversion is a hundred times slower than ours).
    """

    mend = "complete the file"

    def __init__(self, path: str, dataset: str, shape: tuple[int, ...], extent: Extent, dtype: str):
        super().__init__(f"{path}:{dataset}", path, extent, dtype)
        self._shape = shape
        self._axis = extent.layout.index("T")
        self._apart = extent.apart
        self._each = extent.outer // extent.batch  # segments of one batch
        self._file = h5py.File(path, "r")
        try:
            with readable(self.name):
                self.missing = holes(self._file[dataset], self._axis)
                self.others = other_files(self._file[dataset])
                self._open(dataset)
        except BaseException:
            self.close()
            raise

    def _open(self, dataset: str) -> None:
        chunks, self._type = _chunks_and_type(self._file, dataset)
        self._band = chunks[self._axis] if chunks else max(1, self.rows)
        count, chunk_bytes = 0, 0
        if chunks:
            across = [ceil(s / c) for s, c in zip(self._shape, chunks, strict=True)]
            count = prod(across) // across[self._axis] // (across[0] if self._apart else 1)
            chunk_bytes = prod(chunks) * DTYPES[self.dtype].itemsize
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        # a chunk that was read to its end goes first (w0 = 1); the slot count is a prime well above the chunks held
        access.set_chunk_cache(_prime_above(10 * count), count * chunk_bytes, 1.0)
        self._dataset = h5py.h5d.open(self._file.id, dataset.encode(), access)
        # one chunk more, twice: its compressed bytes and the decompressor's output before it enters the cache
        self.held_bytes = (count + 2) * chunk_bytes

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        """See RowTensor; `segment` is the first of a batch, and buf has the segments of that batch."""
        count = self.there(buf, start, segment)
        batch = None if segment is None else segment // self._each
        if lost := within(self.missing, start, start + count):
            self.refuse_missing(*lost)
            buf[:, :count] = 0  # the library may leave such rows as they are
        at = start
        while at < start + count:
            stop = min(start + count, (at // self._band + 1) * self._band)
            self._read(buf, at - start, at, stop - at, batch)
            at = stop
        return count

    def _read(self, buf: np.ndarray, into: int, start: int, count: int, batch: int | None) -> None:
        """Rows [start, start+count), of one batch or of all, into buf[:, into:into+count]."""
        first, size = [0] * len(self._shape), list(self._shape)
        first[self._axis], size[self._axis] = start, count
        if batch is not None:
            first[0], size[0] = batch, 1
        source = self._dataset.get_space()
        source.select_hyperslab(tuple(first), tuple(size))
        target = h5py.h5s.create_simple(buf.shape)
        target.select_hyperslab((0, into, 0), (len(buf), count, self.width))
        try:
            self._dataset.read(target, source, buf, self._type)
        except OSError as error:
            raise InputMalformed(
                f"{self.name}: rows {start} to {start + count - 1} cannot be read (damaged chunk or "
                f"truncated file): {error}"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _chunks_and_type(file: h5py.File, dataset: str) -> tuple[tuple[int, ...] | None, h5py.h5t.TypeID]:
    """Chunk shape (None: not chunked) and the type to ask for: the file's own, little-endian.

    The dataset is closed again on return: while it is open anywhere, a new chunk cache size has no effect.
    """
    opened_plainly = h5py.h5d.open(file.id, dataset.encode())
    plist, found = opened_plainly.get_create_plist(), opened_plainly.get_type()
    if isinstance(found, (h5py.h5t.TypeFloatID, h5py.h5t.TypeIntegerID)) and found.get_order() != h5py.h5t.ORDER_LE:
        found = found.copy()
        found.set_order(h5py.h5t.ORDER_LE)
    return plist.get_chunk() if plist.get_layout() == h5py.h5d.CHUNKED else None, found


def _prime_above(n: int) -> int:
    """The smallest prime above max(n, 520)."""
    n = max(n, 520) + 1
    while any(n % d == 0 for d in range(2, int(n**0.5) + 1)):
        n += 1
    return n
