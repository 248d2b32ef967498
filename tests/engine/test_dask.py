"""Shards and pieces on a Dask cluster: two worker processes, and one that is killed on the way."""

import contextlib
import os
import signal
import threading
import warnings

import pytest
from hypothesis import settings
from keptruns import POLY, keys_only, make_sketch, not_warmed, save_stream, silent  # noqa: F401

from streamattn_cli.engine.jobs.spread import attend_spread
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import InputMissing, MemoryBudget

distributed = pytest.importorskip("distributed")

SHARDS = 24
KILLS = 3 if settings.default.max_examples > 100 else 1  # nightly, ci

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # those of distributed are not ours to mend
    pytest.mark.usefixtures("not_warmed"),
]


@contextlib.contextmanager
def _cluster(memory_limit=0):
    settings = {"threads_per_worker": 1, "memory_limit": memory_limit, "dashboard_address": None, "silence_logs": 50}
    with warnings.catch_warnings(), distributed.LocalCluster(2, **settings) as cluster:
        yield cluster


def _stream(folder):
    return keys_only(save_stream(folder, 200_000, heads=2, dim=8))


def test_a_cluster_gives_the_bytes_of_threads_also_when_a_worker_dies(tmp_path):
    spec, words = _stream(tmp_path), POLY | {"degree": 4, "shards": SHARDS}
    make_sketch(spec, tmp_path / "threads.sattn", **words)
    expected = (tmp_path / "threads.sattn").read_bytes()
    with _cluster() as cluster:
        engine = f"dask={cluster.scheduler_address}"
        make_sketch(spec, tmp_path / "calm.sattn", engine=engine, **words)
        assert (tmp_path / "calm.sattn").read_bytes() == expected
        for number in range(KILLS):
            killed, done = [], threading.Event()
            killer = threading.Thread(target=_kill_one, args=(cluster, killed, done))
            killer.start()
            make_sketch(spec, tmp_path / f"{number}.sattn", engine=engine, **words)
            done.set()
            killer.join()
            assert len(killed) == 1
            assert (tmp_path / f"{number}.sattn").read_bytes() == expected


def _attend(spec, path, **words):
    request = AttendRequest(spec, str(path), causal=True, audit=32, resident_rows=64, **words)
    attend_spread(request, silent, Interrupts())
    return path.read_bytes(), (path.parent / f"{path.name}.json").read_bytes()


def test_attend_has_the_same_bytes_also_when_a_worker_dies(tmp_path, monkeypatch):
    monkeypatch.setattr("streamattn_cli.engine.jobs.ceremony.warm", lambda plan, listener: None)
    spec = save_stream(tmp_path, 12_000, heads=12, dim=8)
    expected = _attend(spec, tmp_path / "threads.npy", engine="threads")
    with _cluster() as cluster:
        engine = f"dask={cluster.scheduler_address}"
        assert _attend(spec, tmp_path / "calm.npy", engine=engine) == expected
        killed, done = [], threading.Event()
        killer = threading.Thread(target=_kill_one, args=(cluster, killed, done))
        killer.start()
        found = _attend(spec, tmp_path / "killed.npy", engine=engine)
        done.set()
        killer.join()
        assert len(killed) == 1 and found == expected
    assert not list(tmp_path.glob(".*"))


def test_workers_with_too_little_memory_are_sent_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("streamattn_cli.engine.jobs.ceremony.warm", lambda plan, listener: None)
    spec = save_stream(tmp_path, 600, heads=2)
    with (
        _cluster(memory_limit=120 << 20) as cluster,
        pytest.raises(MemoryBudget, match="a worker of the cluster may take"),
    ):
        _attend(spec, tmp_path / "out.npy", engine=f"dask={cluster.scheduler_address}")


def _kill_one(cluster, killed, done):
    """Kill a worker that has a shard under way, after some results of this run have come; note its process."""
    while not done.wait(0.002):
        busy = [worker for worker in cluster.scheduler.workers.values() if worker.processing and worker.has_what]
        if busy:
            pid = cluster.workers[busy[0].name].pid
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            return


def test_a_scheduler_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("streamattn_cli.engine.jobs.executors.CONNECT", "1s")
    spec = keys_only(save_stream(tmp_path, 600))
    with pytest.raises(InputMissing, match="no scheduler answers there"):
        make_sketch(spec, tmp_path / "x.sattn", shards=2, engine="dask=tcp://127.0.0.1:1", **POLY)
    assert not (tmp_path / "x.sattn").exists()
