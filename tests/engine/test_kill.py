"""kill -9 at random instants of a run with checkpoints, then --resume: the bytes are those of an undisturbed run.

Every run is a fork of one process that has imported and compiled everything, so that it takes milliseconds and dies
anywhere: while it reads, computes, writes, syncs or renames. STREAMATTN_TEST_KILLS says how many kills there are.
"""

import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from clirun import refused, start

KILLS = int(os.environ.get("STREAMATTN_TEST_KILLS", "300"))
SCENES = ("causal", "queries", "sketch", "nystrom", "heaps", "paper")


@pytest.mark.parametrize("scene", SCENES)
def test_killed_runs_end_with_the_same_bytes(tmp_path, scene):
    program = Path(__file__).parents[1] / "killed_runs.py"
    seed = os.environ.get("STREAMATTN_TEST_SEED", "0")
    words = [sys.executable, str(program), scene, str(tmp_path), str(-(-KILLS // len(SCENES))), seed]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900 + KILLS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["kills"] >= KILLS // len(SCENES)
    assert found["rounds"] > found["kills"] // 100  # complete runs, each killed some times on its way
    assert found["resumed"] > found["kills"] // 10  # or else nearly all died before their first checkpoint
    assert found["wrong"] == []


def _save(folder, rows):
    random = np.random.default_rng(0)
    parts = {part: random.standard_normal((rows, 4, 32)).astype("f2") for part in "qkv"}
    np.savez(folder / "dump.npz", **parts)
    return (
        "attend",
        "dump.npz",
        "--causal",
        "--resident-rows",
        "256",
        "-o",
        "out.npy",
        "--quiet",
        "--threads",
        "2",
        "--engine",
    )


def _running(process):
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_workers_end_with_a_main_process_that_is_killed(tmp_path):
    words = _save(tmp_path, 40_000)
    main = start(*words, "processes", cwd=tmp_path)
    workers, children = [], Path(f"/proc/{main.pid}/task/{main.pid}/children")
    while main.poll() is None and len(workers) < 3:  # two, and one that Python watches over resources with
        workers = [int(word) for word in children.read_text().split()] or workers
    main.kill()
    main.wait()
    assert len(workers) == 3
    while any(map(_running, workers)):  # a hang fails
        time.sleep(0.05)
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_a_disk_that_is_full_is_10_and_leaves_nothing(tmp_path, engine):
    words, limit = _save(tmp_path, 4_000), partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
    refused(
        *words, engine, code=10, words=["out.npy: cannot be written"], folder=tmp_path, cwd=tmp_path, preexec_fn=limit
    )
