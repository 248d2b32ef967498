import io
import itertools
import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clirun import SAMPLE, run
from rich.console import Console

import streamattn_cli
from streamattn_cli.engine.audit.estimate import draw_rows
from streamattn_cli.engine.watch.events import Audit, ErrorEstimate, Finished, Note, Outcome, Progress, Started
from streamattn_cli.errors import UsageError
from streamattn_cli.report.jsontext import json_line
from streamattn_cli.report.live.lines import eta_seconds, progress_line
from streamattn_cli.report.live.livebar import LiveBar
from streamattn_cli.report.live.memoryline import budget_bar, memory_line, sparkline
from streamattn_cli.report.live.progress import make_listener
from streamattn_cli.report.text.outcome import SAID, facts_text, outcome_rows
from streamattn_cli.report.text.plan import plan_rows
from streamattn_cli.report.text.table import plain_lines

PROGRESS = Progress("keys", 1_250_000, 2_000_000, 1 << 26, 2.5, 12 << 20, 33 << 20, 40 << 20, 64 << 20)
ENDLESS = Progress("keys", 1_250_000, None, 1 << 26, 2.5)
WATCHED = replace(PROGRESS, unsaved_seconds=72.0, error=0.01234)
AUDIT = Audit(128, ErrorEstimate(0.0123, 0.011, 0.0145, 0.01, 0.05), ErrorEstimate(0.91, 0.9, 0.92, 0.88, 1.1))
OUTCOME = Outcome(
    command="attend",
    facts={"method": "poly", "mode": "full", "params": {"degree": 4, "sinks": 0}, "scale": 0.3535678, "versions": {}},
    rows=4096,
    seconds=2.0,
    wait_seconds=0.5,
    bytes_read=1 << 20,
    memory={"allowed": None, "reserved": 40 << 20, "projected": 12 << 20, "peak": 10 << 20},
    counts={"clipped_keys": 3, "guarded_rows": 0},
    audit=AUDIT,
    output="out.npy",
    notes=("layout THD, from its attribute",),
)
PLAN = {
    "method": "poly",
    "mode": "full",
    "inputs": [{"name": "dump.h5:/k", "shape": (8192, 3, 64), "dtype": "f2", "heads": 3}],
    "rows": None,
    "block_rows": 1024,
    "passes": ["keys", "queries"],
    "memory": {
        "allowed": 64 << 20,
        "projected": 10 << 20,
        "parts": {"sketch": 2 << 20, "read_ahead": 8 << 20, "audit": 0},
    },
    "params": {"degree": 2},
    "notes": ["a note"],
}


def _screen(event, width):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    live = LiveBar(out, width)
    live.last = event
    for now in (1 << 20, 25 << 20, 33 << 20) * 8:
        live._series.add(event.phase, event.rows, now)
    console.print(live)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [12, 30, 40, 59, 60, 80, 120, 200])
@pytest.mark.parametrize(
    "event", [WATCHED, PROGRESS, ENDLESS, Progress("audit", 0, 0, 0, 0.0), Progress("rows", 5, 3, 1, 0.0)]
)
def test_the_bar_never_takes_more_than_its_columns_and_three_lines(event, width):
    lines = _screen(event, width)
    assert 1 <= len(lines) <= 3
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith(event.phase)


def test_a_wide_bar_shows_everything():
    text = " ".join(_screen(PROGRESS, 200))
    assert "error" not in text and "saved" not in text
    for word in ("━", "62%", "ETA 0:02", "500 k rows/s", "1.25 M of 2.00 M rows", "25.6 MiB/s", "sketch 12.0 MiB",
                 "mem █████████▒░░░░░░  33.0 MiB, peak 40.0 MiB of 64.0 MiB  over time ▁▇█▁▇█"):  # fmt: skip
        assert word in text


def test_what_a_narrow_bar_keeps():
    text = " ".join(_screen(WATCHED, 30))
    assert re.search(r"62%.*ETA 0:02.*500 k rows/s.*error 0\.0123.*mem ██████▒░░░░  peak 40\.0 MiB", text)
    assert "sketch" not in text
    text = " ".join(_screen(WATCHED, 80))
    assert "error so far 0.0123" in text and "not saved for 1:12" in text and re.search("over time [▁▇█]{8}", text)


@pytest.mark.parametrize("width", range(30, 130))
def test_memory_over_time_is_never_shown_without_its_name(width):
    line = memory_line(PROGRESS, [4 << 20] * 23 + [9 << 20], width).plain
    assert len(line) <= width and ("over time" in line) == ("▄" in line) == (width >= 77)


