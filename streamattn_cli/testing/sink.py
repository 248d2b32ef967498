"""What every output of rows promises (rows/writers/base.py, Writer)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.testing.require import edges, require, require_raises, require_same_bytes

ROWS = 70
CUTS = ((1,), (7,), (3, 1, 29), (16,))  # sizes of blocks, in turn
META = {"method": "exact", "rows": ROWS, "params": {"degree": 2}}


@dataclass(frozen=True)
class SinkCase:
    """An output under test, of ROWS rows of `heads` heads of `dim` items.

    open(folder) gives a writer into that folder, the same name each time; read(folder) gives what was committed there,
    (ROWS, heads, dim). `named` outputs are files that get their name at commit; others (pipes) appear as written.
    """

    open: Callable[[Path], Writer]
    read: Callable[[Path], np.ndarray]
    named: bool = True
    heads: int = 2
    dim: int = 3

    def rows(self) -> np.ndarray:
        """What is written, float32: whole numbers that half precision can hold."""
        return np.arange(ROWS * self.heads * self.dim, dtype=np.float32).reshape(ROWS, self.heads, self.dim) - 100


def write(case: SinkCase, writer: Writer, sizes: tuple[int, ...]) -> None:
    """All rows, in blocks of these sizes."""
    for a, b in edges(ROWS, sizes):
        writer.write(a, case.rows()[a:b])
        require(writer.rows_written == b, f"rows_written {writer.rows_written} found, expected {b}")


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def what_is_written_is_read(case: SinkCase, folder: Path) -> None:
    """The rows come back, in order."""
    writer = case.open(folder)
    write(case, writer, (9,))
    writer.commit(META)
    found = case.read(folder)
    require_same_bytes(found.astype(np.float32), case.rows(), "rows read back")


def any_cut_gives_the_same_bytes(case: SinkCase, folder: Path) -> None:
    """However the rows were cut into blocks, the files (of pipes: the rows) are the same."""
    whole = None
    for number, sizes in enumerate(((ROWS,), *CUTS)):
        place = folder / str(number)
        place.mkdir()
        writer = case.open(place)
        write(case, writer, sizes)
        writer.commit(META)
        found = content(place) if case.named else case.read(place).tobytes()
        whole = whole or found
        require(found == whole, f"blocks of {sizes}: other bytes than in one block")


def blocks_need_not_be_contiguous(case: SinkCase, folder: Path) -> None:
    """A transposed view of other memory, and another float dtype, are written like any block."""
    writer = case.open(folder)
    view = np.ascontiguousarray(case.rows().transpose(1, 0, 2)).astype(np.float64).transpose(1, 0, 2)
    writer.write(0, view)
    writer.commit(META)
    require_same_bytes(case.read(folder).astype(np.float32), case.rows(), "rows read back")


def rows_come_in_order_and_shape(case: SinkCase, folder: Path) -> None:
    """A block at another row or of another shape is a ValueError that changes nothing."""
    writer = case.open(folder)
    writer.write(0, case.rows()[:10])
    for what, start, block in (
        ("a gap", 11, case.rows()[11:]),
        ("a repetition", 0, case.rows()[:10]),
        ("fewer heads", 10, case.rows()[10:, 1:]),
        ("fewer items", 10, case.rows()[10:, :, 1:]),
    ):
        require_raises(ValueError, partial(writer.write, start, block), what)
    writer.write(10, case.rows()[10:])
    writer.commit(META)
    require_same_bytes(case.read(folder).astype(np.float32), case.rows(), "rows read back")


def the_name_appears_only_at_commit(case: SinkCase, folder: Path) -> None:
    """Until then the folder holds hidden files beside what it held before; afterwards none of them is left."""
    if not case.named:
        return
    writer = case.open(folder)
    for at in range(0, ROWS, 10):
        visible = [name for name in content(folder) if not name.startswith(".")]
        require(not visible, f"{visible} visible after {at} rows")
        writer.write(at, case.rows()[at : at + 10])
    require(all(name.startswith(".") for name in content(folder)), "visible before commit")
    writer.commit(META)
    hidden = [name for name in content(folder) if name.startswith(".")]
    require(not hidden and bool(content(folder)), f"{hidden} left after commit")


def aborting_leaves_nothing(case: SinkCase, folder: Path) -> None:
    """Whenever it happens, and twice: the folder is as before. After commit it does nothing."""
    if not case.named:
        return
    first = case.open(folder)
    write(case, first, (20,))
    first.commit(META)
    before = content(folder)
    for count in (0, 10, ROWS):
        writer = case.open(folder)
        if count:
            writer.write(0, 2 * case.rows()[:count])
        require(all(content(folder).get(name) == data for name, data in before.items()), "the old output changed")
        writer.abort()
        writer.abort()
        require(content(folder) == before, f"aborted after {count} rows: {sorted(content(folder))} found")
    first.abort()
    require(content(folder) == before, "abort after commit changed the output")


def a_commit_replaces_the_old_output(case: SinkCase, folder: Path) -> None:
    """A second output of the same name takes the place of the first."""
    if not case.named:
        return
    for factor in (2, 1):
        writer = case.open(folder)
        writer.write(0, factor * case.rows())
        writer.commit(META)
    require_same_bytes(case.read(folder).astype(np.float32), case.rows(), "rows of the second output")


SINK_LAWS = (
    what_is_written_is_read,
    any_cut_gives_the_same_bytes,
    blocks_need_not_be_contiguous,
    rows_come_in_order_and_shape,
    the_name_appears_only_at_commit,
    aborting_leaves_nothing,
    a_commit_replaces_the_old_output,
)
