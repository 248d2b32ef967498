"""The operations on files of which the commit protocol is made, so that tests can put a model or faults in their place.

Every method raises OSError when it fails. Descriptors are ints.
"""

from __future__ import annotations

import fcntl
import os
import stat


class FileSystem:
    """The real one."""

    def create(self, path: str) -> int:
        """A new empty file, open for writing; FileExistsError if there is one."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, fd: int, view: memoryview) -> int:
        """Write some of the bytes; returns how many."""
        return os.write(fd, view)

    def fsync(self, fd: int) -> None:
        """Make the file's bytes durable."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor; a lock taken through it ends."""
        os.close(fd)

    def rename(self, source: str, target: str) -> None:
        """Give the file another name of the same folder, replacing what had it, in one step."""
        os.replace(source, target)

    def fsync_dir(self, folder: str) -> None:
        """Make the names in a folder durable."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def unlink(self, path: str) -> None:
        """Remove a name."""
        os.unlink(path)

    def names(self, folder: str) -> list[str]:
        """The names in a folder."""
        return os.listdir(folder)

    def kind(self, path: str) -> str:
        """What has that name: "" (nothing), "file" or "other" (folder, pipe, device)."""
        try:
            return "file" if stat.S_ISREG(os.stat(path).st_mode) else "other"
        except FileNotFoundError:
            return ""

    def open_lock(self, path: str) -> int:
        """A lock file, made if there is none, open for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def try_lock(self, fd: int) -> bool:
        """Lock an open file for this process; False if another one has it. The system unlocks it when we die."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def is_at(self, fd: int, path: str) -> bool:
        """Whether the open file still has this name."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def read(self, fd: int, n: int) -> bytes:
        """The first bytes of the file, at most n."""
        return os.pread(fd, n, 0)

    def truncate(self, fd: int) -> None:
        """Make the file empty."""
        os.ftruncate(fd, 0)
