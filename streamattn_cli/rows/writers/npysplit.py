"""An .npy output for each sequence, cut out of one unfinished file of all of them when that is complete."""

from __future__ import annotations

import mmap
import os

import numpy as np

from streamattn_cli.errors import UsageError
from streamattn_cli.rows.targets import SEQUENCE
from streamattn_cli.rows.tensors.sequences import Sequences
from streamattn_cli.rows.writers.fdio import pwrite_all
from streamattn_cli.rows.writers.fileout import Format
from streamattn_cli.rows.writers.npyout import HEADER_BYTES, NpyFormat
from streamattn_cli.rows.writers.outshape import OutShape
from streamattn_cli.rows.writers.temporary import Temporary

STEP = 1 << 20  # bytes copied at a time


class SplitFormat(Format):
    """Rows alone, of all sequences. Workers, checkpoints and repairs know nothing of the files to come."""

    def __init__(self, name: str, shape: OutShape, sequences: Sequences | None):
        """Raises UsageError where a name or a batch cannot be cut into sequences."""
        if not name.lower().endswith(".npy") or ("B" in shape.layout and not shape.sequences):
            raise UsageError(f"-o {name}: {SEQUENCE} is for .npy files of attend; give a name without it")
        self._name, self._sequences = name, sequences

    def finish(self, temporary: Temporary, shape: OutShape, rows: int, meta: dict) -> None:
        """Write the files one after the other; the last step is to remove what they were cut out of, so that a run that is
        killed before does it again."""
        edges = self._sequences.edges if self._sequences else np.array([0, rows])
        one = OutShape(shape.layout.replace("B", ""), shape.heads, shape.dim, shape.dtype)
        with mmap.mmap(temporary.fd, os.fstat(temporary.fd).st_size, access=mmap.ACCESS_READ) as held:
            for number, (first, stop) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
                part = Temporary(self._name.replace(SEQUENCE, str(number)), tag=temporary.tag)
                try:
                    self._copy(held, shape, rows, number, first, stop - first, part)
                    NpyFormat().finish(part, one, stop - first, {**meta, "sequence": number})
                finally:
                    part.abort()
        temporary.abort()

    def _copy(
        self, held: mmap.mmap, shape: OutShape, rows: int, number: int, first: int, count: int, part: Temporary
    ) -> None:
        """Copy the rows of a sequence behind the header of its file."""
        length = shape.sequences.padded if shape.sequences else rows
        before = number * shape.segments * length if shape.sequences else first
        width, at = shape.row_bytes // shape.segments, HEADER_BYTES
        for segment in range(shape.segments):
            begin = (before + segment * length + (shape.sequences.place(number, 0) if shape.sequences else 0)) * width
            end = begin + count * width
            for a in range(begin, end, STEP):
                b = min(end, a + STEP)
                pwrite_all(part.fd, memoryview(held[a:b]), at)
                at += b - a
