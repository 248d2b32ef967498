"""The program behind test_kill.py: killed_runs.py SCENE FOLDER KILLS SEED; prints what it saw as JSON."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[_name] = "1"

from keptruns import METHODS, keys_only, save_stream  # noqa: E402

from streamattn_cli.engine.jobs import attend as attending  # noqa: E402
from streamattn_cli.engine.jobs import ceremony  # noqa: E402
from streamattn_cli.engine.jobs import sketch as sketchfile  # noqa: E402
from streamattn_cli.engine.request.requests import AttendRequest, SketchRequest  # noqa: E402
from streamattn_cli.engine.watch.signals import Interrupts  # noqa: E402

ROWS = 640
WORDS = {
    "causal": METHODS["sample"] | {"causal": True, "audit": 16},
    "queries": METHODS["poly with a window"] | {"causal": False, "audit": 16},
    "sketch": METHODS["poly"],
    "nystrom": {"method": "nystrom", "resident_rows": 160, "causal": True},
    "heaps": METHODS["sample"] | {"causal": True, "top_k": 4},
    "paper": METHODS["poly"] | {"causal": False, "sketches": "paper", "m1": 64, "top_k": 4, "m2": 700},
}


def main(scene, folder, kills, seed):
    """Rounds of killed runs and a last one, until there were enough kills."""
    rng = random.Random(f"{scene} {seed}")
    spec = save_stream(folder, ROWS, heads=1)
    words = dict(WORDS[scene])
    is_sketch = scene == "sketch"
    spec = keys_only(spec) if is_sketch else spec

    def run(where):
        saved, output = str(where / "c.sattn"), str(where / ("out.h5" if "top_k" in words else "out.npy"))
        how = {"checkpoint_every": "64rows", "resume": True, "block_rows": rng.choice([32, 64, 96]), "threads": 1}
        if is_sketch:
            sketchfile.sketch(SketchRequest(spec, saved, **how, **words), lambda event: None, Interrupts())
        else:
            request = AttendRequest(spec, output, checkpoint=saved, **how, **words)
            attending.attend(request, lambda event: None, Interrupts())

    whole = folder / "whole"
    whole.mkdir()
    run(whole)
    expected = contents(whole)
    ceremony.warm = lambda plan, listener: None  # every kernel is there by now
    shutil.rmtree(whole)
    whole.mkdir()
    began = time.monotonic()
    forked(run, whole, 60)
    length = time.monotonic() - began
    found = {"scene": scene, "kills": 0, "rounds": 0, "resumed": 0, "wrong": [], "milliseconds": round(1000 * length)}
    while found["kills"] < kills:
        one = folder / "one"
        shutil.rmtree(one, ignore_errors=True)
        one.mkdir()
        reach = 0.7 * length
        while True:
            found["resumed"] += (one / "c.sattn").exists()
            code = forked(run, one, rng.uniform(0, reach))
            reach *= 1.05  # or no run would ever end on a machine that has become slower meanwhile
            if code == 0:
                break
            if code != -signal.SIGKILL:
                found["wrong"].append(f"round {found['rounds']}: exit code {code}")
                return found
            found["kills"] += 1
        found["rounds"] += 1
        if contents(one) != expected:
            found["wrong"].append(f"round {found['rounds']}: {sorted(contents(one))} differ")
    return found


def forked(run, where, after):
    """Run in a fork that is killed after so many seconds; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if not child:
        try:
            run(where)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    until = time.monotonic() + after
    done = 0
    while not done and time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.0005)
    if not done:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def contents(folder):
    """Name -> bytes of what is left of a run; nothing else may be there."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
