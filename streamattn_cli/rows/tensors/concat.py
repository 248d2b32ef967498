"""Several tensors as one: the rows of the second follow those of the first, and so on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.tensors.ranges import RangeTensor
from streamattn_cli.rows.tensors.tensor import RowTensor, SeekableTensor, row_count


class ConcatTensor(SeekableTensor):
    """A RowTensor over seekable parts of the same dtype, outer and width; row t of part i is row `starts[i]` + t."""

    def __init__(self, parts: Sequence[RowTensor]):
        one = parts[0]
        for other in parts:
            if not other.seekable:
                raise InputMalformed(
                    f"{other.name}: is a pipe; only files can be read as one stream, one after the other"
                )
            if (other.dtype, other.outer, other.width) != (one.dtype, one.outer, one.width):
                raise InputMalformed(
                    f"{other.name}: rows of {other.outer} x {other.width} {other.dtype} found, expected {one.outer} x "
                    f"{one.width} {one.dtype} as in {one.name}; files of one stream must be alike"
                )
        self.parts = tuple(parts)
        self.name = f"{one.name} ... {parts[-1].name}"
        self.outer, self.width, self.dtype = one.outer, one.width, one.dtype
        self.starts = [0, *accumulate(row_count(part) for part in parts)]
        self.rows = self.starts.pop()
        self.held_bytes = sum(part.held_bytes for part in self.parts)

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        want = self.there(buf, start, segment)
        done = 0
        while done < want:
            at = bisect_right(self.starts, start + done) - 1
            part, row = self.parts[at], start + done - self.starts[at]
            n = min(want - done, row_count(part) - row)
            if n == buf.shape[1] or (len(buf) == 1 and n):  # the rows lie side by side in the caller's buffer
                part.read_into(buf[:, done : done + n], row, segment)
            elif n:
                piece = np.empty((len(buf), n, self.width), buf.dtype)
                part.read_into(piece, row, segment)
                buf[:, done : done + n] = piece
            done += n
        return want

    def close(self) -> None:
        """Close all parts."""
        for part in self.parts:
            part.close()


def files_of(tensor: RowTensor) -> list[RowTensor]:
    """The tensors of single files that a tensor's rows come from, in order, each cut to the rows that are used."""
    if isinstance(tensor, ConcatTensor):
        return list(tensor.parts)
    if not isinstance(tensor, RangeTensor) or not isinstance(tensor.base, ConcatTensor):
        return [tensor]
    found: list[RowTensor] = []
    first, stop = tensor.first, tensor.first + row_count(tensor)
    for at, part in zip(tensor.base.starts, tensor.base.parts, strict=True):
        rows = row_count(part)
        a, b = max(first - at, 0), min(stop - at, rows)
        if a < b:
            found.append(part if (a, b) == (0, rows) else RangeTensor(part, a, b))
    return found
