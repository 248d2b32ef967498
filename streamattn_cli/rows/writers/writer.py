"""Where outputs go: the one function that opens them."""

from __future__ import annotations

import os
import stat
import sys
from typing import BinaryIO

import numpy as np

from streamattn_cli.errors import OutputFailed, UsageError
from streamattn_cli.rows.dtypes import DTYPES, number_word
from streamattn_cli.rows.targets import SEQUENCE, split_target
from streamattn_cli.rows.tensors.sequences import Sequences
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.fileout import Format, PlacedWriter
from streamattn_cli.rows.writers.npyout import NpyFormat
from streamattn_cli.rows.writers.outshape import OutShape
from streamattn_cli.rows.writers.recordout import RecordWriter, open_special, waits


def open_writer(
    target: str,
    rows: int | None,
    heads: int,
    dim: int,
    dtype: str = "f4",
    layout: str = "THD",
    batch: int = 1,
    *,
    stdout: BinaryIO | None = None,
    going_on: tuple[str, int] | None = None,
    tag: str | None = None,
    sequences: Sequences | None = None,
) -> Writer:
    """Open `target` for `rows` rows (None: unknown) of `heads` heads (batches included) of `dim` items.

    target: a name in .npy, .h5 or .hdf5; one in .npy with {sequence} in it, for a file for each; FILE.h5:DATASET to add to a
    file; `-` for standard output (`stdout`, default sys.stdout.buffer); or an existing fifo or device, which is written to as it
    is. A regular file of that name, or the dataset, is replaced at `commit`, not before; whether it may be,
    `targets.refuse_existing` has said.
    going_on: the unfinished file of an earlier run and how many of its rows count (.npy, and .h5 of known rows); tag: of
    the name of a new one, for a caller who knows that nobody else uses it. sequences: rows are those of several sequences, of
    as many heads each; of batches, `heads` does not include them then, and padded rows are zeros.
    dtype: 'f2', 'f4' or 'f8'; layout: that of the queries, one of layout.LAYOUTS.
    Raises UsageError for an unknown extension, a terminal, or a layout that needs the rows in advance; OutputFailed for
    a missing folder and whatever the system refuses.
    """
    shape = out_shape(heads, dim, dtype, layout, batch, sequences)
    if target == "-":
        return RecordWriter(standard_output(stdout), "standard output", shape, owned=False)
    kind = check_target(target)
    file, dataset = split_target(target)
    if kind == "special":
        return RecordWriter(open_special(target), target, shape, owned=True)
    if SEQUENCE in target:
        from streamattn_cli.rows.writers.npysplit import SplitFormat

        return PlacedWriter(target, rows, shape, SplitFormat(target, shape, sequences), going_on, tag)
    if kind == ".npy":
        return PlacedWriter(target, rows, shape, NpyFormat(), going_on, tag)
    from streamattn_cli.rows.writers.hdf5out import GrowingHdf5Writer, Hdf5Format

    if rows is None and shape.segments == 1:
        return GrowingHdf5Writer(file, shape, dataset)
    return PlacedWriter(file, rows, shape, Hdf5Format(dataset), going_on, tag)


def open_raw(target: str, rows: int, width: int, holder: np.dtype) -> Writer:
    """A Writer of bare rows (n, 1, width) of `holder` items to '-', a fifo or device, or a file of any name."""
    shape = OutShape("TD", 1, width, holder)
    if target == "-":
        return RecordWriter(standard_output(None), "standard output", shape, owned=False, header=lambda rows: b"")
    if is_special(target):
        return RecordWriter(open_special(target), target, shape, owned=True, header=lambda rows: b"")
    return PlacedWriter(target, rows, shape, Format())


def is_special(target: str) -> bool:
    """True for an existing fifo, device or socket; OutputFailed for a folder."""
    if os.path.isdir(target):
        raise OutputFailed(f"{target}: is a folder, expected the name of a file; write to a name inside it")
    return waits(target)


def out_shape(heads: int, dim: int, dtype: str, layout: str, batch: int, sequences: Sequences | None) -> OutShape:
    """The shape of an output, by the arguments of `open_writer`."""
    return OutShape(layout, heads, dim, _dtype(dtype), batch, sequences if "B" in layout else None)


def _dtype(word: str) -> np.dtype:
    return np.dtype(DTYPES[number_word(word, "--out-dtype")].numpy)


def standard_output(given: BinaryIO | None) -> BinaryIO:
    """Standard output as bytes, or what is given in its place. Raises OutputFailed where it is closed."""
    file = given if given is not None else getattr(sys.stdout, "buffer", None)
    if file is None:
        raise OutputFailed("standard output is closed; give -o FILE")
    return file


def check_target(target: str) -> str:
    """The extension of a file that can be made here, or 'special' for what must not be replaced.

    Raises UsageError and OutputFailed as `open_writer` does, and touches nothing.
    """
    target, dataset = split_target(target)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise OutputFailed(f"{target}: cannot be written: {error.strerror}") from error
    if mode is not None and stat.S_ISDIR(mode):
        raise OutputFailed(f"{target}: is a folder, expected the name of a file; write to {target.rstrip('/')}/out.npy")
    if mode is not None and not stat.S_ISREG(mode):
        if dataset:
            raise UsageError(f"{target}: is no file, to which {dataset} could be added; omit :{dataset}")
        return "special"
    extension = os.path.splitext(target)[1].lower()
    if extension not in (".npy", ".h5", ".hdf5"):
        raise UsageError(
            f"{target}: output extension {extension or '(none)'} unknown; use .npy, .h5 or - for standard output"
        )
    folder = os.path.dirname(os.path.realpath(target))
    if not os.path.isdir(folder):
        raise OutputFailed(f"{target}: cannot be written: there is no folder {folder}; make it first (mkdir -p)")
    return extension
