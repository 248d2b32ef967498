"""Input that cannot be used: every refusal has its class and says what was found."""

import json
import os

import h5py
import numpy as np
import pytest
import rowfiles as rf

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.formats import hdf5arrays as hdf5
from streamattn_cli.rows.inputs.open import InputSpec, open_inputs


def refused(error, match, need_q=True, **words):
    with pytest.raises(error, match=match) as caught, open_inputs(InputSpec(**words), need_q):
        pass
    assert type(caught.value) is error
    return str(caught.value)


@pytest.fixture
def npy(tmp_path):
    """Make an .npy file of the given shape; return its path."""

    def make(name, *shape, dtype="f4"):
        np.save(tmp_path / name, np.ones(shape, dtype))
        return str(tmp_path / name)

    return make


def test_missing_file(tmp_path):
    refused(InputMissing, "nowhere.h5: No such file", input=str(tmp_path / "nowhere.h5"))
    refused(InputMissing, "nowhere.h5:/k: No such file", input=str(tmp_path / "nowhere.h5:/k"))


def test_folder(tmp_path):
    refused(InputMissing, "is a folder", input=str(tmp_path))


def test_unreadable_file(npy):
    """As a user who may not read it: root may read everything, so a child gives up being root."""
    path = npy("k.npy", 4, 2)
    os.chmod(path, 0)
    if os.geteuid() != 0:
        refused(InputMissing, "permission", input=path)
        return
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(65534)
            open_inputs(InputSpec(path))
        except InputMissing as error:
            status = 0 if "ermission" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_wrong_dataset_lists_what_is_there(tmp_path):
    path = rf.write_hdf5(tmp_path / "x.h5", {"keys": np.ones((3, 2)), "deep/v": np.ones((3, 2))}, "f8")
    refused(InputMissing, "no dataset /q; there are: /deep/v, /keys", input=path)
    refused(InputMissing, "no dataset /nope; there are", input=path + ":nope")
    refused(InputMissing, "no dataset /deep/q", input=path, group="deep")
    refused(InputMissing, "no dataset /deep;", input=path + ":deep")


def test_wrong_tensor_lists_what_is_there(tmp_path):
    one = np.ones((3, 2))
    path = rf.write_safetensors(tmp_path / "x.safetensors", {"a.k": one, "b.k": one, "a.v": one}, "f8")
    refused(InputMissing, r"no tensor q or \*.q; there are: a.k, a.v, b.k", input=path)
    refused(InputMissing, "no tensor c.k", need_q=False, input=path, group="c")
    refused(InputMissing, "no tensor nope", need_q=False, input=path + ":nope")
    refused(InputMalformed, "2 tensors end in .k", need_q=False, input=path)


@pytest.mark.parametrize("write", [rf.write_safetensors, rf.write_hdf5])
def test_an_array_named_as_fused_rows_is_said_to_be_read_as_a_record(tmp_path, write):
    path = write(tmp_path / "x.file", {"h.0.c_attn": np.ones((5, 18)), "h.1.c_attn": np.ones((5, 18))}, "f8")
    message = refused(InputMissing, "hold q, k and v side by side: .* --record qkv --heads HEADS", input=path)
    advised = message.split("side by side: ")[1].split(" ")[0]
    with open_inputs(InputSpec(input=advised, record="qkv", heads=3)) as inputs:
        assert [(len(heads), heads.dim) for heads in inputs.parts] == [(3, 2)] * 3


def test_five_axes_are_no_layout(npy):
    path = npy("cache.npy", 2, 1, 3, 5, 4)
    refused(InputMalformed, r"expected 2 to 4 axes, found shape \(2, 1, 3, 5, 4\)", input=path, record="qkv")


def test_rows_of_k_and_v_differ(npy):
    refused(InputMalformed, "has 5 rows and .* 4", need_q=False, k=npy("k.npy", 5, 2), v=npy("v.npy", 4, 2))
    words = {"k": npy("k.npy", 5, 3, 2), "v": npy("v.npy", 4, 3, 2)}
    message = refused(InputMalformed, "fit together in no layout", need_q=False, **words)
    assert "(5, 3, 2)" in message and "(4, 3, 2)" in message


