"""A run or a sketch that was stopped and resumed ends with the bytes of one that was not."""

import json
import os
import time
from dataclasses import replace
from io import BytesIO
from unittest import mock

import numpy as np
import pytest
from clirun import listing, record_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keptruns import METHODS, POLY, answers, keys_only, make_sketch, not_warmed, save_stream, state_of  # noqa: F401

from streamattn_cli.checkpoint.commit import save
from streamattn_cli.checkpoint.container import read
from streamattn_cli.engine.jobs.attend import attend
from streamattn_cli.engine.jobs.sketch import open_sketch_file, sketch
from streamattn_cli.engine.passes.pump import pump
from streamattn_cli.engine.request.requests import AttendRequest, SketchRequest
from streamattn_cli.engine.watch.events import Progress
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.engine.workers.lanes import Lane
from streamattn_cli.errors import CheckpointIncompatible, Interrupted, SourceChanged, UsageError
from streamattn_cli.rows.spec import InputSpec

pytestmark = pytest.mark.usefixtures("not_warmed")
N = 257
NIGHTLY = settings.default.max_examples > 100
STRIDE = 1 if NIGHTLY else 5  # rows between two stops
MODES = {"causal": True, "full": False}
NAMES = ("out.npy", "out.npy.json", "c.sattn")


class Stops(Interrupts):
    """Stops a run when it has taken so many blocks, as a signal would. Passes of an audit, which begin anew, do not count."""

    def __init__(self, blocks):
        super().__init__()
        self.left = blocks

    def check(self):
        """See Interrupts."""
        if self.left <= 0:
            raise Interrupted(15)

    def pump(self, blocks, take, watch, tell, reached=None):
        """See engine/passes/pump.py; counts blocks."""

        def counted(block):
            in_work = take(block)
            self.left -= not tell.phase.startswith("audit")
            return in_work

        return pump(blocks, counted, watch, tell, reached)


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """257 rows, two key heads."""
    return save_stream(tmp_path_factory.mktemp("stream"), N, heads=2)


def _once(run, request, blocks, *more):
    """True when the run came to its end within so many blocks."""
    stops = Stops(blocks)
    try:
        with mock.patch("streamattn_cli.engine.passes.driver.pump", stops.pump):
            run(request, lambda event: None, stops, *more)
    except Interrupted:
        return False
    return True


def _request(spec, folder, causal, **words):
    paths = {"output": str(folder / "out.npy"), "checkpoint": str(folder / "c.sattn")}
    return AttendRequest(inputs=spec, causal=causal, **paths, **words)


def _files(folder):
    return {name: (folder / name).read_bytes() for name in NAMES}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", METHODS)
def test_resumed_at_every_row(stream, tmp_path, name, mode):
    """Stopped after every block of one row, in every pass; where a method learns from groups, after every group."""
    words = METHODS[name]
    (tmp_path / "whole").mkdir()
    attend(_request(stream, tmp_path / "whole", MODES[mode], **words), lambda event: None, Interrupts())
    parts, stopped = tmp_path / "parts", 0
    parts.mkdir()
    while not _once(
        attend,
        _request(stream, parts, MODES[mode], block_rows=1, resume=True, threads=1 + stopped % 2, **words),
        STRIDE,
    ):
        stopped += 1
        assert stopped <= 2 * N
    assert stopped == _stops(parts, name, passes=1 if mode == "causal" else 2)
    assert _files(parts) == _files(tmp_path / "whole")
    assert sorted(os.listdir(parts)) == sorted(NAMES)


