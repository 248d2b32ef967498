"""What is shown where: data and JSON on standard output, everything else on standard error, fit for its reader."""

import json
import os
import pty
import threading

import numpy as np
import pytest
from clirun import FILES, SAMPLE, records, run, save_heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    save_heads(folder, rows=1500)
    return folder


ATTEND = ["attend", *FILES, "--causal", "--method", "window", "--block-rows", "256"]


def test_json_is_one_document_and_alone_on_standard_output(folder, tmp_path):
    done = run(*ATTEND, "--audit", "32", "--json", "-o", tmp_path / "out.npy", cwd=folder)
    assert done.out.endswith(b"}\n") and done.out.count(b"\n") == 1
    outcome = done.document
    assert (outcome["type"], outcome["command"], outcome["rows"]) == ("outcome", "attend", 1500)
    assert outcome["audit"]["rows"] == 32
    assert 0 < outcome["audit"]["method"]["low"] <= outcome["audit"]["method"]["high"]
    assert outcome["output"] == str(tmp_path / "out.npy")
    assert "note: " in done.err


def test_json_has_no_place_beside_data(folder):
    for command in ([*ATTEND, "-o", "-"], ["generate", "--rows", "5", "-"]):
        done = run(*command, "--json", code=2, cwd=folder)
        assert done.out == b"" and "--json needs standard output" in done.err and "--log-json" in done.err


def test_data_is_alone_on_standard_output(folder):
    done = run(*ATTEND, "--progress-every", "0", "-o", "-", cwd=folder)
    assert np.concatenate(records(done.out)).shape == (1500, 8)
    assert "streamattn rows: rows 1500 of 1500" in done.err


def test_quiet_is_silent(folder, tmp_path):
    done = run(*ATTEND, "--quiet", "--progress-every", "0", "-o", tmp_path / "out.npy", cwd=folder)
    assert (done.out, done.err) == (b"", "")


def test_every_line_of_a_json_log_is_a_document(folder, tmp_path):
    done = run(*ATTEND, "--log-json", "--progress-every", "0", "--audit", "8", "-o", tmp_path / "out.npy", cwd=folder)
    log = done.log
    kinds = [entry["type"] for entry in log]
    assert kinds[0] == "started" and kinds[-1] == "outcome" and set(kinds) == {"started", "note", "progress", "outcome"}
    assert log[0]["plan"]["memory"]["projected"] > 0
    rows = [entry["rows"] for entry in log if entry["type"] == "progress" and entry["phase"] == "rows"]
    assert rows == [256, 512, 768, 1024, 1280, 1500]
    assert done.out == b""


@pytest.mark.parametrize("env, args", [({}, ["--log-json"]), ({"STREAMATTN_ATTEND_LOG_JSON": "1"}, [])])
def test_the_error_of_a_json_log_is_a_document_too(folder, env, args):
    done = run("attend", "nowhere.h5", *args, "-o", "out.npy", code=3, env=env, cwd=folder)
    assert [(entry["type"], entry["code"]) for entry in done.log] == [("error", 3)]
    assert "nowhere.h5: No such file" in done.log[0]["message"]


def test_progress_lines_are_plain_and_tell_everything(folder, tmp_path):
    done = run(*ATTEND, "--progress-every", "0", "--memory", "64MiB", "-o", tmp_path / "out.npy", cwd=folder)
    lines = [line for line in done.err.splitlines() if line.startswith("streamattn rows: ")]
    assert len(lines) == 6 and all(line.isprintable() and line.isascii() for line in done.err.splitlines())
    # Rates and an ETA are told once enough time has passed (tests/report/test_report.py): here the run may be too fast.
    figures = ("rows 768 of 1500 (51.2%)", "elapsed ", "sketch ", "memory now ", " peak ", "budget 64.")
    assert [word for word in figures if word not in lines[2]] == [], lines[2]


def test_no_progress_lines_within_the_interval(folder, tmp_path):
    done = run(*ATTEND, "--progress-every", "100000", "-o", tmp_path / "out.npy", cwd=folder)
    assert "streamattn rows: " not in done.err and "streamattn attend" in done.err


def on_a_terminal(*args, env=None, **kwargs):
    """What a terminal of 100 columns receives as standard error, and the exit of the run."""
    master, slave = pty.openpty()
    seen = bytearray()

    def read():
        try:
            while data := os.read(master, 1 << 16):
                seen.extend(data)
        except OSError:  # the last writer has gone
            return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = run(*args, env={"COLUMNS": "100"} | (env or {}), stderr=slave, **kwargs)
    finally:
        os.close(slave)
        reader.join()
        os.close(master)
    return done, seen.decode()


def test_a_terminal_gets_a_live_bar_and_a_table(folder, tmp_path):
    done, seen = on_a_terminal(*ATTEND, "-o", tmp_path / "out.npy", cwd=folder)
    assert seen.index("\x1b[?25h") < seen.index("mem ")  # the cursor stays: whoever presses Ctrl-Z needs it
    assert "mem " in seen and "out.npy" in seen
    assert done.out == b""


@pytest.mark.parametrize("env, codes", [({"NO_COLOR": "1"}, ["\x1b[3", "\x1b[1;3"]), ({"TERM": "dumb"}, ["\x1b"])])
def test_terminals_without_colour_or_any_control(folder, tmp_path, env, codes):
    _, seen = on_a_terminal(*ATTEND, "--progress-every", "0", "-o", tmp_path / "out.npy", env=env, cwd=folder)
    assert "out.npy" in seen
    assert not [code for code in codes if code in seen], repr(seen)


def test_a_bar_is_taken_down_when_the_run_fails(folder, tmp_path):
    rows = np.ones((1000, 24), np.float32)
    rows[-1] = np.nan
    command = ["attend", "-", "--raw", "f32", "--dim", "8", "--causal", "--method", "window", "--block-rows", "100"]
    _, seen = on_a_terminal(*command, "-o", tmp_path / "out.npy", input=rows.tobytes(), code=5)
    assert seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l")
    last = seen.splitlines()[-1].rpartition("\x1b[2K")[2]  # after the lines of the bar were erased
    assert last.startswith("streamattn: standard input: a value that is not finite in")
    assert "row 999" in last


def test_inspect_prints_its_report_on_standard_output(folder):
    done = run("inspect", SAMPLE / "tiny.h5")
    assert b"streamattn inspect" in done.out
    document = run("inspect", SAMPLE / "tiny.h5", "--json", "--quiet")
    assert document.err == "" and document.document["type"] == "inspection"
    assert json.loads(document.out)["attributes"]["layout"] == "TD"
