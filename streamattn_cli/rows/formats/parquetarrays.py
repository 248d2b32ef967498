"""Rows of Parquet files, a few at a time through the library.

This module imports pyarrow; import it only where such a file is about to be opened.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamattn_cli.errors import InputMalformed, damaged
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.formats.arrowtypes import stored_columns
from streamattn_cli.rows.tensors.layout import Extent
from streamattn_cli.rows.tensors.stored import Stored
from streamattn_cli.rows.tensors.tensor import SeekableTensor

BATCH = 1 << 18  # bytes of rows that the library decodes at a time
PAGES = (
    10 << 20
)  # what it holds besides: a page, a dictionary, and memory that it does not give back (measured: to 9 MiB)
STREAM = 1 << 16  # bytes that it reads at a time


def parquet_names(path: str) -> list[str]:
    """Names of the columns, sorted."""
    with _opened(path) as file:
        return sorted(set(file.schema_arrow.names))


def parquet_arrays(path: str, names: dict[str, str], wanted: str | None) -> dict[str, Stored]:
    """The columns `names` (key -> name)."""
    with _opened(path) as file:
        schema, groups = file.schema_arrow, [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    if min(groups, default=0) < 0:
        raise damaged(path, f"a group of {min(groups)} rows")

    def make(column: str, extent: Extent, dtype: str, label: str) -> ParquetTensor:
        return ParquetTensor(path, column, groups, extent, dtype, label)

    return stored_columns(path, schema, names, sum(groups), wanted, make)


def _opened(path: str) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=STREAM)
        file.schema_arrow.names  # noqa: B018 - which may not be text
        return file
    except Exception as error:  # of a damaged file the library raises whatever it meets
        raise damaged(path, f"unreadable as a Parquet file: {error}") from error


class ParquetTensor(SeekableTensor):
    """A RowTensor over one column. It is decoded forward; reading from a row before that begins its row group again."""

    def __init__(self, path: str, column: str, groups: list[int], extent: Extent, dtype: str, name: str):
        super().__init__(name, path, extent, dtype)
        self._column, self._groups = column, groups
        self._batch = max(1, BATCH // self._row)
        self.held_bytes = PAGES + 12 * self._batch * self._row
        self._file: pq.ParquetFile | None = _opened(path)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rows, self._first = np.empty((0, extent.width), DTYPES[dtype].holder), 0  # decoded, and the first of them

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        count = self.there(buf, start, segment)
        at = start
        while at < start + count:
            if not self._first <= at < self._first + len(self._rows):
                self._move(at)
            skip = at - self._first
            more = self._rows[skip : skip + start + count - at]
            buf[0, at - start : at - start + len(more)] = more
            at += len(more)
        return count

    def _move(self, row: int) -> None:
        """Decode until `row` is among the rows: onward, or from the beginning of its group."""
        number, first = 0, 0
        while first + self._groups[number] <= row:
            first, number = first + self._groups[number], number + 1
        reached = self._first + len(self._rows)
        if not (max(first, 1) <= reached <= row):
            self._batches, reached = self._from(number), first
        while reached <= row:
            self._rows = self._rows[:0]
            try:
                self._rows = self._numbers(next(self._batches).column(0))
            except StopIteration:
                self._first = reached
                raise damaged(self.name, f"truncated: it ends at row {reached}") from None
            except (pa.ArrowException, OSError, ValueError) as error:
                self._first = -1
                raise damaged(self.name, f"row {reached} cannot be read: {error}") from error
            self._first, reached = reached, reached + len(self._rows)

    def _from(self, group: int) -> Iterator[pa.RecordBatch]:
        assert self._file is not None, "the file is closed"
        groups = list(range(group, len(self._groups)))
        batches: Iterator[pa.RecordBatch] = self._file.iter_batches(
            self._batch, groups, [self._column], use_threads=False
        )
        return batches

    def _numbers(self, found: pa.Array) -> np.ndarray:
        """Rows (n, width) of a part of the column."""
        rows = len(found)
        found = found.storage if isinstance(found, pa.ExtensionArray) else found
        while found.null_count == 0 and pa.types.is_fixed_size_list(found.type):
            found = found.flatten()
        if found.null_count:
            raise InputMalformed(f"{self.name}: has nulls, expected a number everywhere; omit or fill these rows")
        numbers: np.ndarray = found.to_numpy(zero_copy_only=True)
        return numbers.view(DTYPES[self.dtype].holder).reshape(rows, self.width)

    def close(self) -> None:
        """Close the file."""
        self._batches, self._rows = iter(()), self._rows[:0]
        if self._file is not None:
            self._file.close()
            self._file = None
