"""Several sequences in one stream of rows: batches, padded batches, and packed rows with the row at which each begins.

A stream holds the rows of all sequences, one sequence after the other, without padding. Attention never crosses their
borders, and everything that is said of a sequence is said with its number and a row within it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """Rows [first, last) of a stream, which are rows `row`.. of sequence `number`."""

    number: int
    first: int
    last: int
    row: int


@dataclass(frozen=True)
class Sequences:
    """Sequence s is rows [edges[s], edges[s + 1]) of the stream; edges (sequences + 1,) int64 do not fall.

    padded: rows of every sequence in the array that they come from, the batch; 0 for packed rows. before: sequences of the
    input before these, for messages. skipped: rows of each in that array before its first one (sequences,), None for 0.
    """

    edges: np.ndarray
    padded: int = 0
    before: int = 0
    skipped: np.ndarray | None = None

    @classmethod
    def of_batch(
        cls, batch: int, rows: int, lengths: np.ndarray | None = None, skipped: np.ndarray | None = None
    ) -> Sequences:
        """`batch` sequences of `rows` rows, of which `lengths` (batch,) count, after the skipped ones (batch,)."""
        lengths = np.full(batch, rows, np.int64) if lengths is None else lengths
        return cls(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), rows, skipped=skipped)

    def place(self, number: int, row: int) -> int:
        """Where a row of a sequence is in its part of the batch."""
        return row if self.skipped is None else row + int(self.skipped[number])

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequences) and np.array_equal(self.edges, other.edges)

    @property
    def rows(self) -> int:
        """Rows of all sequences."""
        return int(self.edges[-1])

    @property
    def longest(self) -> int:
        """Rows of the longest one."""
        return int(np.diff(self.edges).max())

    @property
    def is_whole(self) -> bool:
        """Whether the stream is the array as it is, without a padded row."""
        return not self.padded or self.rows == self.padded * len(self)

    def only(self, first: int, stop: int) -> Sequences:
        """Sequences [first, stop) as those of a stream of their own."""
        edges = self.edges[first : stop + 1]
        skipped = None if self.skipped is None else self.skipped[first:stop]
        return Sequences(edges - edges[0], self.padded, self.before + first, skipped)

    def number(self, row: int) -> int:
        """The sequence of a row of the stream."""
        return int(np.searchsorted(self.edges, row, side="right")) - 1

    def local(self, row: int) -> tuple[int, int]:
        """The sequence of a row of the stream, and the row within it."""
        number = self.number(row)
        return number, row - int(self.edges[number])

    def pieces(self, first: int, last: int) -> Iterator[Piece]:
        """Rows [first, last) of the stream, cut where sequences begin."""
        while first < last:
            number, row = self.local(first)
            end = min(last, int(self.edges[number + 1]))
            yield Piece(number, first, end, row)
            first = end

    def block_end(self, first: int, rows: int, group: int) -> int:
        """Where a block of at most `rows` rows from `first` on ends: at the end of a sequence, or a multiple of `group` rows
        into it."""
        end = min(first + rows, self.rows)
        return end if end == self.rows else end - self.local(end)[1] % group

    def whole_end(self, first: int, rows: int) -> int:
        """The same at the end of a sequence, all of which have at most `rows` rows."""
        return int(self.edges[np.searchsorted(self.edges, first + rows, side="right") - 1])