def test_outputs_of_projections_are_said_to_be_read_without_their_batch(npy):
    """(1, rows, heads x items), what a hook of a linear layer sees."""
    words = {part: npy(f"{part}.npy", 1, 30, width) for part, width in (("q", 8), ("k", 8), ("v", 8))}
    refused(InputMalformed, r"1 heads found for q.* save two axes, \(rows, heads x items\)", heads=4, **words)
    words |= {part: npy(f"{part}2.npy", 1, 30, 4) for part in "kv"}
    refused(InputMalformed, "fit together in no layout.* save two axes", heads=4, kv_heads=2, **words)


@pytest.mark.parametrize(("layout", "q", "k", "found"), [
    ("TD", (5, 3), (5, 2), "3 items and .* 2"),
    ("THD", (5, 2, 3), (5, 2, 4), "3 items and .* 4"),
    ("THD", (5, 3, 4), (5, 2, 4), "3 query heads and .* 2 key heads"),
    ("HTD", (2, 5, 4), (3, 5, 4), "2 query heads and .* 3 key heads"),
    ("BTHD", (2, 5, 2, 4), (1, 5, 4, 4), "2 batches, .* 1"),
    ("BTHD", (2, 5, 1, 4), (1, 5, 1, 4), "2 batches, .* 1"),
])  # fmt: skip
def test_q_does_not_fit_k(npy, layout, q, k, found):
    words = {"q": npy("q.npy", *q), "k": npy("k.npy", *k), "v": npy("v.npy", *k)}
    refused(InputMalformed, found, layout=layout, **words)


def test_v_does_not_fit_k(npy):
    words = {"k": npy("k.npy", 5, 2, 3), "v": npy("v.npy", 5, 3, 3)}
    refused(InputMalformed, "2 key heads and .* 3 value heads", need_q=False, layout="THD", **words)


def test_what_the_user_said_must_hold(npy):
    words = {"q": npy("q.npy", 5, 4, 3), "k": npy("k.npy", 5, 2, 3), "v": npy("v.npy", 5, 2, 3), "layout": "THD"}
    with open_inputs(InputSpec(heads=4, kv_heads=2, dim=3, value_dim=3, **words)) as inputs:
        assert len(inputs.q) == 4
    refused(InputMalformed, "--heads 3 was given", heads=3, **words)
    refused(InputMalformed, "--kv-heads 1 was given", kv_heads=1, **words)
    refused(InputMalformed, "--dim 4 was given", dim=4, **words)
    refused(InputMalformed, "--value-dim 4 was given", value_dim=4, **words)


def test_empty(tmp_path, npy):
    refused(InputMalformed, "no rows", need_q=False, k=npy("k.npy", 0, 2), v=npy("v.npy", 0, 2))
    one, none = npy("one.npy", 1, 2, 4), npy("none.npy", 0, 2, 4)
    refused(InputMalformed, "none.npy: no rows", q=one, k=none, v=none, layout="THD")
    refused(InputMalformed, "none.npy: no rows", q=none, k=one, v=one, layout="THD")
    refused(InputMalformed, "empty axis D", need_q=False, k=npy("k.npy", 2, 0), v=npy("v.npy", 2, 0))
    (tmp_path / "x.npy").write_bytes(b"")
    refused(InputMalformed, "is empty", input=str(tmp_path / "x.npy"))


def test_one_row(npy):
    word = npy("k.npy", 1, 2)
    with open_inputs(InputSpec(q=word, k=word, v=word)) as inputs:
        assert rf.head_items(inputs.k).shape == (1, 1, 2)


def cut(path, size):
    with open(path, "r+b") as file:
        file.truncate(size)


def test_truncated_npy(npy):
    path = npy("k.npy", 100, 8)
    for size in (128 + 3199, 130, 128, 60, 9, 4):
        cut(path, size)
        message = refused(InputMalformed, "k.npy", need_q=False, k=path, v=path)
        assert any(word in message for word in ("truncated", "not an .npy header", "does not begin")), message


def npy_with(path, header, data=bytes(64)):
    text = header.encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)
    return str(path)


