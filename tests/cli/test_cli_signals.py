"""Signals to the real program: one stops it at the next block, two at once, and no file is left half-written."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from clirun import FILES, listing, record_bytes, run, save_heads, start, wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/wchan").exists(), reason="looks at /proc to see where it waits")
ROWS = np.random.default_rng(0).standard_normal((2000, 24)).astype(np.float32)
ATTEND = ["attend", "-", "--raw", "f32", "--dim", "8", "--causal", "--method", "window", "--block-rows", "256"]


@pytest.fixture
def waiting(tmp_path):
    """Starts a run that answers the 1792 rows of the full blocks and then waits for more."""
    processes = []

    def begin(*args, name="out.npy"):
        process = start(*ATTEND, *args, "-o", tmp_path / name, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        processes.append(process)
        process.stdin.write(ROWS.tobytes())
        process.stdin.flush()
        least = 1792 * 32 if name.endswith(".npy") else 0  # HDF5 keeps the rows of a chunk until it is full
        wait_until(process, lambda: any(path.stat().st_size >= least for path in tmp_path.iterdir()))
        wait_until(process, lambda: _reads_a_pipe(process, main=False))
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number, name", [
    (signal.SIGINT, "out.npy"), (signal.SIGTERM, "out.h5"), (signal.SIGHUP, "out.npy"),
])  # fmt: skip
def test_once(waiting, tmp_path, number, name):
    process = waiting(name=name)
    process.send_signal(number)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 128 + number
    assert err.decode().splitlines()[-1] == f"streamattn: stopped by {number.name}; no file was left half-written"
    assert b"Traceback" not in err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.npy", "out.h5"])
def test_twice_at_once(waiting, tmp_path, name):
    """Both signals arrive before the program can look at the first one."""
    process = waiting("--quiet", name=name)
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        process.send_signal(number)
    _, err = process.communicate(timeout=900)
    assert process.returncode == -signal.SIGTERM
    assert err == b"" and list(tmp_path.iterdir()) == []


def test_an_older_answer_survives(waiting, tmp_path):
    process = waiting("--quiet")
    (tmp_path / "out.npy").write_bytes(b"an older answer")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=900)
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
    process.communicate(timeout=900)
    assert process.returncode == 0 and np.load(tmp_path / "out.npy").shape == (2000, 8)


@pytest.mark.parametrize("args, sent", [
    (["--method", "window"], b""),  # waits for the first row
    (["--method", "poly"], ROWS[:100].tobytes()),  # waits for the rows that poly wants to see first
])  # fmt: skip
def test_ctrl_c_while_waiting_for_the_first_rows(tmp_path, args, sent):
    """There is no block to finish then, and nothing may be needed to get out of the wait."""
    command = ["attend", "-", "--causal", *args, "--raw", "f32", "--dim", "8", "-o", tmp_path / "out.npy"]
    process = start(*command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(sent)
    process.stdin.flush()
    wait_until(process, lambda: _owns_signals(process) and _reads_a_pipe(process))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=900) == 130
    err = process.stderr.read()
    process.stdin.close()
    process.stderr.close()
    assert b"stopped by SIGINT" in err and b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_a_fifo_waits_for_its_writer(tmp_path):
    save_heads(tmp_path)
    os.mkfifo(tmp_path / "kv")
    process = start("attend", "kv", *FILES[:2], "-o", "out.npy", cwd=tmp_path, stderr=subprocess.PIPE)
    wait_until(process, lambda: _owns_signals(process) and _waits_in(process, "wait_for_partner", "fifo_open"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 130 and b"Traceback" not in err
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("command", [
    ["attend", *FILES, "--full", "--method", "window"],
    ["query", "s.sattn", "q.npy"],
    ["generate", "--rows", "9"],
], ids=lambda command: command[0])  # fmt: skip
def test_ctrl_c_while_a_fifo_waits_for_its_reader(tmp_path, command):
    """Once is enough."""
    save_heads(tmp_path)
    os.mkfifo(tmp_path / "out")
    if command[0] == "query":
        run("sketch", *FILES[2:], "--method", "window", "-o", "s.sattn", cwd=tmp_path)
    target = ["out"] if command[0] == "generate" else ["-o", "out"]
    process = start(*command, *target, cwd=tmp_path, stderr=subprocess.PIPE)
    wait_until(process, lambda: _owns_signals(process) and _waits_in(process, "wait_for_partner", "fifo_open"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 130 and b"stopped by SIGINT" in err and b"Traceback" not in err


@pytest.mark.parametrize("more", [["--m1", "64"], ["--eps", "0.1"]], ids=["calibration", "plan"])
def test_ctrl_c_while_sketches_wait_for_their_first_rows(tmp_path, more):
    save_heads(tmp_path)
    command = ["attend", *FILES[:2], "--k", "-", *FILES[4:], "--full", "--sketches", "psi", "--order", "kvq", *more]
    process = start(*command, "-o", "out.npy", cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(record_bytes(np.ones((5, 8), np.float32)))
    process.stdin.flush()
    wait_until(process, lambda: _owns_signals(process) and _reads_a_pipe(process))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=900) == 130
    err = process.stderr.read()
    process.stdin.close()
    process.stderr.close()
    assert b"stopped by SIGINT" in err and b"Traceback" not in err
    assert not (tmp_path / "out.npy").exists()


def _owns_signals(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)


def _reads_a_pipe(process, main=True):
    return _waits_in(process, "pipe_read", main=main)


def _waits_in(process, *places, main=True):
    """Whether the main thread (or another one) waits in one of these functions of the system."""
    tasks = [task for task in Path(f"/proc/{process.pid}/task").iterdir() if (task.name == str(process.pid)) == main]
    return any(place in (task / "wchan").read_text() for task in tasks for place in places)


def test_processes_leave_nothing_when_a_second_signal_ends_the_run(tmp_path):
    """Ctrl-C goes to all of them: no word of Python's about semaphores or from a process that starts, and no file."""
    rng = np.random.default_rng(0)
    parts = [word for part in "qkv" for word in (f"--{part}", f"{part}.npy")]
    for part in "qkv":
        np.save(tmp_path / f"{part}.npy", rng.standard_normal((40_000, 2, 16)).astype("f4"))
    words = (*parts, "--layout", "THD", "--full", "--resident-rows", "256", "--engine", "processes", "--threads", "2")
    before = listing(tmp_path)
    more = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    said = ""
    with start("attend", *words, "-o", "out.npy", "--log-json", "--progress-every", "0", **more) as process:
        while '"progress"' not in (line := process.stderr.readline()):
            said += line
        for _ in range(2):  # a third would not wait for the cleaning up
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.1)
        said += process.stderr.read()
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert [word for word in ("Traceback", "semaphore", "KeyboardInterrupt") if word in said] == []
    assert listing(tmp_path) == before
