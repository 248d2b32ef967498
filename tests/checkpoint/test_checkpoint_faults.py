"""Operations that fail: exit code 10, the previous checkpoint intact, nothing left behind; then the lock."""

import errno
import itertools
import os
import shutil
import signal
import stat
import subprocess

import numpy as np
import pytest
from crashfs import FaultyFs, SmallDisk

from streamattn_cli.checkpoint import commit
from streamattn_cli.checkpoint.commit import CheckpointWriter, save
from streamattn_cli.checkpoint.container import encode, read
from streamattn_cli.errors import OutputFailed

ERRORS = [errno.EIO, errno.ENOSPC, errno.EINTR, errno.EDQUOT]
LOCK, NAME = ".run.sattn.lock", "run.sattn"


def state(turn, doubles=16):
    return {"counters": np.array([turn, 7], "i8"), "sums": np.full(doubles, turn + 0.5)}, {"rows": str(turn)}


def content(turn):
    return b"".join(encode(*state(turn)))


def nothing(_name, _n, call, *_args):
    return call()


def fails(at, number):
    """The operation `at` fails. (A close that fails has still closed: so it is on Linux.)"""

    def fault(name, n, call, *_args):
        if n == at:
            if name == "close":
                call()
            raise OSError(number, os.strerror(number))
        return call()

    return fault


def lies(at, number):
    """The operation `at` takes place and yet reports an error, as network file systems do."""

    def fault(_name, n, call, *_args):
        result = call()
        if n == at:
            raise OSError(number, os.strerror(number))
        return result

    return fault


def dies(at, number):
    """Every operation fails from `at` on: the disk is gone."""

    def fault(name, n, call, *_args):
        if n >= at:
            if name == "close":
                call()
            raise OSError(number, os.strerror(number))
        return call()

    return fault


def shortens(at, part, number=0):
    """A write `at` takes only a part of its bytes, as it may; the operation after it fails if there is a number."""

    def fault(name, n, call, *args):
        if n == at + 1 and number:
            raise OSError(number, os.strerror(number))
        if n == at and name == "write":
            return call(args[0], args[1][: int(len(args[1]) * part)])
        return call()

    return fault


def attempt(folder, fault):
    """A second commit under this fault: (names of the operations, error, names in the folder, the checkpoint)."""
    path, error = folder / NAME, None
    save(str(path), *state(1))
    fs = FaultyFs(fault)
    try:
        save(str(path), *state(2), fs)
    except OutputFailed as caught:
        error = caught
    return fs.log, error, set(os.listdir(folder)), path.read_bytes()


def each_operation(folder):
    """1, 2, ... with the name of that operation, and whether a commit has promised its result before it."""
    log, error, _, _ = attempt(folder, nothing)
    assert error is None and len(log) > 15
    promised = log.index("fsync_dir") + 1
    return [(n, name, n > promised) for n, name in enumerate(log, 1)]


def check_usable(folder):
    save(str(folder / NAME), *state(3))
    assert (folder / NAME).read_bytes() == content(3)
    assert os.listdir(folder) == [NAME]


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", [fails, lies])
def test_every_operation_fails_in_turn(tmp_path, kind, number):
    operations = each_operation(tmp_path)
    rename = [name for _, name, _ in operations].index("rename") + 1
    for n, name, promised in operations:
        _, error, left, found = attempt(tmp_path, kind(n, number))
        assert (error is None) == promised, (n, name)
        assert found == content(2 if n > rename or (n == rename and kind is lies) else 1), (n, name)
        # the lock file may be another writer's when we could not lock it, or not look whether it is ours
        assert left - ({LOCK} if name in ("open_lock", "try_lock", "is_at", "unlink") else set()) == {NAME}, (n, name)
        if error:
            assert error.code == 10
            assert NAME in str(error) and os.strerror(number) in str(error)
        check_usable(tmp_path)
    assert len(attempt(tmp_path, kind(len(operations) + 1, number))[0]) == len(operations)  # there were no more


def test_the_disk_goes_away(tmp_path):
    """Even the cleaning up fails; what is left then is removed by the next writer."""
    for n, name, promised in each_operation(tmp_path):
        _, error, _, found = attempt(tmp_path, dies(n, errno.EIO))
        assert (error is None) == promised, (n, name)
        assert found in (content(1), content(2))
        check_usable(tmp_path)


