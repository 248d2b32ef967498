"""Runs of every command that writes JSON, chosen so that every field of every document occurs."""

import io
import json
from contextlib import chdir

import h5py
import numpy as np
from clirun import SAMPLE, run, save_heads
from typer.testing import CliRunner

from streamattn_cli.cli.main import app
from streamattn_cli.engine.jobs.attend import attend
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.watch.events import Outcome, Progress
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import Interrupted
from streamattn_cli.models.nats import Perplexity, Reading
from streamattn_cli.report.live.progress import make_listener
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.versions import versions

TINY, HEADS = SAMPLE / "tiny.h5", SAMPLE / "heads.h5"
SHORT = (HEADS, "--rows", "0:1500")
SMALL = ("--resident-rows", "128")
POLY = ("--method", "poly", "--degree", "2")
BETA = (*POLY, "--max-error", "9", "--beta", "2")
PHI = ("attend", TINY, "--full", *POLY, "--sketches", "phi", "--order", "kqv", "--top-k", "2")
PSI = ("attend", TINY, "--full", *POLY, "--sketches", "psi")
SKETCH = ("sketch", HEADS, "--scale", "d", *POLY)
BUDGET = ("--memory", "64MiB")
WINDOW = ("attend", HEADS, "--causal", "--method", "window", "--window", "32")
SAVED = ("--fingerprint", "--select", "0", "--missing", "zeros", "--audit", "8")
METHODS = (
    "nystrom:effort=best:atoms=64:window=16:buffer=16,nystrom:sinks=2,evict:bits=6:score=expected,poly:degree=1:polynomial=taylor:beta=9,"
    "poly:degree=12"
)

THREADS = ("--engine", "threads")
BATCHES = ("--k", "batchq.npy", "--v", "batchq.npy")

