"""Rows from a pipe: the same whatever way the pipe was cut, and every damage is named."""

import io
import os
import pty
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import rowfiles as rf
from hypothesis import given, settings
from hypothesis import strategies as st

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.inputs.open import InputSpec, open_inputs
from streamattn_cli.rows.npyheader import packed_header
from streamattn_cli.rows.tensors.readahead import ReadAhead


def records(*arrays):
    """Concatenated .npy records."""
    data = io.BytesIO()
    for array in arrays:
        np.save(data, array)
    return data.getvalue()


@contextmanager
def piped(data, cuts=()):
    """The reading end of a pipe into which a thread writes `data`, one write per piece between the cuts."""
    read, write = os.pipe()
    edges = [0, *sorted(cuts), len(data)]

    def feed():
        try:
            for begin, end in zip(edges, edges[1:], strict=False):
                rest = memoryview(data)[begin:end]
                while len(rest):
                    rest = rest[os.write(write, rest) :]
        except BrokenPipeError:
            pass
        finally:
            os.close(write)

    thread = threading.Thread(target=feed)
    thread.start()
    file = os.fdopen(read, "rb", buffering=0)
    try:
        yield file
    finally:
        file.close()
        thread.join()


def opened(data, need_q=False, **words):
    """open_inputs on bytes as standard input."""
    return open_inputs(InputSpec("-", stdin=io.BytesIO(data), **words), need_q)


ITEMS = np.random.default_rng(1).random((40, 6)).astype("f4")


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_cuts_of_records_and_pipe(data):
    """Records of any length, a pipe cut anywhere, blocks of any length: the same rows."""
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, 40), max_size=6))), 40]
    stream = records(*(ITEMS[a:b] for a, b in zip(edges, edges[1:], strict=False)))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    block_rows = data.draw(st.integers(1, 50))
    with piped(stream, cuts) as pipe, open_inputs(InputSpec("-", stdin=pipe), need_q=False) as inputs:
        with ReadAhead([inputs.k.tensor], block_rows=block_rows) as ahead:
            blocks = [(block.start, block.arrays[0].copy()) for block in ahead]
    assert [start for start, _ in blocks] == list(range(0, 40, block_rows))
    assert all(array.shape[1] == block_rows for _, array in blocks[:-1])
    np.testing.assert_array_equal(np.concatenate([array[0] for _, array in blocks]), ITEMS)


@pytest.mark.parametrize("dtype", rf.DTYPES)
@pytest.mark.parametrize("piece", [1, 7, 100])
def test_raw(dtype, piece):
    items = rf.bits(np.random.default_rng(2), (23, 6), dtype)
    word = {"f2": "f16", "bf16": "bf16", "f4": "f32", "f8": "float64"}[dtype]
    with piped(items.tobytes(), [5]) as pipe:
        with open_inputs(InputSpec("-", stdin=pipe, raw=word, dim=4, value_dim=2), need_q=False) as inputs:
            assert inputs.k.tensor.dtype == dtype
            np.testing.assert_array_equal(rf.tensor_items(inputs.k.tensor, piece)[0], items)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_records_with_heads(dtype):
    items = rf.bits(np.random.default_rng(2), (9, 3, 8), dtype)
    stream = records(rf.as_numpy(items[:4], dtype), rf.as_numpy(items[4:], dtype))
    with opened(stream, record="kv") as inputs:
        assert (inputs.k.rows, inputs.k.tensor.seekable, inputs.k.layout) == (None, False, "THD")
        assert inputs.k.tensor is inputs.v.tensor
        np.testing.assert_array_equal(rf.head_items(inputs.v, 4), items[:, :, 4:].transpose(1, 0, 2))


def test_queries_from_a_file_keys_from_a_pipe(tmp_path):
    q = rf.write_npy(tmp_path / "q.npy", np.ones((5, 6, 4)), "f8")
    with opened(records(np.ones((9, 3, 8))), need_q=True, q=q) as inputs:
        assert len(inputs.q) == 6 and inputs.q.layout == "THD"
        assert any("--record kv" in note for note in inputs.notes)


