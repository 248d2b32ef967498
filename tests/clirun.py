"""Runs the real program in a process of its own, as a user's shell would."""

import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from described import described
from forks import Forks

from streamattn_cli.records import read

COMMAND = [sys.executable, "-m", "streamattn_cli"]
SAMPLE = Path(__file__).resolve().parent.parent / "sample_data"
TIMEOUT = 900  # seconds: only there so that a hang fails, on however busy a machine
FRESH = os.environ.get("STREAMATTN_FRESH") == "1"
FORKED = {"cwd", "input", "stdin", "stdout", "stderr", "timeout"}  # what a fork can be given
PRIVATE = ("STREAMATTN_", "COLUMNS", "NO_COLOR", "TERM", "PYTHONUNBUFFERED", "PYTHONSTARTUP")


@dataclass(frozen=True)
class Done:
    """What a program left behind."""

    code: int
    out: bytes
    err: str

    @property
    def document(self):
        """Standard output as the one JSON document that it must be."""
        return described(json.loads(self.out))

    @property
    def log(self):
        """Standard error as JSON lines, every one of which must parse."""
        return [described(json.loads(line)) for line in self.err.splitlines()]


def environment(**words):
    """The environment of a program: ours without what would change its output, and `words`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
    return kept | {"OPENBLAS_NUM_THREADS": "1", "TERM": "xterm"} | words


def run(*args, code=0, env=None, fresh=False, **kwargs):
    """Run `streamattn ARGS` to its end. The exit code must be `code`, and no traceback may be shown.

    fresh: in a new interpreter, as all runs are with STREAMATTN_FRESH=1; others are forks of one that is ready (forks.py).
    """
    words = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": TIMEOUT, "cwd": "."} | kwargs
    if "input" not in words:
        words.setdefault("stdin", subprocess.DEVNULL)
    if fresh or FRESH or words.keys() - FORKED or any(not name.startswith(PRIVATE[:4]) for name in env or {}):
        done = subprocess.run([*COMMAND, *map(str, args)], env=environment(**env or {}), **words)
        found, out, err = done.returncode, done.stdout or b"", (done.stderr or b"").decode()
    else:
        found, out, err = forks().run(list(map(str, args)), words.pop("cwd"), environment(**env or {}), **words)
        err = err.decode()
    assert found == code, f"exit code {found}, expected {code}; standard error:\n{err}"
    assert "Traceback" not in err, err
    return Done(found, out, err)


@cache
def forks():
    """The process of this worker that runs are forked from."""
    return Forks()


def start(*args, env=None, **kwargs):
    """Start `streamattn ARGS`; a Popen."""
    return subprocess.Popen([*COMMAND, *map(str, args)], env=environment(**env or {}), **kwargs)


def refused(*args, code, words, folder=None, **kwargs):
    """The run must fail with `code` and one line that holds all `words`; `folder` must be as it was before.

    Returns the line.
    """
    before = listing(folder) if folder else None
    done = run(*args, code=code, **kwargs)
    lines = [line for line in done.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1 and lines[0].startswith("streamattn: "), done.err
    missing = [word for word in words if word not in lines[0]]
    assert not missing, f"{missing} not in: {lines[0]}"
    assert done.out == b""
    if folder:
        assert listing(folder) == before
    return lines[0]


def wait_until(process, condition):
    """Wait until condition() is true of a running process. It must not end before, nor must this take forever."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before what was waited for"
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.01)


def listing(folder):
    """Name -> bytes of every regular file of a folder."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in Path(folder).iterdir()}


def records(data):
    """The arrays of concatenated .npy records."""
    stream, arrays = io.BytesIO(data), []
    while (array := read(stream)) is not None:
        arrays.append(array)
    return arrays


def record_bytes(*arrays):
    """Concatenated .npy records of these arrays, as NumPy writes them."""
    stream = io.BytesIO()
    for array in arrays:
        np.save(stream, array)
    return stream.getvalue()


def save_heads(folder, rows=50, dim=8, value_dim=8, seed=0, dtype=np.float32, factor=0.5):
    """q.npy, k.npy, v.npy of one head in `folder`; returns the arrays."""
    rng = np.random.default_rng(seed)
    shapes = {"q": dim, "k": dim, "v": value_dim}
    arrays = {part: (factor * rng.standard_normal((rows, width))).astype(dtype) for part, width in shapes.items()}
    for part, array in arrays.items():
        np.save(Path(folder) / f"{part}.npy", array)
    return arrays


FILES = ("--q", "q.npy", "--k", "k.npy", "--v", "v.npy")
