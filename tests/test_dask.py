"""Shards on a Dask cluster: two worker processes, and one that is killed on the way."""

import contextlib
import os
import signal
import threading
import time
import warnings

import pytest
from hypothesis import settings
from keptruns import POLY, keys_only, make_sketch, save_stream

distributed = pytest.importorskip("distributed")

SHARDS = 24
KILLS = 3 if settings.default.max_examples > 100 else 1  # nightly, ci

pytestmark = pytest.mark.filterwarnings("ignore")  # those of distributed are not ours to mend


@contextlib.contextmanager
def _cluster():
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(2, threads_per_worker=1, memory_limit=0, dashboard_address=None, silence_logs=50) as cluster,
    ):
        yield cluster


def _stream(folder):
    return keys_only(save_stream(folder, 200_000, heads=2, dim=8))


def test_a_cluster_gives_the_bytes_of_threads_also_when_a_worker_dies(tmp_path):
    spec, words = _stream(tmp_path), POLY | {"degree": 4, "shards": SHARDS}
    make_sketch(spec, tmp_path / "threads.sattn", **words)
    expected = (tmp_path / "threads.sattn").read_bytes()
    with _cluster() as cluster:
        address = cluster.scheduler_address
        for kill in range(KILLS + 1):
            killer = threading.Thread(target=_kill_one, args=(cluster, kill))
            if kill:
                killer.start()
            make_sketch(spec, tmp_path / f"{kill}.sattn", engine=f"dask={address}", **words)
            if kill:
                killer.join()
            assert (tmp_path / f"{kill}.sattn").read_bytes() == expected


def _kill_one(cluster, number):
    """Kill a worker that has a shard under way."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for worker in cluster.scheduler.workers.values():
            if worker.processing and len(worker.has_what) + number >= 0:
                os.kill(worker.nanny_pid if hasattr(worker, "nanny_pid") else cluster.workers[worker.name].pid, signal.SIGKILL)
                return
        time.sleep(0.001)
    raise AssertionError("no shard was ever under way")
