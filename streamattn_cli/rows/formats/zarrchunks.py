"""Where the chunks of a Zarr array are, which are there, and whether one is as large as it says before it is decoded.

What may run code when it is decoded (numcodecs has a codec of pickles) is refused, and so is what nobody can bound.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np

from streamattn_cli.errors import InputMalformed, damaged
from streamattn_cli.rows.formats.missing import Intervals, merged

COMPRESSORS = ("blosc", "zstd", "lz4", "gzip", "zlib")
FILTERS = ("shuffle", "delta", "bitround", "quantize", "fixedscaleoffset")  # of as many items as they are given
ABSENT = np.uint64(2**64 - 1)  # offset and size of a chunk that a shard does not have
HEAD = 32  # bytes of a compressed chunk that say how long it will be
SPARE = 1 << 16  # bytes that a stored chunk may have beyond its items
STEP = 1 << 18


@dataclass(frozen=True)
class Codecs:
    """How the bytes of a chunk were made: the compressor, bytes of a checksum behind, and where the index of a shard is."""

    compressor: str | None
    index: str | None = None  # "start" or "end"; None: no shards
    index_checksum: int = 0  # bytes behind the index


def codecs_of(described: dict, name: str) -> Codecs:
    """Those that an array's metadata names. InputMalformed for others than we know to be harmless."""
    if described.get("zarr_format") == 2:
        filters = [_id(entry, name) for entry in described.get("filters") or []]
        _refuse_unknown([word for word in filters if word not in FILTERS], name)
        compressor = described.get("compressor")
        found = _id(compressor, name) if compressor is not None else None
        _refuse_unknown([found] if found not in (None, *COMPRESSORS) else [], name)
        return Codecs(found)
    codecs = described.get("codecs")
    if isinstance(codecs, list) and len(codecs) == 1 and _id(codecs[0], name) == "sharding_indexed":
        config = codecs[0].get("configuration")
        inner = config if isinstance(config, dict) else {}
        index = [_id(entry, name) for entry in _list(inner.get("index_codecs"), name)]
        place = inner.get("index_location", "end")
        known = index in (["bytes"], ["bytes", "crc32c"]) and place in ("start", "end")
        if not known or "big" in str(inner["index_codecs"]):
            told = f"its shards have an index of codecs {index} at {place!r}"
            raise InputMalformed(f"{name}: {told}; save it without shards")
        return Codecs(_chain(inner.get("codecs"), name), place, 4 * (len(index) - 1))
    return Codecs(_chain(codecs, name))


def _chain(codecs: object, name: str) -> str | None:
    """The compressor in a chain of version 3, if there is one."""
    words = [_id(entry, name) for entry in _list(codecs, name)]
    kinds = "".join("a" if w in ("transpose", *FILTERS[1:]) else "b" if w == "bytes" else "c" if w in COMPRESSORS
                    else "s" if w in ("crc32c", "shuffle") else "?" for w in words)  # fmt: skip
    _refuse_unknown([word for word, kind in zip(words, kinds, strict=True) if kind == "?"], name)
    if not re.fullmatch("a*bs*c?s?", kinds):
        raise InputMalformed(f"{name}: codecs {', '.join(words)} in this order; save it with one compressor")
    return next((word for word in words if word in COMPRESSORS), None)


def _id(entry: object, name: str) -> str:
    found = entry.get("id", entry.get("name")) if isinstance(entry, dict) else entry
    if not isinstance(found, str):
        raise damaged(name, "unreadable metadata: a codec without a name")
    return found.removeprefix("numcodecs.")


def _list(found: object, name: str) -> list:
    if not isinstance(found, list) or not found:
        raise damaged(name, "unreadable metadata: no list of codecs")
    return found


def _refuse_unknown(words: Sequence[str | None], name: str) -> None:
    if words:
        known = ", ".join((*COMPRESSORS, *FILTERS))
        raise InputMalformed(f"{name}: saved with the codec {words[0]}, which is not read; save it with one of {known}")