def test_one_part_from_a_pipe(tmp_path):
    k = np.random.default_rng(2).random((9, 4))
    v = rf.write_npy(tmp_path / "v.npy", np.ones((9, 3)), "f8")
    with open_inputs(InputSpec(k="-", v=v, stdin=io.BytesIO(records(k))), need_q=False) as inputs:
        with ReadAhead([inputs.k.tensor, inputs.v.tensor], block_rows=4) as ahead:
            found = np.concatenate([block.arrays[0][0].copy() for block in ahead])
    np.testing.assert_array_equal(found, k)


def test_fifo_as_a_file(tmp_path):
    path = tmp_path / "rows"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(records(ITEMS)))
    writer.start()
    with open_inputs(InputSpec(str(path)), need_q=False) as inputs:
        np.testing.assert_array_equal(rf.tensor_items(inputs.k.tensor, 9)[0], ITEMS)
    writer.join()


def test_peek_gives_rows_back():
    with opened(records(ITEMS[:3], ITEMS[3:])) as inputs:
        tensor = inputs.k.tensor
        np.testing.assert_array_equal(tensor.peek(5)[0], ITEMS[:5])
        np.testing.assert_array_equal(tensor.peek(2)[0], ITEMS[:2])
        assert tensor.held_bytes == 5 * 6 * 4
        np.testing.assert_array_equal(tensor.peek(100)[0], ITEMS)
        np.testing.assert_array_equal(rf.tensor_items(tensor, 7)[0], ITEMS)
        assert tensor.held_bytes == 0


@pytest.mark.parametrize("rows", [(0, 10), (3, None), (5, 40)])
@pytest.mark.parametrize("peek", [0, 4])
def test_ranges_of_a_pipe(rows, peek):
    with opened(records(ITEMS[:7], ITEMS[7:]), rows=rows) as inputs:
        if peek:
            np.testing.assert_array_equal(inputs.k.tensor.peek(peek)[0], ITEMS[slice(*rows)][:peek])
        np.testing.assert_array_equal(rf.tensor_items(inputs.k.tensor, 6)[0], ITEMS[slice(*rows)])


@pytest.mark.parametrize("rows", [(0, 41), (45, None)])
def test_ranges_beyond_a_pipe(rows):
    with opened(records(ITEMS), rows=rows) as inputs, pytest.raises(InputMalformed, match="ends after 40 rows"):
        rf.tensor_items(inputs.k.tensor, 6)


def test_a_pipe_cannot_give_two_ranges():
    with pytest.raises(UsageError, match="same range"):
        opened(records(ITEMS), need_q=True, rows=(0, 5), q_rows=(5, 9))


def drained(data, **words):
    with opened(data, **words) as inputs:
        rf.tensor_items(inputs.k.tensor, 16)


@pytest.mark.parametrize(("data", "match"), [
    (b"", "is empty"),
    (records(ITEMS[:0]), "no rows"),
    (b"garbage garbage garbage", "record 1 .*not an .npy header"),
    (records(ITEMS) + b"x", "record 2 .*not an .npy header"),
    (records(ITEMS) + records(ITEMS)[:60], "record 2 .*truncated"),
    (records(ITEMS) + records(ITEMS)[:-1], r"record 2 .*ends at byte 2175, 1 bytes before"),
    (records(ITEMS, ITEMS[:, :5]), r"record 2 .*rows of \(5,\) f4 found, expected \(6,\) f4"),
    (records(ITEMS, ITEMS.astype("f8")), r"record 2 .*\(6,\) f8 found"),
    (records(ITEMS, ITEMS[0]), r"record 2 .*shape \(6,\) found"),
    (records(np.ones((2, 2, 2, 2))), "record 1 .*expected .rows, items."),
    (records(np.ones((4, 0))), "rows without items"),
    (records(np.asfortranarray(np.ones((4, 4)))), "Fortran order"),
    (records(ITEMS).replace(b"(40, 6), }" + b" " * 20, b"(40, 60000000000000000), }" + b" " * 4), "header is damaged"),
])  # fmt: skip
def test_damaged_records(data, match):
    with pytest.raises(InputMalformed, match=match):
        drained(data)


def test_partial_last_raw_row():
    with pytest.raises(InputMalformed, match="ends inside row 39 at byte 959: a row is 24 bytes, the last one has 23"):
        drained(ITEMS.tobytes()[:-1], raw="f32", dim=3)
    with pytest.raises(InputMalformed, match="ends inside row 0"):
        drained(b"abc", raw="f32", dim=3)
    with pytest.raises(InputMalformed, match="no rows"):
        drained(b"", raw="f32", dim=3)


