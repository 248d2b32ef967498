"""kernels/widen.py against NumPy's own conversions."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamattn_cli.kernels.widen import any_bad, widen
from streamattn_cli.sketches.coding.rowstore import kind

ONE = np.zeros(0, np.float32)  # no factors
NO_MASK = np.zeros((0, 0), np.uint8)
PATTERNS = np.arange(65536, dtype=np.uint16)


def one_head(items, dtype, to, mask=NO_MASK):
    """Widen (rows, dim) items as one head."""
    rows, dim = items.shape
    dst = np.full((1, rows, dim), 7, to)
    report = widen(items[None], kind(dtype), np.zeros(1, np.int64), np.zeros(1, np.int64), dim, 0, rows, ONE, dst, mask)
    return dst[0], tuple(int(n) for n in report)


@pytest.mark.parametrize("to", ["f4", "f8"])
@pytest.mark.parametrize("dtype", ["f2", "bf16"])
def test_every_half_pattern(dtype, to):
    items = PATTERNS.reshape(512, 128)
    expected = items.view(np.float16) if dtype == "f2" else (items.astype(np.uint32) << 16).view(np.float32)
    found, (bad, _, _) = one_head(items, dtype, to)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        expected = expected.astype(to)
    np.testing.assert_array_equal(found, expected)
    assert np.array_equal(np.signbit(found), np.signbit(expected))
    assert bad == np.count_nonzero(~np.isfinite(expected))


@pytest.mark.parametrize(("dtype", "to"), [("f4", "f4"), ("f4", "f8"), ("f8", "f8"), ("f8", "f4")])
def test_floats(dtype, to):
    edge = [0.0, -0.0, 1.5, -3e38, 1e-40, np.inf, -np.inf, np.nan]
    if dtype == "f8":
        edge += [1e300, -1e300, 2.0**128 - 2.0**103, np.nextafter(2.0**128 - 2.0**103, 0), 5e-324]
    items = np.array([edge], dtype)
    with np.errstate(over="ignore"):
        expected = items.astype(to)
    found, (bad, head, row) = one_head(items, dtype, to)
    np.testing.assert_array_equal(found, expected)
    assert (bad, head, row) == (np.count_nonzero(~np.isfinite(expected)), 0, 0)


def test_heads_rows_and_mask():
    """Heads at any place, rows from the middle, nothing written beyond; the lowest bad row is named."""
    rng = np.random.default_rng(5)
    src = rng.standard_normal((3, 20, 11)).astype("f4")
    src[2, 9, 4] = np.nan
    src[0, 12, 10] = np.inf
    outer, column = np.array([2, 0, 1]), np.array([3, 7, 0])
    dst, mask = np.full((3, 12, 4), 7.0), np.full((3, 12), 9, np.uint8)
    report = widen(src, kind("f4"), outer, column, 4, 5, 10, ONE, dst, mask)
    expected = np.stack([src[o, 5:15, c : c + 4] for o, c in zip(outer, column, strict=True)])
    np.testing.assert_array_equal(dst[:, :10], expected)
    assert (dst[:, 10:] == 7).all() and (mask[:, 10:] == 9).all()
    np.testing.assert_array_equal(mask[:, :10], np.isfinite(expected).all(axis=2))
    assert tuple(report) == (2, 0, 4)


def test_all_finite():
    mask = np.zeros((1, 4), np.uint8)
    assert one_head(np.ones((4, 3), "f8"), "f8", "f8", mask)[1] == (0, -1, -1)
    assert mask.all()


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="already without the compiler")
def test_without_compiler():
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(Path(__file__))]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stdout + run.stderr
    assert "14 passed, 1 skipped" in run.stdout


@pytest.mark.parametrize("dtype", ["f2", "bf16", "f4", "f8"])
def test_any_bad_looks_at_these_heads_and_rows_alone(dtype):
    items = {"f2": 0x7C01, "bf16": 0xFF80, "f4": -np.inf, "f8": 1e39}  # NaN, -inf, -inf, infinite in float32
    src = np.ones((2, 20, 12), "u2" if dtype in ("f2", "bf16") else dtype)
    runs = np.array([[0, 4, 4], [1, 8, 4]]).T.copy()
    every = np.array([[0, 0, 12], [1, 0, 12]]).T.copy()
    found = []
    for place in ((0, 5, 4), (1, 9, 11), (0, 5, 3), (0, 5, 8), (1, 4, 8), (1, 10, 8)):
        src[:] = 1
        src[place] = items[dtype]
        with np.errstate(over="ignore"):  # without the compiler, NumPy makes the limit of float32 one itself
            found.append(any_bad(src, kind(dtype), *runs, 5, 5))
            assert any_bad(src, kind(dtype), *every, 5, 5) == (5 <= place[1] < 10)
            assert any_bad(src, kind(dtype), *every[:, :1], 5, 5) == (5 <= place[1] < 10 and place[0] == 0)
    assert found == [True, True, False, False, False, False]