def test_short_writes_are_continued(tmp_path):
    for n, _, _ in each_operation(tmp_path):
        _, error, left, found = attempt(tmp_path, shortens(n, 0.3))
        assert (error, left, found) == (None, {NAME}, content(2))


def test_a_short_write_and_then_an_error(tmp_path):
    for n, name, promised in each_operation(tmp_path)[:-1]:
        if name == "write" and not promised:
            _, error, left, found = attempt(tmp_path, shortens(n, 0.5, errno.ENOSPC))
            assert isinstance(error, OutputFailed) and "free some room" in str(error)
            assert (left, found) == ({NAME}, content(1))


def test_a_write_that_writes_nothing_does_not_loop(tmp_path):
    writes = [n for n, name, _ in each_operation(tmp_path) if name == "write"]
    for n in writes[1:]:  # the first one signs the lock, where nothing depends on it
        _, error, left, found = attempt(tmp_path, shortens(n, 0))
        assert isinstance(error, OutputFailed)
        assert (left, found) == ({NAME}, content(1))


def test_large_states_are_synced_on_the_way(tmp_path, monkeypatch):
    """The extra fsyncs fail like the last one."""
    monkeypatch.setattr(commit, "_SYNC_EVERY", 100)
    syncs = [n for n, name, _ in each_operation(tmp_path) if name == "fsync"]
    assert len(syncs) > 2
    for n in syncs:
        _, error, left, found = attempt(tmp_path, fails(n, errno.EIO))
        assert isinstance(error, OutputFailed)
        assert (left, found) == ({NAME}, content(1))


