"""What every source of rows promises (rows/tensors/tensor.py, RowTensor)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.tensors.tensor import RowTensor
from streamattn_cli.testing.require import require, require_raises, require_same_bytes

BLOCKS = (1, 2, 7, 64, 1000)
OBJECTS = 32 << 10  # bytes of interpreter objects that a source may make beside its buffers


@dataclass(frozen=True)
class SourceCase:
    """A source under test: `open()` gives it anew, `expected` (O, T, I) are its items in storage dtype.

    Let `expected` be larger than 128 KiB, so that a source which secretly holds everything is found out.
    """

    open: Callable[[], RowTensor]
    expected: np.ndarray

    @property
    def rows(self) -> int:
        """T."""
        return int(self.expected.shape[1])

    def buffer(self, rows: int) -> np.ndarray:
        """A buffer of the expected shape, filled with something else."""
        outer, _, width = self.expected.shape
        return np.full((outer, rows, width), 77, self.expected.dtype)

    def room(self, tensor: RowTensor, at: int, block: int) -> int:
        """How many rows to ask for: segments of a known length must not be asked for more than there is."""
        return block if tensor.outer == 1 else min(block, self.rows - at)


def read_all(case: SourceCase, tensor: RowTensor, block: int, at: int = 0) -> np.ndarray:
    """Rows from `at` to the end, read by `block` rows."""
    parts, more = [], at < case.rows
    while more:
        room = case.room(tensor, at, block)
        buf = case.buffer(room)
        got = tensor.read_into(buf, at)
        require(got == min(room, case.rows - at), f"{got} rows read at {at}, expected {min(room, case.rows - at)}")
        parts.append(buf[:, :got])
        at += got
        more = got == room and (at < case.rows or tensor.outer == 1)
    return np.concatenate([case.buffer(0), *parts], axis=1)


def facts_agree(case: SourceCase) -> None:
    """outer, width, dtype and rows (None if unknown) are those of the items; there is a name."""
    with closing(case.open()) as tensor:
        outer, rows, width = case.expected.shape
        found: tuple[object, ...] = (tensor.outer, tensor.width, DTYPES[tensor.dtype].holder)
        expected = (outer, width, case.expected.dtype)
        require(found == expected, f"outer, width, dtype {found} found, expected {expected}")
        require(tensor.rows in (None, rows), f"{tensor.rows} rows found, expected {rows}")
        require(tensor.rows is not None or not tensor.seekable, "seekable, but does not know its rows")
        require(isinstance(tensor.name, str) and bool(tensor.name), "no name for messages")


def blocks_of_any_size_give_the_rows(case: SourceCase) -> None:
    """Read in order by blocks of any size: every item once, the right count, then the end."""
    for block in BLOCKS:
        with closing(case.open()) as tensor:
            require_same_bytes(read_all(case, tensor, block), case.expected, f"blocks of {block}")
            require(tensor.read_into(case.buffer(3), case.rows) == 0, "rows after the end")


def any_start_may_be_read_if_seekable(case: SourceCase) -> None:
    """Seekable: any start, in any order, again and again. Otherwise: another start than the next row is a ValueError
    that loses nothing."""
    with closing(case.open()) as tensor:
        if tensor.seekable:
            for start in (case.rows - 1, 0, case.rows // 2, 0, case.rows // 3):
                found = read_all(case, tensor, 17, start)
                require_same_bytes(found, case.expected[:, start:], f"from row {start}")
            return
        tensor.read_into(case.buffer(2), 0)
        require_raises(ValueError, lambda: tensor.read_into(case.buffer(2), 0), "row 0 again")
        require_raises(ValueError, lambda: tensor.read_into(case.buffer(2), 3), "a row left out")
        require_same_bytes(read_all(case, tensor, 9, 2), case.expected[:, 2:], "after refused reads")


def peeking_does_not_consume(case: SourceCase) -> None:
    """`peek` gives the first rows as a new array, as often as asked, fewer at the end; reading is as without it."""
    for counts in ((3,), (5, 2, 9), (0, case.rows + 10)):
        with closing(case.open()) as tensor:
            for count in counts:
                found = tensor.peek(count)
                require_same_bytes(found, case.expected[:, :count], f"peek({count})")
                found[:] = 0
            require_same_bytes(read_all(case, tensor, 4), case.expected, f"after peek of {counts}")


def peeking_works_under_way(case: SourceCase) -> None:
    """After some rows were read: the first rows if seekable, else the next ones."""
    with closing(case.open()) as tensor:
        tensor.read_into(case.buffer(5), 0)
        start = 0 if tensor.seekable else 5
        require_same_bytes(tensor.peek(6), case.expected[:, start : start + 6], "peek after 5 rows")
        require_same_bytes(read_all(case, tensor, 4, 5), case.expected[:, 5:], "the rows after it")


def held_bytes_are_honest(case: SourceCase) -> None:
    """Python and NumPy memory grows by no more than held_bytes while reading into the caller's buffer, and peeked
    rows that wait are counted until they have been read."""
    require(case.expected.nbytes > 4 * OBJECTS, f"make `expected` larger than {4 * OBJECTS} bytes")
    with closing(case.open()) as tensor:
        blocks = [case.buffer(case.room(tensor, at, 64)) for at in range(0, case.rows, 64)]
        tracemalloc.start()
        try:
            for i, buf in enumerate(blocks):
                tensor.read_into(buf, 64 * i)
            grown, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        held = tensor.held_bytes
        require(peak <= held + OBJECTS, f"{peak} bytes used while reading, held_bytes is {held}")
        require(grown <= held + OBJECTS, f"{grown} bytes kept, held_bytes is {held}")
    with closing(case.open()) as tensor:
        waiting = tensor.peek(10).nbytes
        if not tensor.seekable:
            require(tensor.held_bytes >= waiting, f"{waiting} bytes wait, held_bytes is {tensor.held_bytes}")
            read_all(case, tensor, 7)
            require(tensor.held_bytes < waiting, f"held_bytes {tensor.held_bytes} after all was read")


def wrong_buffers_are_refused(case: SourceCase) -> None:
    """A buffer of another shape or dtype, or not contiguous, is a ValueError and consumes nothing."""
    outer, _, width = case.expected.shape
    wrong = {
        "dtype": np.zeros((outer, 2, width), "i8"),
        "width": case.buffer(2)[:, :, :0],
        "axes": case.buffer(2)[0],
        "outer": np.concatenate([case.buffer(2)] * 2),
        "stride": case.buffer(4)[:, ::2],
    }
    with closing(case.open()) as tensor:
        for what, buf in wrong.items():
            require_raises(ValueError, partial(tensor.read_into, buf, 0), f"wrong {what}")
        require_same_bytes(read_all(case, tensor, 50), case.expected, "after refused buffers")


def closing_twice_is_fine(case: SourceCase) -> None:
    """`close` may be called again, also before anything was read."""
    for peek in (0, 2):
        tensor = case.open()
        tensor.peek(peek)
        tensor.close()
        tensor.close()


SOURCE_LAWS = (
    facts_agree,
    blocks_of_any_size_give_the_rows,
    any_start_may_be_read_if_seekable,
    peeking_does_not_consume,
    peeking_works_under_way,
    held_bytes_are_honest,
    wrong_buffers_are_refused,
    closing_twice_is_fine,
)
