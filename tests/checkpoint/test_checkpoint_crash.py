"""Whatever a power cut leaves, the name leads to the old checkpoint or to the new one, and the next writer goes on."""

import itertools
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from crashfs import ModelFs, PowerCut

from streamattn_cli.checkpoint.commit import CheckpointWriter, save
from streamattn_cli.checkpoint.container import encode, read
from streamattn_cli.errors import OutputFailed

PATH = "/folder/run.sattn"
COMMITS = 3
STATES = 20_000  # distinct ones, at least


def state(turn):
    sums, flags = np.full(16, turn + 0.5), np.full(64, turn % 256, "u1")
    return {"counters": np.array([turn, 7], "i8"), "flags": flags, "sums": sums}, {"rows": str(turn)}


KNOWN = [None, *(b"".join(encode(*state(turn))) for turn in range(1, COMMITS + 2))]


class Torn(Exception):
    """Found something that is neither the old nor the new checkpoint."""


class Watcher:
    """Looks at every image after every operation of three commits in the model. `busiest`: skip moments with more
    unsynced writes of one file than this, for they make thousands of images that differ in the unfinished file only."""

    def __init__(self, model=ModelFs, busiest=99, **words):
        self.seen = set()  # images
        self.found = set()  # (checkpoints allowed, the one found)
        self.allowed, self.busiest = {None}, busiest
        self.fs = model(watch=self.look, **words)

    def look(self, fs):
        if any(len(inode.unsynced) > self.busiest for inode in fs.names_now.values()):
            return
        images = fs.images()
        self.seen |= images
        here = {dict(image).get(PATH) for image in images}
        if not here <= self.allowed:
            raise Torn
        self.found |= {(frozenset(self.allowed), each) for each in here}

    def run(self):
        """Commit 1, 2, 3; a commit that fails leaves the old one, or the new one if its rename took place."""
        with CheckpointWriter(PATH, self.fs) as writer:
            for turn in range(1, COMMITS + 1):
                before, old = self.allowed, self.fs.shown().get(PATH)
                self.allowed = before | {KNOWN[turn]}
                try:
                    writer.commit(*state(turn))
                except OutputFailed:
                    shown = self.fs.shown().get(PATH)
                    assert shown in self.allowed
                    self.allowed = before if shown == old else self.allowed
                else:
                    self.allowed = {KNOWN[turn]}  # committed means durable
                self.look(self.fs)
        return self


def test_every_power_cut_leaves_the_old_or_the_new_checkpoint():
    watcher = Watcher().run()
    print(f"{len(watcher.seen)} distinct states after {watcher.fs.steps} operations")
    assert len(watcher.seen) >= STATES
    for old, new in itertools.pairwise(KNOWN[: COMMITS + 1]):  # the model did see both come about
        assert {(frozenset({old, new}), old), (frozenset({old, new}), new)} <= watcher.found


def test_after_every_power_cut_the_next_writer_cleans_up_and_commits():
    images = sorted(Watcher().run().seen)
    for image in images[:: max(1, len(images) // 5000)] + images[-20:]:
        fs = ModelFs(dict(image))
        with CheckpointWriter(PATH, fs) as writer:
            assert fs.shown().get(PATH) == dict(image).get(PATH)
            writer.commit(*state(COMMITS + 1))
            assert fs.durable_names[PATH].durable == KNOWN[COMMITS + 1]
        assert list(fs.shown()) == [PATH]


def test_power_cut_while_recovering_from_a_power_cut():
    first = sorted(Watcher().run().seen)
    for image in first[:: max(1, len(first) // 60)]:
        watcher = Watcher(busiest=2, image=dict(image))
        watcher.allowed = {dict(image).get(PATH), KNOWN[COMMITS + 1]}
        save(PATH, *state(COMMITS + 1), watcher.fs)
        assert watcher.found


def test_power_cut_after_a_failed_operation():
    """Every operation of three commits fails in turn, and the machine may stop at any moment after it."""
    for n in range(1, Watcher(busiest=0).run().fs.steps + 1):
        watcher = Watcher(busiest=1, fail_at=n)
        try:
            watcher.run()
        except OutputFailed:
            assert watcher.allowed == {None}  # the writer could not even begin
        assert watcher.fs.steps >= n


@pytest.mark.parametrize("ignored", ["fsync", "fsync_dir"])
def test_the_model_catches_a_protocol_that_leaves_out_a_step(ignored):
    with pytest.raises(Torn):
        Watcher(ignored={ignored}).run()


def test_the_model_catches_renaming_too_early():
    class Hasty(ModelFs):
        """Renames as soon as the file exists."""

        def create(self, path):
            fd = super().create(path)
            ModelFs.rename(self, path, PATH)
            return fd

        def rename(self, _source, _target):
            pass

    with pytest.raises(Torn):
        Watcher(Hasty).run()


@pytest.fixture
def folder(tmp_path):
    """A folder in memory where there is one: what a killed process leaves does not depend on the disk's speed."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


def test_kill_at_random_instants(folder, rng):
    """Real processes that do nothing but commit are killed; what they leave is whole, and never goes back."""
    path, last, rounds = str(folder / "run.sattn"), 0, int(os.environ.get("STREAMATTN_KILLS", "150"))
    for delay in rng.uniform(0, 0.006, rounds):
        child = os.fork()
        if child == 0:
            try:
                with CheckpointWriter(path) as writer:
                    for turn in itertools.count(last + 1):
                        writer.commit(*state(turn))
            finally:
                os._exit(1)  # it is meant to be killed before
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        if os.path.exists(path):
            arrays, meta = read(path)
            now = int(meta["rows"])
            assert now >= last and arrays["sums"].tolist() == state(now)[0]["sums"].tolist()
            last = now
    save(path, *state(1))
    assert os.listdir(folder) == ["run.sattn"]
    assert last > rounds // 2  # commits, or the children were killed before they did anything


def test_a_signal_in_the_middle_leaves_no_unfinished_file():
    """PowerCut stands for any exception that is not an Exception."""

    class Interrupting(ModelFs):
        def fsync(self, fd):
            raise PowerCut

    fs = Interrupting({PATH: KNOWN[1]})
    with CheckpointWriter(PATH, fs) as writer:
        with pytest.raises(PowerCut):
            writer.commit(*state(2))
        assert fs.shown()[PATH] == KNOWN[1]
    assert list(fs.shown()) == [PATH]


def test_unfinished_files_of_others_are_left_alone():
    """Only this checkpoint's own are removed."""
    others = {
        "/folder/.run.sattn.0123abcd.tmp": b"1",
        "/folder/.run2.sattn.0123abcd.sattn-part": b"2",
        "/folder/.run.sattn.0123abcd.sattn-part.bak": b"3",
        "/folder/.runxsattn.0123abcd.sattn-part": b"4",
        "/folder/.run.sattn.0123ABCD.sattn-part": b"5",
    }
    fs = ModelFs({**others, "/folder/.run.sattn.0123abcd.sattn-part": b"old"})
    CheckpointWriter(PATH, fs).close()
    assert fs.shown() == others
