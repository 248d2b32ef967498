"""A pipe that goes on where an earlier run stopped."""

from __future__ import annotations

import numpy as np

from streamattn_cli.rows.tensors.tensor import RowTensor


class ContinuedTensor:
    """The rest of a pipe whose rows before `done` were taken by an earlier run; rows keep their global numbers.

    `base` gives the rows from `done` on as its rows 0, 1, ... (wrap it in a RangeTensor where they come again from the
    beginning).
    """

    seekable = False
    rows = None
    path = None

    def __init__(self, base: RowTensor, done: int):
        self.name, self.outer, self.width, self.dtype = base.name, base.outer, base.width, base.dtype
        self._base, self._done = base, done

    @property
    def held_bytes(self) -> int:
        """Buffers of the tensor underneath."""
        return self._base.held_bytes

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        return self._base.read_into(buf, start - self._done, segment)

    def peek(self, n: int) -> np.ndarray:
        """See RowTensor: the next rows."""
        return self._base.peek(n)

    def close(self) -> None:
        """Close the tensor underneath."""
        self._base.close()
