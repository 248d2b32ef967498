"""Whatever a power cut leaves, the name leads to the old checkpoint or to the new one, and the next writer goes on."""

import os
import random
import signal
import time

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
    return {"counters": np.array([turn, 7], "i8"), "sums": np.full(16, turn + 0.5)}, {"rows": str(turn)}


KNOWN = [None, *(b"".join(encode(*state(turn))) for turn in range(1, COMMITS + 2))]


class Watcher:
    """Collects every image after every operation together with the checkpoints that may be found in it."""

    def __init__(self, ignored=(), fail_at=0):
        self.seen = {}  # image: the checkpoints allowed, by every operation after which it can be left
        self.allowed = {None}
        self.fs = ModelFs(ignored=ignored, watch=self.look, fail_at=fail_at)

    def look(self, fs):
        for image in fs.images():
            self.seen.setdefault(image, []).append(frozenset(self.allowed))

    def run(self):
        """Commit 1, 2, 3; a commit that fails leaves the old one, or the new one if its rename took place."""
        durable = 0
        with CheckpointWriter(PATH, self.fs) as writer:
            for turn in range(1, COMMITS + 1):
                self.allowed.add(KNOWN[turn])
                try:
                    writer.commit(*state(turn))
                except OutputFailed:
                    assert self.fs.shown().get(PATH) in (KNOWN[durable], KNOWN[turn])
                else:
                    durable = turn
                    self.allowed = {KNOWN[turn]}
                    self.look(self.fs)  # committed means durable
        return self

    def wrong(self):
        """The images that hold no checkpoint that is allowed there."""
        return [image for image, allowed in self.seen.items()
                if any(dict(image).get(PATH) not in each for each in allowed)]


def test_every_power_cut_leaves_the_old_or_the_new_checkpoint():
    watcher = Watcher().run()
    print(f"{len(watcher.seen)} distinct states after {watcher.fs.steps} operations")
    assert len(watcher.seen) >= STATES
    assert not watcher.wrong()
    for turn in range(1, COMMITS + 1):  # the model did see each of them come about
        assert {dict(image).get(PATH) for image, sets in watcher.seen.items()
                if frozenset({KNOWN[turn - 1], KNOWN[turn]}) in sets or turn > 1} >= {KNOWN[turn - 1], KNOWN[turn]}


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
        allowed = {dict(image).get(PATH), KNOWN[COMMITS + 1]}

        def look(fs, allowed=allowed):
            # the fourth of a commit's five writes makes thousands of torn files that only differ in the unfinished one
            if not any(len(inode.unsynced) > 2 for inode in fs.names_now.values()):
                assert {dict(after).get(PATH) for after in fs.images()} <= allowed

        save(PATH, *state(COMMITS + 1), ModelFs(dict(image), watch=look))


def test_power_cut_after_a_failed_operation():
    """Every operation of three commits fails in turn, and the machine may stop at any moment after it."""
    steps = Watcher().run().fs.steps
    for n in range(1, steps + 1):
        watcher = Watcher(fail_at=n)
        # only look where few writes are under way: the torn files are those of the test above
        watcher.fs.watch = lambda fs, w=watcher: (
            None if any(len(inode.unsynced) > 2 for inode in fs.names_now.values()) else w.look(fs)
        )
        try:
            watcher.run()
        except OutputFailed:
            assert KNOWN[1] not in watcher.allowed  # the writer could not even begin
        assert not watcher.wrong(), f"operation {n}"


@pytest.mark.parametrize("ignored", ["fsync", "fsync_dir"])
def test_the_model_catches_a_protocol_that_leaves_out_a_step(ignored):
    assert Watcher(ignored={ignored}).run().wrong()


def test_the_model_catches_renaming_too_early():
    class Hasty(ModelFs):
        """Renames as soon as the file exists."""

        def create(self, path):
            fd = super().create(path)
            ModelFs.rename(self, path, PATH)
            return fd

        def rename(self, _source, _target):
            pass

    watcher = Watcher()
    watcher.fs = Hasty(watch=watcher.look)
    assert watcher.run().wrong()


@pytest.mark.parametrize("turn", range(4))
def test_kill_at_random_instants(tmp_path, rng, turn):
    """Real processes that do nothing but commit are killed; what they leave is whole, and never goes back."""
    path = str(tmp_path / "run.sattn")
    states = [state(number) for number in range(1, 4000)]
    last, rounds = 0, 25
    for delay in rng.uniform(0, 0.012, rounds):
        child = os.fork()
        if child == 0:
            try:
                with CheckpointWriter(path) as writer:
                    for words in states[last:]:
                        writer.commit(*words)
            finally:
                os._exit(1)  # it is meant to be killed before
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        if os.path.exists(path):
            arrays, meta = read(path)
            now = int(meta["rows"])
            assert now >= last and arrays["counters"][0] == now
            last = now
    save(path, *states[last])
    assert sorted(os.listdir(tmp_path)) == ["run.sattn"]
    assert last > 0


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


def test_sequences_of_names_are_not_repeated():
    """A commit after a failed one must not meet the failed one's file, even where that could not be removed."""
    random.seed(1)
    first = ModelFs()
    first.unlink = lambda path: None
    with CheckpointWriter(PATH, first) as writer:
        writer.commit(*state(1))
        random.seed(1)
        writer.commit(*state(2))
    assert first.shown()[PATH] == KNOWN[2]