# name -> the command line without --json; one may use files that those before it wrote
RUNS = {
    "attend": ("attend", *SHORT, "--causal", *SMALL, "--audit", "32", "-o", "out.npy"),
    "attend by poly": ("attend", TINY, "--full", *POLY, *BUDGET, "--audit", "8", "-o", "poly.h5"),
    "attend exactly": ("attend", TINY, "--full", "--method", "exact", "-o", "out.npy"),
    "attend, all rows resident": ("attend", TINY, "--causal", "-o", "out.npy"),
    **{
        f"attend by {method}": ("attend", *SHORT, "--causal", "--method", method, *SMALL, "-o", "out.npy")
        for method in ("evict", "sample", "reservoir", "balance", "wildcat")
    },
    "attend by evict of last attention": (
        "attend",
        *SHORT,
        "--causal",
        "--method",
        "evict",
        "--score",
        "last",
        "--bits",
        "4",
        *SMALL,
        "-o",
        "out.npy",
    ),
    "attend, fewer queries": ("attend", TINY, "--causal", "--q-rows", "0:2", "-o", "out.npy"),
    "attend, local with sinks": (
        "attend",
        TINY,
        "--causal",
        "--local",
        "2",
        "--sink-logit",
        "0.5",
        "--softcap",
        "30",
        "--logit-bias",
        "slope",
        "-o",
        "out.npy",
    ),
    "attend, saved": (*WINDOW, *SAVED, "--checkpoint", "run.sattn", "-o", "saved.npy"),
    "attend, complete already": (*WINDOW, *SAVED, "--checkpoint", "run.sattn", "--resume", "-o", "saved.npy"),
    "attend with Psi": (*PSI, "--audit", "2", "-o", "out.npy"),
    "attend, batches": (
        "attend",
        "--q",
        "bk.npy",
        "--k",
        "bk.npy",
        "--v",
        "bk.npy",
        "--layout",
        "BTHD",
        "--full",
        "--method",
        "window",
        "--checkpoint",
        "batches.sattn",
        "-o",
        "out.npy",
    ),
    "info of batches": ("info", "batches.sattn"),
    "attend with Phi": (*PHI, "--m2", "512", "--audit", "2", "--checkpoint", "phi.sattn", "-o", "phi.h5"),
    "attend by the paper": ("attend", TINY, "--full", *POLY, "--sketches", "paper", "--top-k", "2", "-o", "top.h5"),
    "attend --top-k": ("attend", *SHORT, "--causal", *SMALL, "--top-k", "2", "--deviation", "-o", "top.h5"),
    "attend by poly with a bound": ("attend", *SHORT, "--full", *BETA, "-o", "out.npy"),
    "attend, repaired": (
        "attend",
        *SHORT,
        "--full",
        *BETA,
        "--audit",
        "64",
        "--repair",
        "3",
        "--doubt",
        "doubt.npy",
        "--checkpoint",
        "repaired.sattn",
        "-o",
        "repaired.npy",
    ),
    "attend, packed rows": (
        "attend",
        *SHORT[:1],
        "--causal",
        *SMALL,
        "--starts",
        "0,500,580,1500",
        "--audit",
        "32",
        "--checkpoint",
        "packed.sattn",
        "-o",
        "packed.npy",
    ),
    "attend, layers": ("attend", "layers.npz", "--layer", "all", "--causal", *SMALL, "--audit", "8", "-o", "layers.h5"),
    "attend, layers on an engine, dry": (
        "attend",
        "layers.npz",
        "--layer",
        "all",
        "--causal",
        *SMALL,
        "--engine",
        "threads",
        "-o",
        "layers.h5",
        "--dry-run",
    ),
    "attend, a layer that fails": (
        "attend",
        "broken.npz",
        "--layer",
        "all",
        "--causal",
        *SMALL,
        "--keep-going",
        "-o",
        "layers.h5",
    ),
    "attend, adaptive shares": (
        "attend",
        "layers.npz",
        "--layer",
        "all",
        "--causal",
        "--memory-per-layer",
        "12KiB",
        "--share",
        "adaptive",
        "--checkpoint",
        "job.sattn",
        "-o",
        "shares.h5",
    ),
    "info of a job": ("info", "job.sattn"),
    "sketch, batches": ("sketch", *BATCHES, "--layout", "BHTD", "--method", "window", *SMALL, "-o", "batches.sattn"),
    "query, batches": ("query", "batches.sattn", "batchq.npy", *BATCHES, "--audit", "8", "-o", "answers.npy"),
    "sketch, values far from 1": (
        "sketch",
        "--k",
        "batchq.npy",
        "--v",
        "far.npy",
        "--layout",
        "BHTD",
        *SMALL,
        "-o",
        "far.sattn",
    ),
    "attend, rows dropped": ("attend", "holes.h5", "--full", *SMALL, "--nan-policy", "drop", "-o", "out.npy"),
    "attend --dry-run": ("attend", *SHORT, "--causal", *SMALL, *BUDGET, "--audit", "32", "-o", "out.npy", "--dry-run"),
    "attend --dry-run exactly": ("attend", TINY, "--full", "--method", "exact", "-o", "out.npy", "--dry-run"),
    "attend --dry-run with Phi": (*PHI, "-o", "phi.h5", "--dry-run"),
    "attend --dry-run with Psi": (*PSI, "--top-k", "2", "-o", "out.h5", "--dry-run"),
    "sketch": (*SKETCH, "--rows", "0:2048", "-o", "a.sattn"),
    "sketch --shards": (*SKETCH, "--rows", "2048:4096", "--shards", "2", "-o", "b.sattn"),
    **{
        f"sketch by {method}": ("sketch", *SHORT, "--method", method, *SMALL, "-o", f"{method}.sattn")
        for method in ("evict", "sample", "reservoir", "balance", "wildcat", "nystrom")
    },
    "sketch of fp8 rows": ("sketch", "bytes.h5", "--dtype", "f8e4m3", *SMALL, "-o", "bytes.sattn"),
    "merge": ("merge", "a.sattn", "b.sattn", "-o", "all.sattn"),
    "query": ("query", "all.sattn", f"{HEADS}:/q", "-o", "answers.npy"),
    "query, audited": (
        "query",
        "all.sattn",
        f"{HEADS}:/q",
        "--audit",
        "16",
        "--k",
        HEADS,
        "--v",
        HEADS,
        "-o",
        "answers.npy",
    ),
    "info of a sketch": ("info", "all.sattn"),
    "info of a checkpoint": ("info", "run.sattn"),
    "info of a repaired run": ("info", "repaired.sattn"),
    "info of a run over packed rows": ("info", "packed.sattn"),
    "info of a run with Phi": ("info", "phi.sattn"),
    **{
        f"info of {name}": ("info", f"{name}.sattn")
        for name in ("evict", "sample", "reservoir", "balance", "wildcat", "nystrom")
    },
    "info of fp8 rows": ("info", "bytes.sattn"),
    "info of an unfinished run": ("info", "unfinished.sattn"),
    "compare": ("compare", *SHORT, "--causal", "--methods", METHODS, "--audit", "32", *SMALL),
    "compare, layers": ("compare", "layers.npz", "--layer", "all", "--causal", "--methods", "window", *SMALL, *THREADS),
    "compare by bytes": ("compare", TINY, "--full", "--methods", "evict,sample,balance,wildcat", "--resident", "4KiB"),
    "plan": ("plan", HEADS, *BUDGET),
    "plan, layers": ("plan", "layers.npz", "--layer", "all", "--resident-rows", "256"),
    "plan from numbers": ("plan", "--rows", "1e9", "--dim", "128", "--heads", "32", "--kv-heads", "8", *BUDGET),
    "plan of few rows": ("plan", HEADS, "--memory", "22MiB", "--resident-rows", "4000", "--threads", "2"),
    "plan of a small head": ("plan", TINY, "--resident-rows", "256"),
    "inspect": ("inspect", HEADS),
    "inspect one array": ("inspect", "k.npy"),
    "inspect other arrays": ("inspect", "holes.h5"),
    "generate": ("generate", "--rows", "100", "--dim", "4", "made.h5"),
}

