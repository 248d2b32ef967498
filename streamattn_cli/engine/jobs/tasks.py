"""Tasks that are done side by side, by threads, processes or a Dask cluster, and handed back in their order."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import BrokenExecutor, Future, wait
from typing import Literal, Protocol, TypeVar, overload

from streamattn_cli.engine.jobs.executors import RETRIES, Engine, Opened, Stop, stop_asked
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.saving.resume import sources_of
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import CheckpointIncompatible, Interrupted, MemoryBudget, StreamattnError
from streamattn_cli.units import format_bytes
from streamattn_cli.versions import OURS

SEEN = "every worker must see the same files under the same paths"
PROGRAM = (
    96 << 20
)  # bytes of a worker before it does anything: interpreter, libraries, compiled kernels (measured: 70 to 90)


class Task(Protocol):
    """What a worker is told: small, and without an array. engine: the word of --engine; version: of this package."""

    @property
    def name(self) -> str:
        """For messages: shard 3 (rows 512:1024)."""

    @property
    def engine(self) -> str: ...

    @property
    def version(self) -> str: ...


T = TypeVar("T", bound=Task)
R = TypeVar("R")


def in_worker(task: T, work: Callable[[T, Interrupts], R], stop: Stop | None = None) -> R:
    """Do a task in a worker. Errors name the worker and the task."""
    try:
        if task.version != OURS:
            raise CheckpointIncompatible(
                f"streamattn-cli {OURS} found, expected {task.version}; install the same everywhere"
            )
        return work(task, _Wish(stop or stop_asked()))
    except StreamattnError as error:
        raise type(error)(f"{_worker(task)}{task.name}: {error}") from None


@overload
def in_order(
    opened: Opened,
    do: Callable[[T], R],
    tasks: Iterable[T | None],
    interrupts: Interrupts,
    keep_going: Literal[False] = False,
) -> Generator[R, None, None]: ...
@overload
def in_order(
    opened: Opened, do: Callable[[T], R], tasks: Iterable[T | None], interrupts: Interrupts, keep_going: bool
) -> Generator[R | StreamattnError, None, None]: ...
def in_order(
    opened: Opened,
    do: Callable[[T], R],
    tasks: Iterable[T | None],
    interrupts: Interrupts,
    keep_going: bool = False,
) -> Generator[R | StreamattnError, None, None]:
    """The results of all tasks in their order, at most `opened.width` of them under way or waiting. None among the tasks: the
    next one needs a result that is not there yet.

    When one fails, or a signal asks for an end, the others are told to stop. keep_going: the error of a task is handed back in
    place of its result, and the others go on. What a lost process had under way is done again.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()

    def next_result() -> R | StreamattnError:
        for lost in range(RETRIES + 1):
            try:
                return _result(waiting[0][1], interrupts)
            except BrokenExecutor as error:
                if lost == RETRIES:
                    raise _worker_lost(error) from error
                wait([future for _, future in waiting])  # those that are under way are lost, too
                waiting.extend([_again(*waiting.popleft()) for _ in range(len(waiting))])
            except StreamattnError as error:
                if not keep_going:
                    raise
                return error
        raise AssertionError("the last loss is raised")

    def _again(task: T, future: Future[R]) -> tuple[T, Future[R]]:
        """The task is done again if its process was lost."""
        lost = isinstance(future.exception(), BrokenExecutor)
        return task, opened.executor.submit(do, task) if lost else future

    try:
        for task in tasks:
            if task is None or len(waiting) == opened.width:
                yield next_result()
                waiting.popleft()
            if task is not None:
                waiting.append((task, opened.executor.submit(do, task)))
        while waiting:
            yield next_result()
            waiting.popleft()
    except BaseException:
        opened.stop.set()
        for _, future in waiting:
            future.cancel()
        raise


def divided(
    whole: Plan, engine: Engine, most: int, held: Callable[[int], int], one: Callable[[int], Plan]
) -> tuple[Plan, int, int | None]:
    """The plan of one worker, how many workers there are, and the budget of each: as many as asked for, `most` at most, whose
    plans fit the budget. Raises MemoryBudget if not even one does.

    whole: the plan of one worker in the budget of all. held(workers): bytes held here beside them. one: the plan of a worker
    in a budget. Workers of a cluster see to their own memory.
    """
    workers = min(engine.workers(whole.problem.request.threads), most)
    if engine.remote or whole.allowed is None:
        return whole, workers, None
    while True:
        share = max(1, (whole.allowed - held(workers)) // workers)
        try:
            return one(share), workers, share
        except MemoryBudget:
            if workers == 1:
                raise
            workers -= 1


def check_room(opened: Opened, plan: Plan) -> None:
    """Refuse (MemoryBudget) to send tasks to workers that would be killed for what they take."""
    if opened.room is not None and plan.projected + PROGRAM > opened.room:
        raise MemoryBudget(
            f"a task needs {format_bytes(plan.projected)} above the program itself (about {format_bytes(PROGRAM)}), and a "
            f"worker of the cluster may take {format_bytes(opened.room)}; start workers with more (--memory-limit) or with "
            "fewer threads"
        )


def identities(problem: Problem) -> dict[str, dict]:
    """Of the inputs that are read, also where another machine sees them."""
    return {part: portable(one) for part, one in sources_of(problem).items()}


def portable(identity: dict) -> dict:
    """An identity without the time of modification, which a copy of the file on another machine need not share."""
    return {key: value for key, value in identity.items() if key != "modified_ns"}


class _Wish(Interrupts):
    """What a worker asks whether it should stop: the run's own wish instead of signals."""

    def __init__(self, wish: Stop | None):
        super().__init__()
        self._wish = wish

    def check(self) -> None:
        """Raise Interrupted when the run is over for all workers."""
        if self._wish is not None and self._wish.is_set():
            raise Interrupted(0)


def _result(future: Future[R], interrupts: Interrupts) -> R:
    while True:
        interrupts.check()
        if wait([future], timeout=0.1).done:
            break
    error = future.exception()
    if error is None:
        return future.result()
    if type(error).__name__ == "KilledWorker":  # Dask's, which has done it again itself
        raise _worker_lost(error) from error
    raise error


def _worker_lost(error: BaseException) -> MemoryBudget:
    return MemoryBudget(
        f"a worker ended without a word ({type(error).__name__}: {error}), and {RETRIES} more that were given its work; systems "
        "that run out of memory kill: allow fewer workers (--threads) or less memory, and look at the workers' log"
    )


def _worker(task: Task) -> str:
    """Where this runs, for messages; nothing among the threads of one process."""
    return "" if task.engine == "threads" else f"worker {socket.gethostname()}, process {os.getpid()}: "