def mounted(folder, size):
    """Make the folder a tmpfs of that size, or change the size of the one that it is; False where we may not."""
    word = "remount," if os.path.ismount(folder) else ""
    command = ["mount", "-t", "tmpfs", "-o", f"{word}size={size}", "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """disk(size) -> (folder, FileSystem): an empty disk of `size` bytes, real where we may mount one, else a model."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(size):
        for name in os.listdir(folder):
            os.unlink(folder / name)
        return folder, None if mounted(folder, size) else SmallDisk(size)

    yield make
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def check_full_disk(folder, fs, size):
    """States grow until one does not fit: exit code 10, and the one before is still there. Returns how many did fit."""
    path = str(folder / NAME)
    with CheckpointWriter(path, fs) as writer:
        for turn in range(200):  # sizes of states between 1 KiB and 1 MiB
            try:
                writer.commit(*state(turn, doubles=100 + 500 * turn))
            except OutputFailed as error:
                assert error.code == 10 and "No space left" in str(error) and "intact" in str(error), size
                break
        else:
            raise AssertionError(f"200 states fitted into {size} bytes")
    if turn:
        arrays, meta = read(path)
        assert meta["rows"] == str(turn - 1) and len(arrays["sums"]) == 100 + 500 * (turn - 1)
    assert os.listdir(folder) == ([NAME] if turn else [])
    return turn


SIZES = np.linspace(4 << 10, 1 << 20, 64).astype(int) // 4096 * 4096


def test_disk_full(disk):
    fitted = [check_full_disk(*disk(int(size)), size) for size in SIZES]
    assert fitted[0] < fitted[-1]


def test_disk_full_in_the_model(tmp_path):
    """To the byte, whether or not tmpfs can be mounted."""
    for size in (150, *range(1000, 40000, 1327)):
        check_full_disk(tmp_path, SmallDisk(size), size)
        for name in os.listdir(tmp_path):
            os.unlink(tmp_path / name)


def test_no_room_for_the_lock(tmp_path):
    """Not one byte: nothing has been begun."""
    with pytest.raises(OutputFailed, match="No space left.*nothing was written.*free some room"):
        CheckpointWriter(str(tmp_path / NAME), SmallDisk(0))
    assert os.listdir(tmp_path) == []


def test_only_one_writer(tmp_path):
    path = str(tmp_path / NAME)
    with CheckpointWriter(path) as writer:
        with pytest.raises(OutputFailed, match=f"run.sattn: another process .*process {os.getpid()} on "):
            CheckpointWriter(path)
        writer.commit(*state(1))
        with CheckpointWriter(str(tmp_path / "other.sattn")) as other:  # not in the way of others in the folder
            other.commit(*state(2))
    assert set(os.listdir(tmp_path)) == {NAME, "other.sattn"}
    CheckpointWriter(path).close()


def test_the_lock_is_found_through_links(tmp_path):
    """A link to the checkpoint is the same checkpoint, and stays a link."""
    os.symlink(NAME, tmp_path / "link.sattn")
    with CheckpointWriter(str(tmp_path / "link.sattn")) as writer:
        with pytest.raises(OutputFailed, match="another process"):
            CheckpointWriter(str(tmp_path / NAME))
        writer.commit(*state(1))
    assert (tmp_path / "link.sattn").is_symlink()
    assert (tmp_path / NAME).read_bytes() == content(1)


def test_a_killed_writer_unlocks(tmp_path):
    path = str(tmp_path / NAME)
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            CheckpointWriter(path)
            os.write(tell, b"!")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(ready, 1) == b"!"
    with pytest.raises(OutputFailed, match=f"process {child} on "):
        CheckpointWriter(path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for fd in (ready, tell):
        os.close(fd)
    assert os.listdir(tmp_path) == [LOCK]
    check_usable(tmp_path)


def test_many_writers_take_turns(tmp_path):
    """Processes that lock, commit and unlock in a race: never two at a time, though each removes the lock file."""
    path, inside = str(tmp_path / NAME), tmp_path / "inside"
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                done = 0
                while done < 25:
                    try:
                        with CheckpointWriter(path) as writer:
                            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if there is another one
                            writer.commit(*state(done))
                            os.unlink(inside)
                            done += 1
                    except OutputFailed as error:
                        if "another process" not in str(error) and "in a loop" not in str(error):
                            raise
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    check_usable(tmp_path)


def test_a_lock_file_that_is_always_replaced(tmp_path):
    """Gives up in the end instead of turning for ever."""
    fs = FaultyFs(lambda name, _n, call, *_args: False if name == "is_at" else call())
    with pytest.raises(OutputFailed, match="replaced 100 times"):
        CheckpointWriter(str(tmp_path / NAME), fs)


def test_the_holder_text_is_harmless(tmp_path):
    """A damaged lock file cannot put control characters on a terminal."""
    path = str(tmp_path / NAME)
    with CheckpointWriter(path):
        (tmp_path / LOCK).write_bytes(b"\x1b[31mred\xff" + b"x" * 1000)
        with pytest.raises(OutputFailed) as caught:
            CheckpointWriter(path)
        assert "\x1b" not in str(caught.value) and "red" in str(caught.value) and len(str(caught.value)) < 500
        (tmp_path / LOCK).write_bytes(b"")
        with pytest.raises(OutputFailed, match="not left its name"):
            CheckpointWriter(path)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/null", path)])
def test_only_files_are_replaced(tmp_path, make):
    make(tmp_path / NAME)
    with pytest.raises(OutputFailed, match="run.sattn: a folder, pipe or device found, expected a file"):
        CheckpointWriter(str(tmp_path / NAME))
    assert os.listdir(tmp_path) == [NAME]
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_folder_missing(tmp_path):
    with pytest.raises(OutputFailed, match="cannot be written: No such file or directory.*/nowhere/"):
        CheckpointWriter(str(tmp_path / "nowhere" / NAME))


def test_no_flock(tmp_path):
    """Some network file systems have none; the message says so instead of hiding it."""
    locks = next(n for n, name, _ in each_operation(tmp_path) if name == "try_lock")
    for number in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
        _, error, _, _ = attempt(tmp_path, fails(locks, number))
        assert "file system has no locks" in str(error)


def test_closing_twice_and_committing_often(tmp_path):
    writer = CheckpointWriter(str(tmp_path / NAME))
    for turn in itertools.islice(itertools.cycle((1, 2)), 5):
        writer.commit(*state(turn))
        assert (tmp_path / NAME).read_bytes() == content(turn)
    writer.close()
    writer.close()
    assert os.listdir(tmp_path) == [NAME]
