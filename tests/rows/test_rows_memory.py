"""Reading a large file costs only its buffers: no mapped pages, no copies."""

import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from streamattn_cli.rows.tensors.concat import ConcatTensor
from streamattn_cli.rows.tensors.memory import MemoryTensor
from streamattn_cli.rows.tensors.ranges import RangeTensor
from streamattn_cli.rows.tensors.resumed import ContinuedTensor

# A process of its own: the test runner's memory must not count. It prints how much resident memory grew at its peak.
READER = """
import sys
from streamattn_cli.rows.inputs.open import InputSpec, open_inputs
from streamattn_cli.rows.tensors.readahead import ReadAhead

def resident():
    fields = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Rss"))
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssFile", "RssShmem"))

if sys.argv[1].endswith(".h5"):
    import h5py
with open_inputs(InputSpec(sys.argv[1], record="kv" if sys.argv[1].endswith(".npy") else None), need_q=False) as inputs:
    before, peak, rows = resident(), 0, 0
    with ReadAhead([inputs.k.tensor, inputs.v.tensor], block_rows=4096) as ahead:
        for block in ahead:
            rows += block.rows
            peak = max(peak, resident())
    print(rows, peak - before - ahead.bytes_held - inputs.k.tensor.held_bytes - inputs.v.tensor.held_bytes)
"""


def grown(word, stdin=None):
    """(rows read, bytes of resident memory beyond the announced buffers)."""
    run = subprocess.run(
        [sys.executable, "-c", READER, word],
        stdin=stdin,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    rows, more = re.match(r"(\d+) (-?\d+)", run.stdout).groups()
    return int(rows), int(more)


@pytest.mark.parametrize("kind", ["npy", "pipe", "h5", "gzip"])
def test_large_inputs(tmp_path, kind):
    rows = 3_200_000 if kind != "gzip" else 800_000
    if kind in ("npy", "pipe"):
        path = tmp_path / "x.npy"
        np.lib.format.open_memmap(
            path, "w+", np.float32, (rows, 16)
        )  # a hole in the file reads as zeros like any other bytes
    else:
        path = tmp_path / "x.h5"
        storage = {"chunks": (8192, 16), "compression": "gzip", "compression_opts": 1} if kind == "gzip" else {}
        with h5py.File(path, "w") as file:
            for part in "kv":
                file.create_dataset(part, data=np.full((rows, 16), 1.5, "f2"), **storage)
    if kind == "pipe":
        with open(path, "rb") as source:
            found = grown("-", source)
    else:
        found = grown(str(path))
    assert found[0] == rows
    assert found[1] < 2 << 20


def test_batches_are_read_alone_through_ranges_and_joined_tensors():
    rng = np.random.default_rng(9)
    batches = [rng.standard_normal((3, rows, 2, 4), np.float32) for rows in (9, 5)]  # BTHD
    joined = ConcatTensor([MemoryTensor(array, "BTHD") for array in batches])
    expected = np.concatenate(batches, axis=1).reshape(3, 14, 8)
    for tensor, first in ((joined, 0), (RangeTensor(joined, 2, 13), 2), (ContinuedTensor(joined, -3), 3)):
        for segment in range(3):
            found = np.empty((1, 10, 8), np.float32)
            assert tensor.read_into(found, 0, segment) == 10
            np.testing.assert_array_equal(found[0], expected[segment, first : first + 10])
