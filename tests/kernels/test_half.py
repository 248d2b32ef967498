"""Halves: the processor's conversion, the one by integers, and the same without the compiler are NumPy's."""

import numpy as np
import pytest
from numba import njit

from streamattn_cli.kernels.half import half_to_single, in_hardware, single_to_half

PATTERNS = np.arange(65536, dtype=np.uint16)
BY_INTEGERS = njit(half_to_single), njit(single_to_half)
AS_COMPILED = njit(lambda bits: half_to_single(bits)), njit(lambda x: single_to_half(x))


@pytest.fixture(params=[BY_INTEGERS, AS_COMPILED], ids=["integers", "compiled"])
def forms(request):
    return request.param


def test_every_half_widens_as_in_numpy(forms):
    found = np.array([forms[0](bits) for bits in PATTERNS], np.float32)
    expected = PATTERNS.view(np.float16).astype(np.float32)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(found[number].view(np.uint32), expected[number].view(np.uint32))
    np.testing.assert_array_equal(np.isnan(found), ~number)
    assert np.all(found.view(np.uint32)[~number] & (1 << 22)), "a signalling NaN"


def test_singles_narrow_as_in_numpy(forms):
    """Every half, every middle of two neighbours, their float32 neighbours, and what is too large."""
    halves = PATTERNS[:0x7C00].view(np.float16).astype(np.float32)
    middles = (halves[1:] + halves[:-1]) / 2
    numbers = np.concatenate(
        [halves, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(1e9))]
    )
    numbers = np.concatenate([numbers, np.float32([65519.996, 65520, 1e30, 3e38])])
    numbers = np.concatenate([numbers, -numbers])
    with np.errstate(over="ignore"):
        expected = numbers.astype(np.float16).view(np.uint16)
    found = np.array([forms[1](x) for x in numbers], np.uint16)
    np.testing.assert_array_equal(found, expected)


def test_the_processor_is_used_where_it_can():
    code = next(iter(AS_COMPILED[0].inspect_asm().values())) if AS_COMPILED[0](np.uint16(1)) else ""
    instructions = "vcvtph2ps", "vcvtsh2ss", "fcvt"  # of x86-64, of its newest, and of ARM
    assert not in_hardware() or any(name in code for name in instructions)
