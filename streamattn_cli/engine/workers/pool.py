"""Threads that share the work of a block; kernels and BLAS release the GIL."""

from __future__ import annotations

import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Event, Lock
from typing import Any, TypeVar

import numpy as np

from streamattn_cli.sketches.headparams import allocate


def default_threads() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Item = TypeVar("Item")


class Batch:
    """Chains of items that are worked on, one for each lane."""

    def __init__(self, task: Callable[[Any, dict], None], chains: list[Iterator]):
        self.task, self.chains, self.left = task, chains, len(chains)
        self.errors: dict[int, BaseException] = {}
        self.done = Event()
        if not chains:
            self.done.set()

    def wait(self) -> None:
        """Until all chains have ended; raises the first error in their order."""
        self.done.wait()
        if self.errors:
            raise self.errors[min(self.errors)]

    def turn(self, number: int, work: dict) -> bool:
        """Do the next item of a chain; False where there was none, or it failed."""
        try:
            for item in islice(self.chains[number], 1):
                self.task(item, work)
                return True
        except BaseException as error:
            self.errors[number] = error
        return False

    def end(self) -> None:
        """One chain less."""
        self.left -= 1
        if not self.left:
            self.done.set()


class Workers:
    """`threads` workers with one set of scratch arrays each. Which worker does what never changes a result."""

    def __init__(self, threads: int, work_spec: dict):
        self.works = [allocate(work_spec) for _ in range(threads)]
        self._free: queue.SimpleQueue = queue.SimpleQueue()
        for work in self.works:
            self._free.put(work)
        self._pool = ThreadPoolExecutor(threads, "streamattn-worker") if threads > 1 else None
        self._lock, self._serving = Lock(), 0  # of what follows: how many threads serve chains,
        self._queues: dict[
            int, deque[Batch]
        ] = {}  # the batches that have a chain of this number, the first one in work,
        self._ready: deque[int] = deque()  # and the numbers of those that wait for a thread

    def run(self, task: Callable[[Item, dict], None], items: Iterable[Item]) -> None:
        """Call task(item, work) for every item; the first error in item order is raised when all have ended."""
        items = list(items)
        if len(items) == 1:
            task(items[0], self.works[0])
        else:
            self.start(task, ([item] for item in items)).wait()

    def start(self, task: Callable[[Item, dict], None], chains: Iterable[Iterable[Item]]) -> Batch:
        """Begin task(item, work) for every item of every chain, and return at once (with one thread: when it is done).

        The items of one chain go in order, after those of the chain of the same number in earlier batches; chains take
        turns item by item, so that three of them keep two threads busy. A chain that failed goes no further.
        """
        batch = Batch(task, [iter(chain) for chain in chains])
        if self._pool is None:
            for number in range(batch.left):
                while batch.turn(number, self.works[0]):
                    pass
                batch.end()
            return batch
        with self._lock:
            for number in range(len(batch.chains)):
                queue = self._queues.setdefault(number, deque())
                queue.append(batch)
                if len(queue) == 1:
                    self._ready.append(number)
            more = min(len(self._ready), len(self.works) - self._serving)
            self._serving += more
        for _ in range(more):
            self._pool.submit(self._serve)
        return batch

    def total(self, name: str) -> np.ndarray:
        """The sum of a scratch array over all workers: for counters."""
        total: np.ndarray = np.sum([work[name] for work in self.works], axis=0)
        return total

    def close(self) -> None:
        """Let the threads go."""
        if self._pool:
            self._pool.shutdown(wait=True)

    def _serve(self) -> None:
        """Take turns in the chains that wait, until there is none."""
        work = self._free.get()
        while True:
            with self._lock:
                if not self._ready:
                    self._serving -= 1
                    break
                number = self._ready.popleft()
                batch = self._queues[number][0]
            going = batch.turn(number, work)
            with self._lock:  # at one stroke: `start` looks at the queue to know whether its number waits already
                if not going:
                    self._queues[number].popleft()
                    batch.end()
                if self._queues[number]:
                    self._ready.append(number)
        self._free.put(work)
