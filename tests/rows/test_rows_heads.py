"""Layouts that are inferred, packed rows, selections and ranges."""

import re
from dataclasses import replace

import numpy as np
import pytest
import rowfiles as rf

from streamattn_cli.errors import InputMalformed, UsageError
from streamattn_cli.rows.inputs.open import InputSpec, open_inputs
from streamattn_cli.rows.inputs.several_files import open_stream
from streamattn_cli.rows.tensors.heads import split_record
from streamattn_cli.rows.tensors.layout import infer, infer_query

NAMES = {part: part + ".npy" for part in "qkv"}


@pytest.mark.parametrize(("q", "k", "v", "layout"), [
    ((90, 8), (90, 8), (90, 4), "TD"),
    ((90, 9, 8), (90, 3, 8), (90, 3, 8), "THD"),
    ((9, 90, 8), (3, 90, 8), (3, 90, 4), "HTD"),
    ((2, 90, 9, 8), (2, 90, 3, 8), (2, 90, 3, 8), "BTHD"),
    ((2, 9, 90, 8), (2, 3, 90, 8), (2, 3, 90, 8), "BHTD"),
    ((10, 9, 8), (90, 3, 8), (90, 3, 8), "THD"),  # fewer queries than keys
    ((9, 10, 8), (3, 90, 8), (3, 90, 8), "HTD"),
    ((90, 9, 8), (90, 9, 8), (90, 9, 8), "THD"),  # both readings are whole, but nobody has 90 heads of 9 rows
    ((2, 9, 90, 8), (2, 9, 90, 8), (2, 9, 90, 8), "BHTD"),
])  # fmt: skip
def test_inference(q, k, v, layout):
    assert infer({"q": q, "k": k, "v": v}, NAMES) == layout


@pytest.mark.parametrize(("q", "k", "v", "error"), [
    ((60, 9, 8), (60, 9, 8), (60, 9, 8), UsageError),  # every head its own keys: both readings are whole
    ((2, 9, 60, 8), (2, 9, 60, 8), (2, 9, 60, 8), UsageError),
    ((90, 8), (90, 2, 8), (90, 2, 8), UsageError),
    ((96, 3, 8), (4, 96, 8), (4, 96, 8), UsageError),  # 96 heads of 3 rows would be whole
    ((90, 3, 8), (90, 2, 8), (90, 2, 8), InputMalformed),  # odd ratio: not 90 heads of 2 rows
    ((90, 4, 8), (90, 2, 6), (90, 2, 8), InputMalformed),
    ((90, 4, 8), (90, 2, 8), (80, 2, 8), InputMalformed),
    ((90,), (90,), (90,), InputMalformed),
    ((1, 2, 3, 4, 5),) * 3 + (InputMalformed,),
])  # fmt: skip
def test_inference_refused(q, k, v, error):
    with pytest.raises(error, match=str(q[-1])):
        infer({"q": q, "k": k, "v": v}, NAMES)


def test_inference_of_keys_alone_is_refused():
    with pytest.raises(UsageError, match="--layout"):
        infer({"k": (60, 9, 8)}, NAMES)


def test_inference_of_queries_alone():
    assert infer_query((10, 8), "q", 3, 8) == "TD"
    assert infer_query((10, 9, 8), "q", 3, 8) == "THD"
    assert infer_query((2, 9, 10, 8), "q", 3, 8) == "BHTD"
    for shape in ((12, 9, 8), (10, 7, 8), (10, 9, 7)):
        with pytest.raises(UsageError, match="layout not clear"):
            infer_query(shape, "q", 3, 8)


def test_inference_is_noted(tmp_path):
    words = {p: rf.write_npy(tmp_path / f"{p}.npy", np.ones(s), "f8") for p, s in
             {"q": (9, 4, 2), "k": (9, 2, 2), "v": (9, 2, 2)}.items()}  # fmt: skip
    with open_inputs(InputSpec(**words)) as inputs:
        assert sum("read as layout THD (rows, heads, items)" in note for note in inputs.notes) == 3
    with open_inputs(InputSpec(layout="thd", **words)) as inputs:
        assert inputs.notes == ()


def _saved(folder, layout=None, **shapes):
    words = {part: rf.write_npy(folder / f"{part}.npy", np.ones(shape), "f8") for part, shape in shapes.items()}
    return InputSpec(layout=layout, **words)