def test_outcomes_use_words_and_not_the_names_of_json():
    params = {"sinks": 4, "group": 16, "active": 192, "temper": 0.8, "storage": "bf16"}
    said = facts_text({"method": "nystrom", "params": params})
    assert said == (
        "nystrom, sinks 4, buffer 16, atoms compressed at a time 192, kernel flattened to 0.8, rows kept as bfloat16"
    )
    assert facts_text({"params": {"temper": 1.0, "storage": "f2"}}) == "rows kept as float16"


def test_the_glossary_has_every_word_that_is_translated():
    page = (Path(streamattn_cli.__file__).parent / "report" / "pages" / "how-wrong.md").read_text()
    for name, word in SAID.items():
        assert f"**{word}**" in page and f"`{name}`" in page


def test_the_budget_as_a_bar():
    assert budget_bar(0, 0, 100, 10) == "░" * 10 and budget_bar(1, 1, 1000, 10) == "█" + "░" * 9
    assert budget_bar(31, 60, 100, 10) == "████▒▒░░░░"
    assert budget_bar(200, 100, 100, 10) == "█" * 10  # over the budget: there is no more bar than that
    line = memory_line(PROGRESS, [1, 2, 3], 80, ascii_only=True).plain
    assert line.startswith("mem #########=......  33.0 MiB") and line.isascii()
    assert memory_line(replace(PROGRESS, memory_allowed=None), [], 80).plain == "mem 33.0 MiB, peak 40.0 MiB"


def test_a_sparkline_shows_the_largest_of_each_part():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7, 8], 9) == "▁▂▃▄▅▆▇██"
    assert sparkline([0, 8, 0, 0, 4, 0], 3) == "█▁▅"
    assert sparkline([0, 0], 24) == "▁▁"


