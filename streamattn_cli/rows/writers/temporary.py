"""A file that gets its name only when it is complete."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from streamattn_cli.errors import OutputFailed
from streamattn_cli.rows.writers.fdio import sync_folder

_ADVICE = {
    errno.ENOSPC: "free some room or write to another disk",
    errno.EDQUOT: "free some of your quota or write to another disk",
    errno.EACCES: "check the permissions of the folder (ls -ld)",
    errno.EPERM: "check the permissions of the folder (ls -ld)",
    errno.EROFS: "write to another disk",
}


@contextmanager
def failing_as_output(name: str) -> Iterator[None]:
    """Errors of the system become OutputFailed; a closed pipe stays BrokenPipeError, it is no failure."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "write to another place")
        raise OutputFailed(f"{name}: cannot be written: {error.strerror or error}; {advice}") from error


class Owner(Protocol):
    """Whoever fills a file."""

    @property
    def name(self) -> str:
        """Of the output, for messages."""

    def abort(self) -> None:
        """Leave nothing behind."""


@contextmanager
def or_abort(owner: Owner) -> Iterator[None]:
    """Any error aborts the output; those of the system become OutputFailed."""
    try:
        with failing_as_output(owner.name):
            yield
    except BaseException:
        owner.abort()
        raise


class Temporary:
    """`.NAME.<tag>.tmp` beside `path` (beside what it points to, if it is a link) until `commit`."""

    def __init__(self, path: str, part: str | None = None, tag: str | None = None):
        """A new file, its tag random unless given, or the unfinished one of an earlier run called `part` in the folder.

        A given tag is for those who know that nobody else writes this file: what an earlier run left under that name
        is overwritten.
        """
        self.final = os.path.realpath(path)
        folder, name = os.path.split(self.final)
        self._folder = folder
        self.tag = part.split(".")[-2] if part else tag or secrets.token_hex(4)
        self.path = os.path.join(folder, part or _part(name, self.tag))
        # read-write: HDF5 attributes are added at the end
        new = 0 if part else os.O_CREAT | (os.O_TRUNC | os.O_NOFOLLOW if tag else os.O_EXCL)
        self.fd = os.open(self.path, os.O_RDWR | new | os.O_CLOEXEC, 0o666)

    @property
    def part(self) -> str:
        """Its name in the folder while it is unfinished."""
        return os.path.basename(self.path)

    def keep(self) -> None:
        """Close it without a commit, for a later run to continue."""
        self._close()

    def commit(self) -> None:
        """Make the bytes durable, then the name. Raises OSError."""
        os.fsync(self.fd)
        os.replace(self.path, self.final)
        sync_folder(self._folder)
        self._close()

    def abort(self) -> None:
        """Remove it; nothing to do after a commit."""
        if self.fd >= 0:
            with suppress(OSError):
                os.unlink(self.path)
            self._close()

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Unfinished:
    """The base of what fills a temporary file."""

    name: str
    _temporary: Temporary
    _lasting = False

    def keep(self) -> str:
        """Make the bytes so far durable, and let the file outlive a failure; returns its name in the folder. OutputFailed."""
        with failing_as_output(self.name):
            os.fdatasync(self._temporary.fd)
        self._lasting = True
        return self._temporary.part

    def abort(self) -> None:
        """Leave nothing behind but what `keep` let last; does nothing after `commit`."""
        if self._lasting:
            self._temporary.keep()
        else:
            self._temporary.abort()


def recover(path: str, tag: str) -> None:
    """Give its name to a file that was complete when a run was killed; nothing where there is none. Raises OSError."""
    final = os.path.realpath(path)
    folder, name = os.path.split(final)
    with suppress(FileNotFoundError):
        os.replace(os.path.join(folder, _part(name, tag)), final)
        sync_folder(folder)


def _part(name: str, tag: str) -> str:
    return f".{name}.{tag}.tmp"
