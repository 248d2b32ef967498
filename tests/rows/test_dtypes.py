"""The table of storage dtypes: each line of it is all that the rest of the package needs."""

import itertools
import json
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import rowfiles as rf

import streamattn_cli
from streamattn_cli.engine.jobs.inspect import _not_finite
from streamattn_cli.engine.jobs.warming import HELD
from streamattn_cli.errors import UsageError
from streamattn_cli.kernels.widen import any_bad, widen
from streamattn_cli.rows.convert import items_of, not_a_number, numbers
from streamattn_cli.rows.dtypes import DTYPES, PATTERNS, WORDS, WRITTEN, number_word, storage_of, storage_word
from streamattn_cli.rows.formats.hdf5types import file_storage
from streamattn_cli.rows.formats.pytorch import STORAGES
from streamattn_cli.rows.formats.safetensors import FORMAT as SAFETENSORS
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.memory import MemoryTensor
from streamattn_cli.rows.writers.hdf5dump import file_type
from streamattn_cli.sketches.coding.rowstore import kind

PLAIN = {"f2": "e", "f4": "f", "f8": "d"}  # of struct


def decoded(bits, d):
    """One item as IEEE 754 has it: sign, exponent and fraction. Where not all exponents of ones are special, only the last."""
    sign, body = divmod(bits, 1 << (d.exponent + d.mantissa))
    exponent, fraction = divmod(body, 1 << d.mantissa)
    if d.finite:
        if body >= d.finite:
            return float("nan")
    elif exponent == 2**d.exponent - 1:
        return float("nan") if fraction else (-1) ** sign * float("inf")
    step = 2.0**-d.mantissa
    size = (
        fraction * step * 2.0 ** (1 - d.bias) if exponent == 0 else (1 + fraction * step) * 2.0 ** (exponent - d.bias)
    )
    return -size if sign else size


def codes(d):
    """Bit patterns of a dtype, as Python integers: all of up to 16 bits, else borders and some others."""
    top = d.exponent + d.mantissa
    if top < 16:
        return range(1 << (top + 1))
    edges = [
        n + i for n in (0, 1 << d.mantissa, d.limit, (1 << top) - 3) for i in range(-2, 3) if 0 <= n + i < 1 << top
    ]
    others = np.random.default_rng(1).integers(0, 1 << top, 500).tolist()
    return [sign << top | n for n in [*edges, *others] for sign in (0, 1)]


def items(d):
    return np.array(codes(d), f"<u{d.itemsize}").view(d.holder)


@pytest.fixture(params=DTYPES.values(), ids=DTYPES)
def d(request):
    return request.param


def test_items_are_whole_bytes_and_held_as_such(d):
    assert (1 + d.exponent + d.mantissa) % 8 == 0
    assert np.dtype(d.holder).itemsize == d.itemsize and (not d.numpy or np.dtype(d.numpy).itemsize == d.itemsize)
    assert not d.numpy or d.limit == int(np.array(np.inf, d.numpy).view(f"<u{d.itemsize}"))


def test_the_numbers_of_items_are_those_of_the_definition(d):
    expected = np.array([decoded(code, d) for code in codes(d)])
    if d.name in PLAIN:
        size = {1: "B", 2: "H", 4: "I", 8: "Q"}[d.itemsize]
        own = [struct.unpack("<" + PLAIN[d.name], struct.pack("<" + size, code))[0] for code in codes(d)]
        np.testing.assert_array_equal(expected, own)
    found, finite = numbers(items(d), d.name), np.isfinite(expected)
    np.testing.assert_array_equal(found[finite], expected[finite])
    assert not np.isfinite(found[~finite]).any()
    assert np.array_equal(np.signbit(found[finite]), np.signbit(expected[finite]))


@pytest.mark.parametrize("to", ["f4", "f8"])
def test_the_kernel_makes_the_same_numbers_and_counts_the_others(d, to):
    expected = np.array([decoded(code, d) for code in codes(d)])
    dst, zero = np.full((1, 1, expected.size), 7, to), np.zeros(1, np.int64)
    with np.errstate(over="ignore"):
        expected = expected.astype(to)
        src = items(d)[None, None]
        bad = widen(src, kind(d.name), zero, zero, expected.size, 0, 1, np.zeros(0, "f4"), dst, np.zeros((0, 0), "u1"))[
            0
        ]
    np.testing.assert_array_equal(dst[0, 0], expected)
    assert np.array_equal(np.signbit(dst[0, 0]), np.signbit(expected)) or np.isnan(expected).any()
    assert bad == np.count_nonzero(~np.isfinite(expected))