def test_error_and_checkpoint_age_reach_the_log(tmp_path):
    rows = ("attend", SAMPLE / "heads.h5", "--rows", "0:1500", "--block-rows", "512", "--progress-every", "0")
    causal = (*rows, "--causal", "--method", "window", "--window", "32", "--force", "-o", tmp_path / "out.npy")
    audit, saved = ("--audit", "32"), ("--checkpoint", tmp_path / "run.sattn")

    def progress(*words):
        return [event for event in run(*words, "--log-json").log if event["type"] == "progress"]

    log = progress(*causal, *audit, *saved)
    assert all(0 <= event["unsaved_seconds"] < 60 for event in log)
    run(*rows, "--causal", "--method", "exact", "-o", tmp_path / "exact.npy", "--quiet")
    found, exact = (np.load(tmp_path / f"{name}.npy").astype("f8") for name in ("out", "exact"))
    sampled = draw_rows(1500, 16, 0).rows  # the even half: the others are known after a second pass

    def so_far(rows):  # exact answers are complete a tile of 512 rows at a time
        seen = sampled[sampled < rows // 512 * 512]
        return np.linalg.norm((found - exact)[seen]) / np.linalg.norm(exact[seen]) if len(seen) else 0

    log, second = ([e for e in log if (e["phase"] == "audit") == again] for again in (False, True))
    assert len(log) == 3 and all(e["error"] == pytest.approx(so_far(1500), rel=1e-4) for e in second)
    for before, event in itertools.pairwise([{"rows": 0}, *log]):  # the last block may still be in work
        assert (event["error"] or 0) in [pytest.approx(so_far(each["rows"]), rel=1e-4) for each in (before, event)]
    text = run(*causal, *audit).err
    assert any(f"error so far {so_far(rows):.3g}" in text for rows in (512, 1024)) and "not saved" not in text
    saved = ("--checkpoint", tmp_path / "another.sattn")
    assert "not saved for" in run(*causal, *saved).err
    full = progress(
        *rows, "--full", "--method", "window", "--window", "32", "--force", "-o", tmp_path / "out.npy", *audit
    )
    assert all(event["error"] is None and event["unsaved_seconds"] is None for event in full)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_layers_that_are_done_are_told(width):
    event = replace(PROGRESS, sheets=8, sheets_done=3)
    assert "3 of 8 layers done" in " ".join(_screen(event, width))
    assert "layers done 3 of 8" in progress_line(event) and "layers" not in progress_line(PROGRESS)


def test_a_stream_without_end_has_neither_share_nor_eta():
    text = " ".join(_screen(ENDLESS, 200))
    assert "%" not in text and "ETA" not in text and "━" not in text and "0:02" in text
    assert eta_seconds(ENDLESS) is None


def test_eta():
    assert eta_seconds(PROGRESS) == pytest.approx(1.5)
    assert eta_seconds(Progress("rows", 0, 10, 0, 1.0)) is None
    assert eta_seconds(Progress("rows", 12, 10, 0, 1.0)) == 0


def test_plain_line_words():
    assert progress_line(PROGRESS) == (
        "streamattn keys: rows 1250000 of 2000000 (62.5%), 500000 rows/s, 25.6 MiB/s, elapsed 2.50 s, ETA 1.50 s, "
        "sketch 12.0 MiB, memory now 33.0 MiB peak 40.0 MiB budget 64.0 MiB"
    )
    assert "ETA" not in progress_line(ENDLESS) and "budget" not in progress_line(ENDLESS)


def test_rates_count_no_row_of_an_earlier_run():
    resumed = replace(PROGRESS, rows_before=1_000_000, bytes=1 << 20)
    assert eta_seconds(resumed) == pytest.approx(7.5)
    line = progress_line(resumed)
    assert "rows 1250000 of 2000000 (62.5%), 100000 rows/s, 410 KiB/s, elapsed 2.50 s, ETA 7.50 s" in line
    screen = " ".join(_screen(resumed, 200))
    assert "62%" in screen and "100 k rows/s" in screen and "ETA 0:08" in screen
    outcome = dict(outcome_rows(replace(OUTCOME, rows_before=4000)))
    assert outcome["rows"].startswith("4096, of which 96 in 2.00 s (48 rows/s, ")
    nothing = dict(outcome_rows(replace(OUTCOME, rows_before=4096, seconds=0.0, bytes_read=0)))
    assert nothing["rows"].startswith("4096, of which 0 in 0.00 s (0 rows/s, ")


def test_no_rate_is_told_of_a_time_that_is_shown_as_none():
    early = replace(PROGRESS, seconds=0.004)
    text = (
        progress_line(early)
        + " ".join(_screen(early, 200))
        + dict(outcome_rows(replace(OUTCOME, seconds=0.004)))["rows"]
    )
    assert "/s" not in text and "ETA" not in text and "62" in text


def _feed(mode, every):
    stream = io.StringIO()
    with make_listener(mode, every, stream) as listener:
        for event in (Started({"method": "poly"}), Note("layout THD"), PROGRESS, ENDLESS, Finished(OUTCOME)):
            listener(event)
    return stream.getvalue().splitlines()


def test_plain_listener_keeps_to_its_interval():
    assert _feed("auto", 3600) == ["note: layout THD"]
    assert _feed("auto", 0) == ["note: layout THD", progress_line(PROGRESS), progress_line(ENDLESS)]


@pytest.mark.parametrize("mode", ["auto", "json"])
def test_the_first_line_comes_an_interval_after_the_first_rows(mode, monkeypatch):
    """Not after the start, which may take as long as it takes."""
    now = 100.0
    monkeypatch.setattr("streamattn_cli.report.live.lines.time.monotonic", lambda: now)
    stream = io.StringIO()
    listener = make_listener(mode, 10, stream)
    for now, lines in ((1000.0, 0), (1009.0, 0), (1010.0, 1), (1019.0, 1), (1021.0, 2)):  # noqa: B007 - the clock
        listener(PROGRESS)
        assert len(stream.getvalue().splitlines()) == lines


def test_quiet_listener_says_nothing_but_answers():
    assert _feed("quiet", 0) == []
    stream = io.StringIO()
    listener = make_listener("quiet", stderr=stream)
    listener.status()
    listener(PROGRESS)
    listener.status()
    assert stream.getvalue().splitlines() == ["streamattn: no rows yet", progress_line(PROGRESS)]


def test_json_lines_all_have_a_type():
    documents = [json.loads(line) for line in _feed("json", 0)]
    assert [d["type"] for d in documents] == ["started", "note", "progress", "progress", "outcome"]
    assert documents[0]["plan"] == {"method": "poly"}
    assert documents[2]["rows"] == 1_250_000 and documents[3]["total"] is None
    assert documents[4]["audit"]["method"]["p95_row"] == 0.05
    assert [json.loads(line)["type"] for line in _feed("json", 3600)] == ["started", "note", "outcome"]


def test_json_status():
    stream = io.StringIO()
    make_listener("json", 10, stream).status()
    assert json.loads(stream.getvalue()) == {"type": "status", "phase": None, "rows": 0}


def test_json_is_strict_and_plain():
    document = {"a": np.float32(0.5), "b": np.int64(3), "c": (1, None, True), "d": np.nan, 5: np.arange(2), "f": np.inf}
    assert json_line(document) == '{"a": 0.5, "b": 3, "c": [1, null, true], "d": null, "5": [0, 1], "f": null}'


class _Broken(io.StringIO):
    def write(self, _text):
        raise BrokenPipeError


@pytest.mark.parametrize("mode", ["auto", "json", "quiet"])
def test_a_watcher_that_left_does_not_stop_the_run(mode):
    listener = make_listener(mode, 0, _Broken())
    listener(PROGRESS)
    listener.status()
    listener.close()
    assert listener.last == PROGRESS


@pytest.mark.parametrize("mode, every", [("loud", 10), ("auto", -1), ("json", float("nan"))])
def test_wrong_words_are_usage_errors(mode, every):
    with pytest.raises(UsageError, match="must be"):
        make_listener(mode, every, io.StringIO())


def test_outcome_rows():
    rows = dict(outcome_rows(OUTCOME))
    assert rows == {
        "ran": "poly, full, degree 4, sinks 0, scale 0.3536",
        "rows": "4096 in 2.00 s (2.05 k rows/s, 512 KiB/s), 25% of it waiting for input",
        "memory": "reserved 40.0 MiB, projected 12.0 MiB, peak 10.0 MiB",
        "counts": "clipped keys 3",
        "error": "0.0123, 95% interval 0.011 to 0.0145; row median 0.01, p95 0.05 (128 rows audited)",
        "trivial": "0.91, 95% interval 0.9 to 0.92; row median 0.88, p95 1.1 (the same for the mean of the values)",
        "output": "out.npy",
    }


def test_an_outcome_without_audit_says_why():
    bare = Outcome("attend", {}, 0, 0.0, 0.0, 0, {}, audit_reason="the rows came by a pipe")
    assert dict(outcome_rows(bare)) == {
        "rows": "0 in 0.00 s (0 rows/s, 0 B/s), 0% of it waiting for input",
        "error": "not measured: the rows came by a pipe",
    }


def test_plan_rows():
    assert plan_rows(PLAN) == [
        ("run", "poly, full, degree 2"),
        ("input", "dump.h5:/k, 8192 x 3 x 64, f2, 3 heads"),
        ("rows", "not known before the end, in blocks of 1024"),
        ("pass", "keys"),
        ("pass", "queries"),
        ("memory", "allowed 64.0 MiB, projected 10.0 MiB"),
        ("of which", "read ahead 8.00 MiB, sketch 2.00 MiB"),
        ("note", "a note"),
    ]
    assert plan_rows({}) == []


@pytest.mark.parametrize("width", [10, 30, 40, 80, 200])
def test_plain_texts_keep_to_the_width_and_lose_no_word(width):
    for rows in (outcome_rows(OUTCOME), plan_rows(PLAN)):
        lines = plain_lines("a title that is longer than ten columns", rows, width)
        assert all(len(line) <= width for line in lines)
        written = re.sub(r"\s", "", "".join(lines))
        assert all(re.sub(r"\s", "", text) in written for _, text in rows)


TTY = """
import sys, time
from streamattn_cli.engine.watch.events import Finished, Outcome, Progress
from streamattn_cli.report.text.outcome import render_outcome
from streamattn_cli.report.live.progress import make_listener
outcome = Outcome("attend", {"method": "exact"}, 4, 1.0, 0.0, 9, {})
with make_listener("auto", 3600.0) as listener:
    listener(Progress("keys", 5, 10, 100, 1.0))
    listener.status()
    if "fail" in sys.argv:
        raise SystemExit(3)
    listener(Finished(outcome))
render_outcome(outcome)
print("rich" in sys.modules)
"""


def _on_a_terminal(*args, **environment):
    """What a terminal of 60 columns receives on stderr, and the process's stdout."""
    master, slave = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")}
    env |= {"TERM": "xterm-256color", "COLUMNS": "60"} | environment
    command = [sys.executable, "-c", TTY, *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=env, text=True)
    out, _ = process.communicate(timeout=900)
    os.close(slave)
    received = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # EIO: the other end is closed and everything has been read
            break
        if not chunk:
            break
        received += chunk
    os.close(master)
    return received.decode(), out


def test_a_terminal_gets_a_bar_that_goes_away_and_a_table():
    screen, out = _on_a_terminal()
    assert out == "True\n"
    assert "\x1b[?25h" in screen
    assert "━" in screen and "streamattn keys: rows 5 of 10" in screen and "exact" in screen
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", screen)


def test_the_cursor_comes_back_when_the_run_fails():
    screen, _ = _on_a_terminal("fail")
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")


def test_no_color_is_honoured():
    screen, _ = _on_a_terminal(NO_COLOR="1")
    assert "━" in screen
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9]m", screen)


def test_a_dumb_terminal_gets_plain_text_and_rich_stays_away():
    screen, out = _on_a_terminal(TERM="dumb")
    assert out == "False\n"
    assert "\x1b" not in screen and "exact" in screen


def test_status_line_is_written_at_once():
    stream = io.StringIO()
    listener = make_listener("auto", 3600, stream)
    listener(PROGRESS)
    assert stream.getvalue() == ""
    listener.status()
    assert stream.getvalue() == progress_line(PROGRESS) + "\n"
