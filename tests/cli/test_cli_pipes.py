"""Pipes: two stages, readers that leave, standard streams that are closed or terminals."""

import os
import pty
import re
import signal
import subprocess
import threading

import numpy as np
import pytest
from clirun import COMMAND, FILES, TIMEOUT, environment, record_bytes, records, refused, run, save_heads, start

PIPED = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
KEYS = ["--dim", "8", "--logit-std", "0.5", "--emit", "kv", "--seed", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipes")
    save_heads(folder, rows=700)
    run("generate", "--rows", "3000", *KEYS, "--quiet", "keys_{}.npy", cwd=folder)
    return folder


def test_two_stages_answer_what_files_answer(folder, tmp_path):
    method = ["--method", "poly", "--degree", "2", "--full"]
    with start("generate", "--rows", "3000", *KEYS, "--quiet", "-", stdout=subprocess.PIPE) as keys:
        done = run("attend", "-", "--q", "q.npy", *method, "-o", "-", "--quiet", stdin=keys.stdout, cwd=folder)
    assert keys.returncode == 0 and done.err == ""
    files = ["--q", "q.npy", "--k", "keys_k.npy", "--v", "keys_v.npy"]
    run("attend", *files, *method, "-o", tmp_path / "out.npy", cwd=folder)
    assert np.array_equal(np.concatenate(records(done.out)), np.load(tmp_path / "out.npy"))


@pytest.mark.parametrize("piped, rows", [("q", (40, 90, 90)), ("q", (90, 40, 40)), ("k", (40, 90, 90)), ("k", (40, 40, 90)),
                                         ("v", (40, 40, 90))])  # fmt: skip
def test_rows_of_a_causal_pipe_that_do_not_end_with_the_others_are_refused(tmp_path, piped, rows):
    """Queries that are fewer than the keys of a file stand at their end, and a pipe does not say where that is."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((n, 4)).astype("f4") for name, n in zip("qkv", rows, strict=True)}
    words = [word for name in "qkv" for word in (f"--{name}", "-" if name == piped else f"{name}.npy")]
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    words = ("attend", *words, "--causal", "--method", "window", "--block-rows", "40", "-o", "out.npy")
    given = {"input": record_bytes(arrays[piped]), "cwd": tmp_path}
    refused(*words, code=4, words=["standard input has", "they must agree", "--rows"], folder=tmp_path, **given)
    if piped == "k":  # who says where queries stand need not wait for the end
        run(*words, "--first-query", "0", **given)
    if piped == "v":
        refused(*words, "--full", code=4, words=["they must agree"], folder=tmp_path, **given)


def test_head_takes_what_it_wants(folder):
    """generate | attend | head -c 1000: all end, silently, as a shell expects."""
    with start("generate", "--rows", "30000", *KEYS, "--quiet", "-", **PIPED) as keys:
        command = ["attend", "-", "--q", "q.npy", "--full", "--method", "poly", "--degree", "2", "--block-rows", "16"]
        with start(*command, "-o", "-", "--quiet", stdin=keys.stdout, cwd=folder, **PIPED) as attend:
            assert len(attend.stdout.read(1000)) == 1000
            attend.stdout.close()
            assert attend.stderr.read() == b""
        assert keys.stderr.read() == b""
    assert (keys.returncode, attend.returncode) in ((0, -signal.SIGPIPE), (0, 0))


def test_who_waits_for_answers_before_asking_on_gets_them():
    """Rows of a causal pipe are answered when their block is complete, not when the next one comes."""
    command = [
        "attend",
        "-",
        "--causal",
        "--method",
        "window",
        "--window",
        "8",
        "--block-rows",
        "32",
        "-o",
        "-",
        "--quiet",
    ]
    rows = np.random.default_rng(1).standard_normal((96, 6)).astype("f4")
    with start(*command, stdin=subprocess.PIPE, **PIPED) as attend:
        patience = threading.Timer(TIMEOUT, attend.kill)
        patience.start()
        found = []
        for at in range(0, 96, 32):
            attend.stdin.write(record_bytes(rows[at : at + 32]))
            attend.stdin.flush()
            found.append(attend.stdout.read(128 + 32 * 2 * 4))
        attend.stdin.close()
        assert attend.stdout.read() == attend.stderr.read() == b""
        patience.cancel()
    assert attend.returncode == 0
    assert b"".join(found) == run(*command, input=record_bytes(rows)).out


def test_a_closed_pipe_ends_an_endless_run_as_sigpipe_does(tmp_path):
    with start("generate", "--rows", 10**12, "--dim", "8", "--quiet", "-", **PIPED) as rows:
        command = ["attend", "-", "--causal", "--method", "window", "--window", "16", "-o", "-", "--quiet"]
        with start(*command, stdin=rows.stdout, **PIPED) as attend:
            rows.stdout.close()
            attend.stdout.read(10000)
            attend.stdout.close()
            assert attend.stderr.read() == b""
        assert rows.stderr.read() == b""
    assert (rows.returncode, attend.returncode) == (-signal.SIGPIPE, -signal.SIGPIPE)


def test_the_shell_sees_141(folder):
    command = [
        *COMMAND,
        "attend",
        *FILES,
        "--causal",
        "--method",
        "window",
        "--json",
        "-o",
        "out.npy",
        "--quiet",
        "--force",
    ]
    line = " ".join(command) + "; echo $? >&2"
    with subprocess.Popen(["sh", "-c", line], cwd=folder, env=environment(), **PIPED) as shell:
        shell.stdout.close()
        assert shell.stderr.read() == b"141\n"


def test_a_reader_of_messages_that_leaves_stops_nothing(folder, tmp_path):
    command = ["attend", *FILES, "--causal", "--method", "window", "--progress-every", "0", "-o", tmp_path / "out.npy"]
    with start(*command, cwd=folder, stderr=subprocess.PIPE) as process:
        process.stderr.close()
    assert process.returncode == 0 and np.load(tmp_path / "out.npy").shape == (700, 8)


@pytest.mark.parametrize("closing, args, code, words", [
    ("<&-", ["-", "-o", "new.npy"], 2, "standard input is closed"),
    (">&-", [*FILES, "--method", "window", "-o", "-"], 10, "standard output is closed; give -o FILE"),
    (">&-", [*FILES, "--method", "window", "-o", "out.npy", "--quiet", "--force"], 0, ""),
    (">&-", [*FILES, "--dry-run", "--json"], 10, "standard output is closed; there is nowhere"),
    ("2>&-", [*FILES, "--method", "window", "-o", "out.npy", "--force"], 0, ""),
    ("2>&-", [*FILES, "--method", "nothing", "-o", "out.npy"], 2, ""),
    ("2>/dev/full", [*FILES, "--method", "window", "-o", "out.npy", "--force"], 0, ""),
    ("2>/dev/full", [*FILES, "--method", "nothing", "-o", "out.npy"], 2, ""),
])  # fmt: skip
def test_standard_streams_that_are_closed_or_full(folder, closing, args, code, words):
    line = " ".join([*COMMAND, "attend", *args, closing])
    done = subprocess.run(["sh", "-c", line], cwd=folder, env=environment(), capture_output=True, timeout=900)
    assert done.returncode == code, done.stderr.decode()
    assert words in done.stderr.decode() and b"Traceback" not in done.stderr
    if code == 0:
        assert np.load(folder / "out.npy").shape == (700, 8)


@pytest.fixture
def terminal():
    """The far end of a terminal nobody types at."""
    master, slave = pty.openpty()
    yield slave
    os.close(slave)
    os.close(master)


def test_a_terminal_as_input_is_refused(folder, terminal):
    words = ["standard input is a terminal", "pipe rows into it"]
    refused("attend", "-", "-o", "new.npy", code=2, words=words, stdin=terminal, folder=folder, cwd=folder)


@pytest.mark.parametrize("command", [["attend", *FILES], ["attend", *FILES, "-o", "-"], ["generate", "--rows", "5"]])
def test_a_terminal_as_output_is_refused(folder, terminal, command):
    words = ["standard output is a terminal", "binary"]
    refused(*command, code=2, words=words, stdout=terminal, folder=folder, cwd=folder)


def test_answers_in_a_pipe_go_on_where_the_checkpoint_left_them(tmp_path):
    """Whoever reads them goes away in the middle; what is resumed is the rest of the same rows."""
    rng = np.random.default_rng(0)
    for name in "qkv":
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((3000, 4)).astype("f4"))
    words = ["attend", *FILES, "--causal", "--resident-rows", "64", "--block-rows", "64", "-o", "-"]
    run(*words[:-1], "whole.npy", cwd=tmp_path)
    saved = ["--checkpoint", "c.sattn", "--checkpoint-every", "64rows"]
    program = subprocess.Popen(
        [*COMMAND, *words, *saved], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    program.stdout.read(5000)
    program.stdout.close()
    assert program.wait(TIMEOUT) == -signal.SIGPIPE
    rest = run(*words, *saved, "--resume", cwd=tmp_path)
    done = int(re.search(r"standard output begins with row (\d+);", rest.err)[1])
    whole = np.load(tmp_path / "whole.npy")
    assert 0 < done < 3000 and (np.concatenate(records(rest.out)).reshape(-1, 4) == whole[done:]).all()
