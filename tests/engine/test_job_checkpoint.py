"""A job in pieces that is stopped anywhere and resumed, by another engine and other workers, makes the same bytes."""

import os
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from clirun import listing
from keptruns import not_warmed, silent  # noqa: F401

from streamattn_cli.engine.jobs.layers import attend_layers
from streamattn_cli.engine.jobs.piece_run import answer_piece
from streamattn_cli.engine.jobs.sketch import open_sketch_file
from streamattn_cli.engine.jobs.spread import attend_spread
from streamattn_cli.engine.passes.run import Run, SketchRun
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.saving.saver import Saver
from streamattn_cli.engine.watch.events import Note, Progress
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import (
    CheckpointIncompatible,
    Interrupted,
    MemoryBudget,
    OutputFailed,
    SourceChanged,
    UsageError,
)
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.writers.fileout import PlacedWriter

pytestmark = pytest.mark.usefixtures("not_warmed")
PIECES = 4  # two layers of two key heads
OUTPUTS = {
    "one file": {"output": "out.h5"},
    "files of their own": {"output": "out-{layer}.npy", "doubt": "doubt-{layer}.npy"},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("streamattn_cli.engine.jobs.ceremony.warm", lambda plan, listener: None)


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("dump") / "dump.npz", np.random.default_rng(4)
    heads = {"q": 4, "k": 2, "v": 2}
    names = {f"layers.{n}.{part}": rng.standard_normal((300, heads[part], 8)) for n in (0, 2) for part in "qkv"}
    np.savez(path, **{name: rows.astype("f4") for name, rows in names.items()})
    return path


def request(dump, folder, kind, **words):
    """All layers into a folder, saved after every piece."""
    files = {name: str(folder / word) for name, word in OUTPUTS[kind].items()} | {"checkpoint": str(folder / "c.sattn")}
    settings = {"causal": True, "audit": 40, "resident_rows": 64, "engine": "threads", "checkpoint_every": "1rows"}
    spec = InputSpec(input=str(dump), layout="THD", layer="all")
    return AttendRequest(**{"inputs": spec, **settings, **files, **words})


def stopping(after, how):
    """A listener that ends the run with this error when so many pieces are answered."""
    told = []

    def listen(event):
        told.append(isinstance(event, Progress))
        if sum(told) == after:
            raise how

    return listen


def made(folder):
    """What the outputs hold."""
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".sattn" and path.name[0] != "."
    }


@pytest.fixture(scope="module")
def whole(dump, tmp_path_factory):
    """Of both kinds what an undisturbed run makes, and its outcome."""
    found = {}
    for kind in OUTPUTS:
        folder = tmp_path_factory.mktemp("whole")
        outcome = attend_spread(
            request(dump, folder, kind, checkpoint=None, checkpoint_every="30s"), silent, Interrupts()
        )
        found[kind] = made(folder), outcome
    return found


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("after", range(1, PIECES + 1))
def test_a_stopped_job_is_resumed_to_the_same_bytes(dump, whole, tmp_path, kind, after):
    """By a signal, or (after an even number of pieces) by an error that saves nothing more."""
    how = Interrupted(2) if after % 2 else RuntimeError("killed")
    with pytest.raises(type(how)):
        attend_spread(request(dump, tmp_path, kind, threads=1), stopping(after, how), Interrupts())
    assert not after % 2 or "continue with --resume" in how.consequence
    notes, engine = [], "processes" if after == 2 else "threads"
    again = request(dump, tmp_path, kind, threads=2, engine=engine, resume=True)
    outcome = attend_spread(again, notes.append, Interrupts())
    expected, undisturbed = whole[kind]
    assert made(tmp_path) == expected
    assert outcome.audit == undisturbed.audit and outcome.counts == undisturbed.counts
    assert [layer.heads for layer in outcome.layers] == [layer.heads for layer in undisturbed.layers]
    before = after if after % 2 else after - 1
    assert outcome.rows == 600 and outcome.rows_before == 150 * before
    assert Note(f"resuming a job: {before} of {PIECES} pieces are answered") in notes
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.fixture(scope="module")
def padded(dump, tmp_path_factory):
    """The rows of the dump as three padded sequences of each layer."""
    path = tmp_path_factory.mktemp("padded") / "dump.npz"
    np.savez(path, **{name: rows.reshape(3, 100, -1, 8) for name, rows in np.load(dump).items()})
    return InputSpec(str(path), layer="all", layout="BTHD", lengths="100,20,60")


@pytest.mark.parametrize("after", [1, 2])
def test_what_is_answered_of_padded_sequences_stays_in_a_joint_file(dump, padded, tmp_path, after):
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    attend_spread(request(dump, tmp_path / "whole", "one file", inputs=padded), silent, Interrupts())
    again = request(dump, tmp_path / "parts", "one file", inputs=padded, threads=1, resume=True)
    with pytest.raises(Interrupted):
        attend_spread(again, stopping(after, Interrupted(2)), Interrupts())
    attend_spread(again, silent, Interrupts())
    assert made(tmp_path / "parts") == made(tmp_path / "whole")


