"""The recent rows of a key head: as they are stored, or in twelve bits from when its history is compressed (METHODS.md (N27))."""

from __future__ import annotations

import numpy as np

from streamattn_cli.kernels import twelvebits
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.sketches.coding.rowstore import get, put
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.sketches.method import History


class RecentRows:
    """The recent rows in the state's array; how many there are its owner knows."""

    def __init__(self, params: HeadParams, array: np.ndarray, history: History | None):
        self.params, self.history = params, history
        self.plain, self.codes = array, np.empty((0, 0), np.uint8)
        if few := params.coded_bytes:
            early = array[: len(array) // params.row_bytes * params.row_bytes]
            self.plain = early.view(DTYPES[params.stored].holder).reshape(-1, params.dim + params.value_dim)
            self.codes = array[: params.recent_rows * few].reshape(-1, few)

    @property
    def coded(self) -> bool:
        """Whether they are in few bits."""
        return len(self.codes) > 0 and self.history is not None and self.history.centres is not None

    @property
    def window(self) -> int:
        """How many are kept beside the group under way."""
        return self.params.window if self.coded else self.params.early_window

    def stored(self) -> tuple | np.ndarray:
        """What kernels read them from: see twelvebits.read."""
        return (self.codes, *self._centres()) if self.coded else self.plain

    def put(self, at: int, k: np.ndarray, c: np.ndarray) -> None:
        """Keep k (n, d) and c (n, dv + 1) = [v, weight] as rows at, at + 1, ..."""
        if self.coded:
            twelvebits.encode(k.copy(), c.copy(), *self._centres(), self.codes[at : at + len(k)])
        else:
            put(self.plain[at : at + len(k)], k, c, self.params.stored)

    def get(self, a: int, b: int, k: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows [a, b) as k (n, d) and c (n, dv + 1), views of the scratch arrays given."""
        if not self.coded:
            return get(self.plain[a:b], self.params.stored, k, c)
        twelvebits.decode(self.codes[a:b], *self._centres(), k, c)
        return k[: b - a], c[: b - a]

    def forget(self, gone: int, left: int) -> None:
        """Move the rows behind the first `gone` to the front; `left` of them are left."""
        rows = self.codes if self.coded else self.plain
        for a in range(0, left, gone):  # in steps that do not overlap
            b = min(a + gone, left)
            rows[a:b] = rows[gone + a : gone + b]
        rows[left : left + gone] = 0  # so that the state does not tell how its rows were cut

    def make_room(self, new: int, rows: int, k: np.ndarray, c: np.ndarray) -> None:
        """Compress the history if `new` more rows would not fit into it as they are, and with it the `rows` recent ones; k
        (tile, d), c (tile, dv + 1): scratch."""
        if self.history is None or not self.history.compress_for(new) or not len(self.codes):
            return
        for a in range(0, max(rows, 1), len(k)):  # a row's code ends before the next row begins
            b = min(a + len(k), rows)
            part = get(self.plain[a:b], self.params.stored, k, c)
            twelvebits.encode(*part, *self._centres(), self.codes[a:b])
        self.codes[rows:] = 0

    def _centres(self) -> tuple[np.ndarray, np.ndarray]:
        centres = self.history and self.history.centres
        assert centres, "the history is not compressed"
        return centres
