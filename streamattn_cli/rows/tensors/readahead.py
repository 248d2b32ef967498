"""Reading ahead: one thread fills reused buffers while the consumer computes.

Block borders depend only on `start` and `block_rows`, so that results cannot depend on how fast either side is.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.tensors.tensor import RowTensor, row_bytes

_POLL = 0.1  # seconds between looks at signals while waiting


@dataclass(frozen=True)
class Block:
    """Rows [start, start + rows) of every tensor, valid until the next block, or the `lent`-th next, is asked for."""

    start: int
    rows: int
    arrays: tuple[np.ndarray, ...]  # (O, rows, I), C-contiguous, in the order of the tensors given


def distinct(tensors: Iterable[RowTensor]) -> list[RowTensor]:
    """The tensors without repetitions, in order of first appearance."""
    return list({id(tensor): tensor for tensor in tensors}.values())


def readahead_bytes(tensors: Iterable[RowTensor], block_rows: int, slots: int = 3) -> int:
    """Bytes that a ReadAhead over these tensors allocates: known before anything is read."""
    return slots * block_rows * sum(row_bytes(tensor) for tensor in distinct(tensors))


class ReadAhead:
    """Iterate over blocks of `block_rows` rows (the last may be shorter) of several tensors in step.

    Reads rows [start, stop), or to the end when stop is None. Errors of the reading thread are raised by the iterator.
    `check` is called at least every 0.2 s while waiting, so that a signal handler's wish is seen. `lent`: how many of the
    last blocks stay valid. `ends`(first, rows) says where a block of at most so many rows ends. `reading` is held while rows
    are read, for others who read the same tensors meanwhile. Raises InputMalformed if the tensors do not end at the same
    row. Use as a context manager; leaving it early is fine.
    """

    def __init__(
        self,
        tensors: Sequence[RowTensor],
        start: int = 0,
        stop: int | None = None,
        block_rows: int = 1024,
        slots: int = 3,
        check: Callable[[], None] | None = None,
        *,
        lent: int = 1,
        ends: Callable[[int, int], int] | None = None,
        reading: threading.Lock | None = None,
    ):
        self.wait_seconds = 0.0  # the consumer's time without a block
        self.bytes_read = 0  # of blocks handed out
        self.bytes_held = readahead_bytes(tensors, block_rows, slots)
        self._distinct = distinct(tensors)
        position = {id(tensor): i for i, tensor in enumerate(self._distinct)}
        self._order = [position[id(tensor)] for tensor in tensors]
        self._start, self._stop, self._block_rows = start, stop, block_rows
        self._ends = ends
        self._reading = reading or threading.Lock()
        self._check = check
        self.row_bytes = sum(row_bytes(tensor) for tensor in self._distinct)
        self._slots = self._buffers(slots)
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[int, int, int] | BaseException | None] = queue.SimpleQueue()
        for slot in range(slots):
            self._free.put(slot)
        self._lent: deque[int] = deque()  # slots that the consumer holds,
        self._most_lent = lent
        self._over = False
        self._closing = False
        self._thread = threading.Thread(target=self._read_all, name="streamattn-readahead", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the next block, or the end, has come already."""
        return not self._full.empty()

    def _buffers(self, slots: int) -> list[list[np.ndarray]]:
        """Flat room for one block of every tensor, in every slot.

        It is one piece, for which NumPy asks for huge pages, touched now so that it counts from the beginning. Wide items
        come first in it: all are aligned.
        """
        room, at, found = np.empty(self.bytes_held, np.uint8), 0, {}
        room.fill(0)
        for tensor in sorted(self._distinct, key=lambda tensor: -DTYPES[tensor.dtype].itemsize):
            size = slots * self._block_rows * row_bytes(tensor)
            found[id(tensor)] = room[at : at + size].view(DTYPES[tensor.dtype].holder).reshape(slots, -1)
            at += size
        return [[found[id(tensor)][slot] for tensor in self._distinct] for slot in range(slots)]

    def _read_all(self) -> None:
        """The reading thread."""
        try:
            at = self._start
            while not self._closing and (self._stop is None or at < self._stop):
                slot = self._free.get()
                if slot is None:
                    return
                want = self._wanted(at)
                with self._reading:
                    rows = self._read_block(self._slots[slot], at, want)
                if rows:
                    self._full.put((slot, at, rows))
                at += rows
                if rows < want or rows < self._block_rows and not self._ends:
                    break
            self._full.put(None)
        except BaseException as error:  # every error belongs to the consumer, whatever it is
            self._full.put(error)

    def _wanted(self, at: int) -> int:
        """Rows of the block that begins with row `at`, if there are so many."""
        rows = self._block_rows if self._stop is None else min(self._block_rows, self._stop - at)
        return self._ends(at, rows) - at if self._ends else rows

    def _read_block(self, buffers: list[np.ndarray], at: int, want: int) -> int:
        """Fill one slot with `want` rows from `at` on; return how many there were."""
        counts = []
        for tensor, flat in zip(self._distinct, buffers, strict=True):
            room = want if tensor.rows is None else max(0, min(want, tensor.rows - at))
            counts.append(tensor.read_into(_shaped(flat, tensor, room), at) if room else 0)
        if min(counts) != max(counts) or (self._stop is not None and counts[0] < want):
            self._mismatch(at, want, counts)
        return counts[0]

    def _mismatch(self, at: int, want: int, counts: list[int]) -> None:
        ends = [
            f"{tensor.name} has {tensor.rows if tensor.rows is not None else at + n} rows"
            + (" or more" if tensor.rows is None and n == want else "")
            for tensor, n in zip(self._distinct, counts, strict=True)
        ]
        expected = (
            "they must agree (choose rows with --rows and --q-rows)" if self._stop is None else f"expected {self._stop}"
        )
        raise InputMalformed(f"{', '.join(dict.fromkeys(ends))}; {expected}")

    def __iter__(self) -> ReadAhead:
        return self

    def __next__(self) -> Block:
        if len(self._lent) == self._most_lent:
            self._free.put(self._lent.popleft())
        item = None if self._over else self._wait()
        if item is None or isinstance(item, BaseException):
            self._over = True
            raise item or StopIteration
        slot, start, rows = item
        self._lent.append(slot)
        self.bytes_read += rows * self.row_bytes
        pairs = zip(self._distinct, self._slots[slot], strict=True)
        arrays = [_shaped(flat, tensor, rows) for tensor, flat in pairs]
        return Block(start, rows, tuple(arrays[i] for i in self._order))

    def _wait(self) -> tuple[int, int, int] | BaseException | None:
        """The next filled slot, looking at `check` while there is none."""
        began = time.perf_counter()
        try:
            while True:
                if self._check is not None:
                    self._check()
                try:
                    return self._full.get(timeout=_POLL)
                except queue.Empty:
                    continue
        finally:
            self.wait_seconds += time.perf_counter() - began

    def close(self) -> None:
        """Stop reading. A thread that waits for a pipe is left behind: it is a daemon and holds only its slot."""
        self._over = self._closing = True
        self._free.put(None)
        while self._thread.is_alive():
            self._thread.join(_POLL)
            if not all(tensor.seekable for tensor in self._distinct):
                return

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _shaped(flat: np.ndarray, tensor: RowTensor, rows: int) -> np.ndarray:
    """The front of a flat buffer as (O, rows, I)."""
    return flat[: tensor.outer * rows * tensor.width].reshape(tensor.outer, rows, tensor.width)
