"""Reading every format beside `readinto` of the same file, in CPU time and in turns."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # the writers of the tests
import formatfiles
import llamafiles

from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.spec import InputSpec

ROWS, HEADS, DIM = 65536, 8, 64
BLOCK = 4 << 20  # bytes
TURNS = 5


def formats() -> Iterator[tuple[str, float, str, str, float | None]]:
    """Keys and values of 8 heads of 64 as float16, 128 MiB, read in blocks of 4 MiB from every format."""
    rng = np.random.default_rng(0)
    arrays = {part: rng.standard_normal((ROWS, HEADS, DIM), np.float32).astype(np.float16) for part in "kv"}
    flat = [array.reshape(ROWS, -1) for array in arrays.values()]
    for kind in (*formatfiles.WRITERS, "state", "turned state"):
        with tempfile.TemporaryDirectory() as folder:
            if "state" in kind:
                path = llamafiles.save(Path(folder) / "slot.bin", [flat], transposed="turned" in kind)
            else:
                turned = "turned" in kind  # heads first, stored with rows first
                named = {part: array.swapaxes(0, 1) if turned else array for part, array in arrays.items()}
                path = formatfiles.written(folder, kind, named)
            files = [file for file in Path(folder).rglob("*") if file.is_file()]
            size = sum(array.nbytes for array in arrays.values())
            spec = InputSpec(str(path), layout="TD" if "state" in kind else "HTD" if "turned" in kind else "THD")
            plain, ours = np.inf, np.inf
            for _ in range(TURNS):
                stored = sum(file.stat().st_size for file in files)
                plain = min(plain, _seconds(lambda: _plainly(files)) * size / stored)  # noqa: B023 - runs before the loop goes on
                ours = min(ours, _seconds(lambda: _rows(spec)))  # noqa: B023
            yield f"{kind}, {stored >> 20} MiB", size / ours / 1e6, "MB/s", "readinto", plain / ours


def _seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _plainly(files: list[Path]) -> None:
    buffer = bytearray(BLOCK)
    for file in files:
        with open(file, "rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def _rows(spec: InputSpec) -> None:
    with open_inputs(spec, need_q=False) as inputs:
        for heads in (inputs.k, inputs.v):
            tensor = heads.tensor
            rows = BLOCK // (tensor.outer * tensor.width * DTYPES[tensor.dtype].itemsize)
            buffer = np.empty((tensor.outer, rows, tensor.width), DTYPES[tensor.dtype].holder)
            for start in range(0, tensor.rows, rows):
                tensor.read_into(buffer, start)