@pytest.mark.parametrize("again", ["the same job", "a resumed one"])
def test_a_piece_under_way_goes_on_where_its_worker_was_killed(dump, whole, tmp_path, monkeypatch, again):
    """In the same job by another worker, or when the job is resumed."""
    monkeypatch.setenv("KILLED", str(tmp_path / "killed"))
    monkeypatch.setattr("streamattn_cli.engine.jobs.spread.answer_piece", _dies_midway)
    words = {"engine": "processes", "threads": 1, "block_rows": 64}
    if again == "a resumed one":
        monkeypatch.setattr("streamattn_cli.engine.jobs.tasks.RETRIES", 0)
        with pytest.raises(MemoryBudget):
            attend_spread(request(dump, tmp_path, "files of their own", **words), silent, Interrupts())
        assert len(list(tmp_path.glob("c.sattn.piece-*"))) == 1
    outcome = attend_spread(request(dump, tmp_path, "files of their own", resume=True, **words), silent, Interrupts())
    found = made(tmp_path)
    assert found.pop("killed") == b"rows 128 of 300 were saved" and found == whole["files of their own"][0]
    assert outcome.audit == whole["files of their own"][1].audit
    assert not list(tmp_path.glob("c.sattn.piece-*")) and not list(tmp_path.glob(".*"))


def _dies_midway(task):
    """The process of the second piece is killed after its second block; who gets it then notes where it goes on."""
    save, mark = Saver.save, Path(os.environ["KILLED"])

    def dies_at_the_second(saver, run):
        save(saver, run)
        if saver.commits == 2:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    resume = Run.resume

    def noted(run, saved):
        mark.write_text(f"rows {saved.done} of {run.problem.q.rows} were saved")
        resume(run, saved)

    second = task.piece.heads == (1, 2) and task.name.startswith("layer 0")
    with mock.patch.object(Saver, "save", dies_at_the_second if second and not mark.exists() else save):
        with mock.patch.object(Run, "resume", noted):
            return answer_piece(task)


@pytest.fixture
def cut_by_rows(monkeypatch):
    """Full attention of 300 rows has pieces of keys and of two ranges of queries: 2 + 4 of each layer."""
    for name, size in (("LEAST_ROWS", 1), ("ALIGN", 256)):
        monkeypatch.setattr(f"streamattn_cli.engine.jobs.pieces.{name}", size)


FULL = {"causal": False, "block_rows": 64, "output": "out-{layer}.npy"}


def full(dump, folder, **words):
    return request(dump, folder, "one file", **FULL | {"output": str(folder / FULL["output"])} | words)


@pytest.fixture
def whole_full(dump, tmp_path_factory, cut_by_rows):
    folder = tmp_path_factory.mktemp("full")
    outcome = attend_spread(full(dump, folder, checkpoint=None, checkpoint_every="30s"), silent, Interrupts())
    return made(folder), outcome


@pytest.mark.parametrize("after, lost", [(1, False), (3, False), (5, False), (7, False), (3, True)])
def test_full_attention_is_resumed_to_the_same_bytes(dump, whole_full, tmp_path, after, lost):
    """After the keys of one head, all keys and queries of one, of both heads, keys of the other layer; with sketches lost."""
    with pytest.raises(Interrupted):
        attend_spread(full(dump, tmp_path, threads=1), stopping(after, Interrupted(2)), Interrupts())
    for sketch in tmp_path.glob("c.sattn.piece-*") if lost else ():
        sketch.unlink()
    notes, again = [], full(dump, tmp_path, resume=True, engine="processes" if after == 7 else "threads")
    outcome = attend_spread(again, notes.append, Interrupts())
    assert made(tmp_path) == whole_full[0] and outcome.audit == whole_full[1].audit
    assert outcome.counts == whole_full[1].counts
    assert Note(f"resuming a job: {after - 2 * lost} of 12 pieces are answered") in notes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.sattn", *sorted(whole_full[0])]


