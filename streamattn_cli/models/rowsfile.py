"""Keys and values of a text in a file, float32 as the model has them: what is kept there outlives the process, and takes no
memory that the system cannot take back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamattn_cli.models.footprint import ITEM
from streamattn_cli.models.interface import ExactRows, LayerFacts
from streamattn_cli.rows.writers.temporary import failing_as_output


class RowsFile:
    """Room for all rows of some layers in a file, whose disk space is taken at once.

    shapes: layer -> (key heads, dim, value dim). done: rows that an earlier run has left there. Raises OutputFailed.
    """

    def __init__(self, path: str, rows: int, shapes: Mapping[int, tuple[int, int, int]], done: int = 0):
        self.path, self._rows, self._done, self._shapes = path, rows, done, dict(shapes)
        self._at, size = {}, 0
        for layer, (heads, dim, value_dim) in self._shapes.items():
            self._at[layer] = size
            size += heads * (dim + value_dim) * rows * ITEM
        with failing_as_output(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if size:
                os.posix_fallocate(self._fd, 0, size)  # a full disk must be an error here, and no signal later

    def layer(self, layer: int) -> StoredRows:
        """What answers a layer, and keeps its rows here."""
        heads, dim, value_dim = self._shapes[layer]
        k = np.memmap(self.path, np.float32, "r+", self._at[layer], (heads, self._rows, dim))
        v = np.memmap(self.path, np.float32, "r+", self._at[layer] + k.nbytes, (heads, self._rows, value_dim))
        return StoredRows(self._rows, self._done, k, v)

    def sync(self) -> None:
        """Make the rows durable."""
        with failing_as_output(self.path):
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; it stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class StoredRows(ExactRows):
    """Exact attention over rows that are kept in a file, all of them, each at its place: those beyond the `done` ones that an
    earlier run has finished are written again. k (key heads, rows, dim) and v: of the file."""

    def __init__(self, rows: int, done: int, k: np.ndarray, v: np.ndarray):
        import torch

        super().__init__(rows)
        self._next, self._k, self._v = done, torch.from_numpy(k), torch.from_numpy(v)

    @property
    def nbytes(self) -> int:
        """See Answerer: the pages are the system's."""
        return 0

    def _keep(self, facts: LayerFacts, k: Any, v: Any) -> None:
        end = self._next + k.shape[1]
        self._k[:, self._next : end], self._v[:, self._next : end] = k, v
        self._next = end