def _stops(folder, name, passes=1):
    """How often a pass is stopped: a method that learns from queries gets whole groups of rows."""
    head = json.loads(read(str(folder / "c.sattn"))[1]["params"])["head"]
    blocks = -(-N // head["group"]) if name.startswith(("nystrom", "evict", "reservoir")) else N
    return passes * blocks // STRIDE


@settings(max_examples=1500 if NIGHTLY else 40, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(METHODS)),
    st.sampled_from(sorted(MODES)),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 300), st.integers(1, 3)), max_size=5),
    st.integers(1, 300),
)
def test_resumed_anywhere_with_other_blocks_and_threads(stream, tmp_path_factory, name, mode, stops, last):
    folder = tmp_path_factory.mktemp("random")
    words = METHODS[name]
    for sub in ("whole", "parts"):
        (folder / sub).mkdir()
    attend(_request(stream, folder / "whole", MODES[mode], **words), lambda event: None, Interrupts())
    for blocks, rows, threads in stops:
        request = _request(
            stream, folder / "parts", MODES[mode], block_rows=rows, threads=threads, resume=True, **words
        )
        if _once(attend, request, blocks):
            break
    attend(
        _request(stream, folder / "parts", MODES[mode], block_rows=last, resume=True, **words),
        lambda event: None,
        Interrupts(),
    )
    assert _files(folder / "parts") == _files(folder / "whole")


@pytest.mark.parametrize("mode", MODES)
def test_exact_goes_on_with_the_next_queries(tmp_path, mode, monkeypatch):
    monkeypatch.setattr("streamattn_cli.engine.planning.sizing.EXACT_BYTES", 1)  # 512 queries at a time
    spec = save_stream(tmp_path, 2100)
    words = {"method": "exact", "block_rows": 300}
    for sub in ("whole", "parts"):
        (tmp_path / sub).mkdir()
    attend(_request(spec, tmp_path / "whole", MODES[mode], **words), lambda event: None, Interrupts())
    stopped = 0
    while not _once(attend, _request(spec, tmp_path / "parts", MODES[mode], resume=True, **words), 11):
        stopped += 1
        assert stopped < 50
    assert stopped > 1
    assert _files(tmp_path / "parts") == _files(tmp_path / "whole")


@pytest.mark.parametrize("name", METHODS)
def test_a_sketch_resumed_at_every_row(stream, tmp_path, name):
    for path in ("whole", "parts"):
        (tmp_path / path).mkdir()
    spec = stream if name.startswith(("nystrom", "evict", "reservoir")) else keys_only(stream)
    make_sketch(spec, tmp_path / "whole" / "c.sattn", **METHODS[name])
    stopped = 0
    while not _once(
        sketch,
        SketchRequest(spec, str(tmp_path / "parts" / "c.sattn"), resume=True, block_rows=1, **METHODS[name]),
        STRIDE,
    ):
        stopped += 1
    assert stopped == _stops(tmp_path / "parts", name)
    assert (tmp_path / "parts" / "c.sattn").read_bytes() == (tmp_path / "whole" / "c.sattn").read_bytes()


@pytest.mark.parametrize("mode", MODES)
def test_an_audit_is_resumed_too(tmp_path, mode):
    """More rows than a tile of exact attention holds; blocks that cut tiles, fit them, and hold several."""
    spec, words = save_stream(tmp_path, 1700, heads=2), POLY | {"audit": 9}
    for sub in ("whole", "parts"):
        (tmp_path / sub).mkdir()
    attend(_request(spec, tmp_path / "whole", MODES[mode], **words), lambda event: None, Interrupts())
    for rows in (512, 100, 300, 1024, 77):
        _once(attend, _request(spec, tmp_path / "parts", MODES[mode], block_rows=rows, resume=True, **words), 1)
    attend(
        _request(spec, tmp_path / "parts", MODES[mode], block_rows=999, resume=True, **words),
        lambda event: None,
        Interrupts(),
    )
    assert _files(tmp_path / "parts") == _files(tmp_path / "whole")


