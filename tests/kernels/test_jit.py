"""How kernels are compiled, and where their scratch begins."""

import pkgutil
from importlib import import_module

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

from streamattn_cli import kernels
from streamattn_cli.kernels.jit import FAST, kernel
from streamattn_cli.sketches.headparams import LINE, allocate

ALLOCATE = {"coreset.pivots", "countsketch.medians", "countsketch.scan", "synthetic.fill_normals"}


def test_every_kernel_runs_without_the_interpreter_and_those_that_allocate_are_few():
    counting, found = set(), 0
    for module in pkgutil.iter_modules(kernels.__path__):
        for name, item in vars(import_module(f"{kernels.__name__}.{module.name}")).items():
            if isinstance(item, Dispatcher) and item.py_func.__module__.endswith(module.name):
                found += 1
                assert item.targetoptions["nogil"] and item.targetoptions["error_model"] == "numpy"
                assert "fastmath" in item.targetoptions
                if item.targetoptions["_nrt"]:
                    counting.add(f"{module.name}.{name}")
    assert found > 80 and counting == ALLOCATE


@pytest.mark.parametrize("first", ["the caller", "itself"])
def test_a_kernel_is_compiled_as_it_says_whoever_calls_it_first(first):
    """Or the cache would hold what the process that filled it happened to call first."""

    def products(a, b, out):
        for i in range(out.shape[0]):
            out[i] += a[i] * b[i]

    products = kernel()(products)

    @kernel(fastmath=FAST)
    def caller(a, b, out):
        products(a, b, out)

    rows = np.ones((3, 5), "f4")
    (caller if first == "the caller" else products)(*rows)
    (code,) = products.inspect_llvm().values()
    assert "fmul float" in code or "fmul <" in code
    assert "contract" not in code and "reassoc" not in code
    assert rows[2].tolist() == [2] * 5


def test_kernels_count_no_references():
    """Atomic operations for every row that is cut out of an array would take longer than short rows themselves."""

    def fill(row, value):
        row[:] = value

    fill = kernel()(fill)

    @kernel()
    def rows(x):
        for i in range(x.shape[0]):
            if x[i, 0] < 0:
                fill(x[i], x[i, 1])

    x = np.array([[1.0, 2.0], [-1.0, 3.0]])
    rows(x)
    assert x.tolist() == [[1, 2], [3, 3]]
    code = next(iter(rows.inspect_llvm().values()))
    assert "define" in code and "NRT_incref" not in code and "NRT_decref" not in code


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u2", "?"])
def test_every_array_begins_on_a_cache_line(dtype):
    spec = {str(size): ((size, 3), dtype) for size in (1, 7, 100, 10_000)}
    for name, array in allocate(spec).items():
        assert array.shape == (int(name), 3) and array.dtype == dtype
        assert array.ctypes.data % LINE == 0 and array.flags.c_contiguous and array.flags.writeable
        assert not array.any()