class Chunks:
    """The files of an array: `shape` in chunks of `chunk`, several of them in a file of `shard` items where there are
    shards. `item`: bytes of one."""

    def __init__(
        self, folder: str, described: dict, codecs: Codecs, shape: tuple[int, ...], chunk: tuple[int, ...],
        shard: tuple[int, ...] | None, item: int, name: str,
    ):  # fmt: skip
        self.folder, self.codecs, self.shape, self.chunk, self.name = folder, codecs, shape, chunk, name
        self.most = prod(chunk) * item
        self._each = tuple(s // c for s, c in zip(shard or chunk, chunk, strict=True))  # chunks of a file
        self._prefix, self._between = _keys(described, name)
        self._alone = "c" if self._prefix and not described["shape"] else None  # the only file of an array without axes

    @property
    def index_bytes(self) -> int:
        """Of one shard, 0 where there are none."""
        return 16 * prod(self._each) + self.codecs.index_checksum if self.codecs.index else 0

    def holes(self, axis: int) -> Intervals:
        """Rows (items along `axis`) that are not stored, or not all of them."""
        grid = [ceil(size / chunk) for size, chunk in zip(self.shape, self.chunk, strict=True)]
        stored: Counter[int] = Counter()
        for file in self._files():
            first = [at * each for at, each in zip(file, self._each, strict=True)]
            if all(at < size for at, size in zip(first, grid, strict=True)):
                self._count(file, first, grid, axis, stored)
        whole = [band for band, count in stored.items() if count == prod(grid) // grid[axis]] if prod(grid) else []
        size, rows = self.chunk[axis], self.shape[axis]
        edges = [0, *(edge for band in sorted(whole) for edge in (band * size, min(rows, (band + 1) * size))), rows]
        return merged((a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b)

    def _count(self, file: tuple[int, ...], first: list[int], grid: list[int], axis: int, stored: Counter[int]) -> None:
        """Chunks of one file in each band of rows."""
        if not self.codecs.index:
            stored[file[axis]] += 1
            return
        there = ~(self._index(file) == ABSENT).all(-1)
        inside = there[tuple(slice(0, size - at) for at, size in zip(first, grid, strict=True))]
        others = tuple(i for i in range(inside.ndim) if i != axis)
        for band, count in enumerate(inside.sum(axis=others).tolist()):
            stored[first[axis] + band] += count

    def _files(self) -> Iterator[tuple[int, ...]]:
        """Positions of the files that are there."""
        if self._alone:
            yield from [(0,)] * os.path.isfile(self._path((0,)))
            return
        number, between = r"(?:0|[1-9]\d{0,17})", re.escape(self._between)
        like = re.compile(re.escape(self._prefix) + number + f"(?:{between}{number})" * (len(self.shape) - 1))
        for folder, _, files in os.walk(self.folder):
            inside = os.path.relpath(folder, self.folder)
            for file in files:
                key = file if inside == "." else f"{inside}/{file}"
                if like.fullmatch(key):
                    yield tuple(map(int, key.removeprefix(self._prefix).split(self._between)))

    def _path(self, file: Sequence[int]) -> str:
        return os.path.join(self.folder, self._alone or self._prefix + self._between.join(map(str, file)))

    def _index(self, file: tuple[int, ...]) -> np.ndarray:
        """(offset, size) of every chunk of a shard: (chunks of a file along each axis, 2)."""
        size = 16 * prod(self._each)
        with open(self._path(file), "rb") as shard:
            whole = os.fstat(shard.fileno()).st_size
            if whole < size + self.codecs.index_checksum:
                raise damaged(self._path(file), "truncated: shorter than its index")
            at = 0 if self.codecs.index == "start" else whole - size - self.codecs.index_checksum
            found = np.frombuffer(os.pread(shard.fileno(), size, at), "<u8")
        return found.reshape(*self._each, 2)

    def check(self, at: tuple[int, ...]) -> None:
        """Refuse (InputMalformed) chunk number `at` along each axis if it is larger than it may be, decoded or not."""
        file = tuple(a // each for a, each in zip(at, self._each, strict=True))
        path, start, size = self._path(file), 0, None
        try:
            if self.codecs.index:
                start, size = map(int, self._index(file)[tuple(a % e for a, e in zip(at, self._each, strict=True))])
                if start == size == int(ABSENT):
                    return
            with open(path, "rb") as chunk:
                whole = os.fstat(chunk.fileno()).st_size
                size = whole if size is None else size
                said = os.pread(chunk.fileno(), HEAD, start) if start + size <= whole else b""
                fits = start + size <= whole and size <= self.most + self.most // 8 + SPARE
                if not fits or not _bounded(self.codecs.compressor, said, chunk.fileno(), start, size, self.most):
                    raise damaged(path, f"damaged, or larger than the {self.most} bytes of a chunk")
        except FileNotFoundError:
            return  # not stored, which the caller knows


def _keys(described: dict, name: str) -> tuple[str, str]:
    """What the names of chunks begin with, and what is between their numbers."""
    if described.get("zarr_format") == 2:
        prefix: str | None = ""
        between = described.get("dimension_separator", ".")
    else:
        encoding = described.get("chunk_key_encoding")
        kind, said = (
            (encoding.get(of) for of in ("name", "configuration")) if isinstance(encoding, dict) else (None, None)
        )
        between = (said if kind and isinstance(said, dict) else {}).get("separator", "/" if kind == "default" else ".")
        prefix = f"c{between}" if kind == "default" else "" if kind == "v2" else None
    if prefix is None or between not in (".", "/"):
        raise InputMalformed(f"{name}: its chunks are named in an unknown way; save it again with default names")
    return prefix, between


def _bounded(compressor: str | None, said: bytes, file: int, start: int, size: int, most: int) -> bool:
    """Whether a compressed chunk promises no more than `most` bytes, by its first bytes where those tell."""
    if compressor is None:
        return True
    if compressor == "blosc":
        return len(said) >= 16 and int.from_bytes(said[4:8], "little") <= most
    if compressor == "lz4":
        return int.from_bytes(said[:4], "little") <= most
    if compressor == "zstd":
        return (_zstd_size(said) or 0) <= most and _zstd_size(said) is not None
    return _inflated(file, start, size, most)


def _zstd_size(said: bytes) -> int | None:
    """Bytes that the first frame promises (RFC 8878, 3.1.1.1); None where it does not."""
    if len(said) < 8 or said[:4] != b"\x28\xb5\x2f\xfd":
        return None
    flag, single, key = said[4] >> 6, said[4] >> 5 & 1, (0, 1, 2, 4)[said[4] & 3]
    length = (single, 2, 4, 8)[flag]
    at = 5 + (1 - single) + key
    return int.from_bytes(said[at : at + length], "little") + 256 * (flag == 1) if length else None


def _inflated(file: int, start: int, size: int, most: int) -> bool:
    """Whether gzip or zlib members inflate to no more than `most` bytes; the format does not say it beforehand."""
    total, engine, at, rest = 0, zlib.decompressobj(47), start, b""
    while True:
        if not rest:
            rest = os.pread(file, min(STEP, start + size - at), at)
            at += len(rest)
            if not rest:
                return True
        try:
            total += len(engine.decompress(rest, STEP))
        except zlib.error:
            return False
        rest = engine.unconsumed_tail
        if engine.eof:
            rest, engine = engine.unused_data, zlib.decompressobj(47)
        if total > most:
            return False
