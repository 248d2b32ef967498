"""Damaged inputs of every kind end in an error of ours (exit 2 to 5) or in rows, never in anything else.

STREAMATTN_MUTATIONS sets how many are tried of each kind (default 1,500).
"""

import io
import json
import os
import struct

import numpy as np
import pytest
from fuzzing import mutated, read_all

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.spec import InputSpec

COUNT = int(os.environ.get("STREAMATTN_MUTATIONS", "1500"))


def record(array):
    """One .npy record."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def safetensors():
    """A small file that holds k and v."""
    header = {"k": {"dtype": "F32", "shape": [5, 4], "data_offsets": [0, 80]},
              "v": {"dtype": "F16", "shape": [5, 4], "data_offsets": [80, 120]}}  # fmt: skip
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(120)


def tried(make, good):
    """Every mutation is refused in words or read; both must happen, or the mutations are no test."""
    rng = np.random.default_rng(7)
    read = refused = 0
    for _ in range(COUNT):
        spec = make(mutated(good, rng))
        try:
            read_all(spec)
            read += 1
        except (InputMalformed, InputMissing, UsageError) as error:
            assert str(error), "an error without words"
            refused += 1
    assert read and refused


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_npy_files(tmp_path):
    path = tmp_path / "x.npy"

    def make(data):
        path.write_bytes(data)
        return InputSpec(k=str(path), v=str(path))

    tried(make, record(np.arange(20, dtype="f4").reshape(5, 4)))


def test_safetensors_files(tmp_path):
    path = tmp_path / "x.safetensors"

    def make(data):
        path.write_bytes(data)
        return InputSpec(k=f"{path}:k", v=f"{path}:v")

    tried(make, safetensors())


def test_fp8_with_scales(tmp_path):
    path = tmp_path / "x.safetensors"
    header = {"k": {"dtype": "F8_E4M3", "shape": [5, 4], "data_offsets": [0, 20]},
              "v": {"dtype": "F8_E5M2", "shape": [5, 4], "data_offsets": [20, 40]},
              "k_scale": {"dtype": "F32", "shape": [], "data_offsets": [40, 44]},
              "__metadata__": {"v_scale": "0.5"}}  # fmt: skip
    text = json.dumps(header).encode()

    def make(data):
        path.write_bytes(data)
        return InputSpec(str(path))

    tried(make, struct.pack("<Q", len(text)) + text + bytes(40) + struct.pack("<f", 0.25))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_records_on_standard_input():
    rows = np.arange(24, dtype="f4").reshape(3, 8)
    tried(lambda data: InputSpec("-", stdin=io.BytesIO(data)), record(rows) + record(rows + 1) + record(rows[:1]))
