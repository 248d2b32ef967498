"""Rows of Zarr arrays, chunk by chunk through the library.

This module imports zarr; import it only where an array is about to be opened.
"""

from __future__ import annotations

import os
import warnings
from itertools import product
from math import prod

import numpy as np
import zarr
from zarr.storage import LocalStore

from streamattn_cli.errors import InputMalformed, damaged
from streamattn_cli.rows.dtypes import DTYPES, storage_of
from streamattn_cli.rows.formats.missing import PartlyStored, within
from streamattn_cli.rows.formats.zarrchunks import SPARE, Chunks, codecs_of
from streamattn_cli.rows.tensors.layout import Extent
from streamattn_cli.rows.tensors.stored import Stored

LARGEST = 1 << 31  # bytes of a chunk
PATTERNS = {DTYPES[name].torch[1]: name for name in ("bf16", "f8e4m3", "f8e5m2")}  # without a NumPy dtype


def zarr_array(path: str, name: str, label: str, described: dict, attrs: dict, wanted: str | None) -> Stored:
    """The array `name` of the folder `path`, as its metadata `described` says. Raises InputMalformed."""
    codecs = codecs_of(described, label)
    array, told = _opened(path, name, label, described)
    dtype, note = (told, None) if told else storage_of(array.dtype, label, wanted)
    shape, chunk, shard = array.shape, array.chunks, array.shards
    if len(chunk) != len(shape) or not all(chunk) or not 0 < prod(chunk) * DTYPES[dtype].itemsize <= LARGEST:
        raise InputMalformed(f"{label}: chunks of shape {chunk} found; save it in chunks of less than {LARGEST} bytes")
    if shard and any(s % c for s, c in zip(shard, chunk, strict=True)):
        raise damaged(label, f"shards {shard} of chunks {chunk} that do not fill them")
    places = os.path.join(path, name)
    flat = (shape or (1,), chunk or (1,), shard if shard is None else shard or (1,))
    chunks = Chunks(places, described, codecs, *flat, DTYPES[dtype].itemsize, label)

    def open_(extent: Extent) -> ZarrTensor:
        return ZarrTensor(array, chunks, extent, dtype, path, label)

    return Stored(label, shape, dtype, open_, attrs, (note,) if note else ())


def zarr_integers(path: str, name: str, label: str, described: dict, most: int) -> np.ndarray | None:
    """The whole array `name`, of whole numbers or bool and no more than `most`; None for any other. Raises InputMalformed."""
    codecs_of(described, label)
    array, told = _opened(path, name, label, described)
    if told or array.dtype.kind not in "iub" or max(prod(array.shape), prod(array.chunks)) > most:
        return None
    try:
        return np.asarray(array[...])
    except Exception as error:  # of damaged chunks, too
        raise damaged(label, f"unreadable: {error}") from error