@pytest.mark.parametrize(("header", "found"), [
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (9, 4), }", "needs 272 bytes, the file has 192"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }", "does not belong to this data"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -4), }", "expected a tuple of whole numbers"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 16), }", "expected a tuple of whole numbers"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': [4, 4], }", "expected a tuple of whole numbers"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (10**30, 4), }", "unreadable"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000000000000000000, 4), }", "truncated"),
    ("{'descr': '<f4', 'fortran_order': True, 'shape': (4, 4), }", "Fortran order"),
    ("{'descr': '>f4', 'fortran_order': False, 'shape': (4, 4), }", "big-endian"),
    ("{'descr': '|O', 'fortran_order': False, 'shape': (4, 4), }", "Python objects"),
    ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 4), }", "records are not read"),
    ("{'descr': '<i4', 'fortran_order': False, 'shape': (4, 4), }", "dtype int32 found"),
    ("{'descr': '<c8', 'fortran_order': False, 'shape': (4, 2), }", "dtype complex64 found"),
    ("{'descr': 'nonsense', 'fortran_order': False, 'shape': (4, 4), }", "unreadable"),
    ("{'descr': '<f4', 'shape': (4, 4), }", "unreadable"),
    ("[1, 2", "unreadable"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (16,), }", "2 to 4 axes|different numbers"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (), }", "does not belong|2 to 4 axes"),
])  # fmt: skip
def test_lying_npy_headers(tmp_path, header, found):
    path = npy_with(tmp_path / "k.npy", header)
    refused(InputMalformed, found, need_q=False, k=path, v=path)


def test_npy_header_too_long_or_too_new(tmp_path):
    path = tmp_path / "k.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little") + bytes(64))
    refused(InputMalformed, "header of 1073741824 bytes", need_q=False, k=str(path), v=str(path))
    path.write_bytes(b"\x93NUMPY\x09\x00" + bytes(64))
    refused(InputMalformed, "version 9", need_q=False, k=str(path), v=str(path))


def test_concatenated_records_in_a_file(tmp_path):
    with open(tmp_path / "x.npy", "wb") as file:
        np.save(file, np.ones((3, 4)))
        np.save(file, np.ones((3, 4)))
    refused(InputMalformed, "more than one .npy record; give it on standard input", input=str(tmp_path / "x.npy"))


@pytest.mark.parametrize(("content", "found"), [
    (b"PK\x03\x04" + bytes(60), "zip archive"),
    (b"hello, these are no rows at all", "headerless rows need --raw"),
    (b"xx", "headerless rows need --raw"),
])  # fmt: skip
def test_other_kinds_of_files(tmp_path, content, found):
    (tmp_path / "x.bin").write_bytes(content)
    refused(InputMalformed, found, input=str(tmp_path / "x.bin"))


def test_damaged_by_its_extension(tmp_path):
    (tmp_path / "x.h5").write_bytes(bytes(4096))
    refused(InputMalformed, "does not begin like a hdf5 file", input=str(tmp_path / "x.h5"))


def test_truncated_hdf5(tmp_path):
    path = rf.write_hdf5(tmp_path / "x.h5", {p: np.ones((1000, 4)) for p in "qkv"}, "f8")
    for size in (90_000, 3000, 100):
        cut(path, size)
        refused(InputMalformed, "not readable as HDF5", input=path)