# name -> the command line without --log-json
LOGS = {
    "attend": ("attend", *SHORT, "--causal", *SMALL, "--audit", "8", "-o", "out.npy"),
    "attend exactly": ("attend", *SHORT, "--full", "--method", "exact", "--audit", "8", "-o", "out.npy"),
    "attend on an engine": ("attend", *SHORT, "--causal", *SMALL, "--engine", "threads", "-o", "out.npy"),
    "attend with Phi": (*PHI, "--audit", "2", "-o", "phi.h5"),
    "attend with Psi": (*PSI, "--audit", "2", "-o", "out.npy"),
    "sketch --shards": (*SKETCH, "--shards", "2", "-o", "shards.sattn"),
    "query": ("query", "all.sattn", f"{HEADS}:/q", "-o", "answers.npy"),
    "compare": ("compare", *SHORT, "--causal", "--methods", "window", *SMALL),
    "generate": ("generate", "--rows", "100", "--dim", "4", "made.h5"),
}


def all_documents(folder):
    """(name, document) of everything that commands write as JSON, made in `folder`."""
    save_heads(folder, rows=700)
    np.save(folder / "bk.npy", np.random.default_rng(0).standard_normal((2, 300, 2, 8)).astype("f4"))
    _save_holes(folder / "holes.h5")
    rows = np.random.default_rng(3).standard_normal((2, 2, 300, 8)).astype("f4")
    np.save(folder / "batchq.npy", rows)
    np.save(folder / "far.npy", rows * np.float32(2.0**70))
    flat = rows[0].transpose(1, 0, 2)
    np.savez(folder / "layers.npz", **{f"layers.{layer}.{part}": flat for layer in (0, 1) for part in "qkv"})
    broken = {
        f"layers.{layer}.{part}": flat[: 200 if layer and part == "v" else 300] for layer in (0, 1) for part in "qkv"
    }
    np.savez(folder / "broken.npz", **broken)
    _save_bytes(folder / "bytes.h5")
    _stop_early(folder)
    with chdir(folder):
        for name, words in RUNS.items():
            yield name, json.loads(_invoke(*words, *_again(words), "--json").stdout)
        for name, words in LOGS.items():
            done = _invoke(*words, *_again(words), "--log-json", "--progress-every", "0")
            yield from ((f"log of {name}", json.loads(line)) for line in done.stderr.splitlines())
    yield "perplexity", perplexity()
    yield "capture", _captured()
    (error,) = run("attend", "absent.h5", "--log-json", "-o", folder / "absent.npy", code=3).log
    yield "error", error
    yield from _statuses()