def test_what_is_not_finite_is_found(d):
    one, every = np.zeros(1, np.int64), items(d)
    with np.errstate(over="ignore"):
        lost = ~np.isfinite(np.array([decoded(code, d) for code in codes(d)]).astype("f4" if d.name == "f8" else "f8"))
        for item, bad in itertools.islice(zip(every, lost, strict=True), 0, None, max(1, every.size // 700)):
            assert any_bad(np.array([[[item]]]), kind(d.name), one, one, one + 1, 0, 1) == bad
    expected = sum(not np.isfinite(decoded(code, d)) for code in codes(d))
    assert _not_finite(every, d.name) == expected
    assert not np.isfinite(numbers(np.array([not_a_number(d.name)]), d.name)).any()
    assert not_a_number(d.name).dtype == d.holder


def test_every_number_becomes_its_item_again(d):
    found = numbers(items(d), d.name)
    with np.errstate(over="ignore"):
        exact = np.isfinite(found) & (np.nan_to_num(found).astype("f4") == found)
    np.testing.assert_array_equal(items_of(found[exact].astype("f4"), d.name), items(d)[exact])


def test_numbers_are_rounded_to_the_nearest_even_and_too_large_ones_are_not_finite(d):
    if d.itemsize < 4:
        known = np.unique(np.abs(numbers(items(d), d.name)))
        known = known[np.isfinite(known)]
        between = ((known[:-1] + known[1:]) / 2).astype("f4")
        for moved, expected in ((1 - 2.0**-14, known[:-1]), (1 + 2.0**-14, known[1:])):
            nearly = (between * moved).astype("f4")
            np.testing.assert_array_equal(numbers(items_of(nearly, d.name), d.name), expected)
            np.testing.assert_array_equal(numbers(items_of(-nearly, d.name), d.name), -expected)
        assert (items_of(between, d.name) % 2 == 0).all()
    assert _not_finite(items_of(np.array([np.inf, -np.inf], "f4"), d.name), d.name) == 2


def test_words_name_one_dtype_each(d):
    assert all(storage_word(word, "--raw") == d.name for word in d.words)
    assert len({word for found in DTYPES.values() for word in found.words}) == sum(
        len(f.words) for f in DTYPES.values()
    )
    if d.numpy:
        assert number_word(d.words[0], "--out-dtype") == d.name
    else:
        with pytest.raises(UsageError, match="use f16, f32 or f64"):
            number_word(d.words[0], "--out-dtype")


def test_options_and_documents_offer_what_the_table_has():
    described = {f.name: f.metadata.get("option") for f in InputSpec.__dataclass_fields__.values()}
    assert described["raw"].choices == WORDS and described["dtype"].choices == PATTERNS
    schema = json.loads((Path(streamattn_cli.__file__).parent / "report" / "schema.json").read_text())
    assert schema["$defs"]["dtype"]["enum"] == list(DTYPES)
    assert all(found.title in schema["$defs"]["dtype"]["description"] for found in DTYPES.values())
    assert set(WRITTEN) <= set(WORDS) and {DTYPES[name].holder for name in HELD.values()} == {
        found.holder for found in DTYPES.values()
    }


def test_every_format_has_a_name_for_it(tmp_path, d):
    made = file_type(d.name)
    assert file_storage(made, "x", None) == (d.name, True, None)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = h5py.h5d.create(file.id, b"x", made, h5py.h5s.create_simple((2,)))
        assert file_storage(dataset.get_type(), "x", None)[0] == d.name
    assert [STORAGES[word] for word in d.torch] == [d.name] * 2
    path = rf.write_safetensors(tmp_path / "x.safetensors", {"x": items(d)[:6].reshape(3, 2)}, d.name)
    assert SAFETENSORS.arrays(path, {"x": "x"}, None)["x"].dtype == d.name
    if d.numpy:
        assert storage_of(np.dtype(d.numpy), "x") == (d.name, None)
    for pattern in d.patterns:
        found, note = storage_of(np.dtype(pattern), "x", d.name)
        assert found == d.name and d.title in note and "--dtype" not in note
    for pattern in d.assumed:
        found, note = storage_of(np.dtype(pattern), "x")
        assert found == d.name and "--dtype" in note


def test_rows_are_kept_in_a_dtype_that_holds_all_their_numbers(d):
    kept = DTYPES[d.kept or d.name]
    assert not kept.kept
    found = numbers(items(d), d.name)
    finite = np.isfinite(found)
    with np.errstate(over="ignore"):
        exact = found[finite].astype(kept.numpy or "f4" if kept.name != "f8" else "f8")
    np.testing.assert_array_equal(exact, found[finite])


def test_made_up_rows_are_in_it(d):
    tensor = MemoryTensor.of(np.ones((3, 2), "f4"), d.name)
    buf = np.empty((1, 3, 2), d.holder)
    assert tensor.dtype == d.name and tensor.read_into(buf, 0) == 3 and (numbers(buf, d.name) == 1).all()
