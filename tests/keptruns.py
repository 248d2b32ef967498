"""Runs of the engine in this process, for tests of what is kept in files: no subprocess, no progress shown."""

from dataclasses import replace

import numpy as np
import pytest

from streamattn_cli.checkpoint.container import read
from streamattn_cli.engine.jobs.attend import attend
from streamattn_cli.engine.jobs.query import query
from streamattn_cli.engine.jobs.shards import sketch_shards
from streamattn_cli.engine.jobs.sketch import sketch
from streamattn_cli.engine.request.requests import AttendRequest, QueryRequest, SketchRequest
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.rows.spec import InputSpec

POLY = {"method": "poly", "degree": 2, "max_error": float("inf")}
SMALL = {"resident_rows": 160}  # of the methods that keep rows
METHODS = {
    "poly": POLY,
    "poly with a window": POLY | {"window": 40, "sinks": 3},
    "window": {"method": "window", **SMALL},
    **{name: {"method": name, **SMALL} for name in ("nystrom", "sample", "reservoir", "evict", "balance", "wildcat")},
    "evict, coded": {"method": "evict", "bits": 6, "score": "expected", **SMALL},
}


@pytest.fixture
def not_warmed(monkeypatch):
    """Kernels are compiled when they are needed: these tests make many short runs, and measure no memory."""
    for job in ("ceremony", "compare", "spread"):
        monkeypatch.setattr(f"streamattn_cli.engine.jobs.{job}.warm", lambda plan, listener: None)


def silent(_event):
    """A listener that does not listen."""


def save_stream(folder, rows, heads=1, dim=4, dtype=np.float32, seed=0):
    """q.npy, k.npy, v.npy in layout THD (rows, heads, dim); returns their InputSpec."""
    rng = np.random.default_rng(seed)
    for part in "qkv":
        np.save(folder / f"{part}.npy", rng.standard_normal((rows, heads, dim)).astype(dtype))
    return InputSpec(**{part: str(folder / f"{part}.npy") for part in "qkv"}, layout="THD")


def run(spec, **words):
    """attend; returns the outcome."""
    return attend(AttendRequest(inputs=spec, **words), silent, Interrupts())


def make_sketch(spec, path, shards=None, append=False, **words):
    """sketch or sketch --shards into `path`, keys and values only unless nystrom needs queries; returns the outcome."""
    request = SketchRequest(inputs=spec, output=str(path), shards=shards, append=append, **words)
    return (sketch if shards is None and not request.engine else sketch_shards)(request, silent, Interrupts())


def keys_only(spec):
    """The stream without its queries."""
    return replace(spec, q=None)


def answers(path, spec, out):
    """The answers of a sketch file to the queries of a stream."""
    inputs = InputSpec(input=spec.q, layout="THD")
    request = QueryRequest(inputs=inputs, output=str(out), sketch=str(path), force=True)
    query(request, silent, Interrupts())
    return np.load(out)


def ask(path, spec, out, **words):
    """query the sketch file with the queries of a stream; k, v: for an audit. Returns the outcome."""
    keys = {name: words.pop(name) for name in ("k", "v") if name in words}
    request = QueryRequest(
        inputs=InputSpec(q=spec.q, layout="THD", **keys), output=str(out), sketch=str(path), force=True, **words
    )
    return query(request, silent, Interrupts())


def state_of(path):
    """State arrays of a checkpoint."""
    return read(str(path))[0]