def perplexity():
    """What `perplexity` writes of made-up figures: real ones need the extra models, see test_models.py."""
    nats = np.random.default_rng(0).random((2, 299)).astype("f4")
    facts = {"params": {"window": 60, "sinks": 4, "group": 8, "rope": "10000:half", "turns": 2}}
    exact = Reading("exact", None, {}, nats[0], nbytes=9000, seconds=1.0)
    window = Reading("window", 64, facts, nats[1], [0.1], [True], 2000, 2.0)
    found = Perplexity(
        "model.gguf", ("a.txt",), 300, (0, 1), 512, (1, 256, 300), (exact, window), 3.0,
        {"reserved": 9, "peak": 1, "projected": 2},
        ("a note",), "streamattn perplexity model.gguf a.txt", "2026-11-30T00:00:00+00:00", 256,
        versions("numpy") | {"torch": "2.0", "transformers": "5.0"},
    )  # fmt: skip
    return found.to_dict()


def _captured():
    """What `capture` writes, made up as well."""
    params = {"model": "model.gguf", "texts": ["a.txt"], "layers": [3], "heads": None, "dtype": "f2", "chunk": 512}
    memory = {"reserved": 9, "peak": 1, "projected": 2}
    return Outcome("capture", {"params": params}, 300, 1.0, 0.0, 9000, memory, output="dump.h5").to_dict()


def _again(words):
    """--force for the commands that have it: outputs of earlier runs are in the way."""
    return ("--force",) if words[0] in ("attend", "sketch", "query", "merge", "generate") else ()


def _invoke(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == (4 if "--keep-going" in words else 0), f"{words}: {done.exception!r}\n{done.stderr}"
    return done


def _save_holes(path):
    """q, k, v with a row that is not finite, an array that is no tensor, and attributes."""
    rows = np.random.default_rng(0).standard_normal((3, 300, 8)).astype("f4")
    rows[1, 7] = np.nan
    with h5py.File(path, "w") as file:
        for name, array in zip("qkv", rows, strict=True):
            file[name] = array
        file["ids"] = np.arange(5)
        file.attrs.update(causal=True, model="made up", sizes=[100, 200])


def _save_bytes(path):
    """k and v in fp8, and a scale of k."""
    rows = np.random.default_rng(0).integers(0, 64, (2, 300, 8)).astype("u1")
    with h5py.File(path, "w") as file:
        file["k"], file["v"], file["k_scale"] = *rows, 0.5


class _Stops(Interrupts):
    """Stops a run at once after its first block, as a signal would."""

    seen = False

    def check(self):
        """See Interrupts."""
        if self.seen:
            raise Interrupted(15)

    def hear(self, event):
        """A listener that waits for the first block."""
        self.seen |= isinstance(event, Progress)


def _stop_early(folder):
    """unfinished.sattn, of a run whose output is not complete."""
    names = {part: str(folder / f"{part}.npy") for part in "qkv"}
    words = {"method": "window", "window": 16, "block_rows": 64, "checkpoint": str(folder / "unfinished.sattn")}
    stops = _Stops()
    try:
        attend(AttendRequest(InputSpec(**names), str(folder / "unfinished.npy"), **words), stops.hear, stops)
    except Interrupted:
        return
    raise AssertionError("the run was not stopped")


def _statuses():
    """What SIGUSR1 writes before and after the first block."""
    stream = io.StringIO()
    listener = make_listener("json", 0, stream)
    listener.status()
    listener(Progress("keys", 5, None, 100, 1.5))
    listener.status()
    first, _, last = map(json.loads, stream.getvalue().splitlines())
    yield from (("status", document) for document in (first, last))
