"""How kernels are compiled, and where their scratch begins."""

import numpy as np
import pytest

from streamattn_cli.kernels.rowstore import load
from streamattn_cli.kernels.widen import HALF
from streamattn_cli.sketches.head import LINE, allocate


def test_kernels_count_no_references():
    """Atomic operations for every row that is cut out of an array would take longer than short rows themselves."""
    k, c = np.zeros((2, 3), "f4"), np.zeros((2, 4), "f4")
    load(np.zeros((2, 6), "u2"), HALF, k, c)
    code = next(iter(load.inspect_llvm().values()))
    assert "define" in code
    assert "NRT_incref" not in code and "NRT_decref" not in code


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u2", "?"])
def test_every_array_begins_on_a_cache_line(dtype):
    spec = {str(size): ((size, 3), dtype) for size in (0, 1, 7, 100, 10_000)}
    for name, array in allocate(spec).items():
        assert array.shape == (int(name), 3) and array.dtype == dtype
        assert array.ctypes.data % LINE == 0 and array.flags.c_contiguous and array.flags.writeable
        assert not array.any()