def test_raw_without_dim_and_records_as_raw():
    with pytest.raises(UsageError, match="give --dim"):
        opened(b"", raw="f32")
    with pytest.raises(UsageError, match="omit --raw"):
        opened(records(ITEMS), raw="f32", dim=3)


def test_a_terminal_is_refused_instead_of_waiting():
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0), os.fdopen(follower, "rb", buffering=0) as terminal:
        with pytest.raises(UsageError, match="is a terminal"):
            open_inputs(InputSpec("-", stdin=terminal))


def test_non_blocking_pipe():
    with piped(records(ITEMS), [200]) as pipe:
        os.set_blocking(pipe.fileno(), False)
        with open_inputs(InputSpec("-", stdin=pipe), need_q=False) as inputs:
            np.testing.assert_array_equal(rf.tensor_items(inputs.k.tensor, 9)[0], ITEMS)


def test_a_descriptor_that_cannot_be_read(tmp_path):
    with open(tmp_path / "x", "wb") as file, pytest.raises(InputMissing, match="reading failed at byte 0"):
        open_inputs(InputSpec("-", stdin=file))


def test_streams_continue_where_they_are():
    with opened(records(ITEMS)) as inputs:
        buf = np.empty((1, 4, 6), "f4")
        inputs.k.tensor.read_into(buf, 0)
        with pytest.raises(ValueError, match="continues at row 4"):
            inputs.k.tensor.read_into(buf, 0)


SAID = {"causal": True, "scale": 0.25, "sink_logit": [0.5, 1.0]}
PARTS = (("q", 4, 8), ("k", 2, 8), ("v", 2, 6))


@pytest.mark.parametrize("kind", ["f2", "bf16"])
def test_rows_that_say_what_they_hold_need_no_option(tmp_path, kind):
    """Also NumPy reads them, by their fields; from a file, and from a pipe of two records."""
    made = np.random.default_rng(0).standard_normal((70, 60)).astype("f2")
    (tmp_path / "dump.npy").write_bytes(packed_header(70, PARTS, kind, SAID) + made.tobytes())
    held = np.load(tmp_path / "dump.npy")
    assert [held[part].shape for part in "qkv"] == [(70, 4, 8), (70, 2, 8), (70, 2, 6)]
    two = b"".join(packed_header(35, PARTS, kind, SAID) + made[a : a + 35].tobytes() for a in (0, 35))
    with piped(two) as pipe, open_inputs(InputSpec("-", stdin=pipe)) as streamed:
        for inputs in (open_inputs(InputSpec(str(tmp_path / "dump.npy"))), streamed):
            assert inputs.attrs == SAID and not any("--record" in note for note in inputs.notes)
            assert [(len(part), part.dim) for part in inputs.parts] == [(4, 8), (2, 8), (2, 6)]
            assert inputs.k.tensor.dtype == kind
            with ReadAhead([inputs.k.tensor], 0, None if inputs is streamed else 70, 16) as blocks:
                rows = np.concatenate([block.arrays[0][0].copy() for block in blocks])
            np.testing.assert_array_equal(rows, made.view("u2"))
    with open_inputs(InputSpec(q=str(tmp_path / "dump.npy")), need_kv=False) as queries:
        assert len(queries.q) == 4 and queries.q.column == (0, 8, 16, 24)


def test_rows_that_say_what_they_hold_are_refused_where_they_lack_it(tmp_path):
    made = np.zeros((9, 28), "f2")
    (tmp_path / "kv.npy").write_bytes(packed_header(9, PARTS[1:], "f2", {}) + made.tobytes())
    with pytest.raises(InputMalformed, match="2 k of 8 | 2 v of 6; give --q FILE"):
        open_inputs(InputSpec(str(tmp_path / "kv.npy")))
    descr = np.dtype([("q", "<f2", (4,)), ("k", "<f4", (4,)), ("v", "<f2", (4,))])
    np.save(tmp_path / "mixed.npy", np.zeros(5, descr))
    with pytest.raises(InputMalformed, match="of one dtype"):
        open_inputs(InputSpec(str(tmp_path / "mixed.npy")))