@pytest.mark.parametrize(("layout", "q", "k", "mend"), [
    (None, (96, 3, 8), (1, 96, 8), "q.transpose(1, 0, 2)"),  # guessed, since k fits one layout only
    ("HTD", (96, 3, 8), (1, 96, 8), "q.transpose(1, 0, 2)"),
    ("THD", (3, 96, 8), (96, 1, 8), "q.transpose(1, 0, 2)"),
    ("BHTD", (2, 96, 3, 8), (2, 3, 96, 8), "q.transpose(0, 2, 1, 3)"),
    ("HTD", (96, 6, 8), (96, 3, 8), "give --layout THD"),
    ("THD", (9, 90, 8), (3, 90, 8), "give --layout HTD"),
    ("BTHD", (2, 9, 90, 8), (2, 3, 90, 8), "give --layout BHTD"),
])  # fmt: skip
def test_rows_and_heads_that_were_exchanged_are_refused_with_what_mends_it(tmp_path, layout, q, k, mend):
    spec = _saved(tmp_path, layout, q=q, k=k, v=k)
    with pytest.raises(UsageError, match="and they agree") as refusal:
        open_inputs(spec)
    assert mend in str(refusal.value)
    heads = int(re.search(r"--heads (\d+)", str(refusal.value))[1])
    with open_inputs(replace(spec, heads=heads)) as inputs:
        assert len(inputs.q) // inputs.q.batch == heads
    if "transpose" in mend:
        axes = tuple(map(int, re.findall(r"\d", mend)))
        spec = replace(spec, q=rf.write_npy(tmp_path / "turned.npy", np.ones([q[at] for at in axes]), "f8"))
    else:
        spec = replace(spec, layout=mend.split()[-1])
    with open_inputs(spec) as inputs:
        assert inputs.q.rows == inputs.k.rows >= 90


def test_queries_beside_packed_keys_may_be_exchanged_alone(tmp_path):
    rf.write_npy(tmp_path / "kv.npy", np.ones((96, 16)), "f8")
    q = rf.write_npy(tmp_path / "q.npy", np.ones((96, 3, 8)), "f8")
    spec = InputSpec(str(tmp_path / "kv.npy"), record="kv", q=q, layout="HTD")
    with pytest.raises(
        UsageError, match=r"96 heads of 3 rows, .* read as THD it has 3 heads of 96 rows.* give --layout THD"
    ):
        open_inputs(spec)
    with open_inputs(replace(spec, layout="THD")) as inputs:
        assert (len(inputs.q), inputs.q.rows) == (3, 96)


@pytest.mark.parametrize(("layout", "q", "k"), [
    ("HTD", (4, 100, 8), (4, 50, 8)),  # fewer keys than queries
    ("HTD", (32, 1, 8), (8, 32, 8)),  # one query of each of 32 heads, after 32 keys: one head of 32 would not fit
    ("THD", (100, 32, 8), (50, 8, 8)),
    ("HTD", (32, 1000, 8), (32, 100, 8)),
    ("HTD", (96, 3, 8), (96, 3, 8)),  # q and k agree
])  # fmt: skip
def test_queries_of_other_rows_than_the_keys_are_taken_where_they_make_sense(tmp_path, layout, q, k):
    with open_inputs(_saved(tmp_path, layout, q=q, k=k, v=k)) as inputs:
        assert inputs.q.layout == layout


def test_two_axes_with_heads_are_fused(tmp_path):
    rng = np.random.default_rng(1)
    arrays = {"q": rng.random((9, 12)), "k": rng.random((9, 6)), "v": rng.random((9, 8))}
    words = {p: rf.write_npy(tmp_path / f"{p}.npy", a, "f8") for p, a in arrays.items()}
    for said in ({"heads": 4, "kv_heads": 2}, {"dim": 3, "value_dim": 4}):
        with open_inputs(InputSpec(**said, **words)) as inputs:
            assert (len(inputs.q), len(inputs.k), len(inputs.v), inputs.v.dim) == (4, 2, 2, 4)
            assert inputs.q.layout == "TC"
            np.testing.assert_array_equal(rf.head_items(inputs.v)[1], arrays["v"][:, 4:])


@pytest.mark.parametrize(("width", "record", "said", "parts"), [
    (12, "qkv", {}, {"q": (0, 1, 4), "k": (4, 1, 4), "v": (8, 1, 4)}),
    (8, "kv", {}, {"k": (0, 1, 4), "v": (4, 1, 4)}),
    (8, "kv", {"dim": 6, "value_dim": 2}, {"k": (0, 1, 6), "v": (6, 1, 2)}),
    (8, "kv", {"value_dim": 2}, {"k": (0, 1, 6), "v": (6, 1, 2)}),
    (40, "qkv", {"heads": 6, "kv_heads": 2}, {"q": (0, 6, 4), "k": (24, 2, 4), "v": (32, 2, 4)}),
    (16, "kv", {"kv_heads": 2}, {"k": (0, 2, 4), "v": (8, 2, 4)}),
    (16, "kv", {"heads": 2}, {"k": (0, 2, 4), "v": (8, 2, 4)}),
    (6, "v", {"kv_heads": 2}, {"v": (0, 2, 3)}),
    (None, "v", {"value_dim": 3}, {"v": (0, 1, 3)}),
    (None, "kv", {"dim": 3, "kv_heads": 2}, {"k": (0, 2, 3), "v": (6, 2, 3)}),
    (None, "q", {"dim": 3, "heads": 5}, {"q": (0, 5, 3)}),
])  # fmt: skip
def test_split_record(width, record, said, parts):
    found = split_record(width, record, "x", **said)
    assert {name: (part.at, part.heads, part.dim) for name, part in found.items()} == parts


