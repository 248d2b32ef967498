"""A sample of what scripts/fuzz_formats does: damaged files of every format are refused in words, or read."""

import os

import fuzzing
import pytest

COUNT = int(os.environ.get("STREAMATTN_MUTATIONS", "1500")) // 30


@pytest.mark.parametrize("kind", fuzzing.KINDS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_or_read(kind):
    read, refused = fuzzing.fuzz(kind, COUNT, 7)
    assert read + refused == COUNT and refused
