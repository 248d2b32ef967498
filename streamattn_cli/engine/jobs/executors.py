"""The workers of a job, all behind concurrent.futures.Executor: threads, processes, a Dask cluster."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import connection, util
from typing import Any, NamedTuple, Protocol, TypeVar

from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.engine.workers.pool import default_threads
from streamattn_cli.errors import InputMissing, UsageError

CONNECT = "10s"  # how long to wait for a scheduler
RETRIES = 3  # times that the worker of a task may be lost
USABLE = 0.8  # of a Dask worker's limit: with more it pauses, and takes no task any more


R = TypeVar("R")


class Stop(Protocol):
    """An event of threads or of processes by which workers are asked to stop."""

    def is_set(self) -> bool:
        """Whether they are."""

    def set(self) -> None:
        """Ask them."""


_stop: Stop | None = None  # in a worker process: the one of the main process


class Opened(NamedTuple):
    """Workers, what tells them to stop, how many tasks are under way or waiting, and the bytes that each task may take where
    the cluster has a limit."""

    executor: Executor
    stop: Stop
    width: int
    room: int | None = None


@dataclass(frozen=True)
class Engine:
    """Where tasks are done. `apart`: in other processes; `remote`: perhaps on other machines."""

    word: str
    apart: bool
    remote: bool
    address: str | None = None

    def workers(self, asked: int | None) -> int:
        """How many workers to have."""
        return asked or default_threads()

    @contextmanager
    def open(self, workers: int, interrupts: Interrupts) -> Iterator[Opened]:
        """The executor, while it is needed; what it leaves when a second signal ends this process is cleaned up."""
        opener = _dask if self.remote else _processes if self.apart else _threads
        withdraw = interrupts.on_abort(_end_processes if opener is _processes else lambda: None)
        try:
            with opener(self, workers) as opened:
                yield opened
        finally:
            withdraw()


def find_engine(word: str) -> Engine:
    """The engine that an --engine word names. Raises UsageError."""
    if word in ("threads", "processes"):
        return Engine(word, apart=word == "processes", remote=False)
    name, equals, address = word.partition("=")
    if name != "dask":
        raise UsageError(f"--engine {word}: use threads, processes, dask=ADDRESS or dask=local")
    address = address or os.environ.get("DASK_SCHEDULER_ADDRESS", "")
    if not address:
        raise UsageError("--engine dask: which cluster? Give dask=tcp://HOST:8786, set DASK_SCHEDULER_ADDRESS, or use "
                         "dask=local for one on this machine")  # fmt: skip
    return Engine("dask", apart=True, remote=True, address=address)


def stop_asked() -> Stop | None:
    """In a worker process, what tells it to stop; None elsewhere."""
    return _stop


@contextmanager
def _threads(_engine: Engine, workers: int) -> Iterator[Opened]:
    with ThreadPoolExecutor(workers, "streamattn-task") as executor:
        yield Opened(executor, threading.Event(), workers + 1)


@contextmanager
def _processes(_engine: Engine, workers: int) -> Iterator[Opened]:
    executor = _Processes(workers)
    try:
        with executor:
            yield Opened(executor, executor, workers + 1)
    finally:
        executor.give_back()


class _Processes(Executor):
    """Worker processes, all of them started anew by the next task where one has ended; and what tells them to stop: a process
    that was killed may hold the lock of an event for ever."""

    def __init__(self, workers: int):
        self._workers = workers
        self._begin()

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads of ours hold
        self._stop = context.Event()
        self._pool = ProcessPoolExecutor(self._workers, context, _begin_process, (self._stop,))

    def submit(self, do: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """See Executor."""
        with _born_deaf():
            try:
                return self._pool.submit(do, *args, **kwargs)
            except BrokenExecutor:
                self.shutdown()
                self._begin()
                return self._pool.submit(do, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See Executor."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def give_back(self) -> None:
        """Give back the named semaphores of a pool that is shut down: a signal may end the program before Python does that."""
        del self._pool, self._stop
        gc.collect()

    def is_set(self) -> bool:
        """See Stop."""
        return self._stop.is_set()

    def set(self) -> None:
        """See Stop."""
        self._stop.set()


def _begin_process(stop: Stop) -> None:
    """Ctrl-C reaches the whole process group: the main process decides what it means. When that is killed, this one ends, too."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()


@contextmanager
def _born_deaf() -> Iterator[None]:
    """Processes that start meanwhile do not hear Ctrl-C before they can ignore it; this one hears it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_processes() -> None:
    """End the worker processes, and give back the named semaphores of their queues: this process is about to die of a signal,
    without the end of a program that gives them back, and Python's resource tracker would warn of each."""
    for process in multiprocessing.active_children():
        process.kill()
    util._run_finalizers(0)  # type: ignore[attr-defined]  # noqa: SLF001 - those of semaphores and queues, not those that wait


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _dask(engine: Engine, workers: int) -> Iterator[Opened]:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise UsageError("--engine dask needs the package distributed: pip install 'streamattn-cli[dask]'") from None
    with ExitStack() as stack:
        where = engine.address
        if where == "local":
            where = stack.enter_context(
                LocalCluster(workers, threads_per_worker=1, memory_limit=0, dashboard_address=None, silence_logs=50)
            )
        try:
            client = stack.enter_context(Client(where, timeout=CONNECT, set_as_default=False))
        except OSError as error:
            raise InputMissing(
                f"--engine dask={engine.address}: no scheduler answers there ({error}); check the address"
            ) from None
        slots = sum(client.nthreads().values())
        if not slots:
            raise InputMissing(
                f"--engine dask={engine.address}: the cluster has no workers; start some (dask worker ADDRESS)"
            )
        executor = stack.enter_context(client.get_executor(retries=RETRIES, pure=False))
        told = client.scheduler_info(n_workers=-1)["workers"].values()
        rooms = [
            int(USABLE * worker["memory_limit"]) // worker["nthreads"] for worker in told if worker["memory_limit"]
        ]
        yield Opened(executor, threading.Event(), slots + 1, min(rooms, default=None))