class StopsAfterwards(Stops):
    """Stops a run when so many blocks have passed for its audit and its repairs."""

    def pump(self, blocks, take, watch, tell, reached=None):
        def counted(block):
            in_work = take(block)
            self.left -= tell.phase in ("audit", "repair")
            return in_work

        return pump(blocks, counted, watch, tell, reached)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_is_stopped_in_its_audit_or_its_repairs_counts_what_it_dropped(tmp_path, mode):
    spec, words = (
        save_stream(tmp_path, 700, heads=2),
        {"audit": 9, "repair": "10%", "nan_policy": "drop", "block_rows": 300},
    )
    keys = np.load(spec.k)
    keys[[5, 650], 0] = np.nan
    np.save(spec.k, keys)
    words |= METHODS["sample"] | {"causal": MODES[mode]}
    whole = attend(AttendRequest(spec, str(tmp_path / "whole.npy"), **words), lambda event: None, Interrupts())
    for blocks in range(1, 9):
        paths = {"output": str(tmp_path / f"{blocks}.npy"), "checkpoint": str(tmp_path / f"{blocks}.sattn")}
        stops, request = StopsAfterwards(blocks), AttendRequest(spec, resume=True, **paths, **words)
        with mock.patch("streamattn_cli.engine.passes.driver.pump", stops.pump):
            try:
                attend(request, lambda event: None, stops)
                break
            except Interrupted:
                outcome = attend(request, lambda event: None, Interrupts())
        assert (tmp_path / f"{blocks}.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
        outcome.counts.pop("checkpoints")
        assert (outcome.audit, outcome.counts) == (whole.audit, whole.counts), blocks
    assert blocks > 3 and whole.counts["dropped_keys"] == 2


@pytest.mark.parametrize("blocks", range(7, 12))  # within the second sequence
def test_exact_counts_what_it_drops_once(tmp_path, blocks):
    spec = replace(save_stream(tmp_path, 600), starts="0,300,600")
    for part in (spec.q, spec.k):
        rows = np.load(part)
        rows[[5, 305]] = np.nan
        np.save(part, rows)
    words = {"method": "exact", "nan_policy": "drop", "block_rows": 100, "resume": True}
    assert not _once(attend, _request(spec, tmp_path, False, **words), blocks)
    outcome = attend(_request(spec, tmp_path, False, **words), lambda event: None, Interrupts())
    assert (outcome.counts["dropped_keys"], outcome.counts["dropped_queries"]) == (2, 2)


def test_answers_so_far_outlive_a_resumed_run_that_is_stopped_before_it_begins(stream, tmp_path):
    request = _request(stream, tmp_path, True, block_rows=40, resume=True, doubt=str(tmp_path / "doubt.npy"), **POLY)
    assert not _once(attend, request, 3)
    with (
        mock.patch("streamattn_cli.engine.jobs.attend.make_run", side_effect=Interrupted(15)),
        pytest.raises(Interrupted),
    ):
        attend(request, lambda event: None, Interrupts())
    assert attend(request, lambda event: None, Interrupts()).rows_before == 120


SPARSE = {
    "heaps": POLY | {"top_k": 3},
    "heaps, causal": POLY | {"top_k": 3, "deviation": True, "causal": True},
    "psi": POLY | {"sketches": "psi", "m1": 64},
    "psi, heaps, audit": POLY | {"sketches": "psi", "m1": 64, "order": "vkq", "top_k": 3, "audit": 7},
    "phi": POLY | {"sketches": "phi", "top_k": 2, "m2": 600, "audit": 7},
    "phi, heaps": POLY | {"sketches": "phi", "order": "kvq", "top_k": 2},
    "paper": POLY | {"sketches": "paper", "m1": 64, "top_k": 2, "m2": 600, "decoder": "peel", "per_column": True, "audit": 7},
    "paper, v first": POLY | {"sketches": "paper", "order": "vkq", "m1": 64, "top_k": 2, "m2": 600, "deviation": True},
}  # fmt: skip


def _sparse(spec, folder, name, **more):
    output = str(folder / ("out.h5" if "top_k" in SPARSE[name] else "out.npy"))
    words = {"causal": False} | SPARSE[name] | more
    return AttendRequest(inputs=spec, output=output, checkpoint=str(folder / "c.sattn"), **words)


@pytest.mark.parametrize("name", SPARSE)
def test_sketches_and_heaps_resumed_at_every_row(stream, tmp_path, name):
    """In every pass: of keys, of values, of both, of queries."""
    for sub in ("whole", "parts"):
        (tmp_path / sub).mkdir()
    attend(_sparse(stream, tmp_path / "whole", name), lambda event: None, Interrupts())
    stopped, phases = 0, set()
    words = {"block_rows": 1, "resume": True}
    while not _once(attend, _sparse(stream, tmp_path / "parts", name, threads=1 + stopped % 2, **words), STRIDE):
        stopped += 1
        phases.add(read(str(tmp_path / "parts" / "c.sattn"))[1]["phase"])
        assert stopped <= 4 * N
    assert len(phases) == (1 if "causal" in name else 2 if name == "heaps" else 3)
    assert listing(tmp_path / "parts") == listing(tmp_path / "whole")


def test_heaps_of_exact_attention_go_on(tmp_path, monkeypatch):
    """With the next queries, of which there are several portions."""
    monkeypatch.setattr("streamattn_cli.engine.planning.sizing.EXACT_BYTES", 1)  # 512 queries at a time
    spec, paths = save_stream(tmp_path, 1300), [tmp_path / name for name in ("whole.h5", "parts.h5", "c.sattn")]
    words = {"method": "exact", "causal": False, "block_rows": 300, "top_k": 3}
    attend(AttendRequest(spec, str(paths[0]), **words), lambda event: None, Interrupts())
    request = AttendRequest(spec, str(paths[1]), checkpoint=str(paths[2]), resume=True, **words)
    assert not _once(attend, request, 9)
    assert read(str(paths[2]))[1]["phase"] == "exact"
    attend(request, lambda event: None, Interrupts())
    assert paths[1].read_bytes() == paths[0].read_bytes()


@pytest.mark.parametrize("name", ["heaps", "phi", "psi, heaps, audit", "paper"])
def test_a_sparse_run_that_ended_between_its_last_two_steps(stream, tmp_path, name, monkeypatch):
    """The output is there, the checkpoint is that of the last row: the output is made again, to the same bytes."""
    for sub in ("whole", "parts"):
        (tmp_path / sub).mkdir()
    attend(_sparse(stream, tmp_path / "whole", name), lambda event: None, Interrupts())
    with monkeypatch.context() as patch:
        patch.setattr("streamattn_cli.engine.jobs.attend.describe", None)
        with pytest.raises(TypeError):
            attend(_sparse(stream, tmp_path / "parts", name), lambda event: None, Interrupts())
    assert read(str(tmp_path / "parts" / "c.sattn"))[1]["phase"] != "done"
    attend(_sparse(stream, tmp_path / "parts", name, resume=True), lambda event: None, Interrupts())
    assert listing(tmp_path / "parts") == listing(tmp_path / "whole")


def test_a_run_of_a_pipe_that_ended_between_its_last_two_steps_is_done(tmp_path, monkeypatch):
    rows = record_bytes(np.random.default_rng(0).standard_normal((N, 12)).astype("f4"))

    def request():
        return _request(InputSpec("-", record="qkv", stdin=BytesIO(rows)), tmp_path, True, resume=True, **POLY)

    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr("streamattn_cli.engine.jobs.attend.describe", None)
        attend(request(), lambda event: None, Interrupts())
    before = (tmp_path / "out.npy").read_bytes()
    assert attend(request(), lambda event: None, Interrupts()).audit_reason == "this run was complete already"
    assert (tmp_path / "out.npy").read_bytes() == before


def test_a_run_in_sketches_is_not_queried(stream, tmp_path):
    attend(_sparse(stream, tmp_path, "phi"), lambda event: None, Interrupts())
    with pytest.raises(CheckpointIncompatible, match="--sketches phi.*no other queries"):
        answers(tmp_path / "c.sattn", stream, tmp_path / "x.npy")


def test_a_finished_run_is_not_done_again(stream, tmp_path):
    request = _request(stream, tmp_path, True, resume=True, **POLY)
    attend(request, lambda event: None, Interrupts())
    before = _files(tmp_path)
    outcome = attend(request, lambda event: None, Interrupts())
    assert outcome.bytes_read == 0 and _files(tmp_path) == before


def test_dropped_rows_are_counted_once_over_all_parts(tmp_path):
    spec = save_stream(tmp_path, N)
    for part in "kq":
        array = np.load(tmp_path / f"{part}.npy")
        array[[3, 150, 256]] = np.nan
        np.save(tmp_path / f"{part}.npy", array)
    for mode, causal in MODES.items():
        for sub in ("whole", "parts"):
            (tmp_path / mode / sub).mkdir(parents=True)
        words = POLY | {"nan_policy": "drop"}
        attend(_request(spec, tmp_path / mode / "whole", causal, **words), lambda event: None, Interrupts())
        while not _once(
            attend, _request(spec, tmp_path / mode / "parts", causal, resume=True, block_rows=50, **words), 2
        ):
            pass
        assert _files(tmp_path / mode / "parts") == _files(tmp_path / mode / "whole")
        assert json.loads((tmp_path / mode / "parts" / "out.npy.json").read_text())["counts"]["dropped_keys"] == 3


# --- what is told


def _heard(run, request, *more):
    """The Progress events of a run that comes to its end, and its outcome."""
    heard = []
    outcome = run(request, heard.append, Interrupts(), *more)
    return [event for event in heard if isinstance(event, Progress)], outcome


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_rows_of_before_are_in_the_share_and_in_no_rate(stream, tmp_path, mode, threads):
    request = _request(stream, tmp_path, MODES[mode], block_rows=40, threads=threads, resume=True, **POLY)
    assert not _once(attend, request, 3 if mode == "causal" else 10)  # of 7 blocks, full: of keys, then of queries
    done = 120
    told, outcome = _heard(attend, request)
    assert [(event.rows, event.rows_before, event.total) for event in told] == [
        (rows, done, N) for rows in (160, 200, 240, N)
    ]
    row = sum(array.nbytes for array in map(np.load, [stream.q] + [stream.k, stream.v] * (mode == "causal"))) // N
    assert [event.bytes for event in told] == [(event.rows - done) * row for event in told]
    assert (outcome.rows, outcome.rows_before) == (N, done)
    told, outcome = _heard(attend, request)
    assert told == [] and (outcome.rows, outcome.rows_before) == (N, N)


def test_answers_are_all_of_a_run_that_began_with_the_keys_of_another(stream, tmp_path):
    request = _request(stream, tmp_path, False, block_rows=40, resume=True, **POLY)
    assert not _once(attend, request, 3)
    told, outcome = _heard(attend, request)
    assert [(event.phase, event.rows_before) for event in told] == 4 * [("keys", 120)] + 7 * [("queries", 0)]
    assert (outcome.rows, outcome.rows_before) == (N, 0)


def test_a_sketch_tells_the_same_of_rows_that_were_there(stream, tmp_path):
    spec, path = keys_only(stream), str(tmp_path / "c.sattn")
    request = SketchRequest(replace(spec, rows=(0, 200)), path, block_rows=40, resume=True, **POLY)
    assert not _once(sketch, request, 2)
    told, outcome = _heard(sketch, request)
    assert [(event.rows, event.rows_before) for event in told] == [(120, 80), (160, 80), (200, 80)]
    assert (outcome.rows, outcome.rows_before) == (200, 80)
    more = SketchRequest(replace(spec, rows=(200, None)), path, append=True, block_rows=40, **POLY)
    told, outcome = _heard(sketch, more)
    assert [(event.rows, event.rows_before, event.total) for event in told] == [(40, 0, 57), (57, 0, 57)]
    assert (outcome.rows, outcome.rows_before) == (N, 200)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_blocks_are_told_when_they_are_finished(stream, tmp_path, mode, threads, monkeypatch):
    answered, put = [0, 0], Lane.put

    def slow(lane, out, doubt, answers, a, b, work):
        time.sleep(0.005)
        put(lane, out, doubt, answers, a, b, work)
        answered[lane.index] += b - a

    monkeypatch.setattr(Lane, "put", slow)
    told = []

    def hear(event):
        if isinstance(event, Progress) and event.phase != "keys":
            told.append((event.rows, min(answered)))

    attend(_request(stream, tmp_path, MODES[mode], block_rows=40, threads=threads, **POLY), hear, Interrupts())
    assert [rows for rows, _ in told] == [40, 80, 120, 160, 200, 240, N]
    assert all(rows <= finished for rows, finished in told)


# --- what is refused


@pytest.fixture
def stopped(tmp_path):
    """A stream of its own and a run of it, stopped after 100 rows."""
    spec = save_stream(tmp_path, N)
    assert not _once(attend, _request(spec, tmp_path, True, block_rows=100, **POLY), 1)
    assert read(str(tmp_path / "c.sattn"))[1]["rows"] == "100"
    return spec


def _go_on(spec, folder, **words):
    causal = words.pop("causal", True)
    attend(_request(spec, folder, causal, resume=True, **(POLY | words)), lambda event: None, Interrupts())


def _change(path, row):
    """Change one number of a row in place, with the same size."""
    array = np.load(path)
    array[row] += 1
    np.save(path, array)


@pytest.mark.parametrize("part", "qkv")
@pytest.mark.parametrize("row, said", [(0, "first rows"), (256, "last rows"), (128, "modification time")])
def test_a_changed_source_is_refused(stopped, tmp_path, part, row, said):
    _change(tmp_path / f"{part}.npy", row)
    with pytest.raises(SourceChanged, match=f"the input for {part} is not the one.*{said}"):
        _go_on(stopped, tmp_path)


def test_a_fingerprint_sees_what_the_clock_does_not(tmp_path):
    spec = save_stream(tmp_path, N)
    _once(attend, _request(spec, tmp_path, True, block_rows=100, fingerprint=True, **POLY), 1)
    times = os.stat(tmp_path / "k.npy")
    _change(tmp_path / "k.npy", 128)
    os.utime(tmp_path / "k.npy", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(SourceChanged, match="content"):
        _go_on(spec, tmp_path, fingerprint=True)


OTHER = [
    ({"degree": 4}, "degree"),
    ({"window": 5}, "window"),
    ({"scale": "d"}, "scale"),
    ({"method": "window"}, "method"),
    ({"causal": False}, "mode"),
    ({"audit": 4}, "audit_rows"),
    ({"seed": 4}, "seed"),
    ({"out_dtype": "f2"}, "out_dtype"),
    ({"nan_policy": "drop"}, "nan_policy"),
]


@pytest.mark.parametrize("words, said", OTHER, ids=[said for _, said in OTHER])
def test_other_settings_are_refused(stopped, tmp_path, words, said):
    with pytest.raises(CheckpointIncompatible, match=f"made with other settings.*{said}"):
        _go_on(stopped, tmp_path, **words)


def test_another_schema_is_refused(stopped, tmp_path):
    path = str(tmp_path / "c.sattn")
    state, meta = read(path)
    save(path, state, meta | {"schema": "2"})
    with pytest.raises(CheckpointIncompatible, match="state schema 2 found, expected 1"):
        _go_on(stopped, tmp_path)
    with pytest.raises(CheckpointIncompatible, match="state schema 2 found, expected 1"):
        open_sketch_file(path)


def test_a_causal_state_answers_no_other_queries(stopped, tmp_path):
    with pytest.raises(CheckpointIncompatible, match="a causal run"):
        answers(tmp_path / "c.sattn", stopped, tmp_path / "x.npy")
    assert not (tmp_path / "x.npy").exists()


def test_a_checkpoint_is_not_overwritten_unasked(stopped, tmp_path):
    with pytest.raises(UsageError, match="continue with --resume"):
        attend(_request(stopped, tmp_path, True, **POLY), lambda event: None, Interrupts())


def test_an_unfinished_output_that_is_gone(stopped, tmp_path):
    (part,) = (name for name in os.listdir(tmp_path) if name.startswith(".out.npy"))
    os.unlink(tmp_path / part)
    with pytest.raises(CheckpointIncompatible, match="the unfinished output"):
        _go_on(stopped, tmp_path)


def test_a_sketch_of_a_changed_source_is_refused(tmp_path):
    spec = keys_only(save_stream(tmp_path, N))
    request = SketchRequest(spec, str(tmp_path / "c.sattn"), block_rows=50, resume=True, **POLY)
    assert not _once(sketch, request, 2)
    _change(tmp_path / "v.npy", 0)
    with pytest.raises(SourceChanged, match="first rows of v"):
        _once(sketch, request, 99)


def test_an_unfinished_sketch_is_not_queried(stream, tmp_path):
    request = SketchRequest(keys_only(stream), str(tmp_path / "c.sattn"), block_rows=50, **POLY)
    assert not _once(sketch, request, 2)
    with pytest.raises(CheckpointIncompatible, match="100 rows.*finish it with --resume first"):
        answers(tmp_path / "c.sattn", stream, tmp_path / "x.npy")


# --- more rows for a sketch


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("first", [1024, 1700])
def test_appended_rows_are_as_if_they_had_been_there(tmp_path, name, first):
    """Once the first part has the 1024 rows by which settings are chosen."""
    spec, words = save_stream(tmp_path, 2400), METHODS[name] | {"block_rows": 500}
    if not name.startswith(("nystrom", "evict", "reservoir")):
        spec = keys_only(spec)
    make_sketch(spec, tmp_path / "whole.sattn", **words)
    make_sketch(replace(spec, rows=(0, first)), tmp_path / "parts.sattn", **words)
    make_sketch(replace(spec, rows=(first, 2400)), tmp_path / "parts.sattn", append=True, **words)
    whole, parts = state_of(tmp_path / "whole.sattn"), state_of(tmp_path / "parts.sattn")
    assert whole.keys() == parts.keys()
    for array in whole:
        assert np.array_equal(whole[array], parts[array]), array


def test_rows_are_not_appended_twice(tmp_path):
    spec = keys_only(save_stream(tmp_path, 1500))
    make_sketch(replace(spec, rows=(0, 1200)), tmp_path / "s.sattn", **POLY)
    before = (tmp_path / "s.sattn").read_bytes()
    with pytest.raises(CheckpointIncompatible, match="same rows of the same keys"):
        make_sketch(replace(spec, rows=(1100, 1500)), tmp_path / "s.sattn", append=True, **POLY)
    assert (tmp_path / "s.sattn").read_bytes() == before


# --- pipes


@pytest.mark.parametrize("skip", [None, 0])
def test_a_pipe_goes_on(tmp_path, skip):
    """It begins again with its first row, or with --skip-rows 0 where it was left."""
    rows = np.random.default_rng(3).standard_normal((N, 8)).astype(np.float32)

    def spec(first=0):
        return replace(keys_only(base), stdin=BytesIO(record_bytes(rows[first:])))

    base = InputSpec(input="-", record="kv")
    path = str(tmp_path / "c.sattn")
    assert not _once(sketch, SketchRequest(spec(), path, block_rows=60, **POLY), 2)
    again = spec(0 if skip is None else 120)
    assert _once(sketch, SketchRequest(again, path, resume=True, skip_rows=skip, **POLY), 99)
    make_sketch(spec(), tmp_path / "whole.sattn", **POLY)
    assert (tmp_path / "c.sattn").read_bytes() == (tmp_path / "whole.sattn").read_bytes()


def test_values_on_a_pipe_go_on_in_the_pass_of_the_values(stream, tmp_path):
    """A run in sketches: while the keys pass, the pipe of the values has not begun."""
    values = np.load(stream.v)

    def spec():
        return replace(stream, v="-", stdin=BytesIO(record_bytes(values)))

    for sub in ("whole", "parts"):
        (tmp_path / sub).mkdir()
    attend(_sparse(spec(), tmp_path / "whole", "psi"), lambda event: None, Interrupts())
    phases = []
    while not _once(attend, _sparse(spec(), tmp_path / "parts", "psi", block_rows=100, resume=True), 2):
        phases.append(read(str(tmp_path / "parts" / "c.sattn"))[1]["phase"])
    assert phases == ["keys", "values", "values", "queries"]
    assert _files(tmp_path / "parts") == _files(tmp_path / "whole")
