"""`streamattn_cli.records`: blocks of rows on pipes, from and to the real program."""

import io
import os
import subprocess
import threading

import numpy as np
import pytest
from clirun import COMMAND, environment, record_bytes, records, save_heads

from streamattn_cli.errors import InputMalformed
from streamattn_cli.records import read, write

BLOCKS = [np.arange(6, dtype="f4").reshape(3, 2), np.ones((70_000, 2)), np.zeros((0, 2), "f2")]


@pytest.mark.parametrize("buffering", [0, -1])
def test_what_is_written_to_a_pipe_is_read_from_it(buffering):
    """The second block is larger than a pipe holds, so that unbuffered writes and reads come in pieces."""
    out, into = os.pipe()

    def produce():
        with open(into, "wb", buffering=buffering) as file:
            for block in BLOCKS:
                write(file, block)

    thread = threading.Thread(target=produce)
    thread.start()
    with open(out, "rb", buffering=buffering) as file:
        found = [read(file) for _ in range(len(BLOCKS) + 1)]
    thread.join()
    assert found.pop() is None
    for block, one in zip(BLOCKS, found, strict=True):
        np.testing.assert_array_equal(block, one)
        assert block.dtype == one.dtype


def test_the_program_reads_what_is_written_and_writes_what_is_read(tmp_path):
    heads = save_heads(tmp_path, rows=300)
    command = [*COMMAND, "attend", "-", "--q", "q.npy", "--full", "--resident-rows", "64", "--quiet", "-o", "-"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes) as process:
        for rows in np.array_split(np.hstack([heads["k"], heads["v"]]), 3):
            write(process.stdin, rows)
        process.stdin.close()
        found = []
        while (block := read(process.stdout)) is not None:
            found.append(block)
    assert process.returncode == 0 and np.concatenate(found).shape == (300, 8)


def test_records_are_those_of_numpy():
    file = io.BytesIO()
    for block in BLOCKS:
        write(file, np.asfortranarray(block))
    assert file.getvalue() == record_bytes(*BLOCKS) and len(records(file.getvalue())) == 3


@pytest.mark.parametrize("cut", [1, 40, 130])
def test_what_is_cut_off_is_refused(cut):
    with pytest.raises(InputMalformed, match="no whole .npy record"):
        read(io.BytesIO(record_bytes(BLOCKS[0])[:cut]))
