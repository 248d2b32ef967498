"""One writer per checkpoint: an flock on a file beside it, which also says who holds it."""

from __future__ import annotations

import os
from contextlib import suppress

from streamattn_cli.checkpoint.fs import FileSystem
from streamattn_cli.errors import OutputFailed

_TRIES = 100  # a holder that ends removes the file that we have just opened; then there is a new one to try


class Lock:
    """Holds `path` locked from construction until `release`. Raises OutputFailed (held by another) or OSError.

    flock, not the file's existence, is the lock: it ends with the process however that dies, and a file left behind is
    simply locked by the next one. The holder removes the file before it unlocks it, so whoever gets a lock looks
    whether the file still has its name.
    """

    def __init__(self, fs: FileSystem, path: str, what: str):
        self._fs, self._path, self._fd = fs, path, -1
        for _ in range(_TRIES):
            fd = fs.open_lock(path)
            try:
                if not fs.try_lock(fd):
                    raise OutputFailed(
                        f"{what}: another process is writing this checkpoint: {self._holder(fd)}; wait "
                        f"for it, stop it, or write to another file"
                    )
                if fs.is_at(fd, path):
                    self._fd = fd
                    self._sign()
                    return
            except BaseException:
                self._drop(fd)
                raise
            fs.close(fd)
        raise OutputFailed(
            f"{what}: {path} was replaced {_TRIES} times while it was being locked; look for processes "
            f"that write this checkpoint in a loop"
        )

    def release(self) -> None:
        """Remove the file and unlock it; safe to call twice."""
        if self._fd >= 0:
            self._drop(self._fd)

    def _drop(self, fd: int) -> None:
        """Close a descriptor, after removing the file if it is ours."""
        with suppress(OSError):
            if self._fd == fd and self._fs.is_at(fd, self._path):
                self._fs.unlink(self._path)
        self._fd = -1
        with suppress(OSError):
            self._fs.close(fd)

    def _sign(self) -> None:
        """Leave word of who we are for those who come after."""
        self._fs.truncate(self._fd)
        self._fs.write(self._fd, memoryview(f"process {os.getpid()} on {os.uname().nodename}\n".encode()))

    def _holder(self, fd: int) -> str:
        text = self._fs.read(fd, 200).decode("ascii", "replace").strip()
        return "".join(letter if letter.isprintable() else "?" for letter in text) or "it has not left its name yet"
