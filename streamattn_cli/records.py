"""Records on pipes for Python programs: blocks of rows as concatenated .npy records, one at a time.

`numpy.load` needs a file that can be read again, and `numpy.save` one that takes all bytes at once; a pipe is neither.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np

from streamattn_cli.errors import InputMalformed


def read(file: BinaryIO) -> np.ndarray | None:
    """The next record of a pipe or file, None at its end. Not a byte more is read from `file`.

    Raises InputMalformed for what is no record, and for one that is cut off.
    """
    first = file.read(1)
    if not first:
        return None
    try:
        return np.lib.format.read_array(_Rest(first, file), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputMalformed(f"{getattr(file, 'name', 'records')}: no whole .npy record found: {error}") from error


def write(file: BinaryIO, block: np.ndarray) -> None:
    """Write a block of rows as one record, whole, to a pipe or file, also to an unbuffered one."""
    block = np.asarray(block, order="C")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(block))
    for data in (header.getvalue(), block.tobytes()):
        view = memoryview(data)
        while len(view):
            view = view[file.write(view) or 0 :]  # None: a full pipe that does not wait; ask again
    file.flush()


class _Rest:
    """A file whose first byte has been read."""

    def __init__(self, first: bytes, file: BinaryIO):
        self._first, self._file = first, file

    def read(self, n: int = 1, /) -> bytes:
        first, self._first = self._first[:n], self._first[n:]
        return first or self._file.read(n)