def test_hdf5_dtypes(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["i"] = np.ones((3, 2), "i4")
        file["s"] = np.array([b"ab", b"cd"])
        file["scalar"] = 1.0
        file["text"] = "hello"
        odd = h5py.h5t.IEEE_F32LE.copy()
        odd.set_fields(15, 8, 7, 0, 8)
        odd.set_size(2)
        odd.set_ebias(63)
        h5py.h5d.create(file.id, b"odd", odd, h5py.h5s.create_simple((3, 2)))
    for name, found in {
        "i": "int32",
        "s": "S2",
        "scalar": "without axes",
        "text": "dtype object",
        "odd": "16 bits with 7 exponent bits",
    }.items():
        word = f"{tmp_path / 'x.h5'}:{name}"
        refused(InputMalformed, found, need_q=False, k=word, v=word)


@pytest.mark.parametrize("how", ["npy", "safetensors", "hdf5"])
@pytest.mark.parametrize("record", [None, "qkv"])
def test_one_number_is_no_tensor(tmp_path, how, record):
    one = np.array(1.0, "f4")
    if how == "npy":
        word = rf.write_npy(tmp_path / "x.npy", one, "f4")
    elif how == "safetensors":
        word = rf.write_safetensors(tmp_path / "x.safetensors", {"x": one}, "f4") + ":x"
    else:
        word = rf.write_hdf5(tmp_path / "x.h5", {"x": one}, "f4") + ":x"
    words = {"input": word, "record": record} if record else {"k": word, "v": word, "need_q": False}
    refused(InputMalformed, "without axes", **words)


def test_missing_filter_is_named(tmp_path, monkeypatch):
    """zlib stands for a filter that is not there: the library itself is asked for availability."""
    path = rf.write_hdf5(tmp_path / "x.h5", {p: np.ones((8, 2)) for p in "qkv"}, "f8", chunks=(4, 2), compression="lzf")
    monkeypatch.setattr(hdf5.h5py.h5z, "filter_avail", lambda code: False)
    message = refused(InputMalformed, r"filter 32000 \(lzf\), which is not installed", input=path)
    assert "pip install 'streamattn-cli[filters]'" in message


def test_file_attributes_that_make_no_sense(tmp_path):
    for key, value in {"scale": "wide", "causal": "perhaps", "layout": "DTH"}.items():
        path = rf.write_hdf5(tmp_path / "x.h5", {p: np.ones((8, 2)) for p in "qkv"}, "f8", {key: value})
        refused(InputMalformed, f"attribute {key} is '{value}'", input=path)


def safetensors_with(path, header, data=bytes(64)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return str(path)


def entry(begin=0, end=32, shape=(2, 4), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(("header", "found"), [
    ({"k": entry(40, 72)}, "truncated: tensor k lies at data bytes 40 to 72"),
    ({"k": entry(), "v": entry(16, 48)}, "k and v overlap"),
    ({"k": entry(32, 0)}, "lies at"),
    ({"k": entry(shape=(3, 4))}, "needs 48 bytes"),
    ({"k": entry(dtype="I32"), "v": entry(32, 64)}, "dtype I32 found"),
    ({"k": {"dtype": "F32", "shape": [2, 4]}}, "lacks a sane"),
    ({"k": entry(shape=(-2, -4))}, "lacks a sane"),
    ({"k": "F32"}, "lacks a sane"),
    (b'{"k": {"dtype":"F32","shape":[2,4],"data_offsets":[0,32]}, "k": 1}', "a name occurs twice"),
    (b"{not json", "unreadable"),
    (b"{" + b"[" * 100_000, "unreadable"),
    ({"__metadata__": {"a": 1}, "k": entry()}, "not a map of strings"),
    ({"__metadata__": "a", "k": entry()}, "not a map of strings"),
])  # fmt: skip
def test_damaged_safetensors(tmp_path, header, found):
    path = safetensors_with(tmp_path / "x.safetensors", header)
    refused(InputMalformed, found, need_q=False, input=path)


def test_safetensors_header_longer_than_the_file(tmp_path):
    (tmp_path / "x.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    refused(InputMalformed, "header of 1099511627776 bytes", need_q=False, input=str(tmp_path / "x.safetensors"))


def test_file_that_shrinks_while_it_is_read(npy):
    path = npy("k.npy", 1000, 8)
    with open_inputs(InputSpec(k=path, v=path), need_q=False) as inputs:
        cut(path, 1000)
        with pytest.raises(InputMalformed, match="the file ends at byte 1000"):
            rf.head_items(inputs.k)


def test_words_that_contradict(npy):
    word = npy("k.npy", 4, 2)
    refused(UsageError, "only one of the inputs", input="-", q="-")
    refused(UsageError, "no input for q: give --q FILE", k=word, v=word)
    refused(UsageError, "no input for q, k, v")
    refused(UsageError, "nothing is left to read", input=word, q=word, k=word, v=word)
    refused(UsageError, "layout DTH: unknown", k=word, v=word, q=word, layout="DTH")
    refused(UsageError, "--record vk: use qkv", input=word, record="vk")
    refused(UsageError, "lacks q", input=word, record="kv")
    refused(UsageError, "--raw i8: unknown dtype", input=word, raw="i8")
    refused(InputMalformed, "holds one array without a name", input=word + ":k")
    refused(UsageError, "--dtype f64: it tells what 8- or 16-bit", need_q=False, k=word, v=word, dtype="f64")
    refused(InputMalformed, "layout THD has 3 axes", need_q=False, k=word, v=word, layout="THD")
    refused(UsageError, "layout TC fuses the heads", need_q=False, k=word, v=word, layout="TC")
    refused(InputMalformed, "2 items in a row cannot be 4 heads", need_q=False, k=word, v=word, kv_heads=4)
    refused(UsageError, "omit --raw", input=word, raw="f32", dim=2)


def test_several_arrays_and_no_name(tmp_path):
    path = rf.write_hdf5(tmp_path / "x.h5", {"a": np.ones((4, 2)), "b": np.ones((4, 2))}, "f8")
    refused(InputMissing, "no dataset /k; there are: /a, /b", need_q=False, k=path, v=path)
