"""File systems that misbehave, with the operations of streamattn_cli.checkpoint.fs.FileSystem.

ModelFs lives in memory and knows what a power cut may leave: `images` lists every such outcome. FaultyFs is the real
file system whose n-th operation fails. SmallDisk is the real one with room for a given number of bytes.
"""

import errno
import itertools
import os

from streamattn_cli.checkpoint.fs import FileSystem

OPERATIONS = [name for name in vars(FileSystem) if not name.startswith("_")]


class PowerCut(BaseException):
    """The machine stops here."""


class Inode:
    """A file's bytes as the system shows them, those that are durable, and the writes since."""

    def __init__(self, data=b""):
        self.data, self.durable, self.unsynced = bytearray(data), bytes(data), []

    def write(self, data):
        self.unsynced.append((len(self.data), bytes(data)))
        self.data += data

    def sync(self):
        self.durable, self.unsynced = bytes(self.data), []

    def outcomes(self):
        """What the disk may hold: each unsynced write lost, torn at either third, or whole; the length that of the
        bytes that arrived, or the full one with zeros in the holes."""
        found = set()
        for kept in itertools.product((0, 1, 2, 3), repeat=len(self.unsynced)):
            content = bytearray(self.durable)
            for thirds, (at, whole) in zip(kept, self.unsynced, strict=True):
                data = whole[: len(whole) * thirds // 3]
                if data:
                    content.extend(bytes(max(0, at - len(content))))
                    content[at : at + len(data)] = data
            found.add(bytes(content))
            found.add(bytes(content).ljust(len(self.data), b"\0"))
        return found


class ModelFs:
    """Files of one folder in memory. `ignored` names operations that claim to have happened and did nothing; `watch` is
    called after every operation; `fail_at` is the number of the operation that fails with ENOSPC."""

    def __init__(self, image=None, ignored=(), watch=None, fail_at=0):
        self.names_now = {path: Inode(data) for path, data in (image or {}).items()}
        self.durable_names = dict(self.names_now)
        self.changes = []  # of names, not durable yet: (path, inode or None) several at once for a rename
        self.open, self.locked, self.steps = {}, {}, 0
        self.ignored, self.watch, self.fail_at = ignored, watch, fail_at

    def __getattribute__(self, name):
        operation = object.__getattribute__(self, name)
        if name not in OPERATIONS:
            return operation

        def counted(*args):
            self.steps += 1
            if self.steps == self.fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            result = None if name in self.ignored else operation(*args)
            if self.watch:
                self.watch(self)
            return result

        return counted

    def images(self):
        """Every {path: bytes} that a power cut may leave now: any of the changes of names may be lost."""
        found, outcomes = set(), {}
        for kept in itertools.product((False, True), repeat=len(self.changes)):
            names = dict(self.durable_names)
            for change, here in zip(self.changes, kept, strict=True):
                if here:
                    names.update(change)
            live = sorted((path, inode) for path, inode in names.items() if inode)
            for _, inode in live:
                outcomes.setdefault(id(inode), inode.outcomes())
            paths = [path for path, _ in live]
            for contents in itertools.product(*(outcomes[id(inode)] for _, inode in live)):
                found.add(tuple(zip(paths, contents, strict=True)))
        return found

    def shown(self):
        """{path: bytes} as processes see it."""
        return {path: bytes(inode.data) for path, inode in self.names_now.items()}

    def _change(self, *pairs):
        self.changes.append(dict(pairs))
        for path, inode in pairs:
            if inode:
                self.names_now[path] = inode
            else:
                del self.names_now[path]

    def _opened(self, path):
        fd = 3 + len(self.open)
        self.open[fd] = self.names_now[path]
        return fd

    def create(self, path):
        if path in self.names_now:
            raise FileExistsError(errno.EEXIST, "there", path)
        self._change((path, Inode()))
        return self._opened(path)

    def write(self, fd, view):
        self.open[fd].write(view)
        return len(view)

    def fsync(self, fd):
        self.open[fd].sync()

    def close(self, fd):
        if self.locked.get(id(self.open[fd])) == fd:
            del self.locked[id(self.open[fd])]

    def rename(self, source, target):
        self._change((target, self.names_now[source]), (source, None))

    def fsync_dir(self, _folder):
        self.durable_names, self.changes = dict(self.names_now), []

    def unlink(self, path):
        if path not in self.names_now:
            raise FileNotFoundError(errno.ENOENT, "not there", path)
        self._change((path, None))

    def names(self, _folder):
        return [os.path.basename(path) for path in self.names_now]

    def kind(self, path):
        return "file" if path in self.names_now else ""

    def open_lock(self, path):
        if path not in self.names_now:
            self._change((path, Inode()))
        return self._opened(path)

    def try_lock(self, fd):
        return self.locked.setdefault(id(self.open[fd]), fd) == fd

    def is_at(self, fd, path):
        return self.names_now.get(path) is self.open[fd]

    def read(self, fd, n):
        return bytes(self.open[fd].data[:n])

    def truncate(self, fd):
        self.open[fd].data.clear()
        self.open[fd].sync()


class FaultyFs:
    """The real file system; `fault(name, n, call)` decides what the n-th operation (from 1) does."""

    def __init__(self, fault):
        self._real, self._fault, self.log = FileSystem(), fault, []

    def __getattr__(self, name):
        real = getattr(self._real, name)

        def operation(*args):
            self.log.append(name)
            return self._fault(name, len(self.log), lambda *changed: real(*(changed or args)), *args)

        return operation


class SmallDisk(FileSystem):
    """Room for `room` bytes in new files; a file that is removed gives its room back."""

    def __init__(self, room):
        self.room, self._sizes = room, {}

    def write(self, fd, view):
        taken = super().write(fd, view[: self.room])
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= taken
        inode = os.fstat(fd).st_ino
        self._sizes[inode] = self._sizes.get(inode, 0) + taken
        return taken

    def fsync(self, fd):
        """Room does not depend on it, and the disk below may be slow."""

    def fsync_dir(self, folder):
        """Likewise."""

    def unlink(self, path):
        self.room += self._sizes.pop(os.stat(path).st_ino, 0)
        super().unlink(path)

    def rename(self, source, target):
        if os.path.exists(target):
            self.room += self._sizes.pop(os.stat(target).st_ino, 0)
        super().rename(source, target)
