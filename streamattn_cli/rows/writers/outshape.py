"""The shape of an output: where the rows of a block (n, heads, dim) go in each layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from streamattn_cli.rows.tensors.sequences import Piece, Sequences


@dataclass(frozen=True)
class OutShape:
    """Rows of `heads` heads (batches included) of `dim` items, stored as `dtype` in `layout`.

    sequences: rows are those of the sequences of a batch, of `heads` heads each, one after the other; they go to their places
    in the padded array.
    """

    layout: str  # one of layout.LAYOUTS; TD needs heads == 1
    heads: int
    dim: int
    dtype: np.dtype
    batch: int = 1
    sequences: Sequences | None = None

    def __post_init__(self) -> None:
        if self.heads % self.batch or (self.layout == "TD" and self.heads != 1):
            raise ValueError(f"{self.heads} heads in {self.batch} batches do not fit layout {self.layout}")

    def shape(self, rows: int) -> tuple[int, ...]:
        """Shape of the whole array."""
        size = {"T": rows, "B": self.batch, "H": self.heads // self.batch, "D": self.dim, "C": self.heads * self.dim}
        if "B" not in self.layout:
            size["H"] = self.heads
        if self.sequences:
            size |= {"T": self.sequences.padded, "B": len(self.sequences), "H": self.heads}
        return tuple(size[letter] for letter in self.layout)

    @property
    def segments(self) -> int:
        """Product of the axes before the rows, of one sequence."""
        each = self.batch if not self.sequences else 1
        return {"HTD": self.heads, "BHTD": self.heads, "BTHD": each}.get(self.layout, 1)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all segments."""
        return self.heads * self.dim * self.dtype.itemsize

    def places(self, start: int, rows: int | None, block: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(number of a row in the file, part): what of a block at row `start` of `rows` lies side by side there."""
        if not self.sequences:
            yield from ((s * (rows or 0) + start, part) for s, part in enumerate(self.cut(block)))
        elif self.segments == 1 and self.sequences.is_whole:
            yield start, self.cut(block)[0]
        else:
            for number, first, last, row in self.sequences.pieces(start, start + len(block)):
                for s, part in enumerate(self.cut(block[first - start : last - start])):
                    yield (number * self.segments + s) * self.sequences.padded + self.sequences.place(number, row), part

    def places_of_heads(
        self, start: int, rows: int, block: np.ndarray, first: int
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """The same of a block (n, some heads, dim), of which this is the first: (number of a row in the file, head, part). Where
        the heads of a row lie side by side, part is (n, some heads, dim); else it is (n, 1, dim), of one head."""
        pieces = [Piece(0, start, start + len(block), start)]
        if self.sequences:
            pieces = list(self.sequences.pieces(start, start + len(block)))
        length = self.sequences.padded if self.sequences else rows
        for number, a, b, row in pieces:
            row = self.sequences.place(number, row) if self.sequences else row
            part = block[a - start : b - start]
            if self.segments == 1:
                yield number * length + row, first, self._stored(part)
                continue
            for head in range(first, first + block.shape[1]):
                at = (number * self.segments + head) * length + row
                yield at, head, self._stored(part[:, head - first : head - first + 1])

    def cut(self, block: np.ndarray) -> list[np.ndarray]:
        """The block's share of every segment, C-contiguous in `dtype`; copies only where it must."""
        each = self.heads // self.segments
        return [self._stored(block[:, s * each : (s + 1) * each]) for s in range(self.segments)]

    def _stored(self, part: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # a float32 beyond float16 becomes infinite, as everywhere
            return np.ascontiguousarray(part, self.dtype)

    def check(self, block: np.ndarray, start: int, written: int) -> None:
        """Rows come in order and in shape; anything else is a bug of the caller (ValueError)."""
        if start != written or block.ndim != 3 or block.shape[1:] != (self.heads, self.dim):
            raise ValueError(f"block {block.shape} at row {start}, expected (n, {self.heads}, {self.dim}) at {written}")
