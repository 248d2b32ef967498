"""Threads that share the work of a block; kernels and BLAS release the GIL."""

from __future__ import annotations

import os
import queue
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from streamattn_cli.sketches.head import allocate


def default_threads() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """`threads` workers with one set of scratch arrays each. Which worker does what never changes a result."""

    def __init__(self, threads: int, work_spec: dict):
        self.works = [allocate(work_spec) for _ in range(threads)]
        self._free: queue.SimpleQueue = queue.SimpleQueue()
        for work in self.works:
            self._free.put(work)
        self._pool = ThreadPoolExecutor(threads, "streamattn-worker") if threads > 1 else None

    def run(self, task: Callable[[object, dict], None], items: Iterable) -> None:
        """Call task(item, work) for every item; the first error in item order is raised when all have ended."""
        items = list(items)
        if self._pool is None or len(items) == 1:
            for item in items:
                task(item, self.works[0])
            return
        futures = [self._pool.submit(self._with_work, task, item) for item in items]
        errors = [error for future in futures if (error := future.exception())]
        if errors:
            raise errors[0]

    def run_chains(self, task: Callable[[object, dict], None], chains: Iterable[Iterable]) -> None:
        """Call task(item, work) for every item of every chain: those of one chain in order, and turn by turn between them.

        So three chains keep two threads busy to the end. The first error in the order of the chains is raised when all
        have ended; a chain that failed goes no further.
        """
        chains = [iter(chain) for chain in chains]
        waiting, errors = deque(enumerate(chains)), {}

        def serve(_: object, work: dict) -> None:
            while True:
                try:
                    number, chain = waiting.popleft()
                except IndexError:  # whoever still has a chain takes care of it
                    return
                try:
                    for item in islice(chain, 1):
                        task(item, work)
                        waiting.append((number, chain))
                except BaseException as error:
                    errors[number] = error

        self.run(serve, range(min(len(chains), len(self.works))))
        if errors:
            raise errors[min(errors)]

    def total(self, name: str) -> np.ndarray:
        """The sum of a scratch array over all workers: for counters."""
        return sum(work[name] for work in self.works)

    def close(self) -> None:
        """Let the threads go."""
        if self._pool:
            self._pool.shutdown(wait=True)

    def _with_work(self, task: Callable, item: object) -> None:
        work = self._free.get()
        try:
            task(item, work)
        finally:
            self._free.put(work)
