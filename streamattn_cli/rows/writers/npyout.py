""".npy outputs: a header of fixed size, rows, and a JSON file beside it that says how they were made."""

from __future__ import annotations

import json
import os
from contextlib import suppress

import numpy as np

from streamattn_cli.rows.npyheader import MAGIC
from streamattn_cli.rows.writers.fdio import pwrite_all
from streamattn_cli.rows.writers.fileout import Format
from streamattn_cli.rows.writers.outshape import OutShape
from streamattn_cli.rows.writers.temporary import Temporary

HEADER_BYTES = 128  # room for any shape, so that the rows may be filled in at the end


def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """A version 1.0 .npy header of HEADER_BYTES bytes."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape!r}, }}"
    room = HEADER_BYTES - len(MAGIC) - 4
    if len(text) >= room:
        raise ValueError(f"shape {shape} is too long for the header")
    return MAGIC + b"\x01\x00" + room.to_bytes(2, "little") + text.ljust(room - 1).encode() + b"\n"


class NpyFormat(Format):
    """A header before the rows."""

    def begin(self, temporary: Temporary, shape: OutShape, rows: int | None) -> int:
        """The header comes first; unknown rows are written as none until `finish`."""
        self._write_header(temporary, shape, rows or 0)
        return HEADER_BYTES

    def again(self, temporary: Temporary) -> int:
        """The header has one size."""
        return HEADER_BYTES

    def finish(self, temporary: Temporary, shape: OutShape, rows: int, meta: dict) -> None:
        """Header with the final rows; then the array, then its JSON, so that no JSON ever stands beside an array that
        it does not describe. A run that is killed between the two left it complete under the array's tag."""
        self._write_header(temporary, shape, rows)
        side = Temporary(temporary.final + ".json", tag=temporary.tag)
        try:
            text = json.dumps(meta, indent=2, sort_keys=True) + "\n"
            pwrite_all(side.fd, memoryview(text.encode()), 0)
            os.fsync(side.fd)
            with suppress(FileNotFoundError):
                os.unlink(side.final)
            temporary.commit()
            side.commit()
        finally:
            side.abort()

    def _write_header(self, temporary: Temporary, shape: OutShape, rows: int) -> None:
        pwrite_all(temporary.fd, memoryview(npy_header(shape.shape(rows), shape.dtype)), 0)