def _opened(path: str, name: str, label: str, described: dict) -> tuple[zarr.Array, str | None]:
    """The library's array, and the storage dtype where it knows that as a bit pattern only."""
    kind = described.get("data_type", described.get("dtype"))
    told = PATTERNS.get(kind) if isinstance(kind, str) else None
    described = {key: value for key, value in described.items() if key not in ("attributes", "dimension_names")}
    if told:
        plain = f"uint{8 * DTYPES[told].itemsize}"
        described |= {"data_type": plain} if "data_type" in described else {"dtype": np.dtype(plain).str}
        described |= {"fill_value": 0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of codecs that version 3 does not describe
            place = zarr.storage.StorePath(LocalStore(path, read_only=True), name)
            array = zarr.Array.from_dict(place, described)
            return array, (array.chunks, array.shards) and told
    except Exception as error:  # of damaged metadata the library raises whatever its parsing meets
        raise damaged(label, f"unreadable as a Zarr array: {error}") from error


class ZarrTensor(PartlyStored):
    """A RowTensor over an array in chunks. Reads are cut at the borders of chunks, and a band (all chunks that share rows)
    that is not read at once is kept, so that each chunk is decoded once per pass."""

    mend = "write them (zarr leaves out chunks of zeros unless write_empty_chunks is true)"

    def __init__(self, array: zarr.Array, chunks: Chunks, extent: Extent, dtype: str, path: str, name: str):
        super().__init__(name, path, extent, dtype)
        self._array, self._chunks, self._axis = array, chunks, extent.layout.index("T")
        self._each = extent.outer // extent.batch  # segments of one batch
        self._size = min(chunks.chunk[self._axis], max(1, extent.count))  # rows of a band
        self.missing = chunks.holes(self._axis)
        self._kept: tuple[tuple[int, int | None], np.ndarray] | None = None
        item = DTYPES[dtype].itemsize
        band = extent.side_by_side * self._size * extent.width * item
        # a chunk as it is stored, decoded, as the library gives it, and one more between two codecs
        self.held_bytes = band + 4 * chunks.most + SPARE + 4 * chunks.index_bytes

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        """See RowTensor; `segment` is the first of a batch, and buf has the segments of that batch."""
        count = self.there(buf, start, segment)
        batch = None if segment is None else segment // self._each
        if lost := within(self.missing, start, start + count):
            self.refuse_missing(*lost)
        shape = self._chunks.shape
        before = shape[: self._axis] if batch is None else (1, *shape[1 : self._axis])
        whole = buf.reshape(*before, buf.shape[1], *shape[self._axis + 1 :])
        at = start
        while at < start + count:
            band = at // self._size
            first, last = band * self._size, min(self.rows, (band + 1) * self._size)
            stop = min(start + count, last)
            into = self._rows(whole, at - start, stop - start)
            if (at, stop) == (first, last):
                self._load(band, batch, into)
            else:
                into[...] = self._rows(self._band(band, batch, last - first, whole), at - first, stop - first)
            at = stop
        return count

    def _rows(self, array: np.ndarray, first: int, last: int) -> np.ndarray:
        return array[(slice(None),) * self._axis + (slice(first, last),)]

    def _band(self, band: int, batch: int | None, rows: int, like: np.ndarray) -> np.ndarray:
        """All rows of a band, from memory if they were the last."""
        if self._kept is None or self._kept[0] != (band, batch):
            self._kept = None  # give it back before the next is made
            made = np.empty(like.shape[: self._axis] + (rows,) + like.shape[self._axis + 1 :], like.dtype)
            self._load(band, batch, made)
            self._kept = (band, batch), made
        return self._kept[1]

    def _load(self, band: int, batch: int | None, into: np.ndarray) -> None:
        """Every chunk of a band, of one batch or of all, to its place."""
        first = [0] * into.ndim
        first[self._axis] = band * self._size
        if batch is not None:
            first[0] = batch
        last = [a + size for a, size in zip(first, into.shape, strict=True)]
        chunk = self._chunks.chunk
        numbers = [range(a // c, (b - 1) // c + 1) for a, b, c in zip(first, last, chunk, strict=True)]
        for at in product(*numbers):
            self._chunks.check(at)
            low = [max(a, i * c) for a, i, c in zip(first, at, chunk, strict=True)]
            high = [min(b, (i + 1) * c) for b, i, c in zip(last, at, chunk, strict=True)]
            place = tuple(slice(a - f, b - f) for a, b, f in zip(low, high, first, strict=True))
            into[place] = self._decoded(tuple(map(slice, low, high)), at).view(into.dtype)

    def _decoded(self, items: tuple[slice, ...], at: tuple[int, ...]) -> np.ndarray:
        try:
            return np.asarray(self._array[items if self._array.ndim else ()]).reshape([s.stop - s.start for s in items])
        except Exception as error:  # of a damaged chunk the codecs raise whatever they meet
            raise damaged(self.name, f"chunk {'.'.join(map(str, at))} cannot be read ({error})") from error

    def close(self) -> None:
        """Give the kept band back."""
        self._kept = None
