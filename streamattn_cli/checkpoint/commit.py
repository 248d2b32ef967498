"""The one way in which a checkpoint reaches the disk.

    1. write everything to a new file beside the checkpoint
    2. fsync it: its bytes are durable
    3. close it: some network file systems report failed writes only here
    4. rename it over the checkpoint: readers see the old one or the new one
    5. fsync the folder: the new name is durable

Whenever the machine stops, the name leads to the old checkpoint or to the new one, whole. A step that failed is never
tried again (after a failed fsync the system may have dropped the bytes and forgotten the error): the new file is
removed, and the next commit begins with another one.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress

from streamattn_cli.checkpoint.container import State, encode
from streamattn_cli.checkpoint.fs import FileSystem
from streamattn_cli.checkpoint.lock import Lock
from streamattn_cli.errors import OutputFailed

SUFFIX = ".sattn-part"
_SYNC_EVERY = 16 << 20  # bytes: the disk works while the rest is being hashed, and the page cache does not fill up

_ADVICE = {
    errno.ENOSPC: "free some room on that disk",
    errno.EDQUOT: "free some of your quota",
    errno.EACCES: "check the permissions of the folder (ls -ld)",
    errno.EPERM: "check the permissions of the folder (ls -ld)",
    errno.ENOLCK: "its file system has no locks: write to another one",
    errno.ENOSYS: "its file system has no locks: write to another one",
    errno.EOPNOTSUPP: "its file system has no locks: write to another one",
}


class CheckpointWriter:
    """The only writer of one checkpoint, from construction to `close`; a context manager.

    Unfinished files of writers that died are removed at the start: the lock proves that nobody is at work on them.
    Every failure of the system raises OutputFailed; so do a lock held by another process and a path that is taken by
    something else than a file.
    """

    def __init__(self, path: str, fs: FileSystem | None = None):
        self.path = os.path.realpath(path)
        self._name = path
        self._folder, self._base = os.path.split(self.path)
        self._fs = fs or FileSystem()
        self._part = ""  # the new file, while there is one
        with self._failing("nothing was written"):
            if self._fs.kind(self.path) == "other":
                raise OutputFailed(
                    f"{path}: a folder, pipe or device found, expected a file or nothing; a checkpoint "
                    f"needs a file that can be replaced"
                )
            self._lock = Lock(self._fs, self._beside(".lock"), path)
            try:
                self._clean()
            except BaseException:
                self._lock.release()
                raise

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def commit(self, state: State, meta: Mapping[str, str]) -> None:
        """Replace the checkpoint by this state (see `container.encode`), durable when this returns.

        Raises OutputFailed; then the checkpoint is the old one, except when only the last step failed: then it is the
        new one, but a power cut may bring the old one back.
        """
        with self._failing("the previous checkpoint, if any, is intact"):
            try:
                with closing(encode(state, meta)) as buffers:
                    self._write(buffers)
                self._fs.rename(self._part, self.path)
                self._part = ""
            except BaseException:
                self._discard()
                raise
        with self._failing("the new checkpoint is in place but may not survive a power cut"):
            self._fs.fsync_dir(self._folder)

    def close(self) -> None:
        """Remove an unfinished file and give up the lock; safe to call twice, and from a signal's clean-up."""
        self._discard()
        self._lock.release()

    def _write(self, buffers: Iterable[bytes | memoryview]) -> None:
        """Steps 1 to 3."""
        self._part = self._beside(f".{secrets.token_hex(4)}{SUFFIX}")
        fd = self._fs.create(self._part)
        try:
            waiting = 0
            for buffer in buffers:
                self._write_all(fd, memoryview(buffer))
                waiting += len(buffer)
                if waiting >= _SYNC_EVERY:
                    self._fs.fsync(fd)
                    waiting = 0
            self._fs.fsync(fd)
        except BaseException:
            with suppress(OSError):
                self._fs.close(fd)
            raise
        self._fs.close(fd)

    def _write_all(self, fd: int, view: memoryview) -> None:
        while len(view):
            written = self._fs.write(fd, view)
            if written <= 0:  # or this would go on for ever
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            view = view[written:]

    def _discard(self) -> None:
        """Remove the new file, if there is one; where even that fails, the next writer does it."""
        if self._part:
            with suppress(OSError):
                self._fs.unlink(self._part)
            self._part = ""

    def _clean(self) -> None:
        """Remove what writers of this checkpoint left behind when they died."""
        pattern = re.compile(re.escape(f".{self._base}.") + "[0-9a-f]{8}" + re.escape(SUFFIX))
        for name in self._fs.names(self._folder):
            if pattern.fullmatch(name):
                self._fs.unlink(os.path.join(self._folder, name))

    def _beside(self, ending: str) -> str:
        return os.path.join(self._folder, f".{self._base}{ending}")

    @contextmanager
    def _failing(self, consequence: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f" ({error.filename})" if error.filename not in (None, self.path, self._name) else ""
            advice = _ADVICE.get(error.errno or 0, "write to another place")
            raise OutputFailed(
                f"{self._name}: the checkpoint cannot be written: {error.strerror or error}{where}; "
                f"{consequence}; {advice}"
            ) from error


def save(path: str, state: State, meta: Mapping[str, str], fs: FileSystem | None = None) -> None:
    """Write one checkpoint: lock, commit, unlock. Raises OutputFailed."""
    with CheckpointWriter(path, fs) as writer:
        writer.commit(state, meta)
