"""kill -9 at random instants of a run with checkpoints, then --resume: the bytes are those of an undisturbed run.

Every run is a fork of one process that has imported and compiled everything, so that it takes milliseconds and dies
anywhere: while it reads, computes, writes, syncs or renames. STREAMATTN_TEST_KILLS says how many kills there are.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("STREAMATTN_TEST_KILLS", "300"))
SCENES = ("causal", "queries", "sketch", "nystrom", "heaps", "paper")


@pytest.mark.parametrize("scene", SCENES)
def test_killed_runs_end_with_the_same_bytes(tmp_path, scene):
    program = Path(__file__).parents[1] / "killed_runs.py"
    seed = os.environ.get("STREAMATTN_TEST_SEED", "0")
    words = [sys.executable, str(program), scene, str(tmp_path), str(-(-KILLS // len(SCENES))), seed]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60 + KILLS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["kills"] >= KILLS // len(SCENES)
    assert found["rounds"] > found["kills"] // 100  # complete runs, each killed some times on its way
    assert found["resumed"] > found["kills"] // 10  # or else nearly all died before their first checkpoint
    assert found["wrong"] == []