def test_split_record_refused():
    with pytest.raises(InputMalformed, match="7 items in a row cannot be shared out evenly"):
        split_record(7, "kv", "x")
    with pytest.raises(InputMalformed, match=r"9 items in a row found, expected 8 \(1 k of 4 \+ 1 v of 4\)"):
        split_record(9, "kv", "x", dim=4)
    with pytest.raises(InputMalformed, match="2 items"):
        split_record(2, "kv", "x", value_dim=2)
    with pytest.raises(UsageError, match="give --dim"):
        split_record(None, "kv", "x")


def test_packed_files_share_one_tensor(tmp_path):
    rng = np.random.default_rng(2)
    fused, split = rng.random((9, 40)), rng.random((9, 2, 12))
    word = rf.write_npy(tmp_path / "x.npy", fused, "f8")
    with open_inputs(InputSpec(word, record="qkv", heads=6, kv_heads=2)) as inputs:
        assert inputs.q.tensor is inputs.k.tensor is inputs.v.tensor
        np.testing.assert_array_equal(rf.head_items(inputs.q)[5], fused[:, 20:24])
        np.testing.assert_array_equal(rf.head_items(inputs.v)[1], fused[:, 36:40])
    word = rf.write_hdf5(tmp_path / "x.h5", {"packed": split}, "f8") + ":packed"
    with open_inputs(InputSpec(word, record="qkv")) as inputs:
        np.testing.assert_array_equal(rf.head_items(inputs.k), split[:, :, 4:8].transpose(1, 0, 2))
    word = rf.write_npy(tmp_path / "y.npy", split.transpose(1, 0, 2), "f8")
    with open_inputs(InputSpec(word, layout="HTD", value_dim=2, dim=5)) as inputs:
        np.testing.assert_array_equal(rf.head_items(inputs.v), split[:, :, 10:].transpose(1, 0, 2))


def test_one_array_of_a_file_is_not_taken_for_packed_rows(tmp_path):
    """It may be the keys alone: a --record, or the --dim of its parts, must say that it is not."""
    words = [rf.write_npy(tmp_path / f"k{at}.npy", np.ones((200, 2, 48)), "f8") for at in range(2)]
    words.append(rf.write_hdf5(tmp_path / "x.h5", {"k": np.ones((200, 2, 48))}, "f8") + ":k")
    for spec in (*map(InputSpec, words), InputSpec(str(tmp_path / "k?.npy")), InputSpec(words[0], rows=(0, 9))):
        with pytest.raises(UsageError, match=r"\(200, 2, 48\) for k, v; give --record kv .* --k FILE --v FILE"):
            open_stream(spec)
    with pytest.raises(UsageError, match=r"for q, k, v; give --record qkv .* --q FILE --k FILE --v FILE"):
        open_inputs(InputSpec(words[0]))
    for said in ({"record": "kv"}, {"dim": 24}):
        with open_stream(InputSpec(str(tmp_path / "k?.npy"), **said)) as inputs:
            assert (inputs.k.rows, len(inputs.k), inputs.k.dim, inputs.v.dim) == (400, 2, 24, 24)


def test_raw_file(tmp_path):
    rows = np.random.default_rng(2).random((9, 6)).astype("f4")
    rows.tofile(tmp_path / "x.bin")
    with open_inputs(InputSpec(str(tmp_path / "x.bin"), raw="f32", record="kv", dim=3), need_q=False) as inputs:
        assert inputs.k.rows == 9 and inputs.k.tensor.seekable
        np.testing.assert_array_equal(rf.head_items(inputs.v)[0], rows[:, 3:])
    with pytest.raises(InputMalformed, match="16 bytes are left over"):
        open_inputs(InputSpec(str(tmp_path / "x.bin"), raw="f32", record="kv", dim=5), need_q=False)


