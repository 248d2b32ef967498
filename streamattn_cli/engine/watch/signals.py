"""Signals while a pass runs: the first asks to stop at the next block, the second stops at once.

Handlers run between byte codes of the main thread, so a signal that arrives inside a compiled kernel is seen when
that kernel returns; blocks are kept short for this reason, too.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from streamattn_cli.errors import Interrupted

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupts:
    """Context manager that owns INT, TERM, HUP and USR1 while it is entered, and then gives them back.

    Outside the main thread it does nothing, because only the main thread may set handlers. A signal that is being
    ignored (nohup, a background job of a script) stays ignored.
    """

    def __init__(self, status: Callable[[], None] | None = None):
        self._status = status
        self._cleanups: list[Callable[[], None]] = []
        self._old: dict[int, Any] = {}
        self._pending: int | None = None
        self._raising = False

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in STOPPING:
            self._own(name, self._stop)
        if self._status is not None:
            self._own("SIGUSR1", self._tell)
        return self

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    @property
    def pending(self) -> int | None:
        """The signal that asked for a stop, or None."""
        return self._pending

    def check(self) -> None:
        """Raise errors.Interrupted(signum) when a stop has been asked for. Call between blocks, and while waiting for
        one (ReadAhead's `check`)."""
        if self._pending is not None:
            raise Interrupted(self._pending)

    @contextmanager
    def at_once(self, wanted: bool = True) -> Iterator[None]:
        """Inside, a stop is raised where it arrives: around waits for a pipe, in which `check` would not be reached.
        Not `wanted` where nothing waits, and what is being opened could be lost."""
        self._raising = wanted
        try:
            self.check()
            yield
        finally:
            self._raising = False

    def on_abort(self, cleanup: Callable[[], None]) -> Callable[[], None]:
        """Run `cleanup` when a second signal ends the process at once; returns a function that withdraws it."""
        self._cleanups.append(cleanup)

        def withdraw() -> None:
            if cleanup in self._cleanups:
                self._cleanups.remove(cleanup)

        return withdraw

    def _own(self, name: str, handler: Callable) -> None:
        number = getattr(signal, name, None)
        if number is None or (name != "SIGUSR1" and signal.getsignal(number) is signal.SIG_IGN):
            return
        self._old[number] = signal.getsignal(number) or signal.SIG_DFL
        signal.signal(number, handler)

    def _stop(self, number: int, _frame: object) -> None:
        if self._pending is not None:
            self._abort(number)
        self._pending = number
        if self._raising:
            raise Interrupted(number)

    def _abort(self, number: int) -> None:
        """Clean up and die of the signal, so that the parent sees what ended us (128 + number in a shell)."""
        signal.signal(number, signal.SIG_DFL)  # a third signal does not wait for a slow clean-up
        for cleanup in reversed(self._cleanups):
            try:
                cleanup()
            except Exception:  # noqa: BLE001 - the process is going away; the other clean-ups still matter
                continue
        os.kill(os.getpid(), number)
        os._exit(128 + number)  # where the default action does not end a process

    def _tell(self, _number: int, _frame: object) -> None:
        if self._status is not None:
            self._status()
