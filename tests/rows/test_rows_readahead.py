"""Reading ahead: the same blocks as reading plainly, errors and early ends included."""

import io
import os
import threading

import numpy as np
import pytest
import rowfiles as rf

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.inputs.open import InputSpec, open_inputs
from streamattn_cli.rows.tensors.memory import MemoryTensor
from streamattn_cli.rows.tensors.readahead import ReadAhead, readahead_bytes

RNG = np.random.default_rng(1)
K = MemoryTensor(RNG.random((3, 20, 4)), "HTD", "k")
V = MemoryTensor(RNG.random((20, 3, 2)).astype("f4"), "THD", "v")


class Unknown:
    """A tensor that does not tell how many rows it has, and may break."""

    outer, seekable, held_bytes = 1, False, 0

    def __init__(self, rows, breaks_at=None):
        self.name, self.rows, self.width, self.dtype = f"unknown{rows}", None, 2, "f8"
        self._there, self._breaks_at = rows, breaks_at

    def read_into(self, buf, start):
        if self._breaks_at is not None and start >= self._breaks_at:
            raise ZeroDivisionError("planted")
        count = min(buf.shape[1], self._there - start)
        buf[:, :count] = 1
        return count


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("block_rows", [1, 3, 5, 20, 64])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 20), (4, 17), (19, None), (20, None), (5, 5)])
def test_blocks(block_rows, slots, start, stop):
    whole = [rf.tensor_items(tensor, 100) for tensor in (K, V)]
    with ReadAhead([K, V, K], start, stop, block_rows, slots) as ahead:
        at = start
        for block in ahead:
            assert block.start == at and 0 < block.rows <= block_rows
            for array, expected in zip(block.arrays, [whole[0], whole[1], whole[0]], strict=True):
                assert array.flags.c_contiguous
                np.testing.assert_array_equal(array, expected[:, at : at + block.rows])
            assert block.arrays[0] is block.arrays[2]
            at += block.rows
        assert at == (20 if stop is None else stop)
        assert ahead.bytes_read == (at - start) * (3 * 4 * 8 + 3 * 2 * 4)
        assert ahead.bytes_held == readahead_bytes([K, V, K], block_rows, slots) == slots * block_rows * 120
        assert next(ahead, None) is None


def test_buffers_are_aligned_whatever_else_is_read():
    half = MemoryTensor(np.arange(21, dtype="f2").reshape(7, 3), "TD", "half")
    double = MemoryTensor(np.arange(7, dtype="f8").reshape(7, 1), "TD", "double")
    with ReadAhead([half, double], block_rows=3) as ahead:
        for block in ahead:
            assert all(array.flags.aligned for array in block.arrays)
            assert block.arrays[1][0, :, 0].tolist() == list(range(block.start, block.start + block.rows))


@pytest.mark.parametrize(("rows", "match"), [
    ((10, 11), "unknown10 has 10 rows, unknown11 has 11 rows; they must agree"),
    ((8, 13), "unknown8 has 8 rows, unknown13 has 12 rows or more"),
    ((8, 8), None),
    ((9, 9), None),
])  # fmt: skip
def test_different_ends(rows, match):
    tensors = [Unknown(n) for n in rows]
    with ReadAhead(tensors, block_rows=4) as ahead:
        if match is None:
            assert sum(block.rows for block in ahead) == rows[0]
        else:
            with pytest.raises(InputMalformed, match=match):
                list(ahead)


def test_file_and_pipe_of_different_length():
    with ReadAhead([Unknown(30), V], block_rows=10) as ahead, pytest.raises(InputMalformed, match="v has 20 rows"):
        list(ahead)


def test_stop_beyond_the_end():
    with ReadAhead([Unknown(9)], 0, 12, 4) as ahead, pytest.raises(InputMalformed, match="has 9 rows; expected 12"):
        list(ahead)


def test_errors_of_the_thread_reach_the_consumer():
    with ReadAhead([Unknown(100, breaks_at=8)], block_rows=4) as ahead:
        assert [next(ahead).start, next(ahead).start] == [0, 4]
        with pytest.raises(ZeroDivisionError, match="planted"):
            next(ahead)
        with pytest.raises(StopIteration):
            next(ahead)


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    for taken in (0, 1, 2):
        with ReadAhead([K], block_rows=2) as ahead:
            for _ in range(taken):
                next(ahead)
        assert threading.active_count() == before
        assert next(ahead, None) is None


def test_check_is_called_while_a_pipe_is_silent():
    """The consumer waits for a pipe that says nothing; `check` stops it, and leaving does not hang."""

    class Stopped(Exception):
        pass

    calls = []

    def check():
        calls.append(None)
        if len(calls) > 3:
            raise Stopped

    read, write = os.pipe()
    head = io.BytesIO()
    np.save(head, np.ones((100, 2)))
    os.write(write, head.getvalue()[:200])
    with os.fdopen(read, "rb", buffering=0) as pipe, open_inputs(InputSpec("-", stdin=pipe), need_q=False) as inputs:
        with pytest.raises(Stopped), ReadAhead([inputs.k.tensor], block_rows=50, check=check) as ahead:
            assert not ahead.ready
            next(ahead)
        assert ahead.wait_seconds > 0
        os.close(write)  # the thread left behind ends, and its error is nobody's


def test_slots_are_reused():
    with ReadAhead([V], block_rows=1, slots=2) as ahead:
        places = {block.arrays[0].__array_interface__["data"][0] for block in ahead}
    assert len(places) == 2


def test_blocks_that_are_lent_longer_stay_as_they_are():
    whole = rf.tensor_items(V, 100)
    with ReadAhead([V], block_rows=2, slots=3, lent=2) as ahead:
        before = next(ahead)
        for block in ahead:
            for each in (before, block):
                np.testing.assert_array_equal(each.arrays[0], whole[:, each.start : each.start + each.rows])
            before = block
        assert before.start == 18