@pytest.fixture
def grouped(tmp_path):
    """(path of an HDF5 file with 6 query and 3 key heads, heads by part)."""
    rng = np.random.default_rng(3)
    heads = {part: rf.bits(rng, (count, 20, 4), "f4") for part, count in {"q": 6, "k": 3, "v": 3}.items()}
    arrays = {part: rf.lay_out(items, "THD", 1) for part, items in heads.items()}
    return rf.write_hdf5(tmp_path / "x.h5", arrays, "f4", {"layout": "THD"}), heads


def test_selection_keeps_groups(grouped):
    path, heads = grouped
    with open_inputs(InputSpec(path, select=(2, 0))) as inputs:
        np.testing.assert_array_equal(rf.head_items(inputs.k), heads["k"][[2, 0]])
        np.testing.assert_array_equal(rf.head_items(inputs.v), heads["v"][[2, 0]])
        np.testing.assert_array_equal(rf.head_items(inputs.q), heads["q"][[4, 5, 0, 1]])
    for chosen in ((3,), (-1,), (1, 1), ()):
        with pytest.raises(UsageError, match="from 0 to 2"):
            open_inputs(InputSpec(path, select=chosen))


def test_selection_of_batches(tmp_path):
    array = np.random.default_rng(3).random((2, 9, 2, 4))
    path = rf.write_hdf5(tmp_path / "x.h5", dict.fromkeys("qkv", array), "f8", {"layout": "BTHD"})
    with open_inputs(InputSpec(path, select=(3,))) as inputs:
        np.testing.assert_array_equal(rf.head_items(inputs.k)[0], array[1, :, 1])
        assert (inputs.q.layout, inputs.q.batch) == ("THD", 1)


def test_row_ranges(grouped):
    path, heads = grouped
    with open_inputs(InputSpec(path, rows=(5, 12), q_rows=(3, None))) as inputs:
        assert (inputs.k.rows, inputs.v.rows, inputs.q.rows) == (7, 7, 17)
        for piece in (2, 100):
            np.testing.assert_array_equal(rf.head_items(inputs.k, piece), heads["k"][:, 5:12])
            np.testing.assert_array_equal(rf.head_items(inputs.q, piece), heads["q"][:, 3:])
        np.testing.assert_array_equal(inputs.k.tensor.peek(2).reshape(2, 3, 4).transpose(1, 0, 2), heads["k"][:, 5:7])
        short = np.full((1, 10, 12), 7, "f4")
        assert inputs.k.tensor.read_into(short, 0) == 7 and (short[:, 7:] == 7).all()
    for rows in ((20, 30), (20, None), (4, 4), (-1, 3)):
        with pytest.raises(UsageError, match="rows"):
            open_inputs(InputSpec(path, rows=rows))


def test_ranges_that_reach_beyond_the_end_are_cut_with_a_note(grouped):
    path, heads = grouped
    with open_inputs(InputSpec(path, rows=(5, 21), q_rows=(19, 1000))) as inputs:
        assert (inputs.k.rows, inputs.v.rows, inputs.q.rows) == (15, 15, 1)
        np.testing.assert_array_equal(rf.head_items(inputs.v), heads["v"][:, 5:])
        told = [note for note in inputs.notes if "asked for" in note]
        assert [note.split(": ", 1)[1] for note in told] == [
            "rows 19:1000 asked for, it has 20: rows 19:20 are taken",
            "rows 5:21 asked for, it has 20: rows 5:20 are taken",
            "rows 5:21 asked for, it has 20: rows 5:20 are taken",
        ]
    with open_inputs(InputSpec(path, rows=(5, 20))) as inputs:
        assert not [note for note in inputs.notes if "asked for" in note]


def test_ranges_of_a_shared_tensor(tmp_path):
    fused = np.random.default_rng(2).random((9, 12))
    word = rf.write_npy(tmp_path / "x.npy", fused, "f8")
    with open_inputs(InputSpec(word, record="qkv", rows=(2, 6))) as inputs:
        assert inputs.q.tensor is inputs.k.tensor is inputs.v.tensor
        np.testing.assert_array_equal(rf.head_items(inputs.q)[0], fused[2:6, :4])
    with open_inputs(InputSpec(word, record="qkv", rows=(2, 6), q_rows=(0, 1))) as inputs:
        assert inputs.q.tensor is not inputs.k.tensor is inputs.v.tensor
        np.testing.assert_array_equal(rf.head_items(inputs.q)[0], fused[:1, :4])


def test_rows_that_differ_may_be_cut_to_fit(tmp_path):
    k, v = (rf.write_npy(tmp_path / f"{n}.npy", np.ones((n, 2)), "f8") for n in (9, 8))
    with open_inputs(InputSpec(k=k, v=v, rows=(0, 8)), need_q=False) as inputs:
        assert inputs.k.rows == inputs.v.rows == 8
