"""Signals to the real program: one stops it at the next block, two at once, and no file is left half-written."""

import json
import os
import signal
import subprocess

import numpy as np
import pytest
from clirun import FILES, save_heads, start

ROWS = np.random.default_rng(0).standard_normal((2000, 24)).astype(np.float32)
ATTEND = ["attend", "-", "--raw", "f32", "--dim", "8", "--causal", "--method", "window", "--block-rows", "256"]


@pytest.fixture
def waiting(tmp_path):
    """Starts a run that has answered 1792 rows into out.npy, and waits for more."""
    processes = []

    def begin(*args, name="out.npy"):
        process = start(*ATTEND, *args, "-o", tmp_path / name, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        processes.append(process)
        process.stdin.write(ROWS.tobytes())
        process.stdin.flush()
        while not any(path.stat().st_size > 1792 * 32 for path in tmp_path.iterdir()):
            assert process.poll() is None
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number, name", [(signal.SIGINT, "out.npy"), (signal.SIGTERM, "out.h5"), (signal.SIGHUP, "out.npy")])
def test_once(waiting, tmp_path, number, name):
    process = waiting(name=name)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.decode().splitlines()[-1] == f"streamattn: stopped by {number.name}; no file was left half-written"
    assert b"Traceback" not in err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.npy", "out.h5"])
def test_twice_at_once(waiting, tmp_path, name):
    """Both signals arrive before the program can look at the first one."""
    process = waiting("--quiet", name=name)
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert err == b"" and list(tmp_path.iterdir()) == []


def test_an_older_answer_survives(waiting, tmp_path):
    process = waiting("--quiet")
    (tmp_path / "out.npy").write_bytes(b"an older answer")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"an older answer"]


@pytest.mark.parametrize("args", [[], ["--quiet"], ["--log-json"]])
def test_usr1_prints_a_status_line_and_the_run_goes_on(waiting, tmp_path, args):
    process = waiting(*args)
    process.send_signal(signal.SIGUSR1)
    line = b"note"
    while not (b"status" in line if "--log-json" in args else b"rows 1792" in line):
        line = process.stderr.readline()
        assert line, "ended without a status line"
    if "--log-json" in args:
        status = json.loads(line)
        assert (status["type"], status["phase"], status["rows"]) == ("status", "rows", 1792)
    else:
        assert line.startswith(b"streamattn rows: rows 1792, ") and b"memory now" in line
    process.communicate(timeout=60)
    assert process.returncode == 0 and np.load(tmp_path / "out.npy").shape == (2000, 8)


@pytest.mark.parametrize("args, sent", [
    (["--causal"], b""),  # waits for the first header
    (["--causal", "--method", "poly"], None),  # waits for the rows that poly wants to see first
])  # fmt: skip
def test_ctrl_c_while_waiting_for_the_first_rows(tmp_path, args, sent):
    """There is no block to finish then, and nothing may be needed to get out of the wait."""
    command = ["attend", "-", *args, "--raw", "f32", "--dim", "8", "-o", tmp_path / "out.npy"]
    process = start(*command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    if sent is None:
        process.stdin.write(ROWS[:100].tobytes())
        process.stdin.flush()
        while not list(tmp_path.iterdir()):
            assert process.poll() is None
    while not _reading(process):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    err = process.stderr.read()
    process.stdin.close()
    process.stderr.close()
    assert b"stopped by SIGINT" in err and b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def _reading(process):
    """Whether the main thread waits in the system for bytes of a pipe, and owns its signals."""
    try:
        with open(f"/proc/{process.pid}/status") as file:
            caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
        with open(f"/proc/{process.pid}/wchan") as file:
            return bool(caught >> (signal.SIGUSR1 - 1) & 1) and "pipe_read" in file.read()
    except OSError:
        pytest.skip("needs /proc")


def test_a_stopped_reader_of_a_fifo(tmp_path):
    """Ctrl-C while a fifo waits for its writer."""
    save_heads(tmp_path)
    os.mkfifo(tmp_path / "kv")
    process = start("attend", "kv", *FILES[:2], "-o", "out.npy", cwd=tmp_path, stderr=subprocess.PIPE)
    while not _opening(process):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in err
    assert not (tmp_path / "out.npy").exists()


def _opening(process):
    with open(f"/proc/{process.pid}/wchan") as file:
        return "wait_for_partner" in file.read()