@pytest.mark.parametrize("run", [SketchRun, Run], ids=["keys", "queries"])
def test_keys_and_queries_under_way_go_on(dump, whole_full, tmp_path, monkeypatch, run):
    """The first piece of either kind ends after its second block, as a killed worker does."""
    save, resume, seen = Saver.save, run.resume, []

    def dies_at_the_second(saver, one):
        save(saver, one)
        if saver.commits == 2 and isinstance(one, run):
            raise RuntimeError("killed")

    def noted(one, saved):
        seen.append((saved.phase, saved.done))
        resume(one, saved)

    monkeypatch.setattr(Saver, "save", dies_at_the_second)
    with pytest.raises(RuntimeError):
        attend_spread(full(dump, tmp_path, threads=1), silent, Interrupts())
    monkeypatch.setattr(Saver, "save", save)
    monkeypatch.setattr(run, "resume", noted)
    outcome = attend_spread(full(dump, tmp_path, resume=True), silent, Interrupts())
    assert (
        "keys" if run is SketchRun else "queries",
        128,
    ) in seen  # and what had begun before anybody knew of the death
    assert made(tmp_path) == whole_full[0] and outcome.audit == whole_full[1].audit


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_finished_job_is_not_done_again(dump, whole, tmp_path, kind, monkeypatch):
    done = attend_layers(
        request(dump, tmp_path, kind, engine=None), silent, Interrupts()
    )  # of a job, without an engine
    assert made(tmp_path) == whole[kind][0]
    monkeypatch.setattr("streamattn_cli.engine.jobs.spread.answer_piece", lambda task, stop: pytest.fail("done again"))
    again = attend_spread(request(dump, tmp_path, kind, resume=True), silent, Interrupts())
    assert again.audit == done.audit and again.rows == again.rows_before == 600
    assert made(tmp_path) == whole[kind][0]


def test_between_the_names_of_two_outputs(dump, whole, tmp_path, monkeypatch):
    commit, seen = PlacedWriter.commit, []

    def fails_at_the_second(writer, meta):
        seen.append(writer.name)
        if len(seen) == 2:
            raise RuntimeError("killed")
        commit(writer, meta)

    monkeypatch.setattr(PlacedWriter, "commit", fails_at_the_second)
    with pytest.raises(RuntimeError):
        attend_spread(request(dump, tmp_path, "files of their own"), silent, Interrupts())
    monkeypatch.setattr(PlacedWriter, "commit", commit)
    assert (tmp_path / "doubt-0.npy").exists() and not (tmp_path / "out-0.npy").exists()
    attend_spread(request(dump, tmp_path, "files of their own", resume=True), silent, Interrupts())
    assert made(tmp_path) == whole["files of their own"][0]


@pytest.fixture(scope="module")
def stopped(dump, tmp_path_factory):
    """The folder of a job that was stopped after its first piece."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("streamattn_cli.engine.jobs.ceremony.warm", lambda plan, listener: None)
        attend_spread(request(dump, folder, "one file", threads=1), stopping(1, Interrupted(2)), Interrupts())
    return folder


REFUSED = {
    "other settings": (
        {"resident_rows": 80, "resume": True},
        CheckpointIncompatible,
        "made with other settings.*job.digest",
    ),
    "another number of layers": ({"layer": "2", "resume": True}, CheckpointIncompatible, "job.sheets: 2 there, 1 here"),
    "unasked": ({}, UsageError, "there is a checkpoint already"),
    "one for each layer": ({"checkpoint": "{layer}.sattn"}, UsageError, "one for all layers; omit {layer}"),
    "resumed from nothing": ({"checkpoint": None, "resume": True}, UsageError, "--resume needs --checkpoint"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(dump, stopped, case):
    words, error, said = REFUSED[case]
    before = listing(stopped)
    spec = InputSpec(input=str(dump), layout="THD", layer=words.get("layer", "all"))
    more = {name: word for name, word in words.items() if name != "layer"}
    with pytest.raises(error, match=said):
        attend_spread(request(dump, stopped, "one file", inputs=spec, **more), silent, Interrupts())
    assert listing(stopped) == before


@pytest.mark.parametrize("words", [{}, {"resume": True}, {"force": True}], ids=str)
def test_a_folder_is_refused_in_the_same_words_by_all(dump, tmp_path, words):
    for do, engine in ((attend_layers, None), (attend_spread, "threads")):
        with pytest.raises(OutputFailed, match="a folder, pipe or device found, expected a file or nothing"):
            do(full(dump, tmp_path, checkpoint=str(tmp_path), engine=engine, **words), silent, Interrupts())
    assert listing(tmp_path) == {}


def test_no_sketch_is_in_it(stopped):
    with pytest.raises(CheckpointIncompatible, match="of a job in pieces"):
        open_sketch_file(str(stopped / "c.sattn"))


def test_another_input_or_a_lost_file_is_refused(dump, tmp_path):
    with pytest.raises(Interrupted):
        attend_spread(request(dump, tmp_path, "one file"), stopping(1, Interrupted(2)), Interrupts())
    other = tmp_path / "dump.npz"
    with np.load(dump) as arrays:
        np.savez(other, **{name: rows * 2 for name, rows in arrays.items()})
    with pytest.raises(SourceChanged, match="the input for q is not the one"):
        attend_spread(request(other, tmp_path, "one file", resume=True), silent, Interrupts())
    for part in tmp_path.glob(".out*"):
        part.unlink()
    with pytest.raises(CheckpointIncompatible, match="the unfinished file .* is gone"):
        attend_spread(request(dump, tmp_path, "one file", resume=True), silent, Interrupts())
