"""Sparse results (`--top-k`): an HDF5 file with a group for every query head, complete or not there at all.

head_0/row, column, value, significant (and reference, where values are differences from it), and as attributes of the
group the norms that recovery is judged by. This module imports h5py; import it only where such a file is written.
"""

from __future__ import annotations

import os

import h5py
import numpy as np

from streamattn_cli.errors import UsageError
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.hdf5file import PatientFile
from streamattn_cli.rows.writers.hdf5out import set_attributes
from streamattn_cli.rows.writers.temporary import Temporary, Unfinished, failing_as_output, or_abort
from streamattn_cli.rows.writers.topk import BestRows, Sparse, ratio


def check_sparse(path: str) -> None:
    """Refuse (UsageError) what cannot become a file of sparse columns."""
    if os.path.splitext(path)[1].lower() not in (".h5", ".hdf5") or (os.path.exists(path) and not os.path.isfile(path)):
        raise UsageError(f"{path}: --top-k writes sparse columns as HDF5; give -o FILE.h5")


class TopKWriter(Unfinished, Writer):
    """A Writer (see base.py) that keeps the best k entries of every column of the rows it is given, or is told them by
    `recover` where rows are never produced. tag: see open_writer; what a checkpoint must hold of it is `rows_written` and
    the state of `best`."""

    def __init__(
        self, path: str, k: int, heads: int, dim: int, deviation: bool, heaps: bool = True,
        tag: str | None = None,
    ):  # fmt: skip
        self.name = path
        self.rows_written = 0
        self.k, self.by = k, "heaps"
        self.measured = True
        self.joint = False
        self.results: list[Sparse] = []
        self._heads = heads
        self.best = BestRows(k, heads, dim, deviation) if heaps else None
        with failing_as_output(path):
            self._temporary = Temporary(path, tag=tag)

    def write(self, start: int, block: np.ndarray) -> None:
        assert self.best is not None, "rows are written where there are heaps"
        self.best.offer(start, block)
        self.rows_written += len(block)

    def recover(self, results: list[Sparse], by: str, joint: bool, rows: int, measured: bool) -> None:
        self.results, self.by, self.joint, self.rows_written, self.measured = results, by, joint, rows, measured

    def finish(self) -> dict:
        """All rows have been seen: what was kept, and how it compares with keeping nothing (JSON-able). Raises
        UsageError when there are fewer than k."""
        if self.k > self.rows_written:
            raise UsageError(
                f"--top-k {self.k}: there are only {self.rows_written} query rows; choose at most that many"
            )
        if not self.results:
            self.results = [self.best.head(head) for head in range(self._heads)] if self.best else []
        recovery = np.concatenate([ratio(s.rest, s.best) for s in self.results])
        zero = np.concatenate([ratio(s.zero, s.best) for s in self.results])
        return {
            "k": self.k,
            "by": self.by,
            "joint": self.joint,
            "deviation": self.results[0].reference is not None,
            "entries": int(sum(len(s.rows) for s in self.results)),
            "significant": int(sum(s.significant.sum() for s in self.results)),
            "measured": self.measured,
            "recovery_ratio": {"median": float(np.median(recovery)), "worst": float(recovery.max())},
            "zero_ratio": {"median": float(np.median(zero)), "worst": float(zero.max())},
        }

    def commit(self, meta: dict) -> None:
        with or_abort(self):
            patient = PatientFile(self._temporary.fd)
            with h5py.File(patient, "w", driver="fileobj") as file:
                set_attributes(file, meta)
                for head, sparse in enumerate(self.results):
                    _fill(file.create_group(f"head_{head}"), sparse)
            patient.check()
            self._temporary.commit()


def _fill(group: h5py.Group, sparse: Sparse) -> None:
    group["row"] = sparse.rows
    group["column"] = sparse.columns.astype(np.int32)
    group["value"] = sparse.values
    group["significant"] = sparse.significant
    if sparse.reference is not None:
        group["reference"] = sparse.reference
    for name in ("rest", "best", "zero"):
        group.attrs[name] = getattr(sparse, name)
