"""How much memory the process holds and has held at most, and how much the machine or container would give it.

Anonymous memory (resident minus file-backed pages) is what a budget is about: file pages come and go as the kernel
likes, and ru_maxrss counts them and never falls.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
import threading
from contextlib import suppress
from pathlib import Path

_SIZES = re.compile(rb"^(\w+):\s+(\d+) kB$", re.MULTILINE)
CLEAR = "/proc/self/clear_refs"  # 5 begins VmHWM anew
KERNELS = 384 << 20  # bytes of addresses that a run takes, whatever its size
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2^63


class Meter:
    """Anonymous memory of this process above what it was when the meter started.

    A context manager: entering takes the baseline and starts a daemon thread that looks every `interval` seconds. No peak
    between two looks is missed: the kernel keeps the highest resident size (VmHWM), and file pages, which it counts as well,
    are taken off as the larger number of the two looks. All figures are bytes. Where the kernel cannot begin its record anew
    (/proc/self/clear_refs), only what is seen counts; off Linux the figure is the peak resident size, which never falls.
    """

    def __init__(self, interval: float = 0.01):
        self.interval = interval
        self.baseline = 0
        self._peak = 0
        self._shared = 0  # file and shared pages at the last look
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._status: int | None = None
        self._clear: int | None = None

    def __enter__(self) -> Meter:
        self._status = _open("/proc/self/status", os.O_RDONLY)
        self._clear = _open(CLEAR, os.O_WRONLY)
        self._begin_anew()
        self.baseline = self._look()
        self._peak = self.baseline
        self._stop.clear()
        self._thread = threading.Thread(target=self._sample, name="memory-meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._look()
        for file in (self._status, self._clear):
            if file is not None:
                os.close(file)
        self._status = self._clear = None

    def now(self) -> int:
        """Bytes above the baseline at this moment, never below 0; counts towards the peak. Only while entered."""
        return max(0, self._look() - self.baseline)

    def peak(self) -> int:
        """The most bytes above the baseline until the last look; still there after the meter has stopped."""
        return max(0, self._peak - self.baseline)

    def _sample(self) -> None:
        while not self._stop.wait(self.interval):
            self._look()

    def _look(self) -> int:
        """Anonymous bytes now; the peak since the last look is taken down."""
        if self._status is None:
            self._peak = max(self._peak, held := _peak_resident())
            return held
        with self._lock:
            sizes = _sizes(os.pread(self._status, 4096, 0))
            held, shared = sizes["RssAnon"], sizes["RssFile"] + sizes["RssShmem"]
            highest = 0 if self._clear is None else sizes["VmHWM"] - max(shared, self._shared)
            self._peak = max(self._peak, held, highest)
            if shared != self._shared:  # the record so far belongs to other file pages
                self._begin_anew()
            self._shared = shared
            return held

    def _begin_anew(self) -> None:
        """Let the kernel's highest resident size be the present one."""
        if self._clear is not None:
            try:
                os.pwrite(self._clear, b"5", 0)
            except OSError:
                os.close(self._clear)
                self._clear = None


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that could still be taken: the least of the machine's MemAvailable, of every cgroup limit above this process less
    what the group holds and cannot give back, and of what ulimit -v leaves. None where nothing says (off Linux)."""
    found = [_meminfo_available(proc / "meminfo"), *_cgroup_rooms(proc / "self" / "cgroup", cgroup)]
    found.append(_addresses(proc / "self" / "statm"))
    known = [room for room in found if room is not None]
    return max(0, min(known)) if known else None


def trim() -> None:
    """Return freed pages to the system: the allocator keeps those of each thread for that thread."""
    with suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _open(path: str, mode: int) -> int | None:
    try:
        return os.open(path, mode | os.O_CLOEXEC)
    except OSError:
        return None


def _sizes(status: bytes) -> dict[str, int]:
    """The sizes in /proc/self/status by name, in bytes."""
    return {name.decode(): int(size) * 1024 for name, size in _SIZES.findall(status)}


def _peak_resident() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _meminfo_available(path: Path) -> int | None:
    try:
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _addresses(statm: Path) -> int | None:
    """What ulimit -v leaves of addresses, of which compiled kernels and the stacks of threads take some; None: no limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        taken = 0
    return limit - taken - (0 if "numba" in sys.modules else KERNELS)


def _cgroup_rooms(membership: Path, root: Path) -> list[int | None]:
    """What each group above this process leaves, by the lines 'id:controllers:path' of /proc/self/cgroup."""
    rooms: list[int | None] = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return rooms
    for line in lines:
        _id, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage, reclaimable = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, reclaimable = root / "memory", "total_inactive_file"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # Inside a container the path may name folders that only the host sees; the mounted root is then the group.
        folder = top / path.lstrip("/")
        for place in (folder, *folder.parents):
            rooms.append(_room(place / limit, place / usage, place / "memory.stat", reclaimable))
            if place == top:
                break
    return rooms


def _room(limit: Path, usage: Path, stat: Path, reclaimable: str) -> int | None:
    try:
        allowed = int(limit.read_text())  # "max" means no limit
        held = int(usage.read_text())
    except (OSError, ValueError):
        return None
    if allowed >= _UNLIMITED:
        return None
    try:
        figures = dict(line.split() for line in stat.read_text().splitlines())
        held -= int(figures.get(reclaimable, 0))
    except (OSError, ValueError):
        pass
    return allowed - held
