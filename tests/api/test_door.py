"""Sketches from Python: the classes of the command, fed with arrays."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from clirun import record_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from keptruns import METHODS, make_sketch, not_warmed, state_of  # noqa: F401

import streamattn_cli
from streamattn_cli import AttentionSketch, open_sketch
from streamattn_cli.checkpoint.container import read_header
from streamattn_cli.engine.jobs.query import query
from streamattn_cli.engine.passes.run import SketchRun
from streamattn_cli.engine.request.requests import QueryRequest
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import (
    CannotMeet,
    CheckpointIncompatible,
    InputMalformed,
    InputMissing,
    NonFinite,
    UsageError,
)
from streamattn_cli.rows.spec import InputSpec

ROWS = 2600
pytestmark = pytest.mark.usefixtures("not_warmed")
WORDS = {name: words for name, words in METHODS.items() if name in ("poly", "nystrom", "sample", "window")}


def _arrays(rows=ROWS, heads=2, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((rows, heads, 4)).astype(dtype) for _ in "kv")


def _filled(k, v, borders=(), **words):
    sketch = AttentionSketch(**words)
    for rows in np.split(np.arange(len(k)), borders):
        sketch.absorb(k[rows], v[rows])
    return sketch


def _command(folder, k, v, **words):
    """The bytes that the command writes for these rows from pipes."""
    for part, array in (("k", k), ("v", v)):
        os.mkfifo(folder / part)

        def feed(part=part, array=array):
            with open(folder / part, "wb") as pipe:
                pipe.write(record_bytes(array))

        threading.Thread(target=feed, daemon=True).start()
    spec = InputSpec(k=str(folder / "k"), v=str(folder / "v"))
    make_sketch(spec, folder / "command.sattn", **words)
    return (folder / "command.sattn").read_bytes()


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, streamattn_cli; print([m for m in ('numpy', 'numba', 'h5py') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    with pytest.raises(AttributeError, match="open_door"):
        streamattn_cli.open_door  # noqa: B018


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("rows", [ROWS, 300])
def test_the_file_is_that_of_the_command(tmp_path, name, rows):
    k, v = _arrays(rows)
    _filled(k, v, [1, 2, 40, 1025, 1026, 2599] if rows == ROWS else [7], **WORDS[name]).save(tmp_path / "door.sattn")
    assert (tmp_path / "door.sattn").read_bytes() == _command(tmp_path, k, v, **WORDS[name])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint16])
def test_dtypes_are_those_of_the_command(tmp_path, dtype):
    k, v = _arrays()
    k, v = ((x.view(np.uint32) >> 16).astype(np.uint16) if dtype == np.uint16 else x.astype(dtype) for x in (k, v))
    _filled(k, v, [1500], **WORDS["sample"]).save(tmp_path / "door.sattn")
    assert (tmp_path / "door.sattn").read_bytes() == _command(tmp_path, k, v, **WORDS["sample"])


def test_answers_are_those_of_the_command(tmp_path):
    k, v = _arrays()
    q = np.random.default_rng(9).standard_normal((700, 4, 4)).astype(np.float32)
    np.save(tmp_path / "q.npy", q)
    sketch = _filled(k, v, **WORDS["nystrom"])
    sketch.save(tmp_path / "s.sattn")
    spec = InputSpec(input=str(tmp_path / "q.npy"), layout="THD")
    query(
        QueryRequest(spec, output=str(tmp_path / "out.npy"), sketch=str(tmp_path / "s.sattn")),
        lambda e: None,
        Interrupts(),
    )
    expected = np.load(tmp_path / "out.npy")
    for one in (sketch, open_sketch(tmp_path / "s.sattn")):
        assert np.array_equal(one.query(q), expected)
        assert np.array_equal(one.query(q[:13]), expected[:13])


def test_answers_are_attention():
    k, v = _arrays(700)
    q = np.random.default_rng(1).standard_normal((5, 2, 4)).astype(np.float32)
    shares = np.exp(0.5 * np.einsum("ihd,jhd->hij", q, k))
    expected = np.einsum("hij,jhd->ihd", shares / shares.sum(axis=2, keepdims=True), v)
    sketch = _filled(k, v, [100, 300], resident_rows=1024)
    np.testing.assert_allclose(sketch.query(q), expected, rtol=1e-5, atol=1e-6)
    one = _filled(k[:, 0], v[:, 0], resident_rows=1024)
    np.testing.assert_allclose(one.query(q[:, 0]), expected[:, 0], rtol=1e-5, atol=1e-6)


@settings(max_examples=12)
@given(st.lists(st.integers(0, ROWS), max_size=4).map(sorted), st.integers(0, 4), st.sampled_from(sorted(WORDS)))
def test_cuts_questions_and_saving_change_nothing(tmp_path_factory, borders, asked, name):
    """Absorb in pieces; ask, save and open again on the way, once there are 1024 rows."""
    folder = tmp_path_factory.mktemp("cuts")
    k, v = _arrays()
    whole = _filled(k, v, **WORDS[name])
    whole.save(folder / "whole.sattn")
    sketch = AttentionSketch(**WORDS[name])
    for at, rows in enumerate(np.split(np.arange(ROWS), borders)):
        sketch.absorb(k[rows], v[rows])
        if at == asked and sketch.rows >= 1024:
            sketch.query(k[:3])
            sketch.save(folder / "half.sattn")
    assert sketch.rows == ROWS
    sketch.save(folder / "pieces.sattn")
    assert (folder / "pieces.sattn").read_bytes() == (folder / "whole.sattn").read_bytes()
    if (folder / "half.sattn").exists():
        again = open_sketch(folder / "half.sattn")
        done = again.rows
        again.absorb(k[done:], v[done:])
        again.save(folder / "again.sattn")
        one, two = state_of(folder / "again.sattn"), state_of(folder / "whole.sattn")
        assert all(np.array_equal(one[key], two[key]) for key in two)


def test_merge_is_that_of_the_command(tmp_path):
    from streamattn_cli.engine.jobs.merge import merge

    k, v = _arrays()
    parts = [slice(0, 1100), slice(1100, 2000), slice(2000, ROWS)]
    sketches = [_filled(k[part], v[part], **WORDS["nystrom"]) for part in parts]
    names = [str(tmp_path / f"{at}.sattn") for at in range(3)]
    for sketch, name in zip(sketches, names, strict=True):
        sketch.save(name)
    merge(names, str(tmp_path / "all.sattn"))
    sketches[0].merge(*sketches[1:])
    sketches[0].save(tmp_path / "door.sattn")
    assert (tmp_path / "door.sattn").read_bytes() == (tmp_path / "all.sattn").read_bytes()
    for at, sketch in enumerate(sketches[1:], 1):
        sketch.save(tmp_path / "unchanged.sattn")
        assert (tmp_path / "unchanged.sattn").read_bytes() == (tmp_path / f"{at}.sattn").read_bytes()
    assert sketches[0].rows == ROWS
    sketches[0].absorb(k[:5], v[:5])
    assert sketches[0].rows == ROWS + 5


def test_a_failed_absorb_changes_nothing(tmp_path):
    k, v = _arrays()
    sketch = _filled(k[:2000], v[:2000], **WORDS["poly"])
    bad = k[2000:].copy()
    bad[-1, 1, 2] = np.nan
    with pytest.raises(NonFinite, match="row 2599"):
        sketch.absorb(bad, v[2000:])
    with pytest.raises(InputMalformed, match="as before"):
        sketch.absorb(k[:5].astype(np.float64), v[:5])
    sketch.absorb(k[2000:], v[2000:])
    sketch.save(tmp_path / "a.sattn")
    _filled(k, v, **WORDS["poly"]).save(tmp_path / "b.sattn")
    assert (tmp_path / "a.sattn").read_bytes() == (tmp_path / "b.sattn").read_bytes()


def test_an_absorb_that_is_interrupted_halfway_is_not_gone_on_with(monkeypatch):
    k, v = _arrays()
    sketch = _filled(k[:2000], v[:2000], **WORDS["poly"])

    def halfway(*_rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(SketchRun, "absorb_heads", halfway)
    with pytest.raises(KeyboardInterrupt):
        sketch.absorb(k[2000:], v[2000:])
    for use in (lambda: sketch.absorb(k[2000:], v[2000:]), lambda: sketch.query(k[:3])):
        with pytest.raises(UsageError, match="interrupted, and left it half done"):
            use()


def test_a_context_ends_the_threads_and_notes_are_logged(caplog):
    k, v = _arrays()
    with caplog.at_level("INFO", "streamattn"), AttentionSketch(resident_rows=64, threads=2) as sketch:
        sketch.absorb(k, v)
        assert any("the default" in note for note in caplog.messages)
        before = threading.active_count()
    assert threading.active_count() < before and sketch.rows == 0


def test_refusals(tmp_path):
    k, v = _arrays(1100)
    with pytest.raises(UsageError, match="unknown setting windows"):
        AttentionSketch(windows=3)
    with pytest.raises(UsageError, match="is empty"):
        AttentionSketch().query(k)
    with pytest.raises(InputMalformed, match="expected \\(n, heads, dim\\)"):
        AttentionSketch().absorb(k, v[:-1])
    with pytest.raises(InputMalformed, match="query heads of dim 4"):
        _filled(k, v, **WORDS["poly"]).query(k[:, :1])
    with pytest.raises(CannotMeet, match="err by about"):
        _filled(9 * k, v, queries=9 * k, method="poly", degree=2)
    with pytest.raises(CannotMeet, match="keeps no sketch"):
        _filled(k, v, method="exact")
    with pytest.raises(CheckpointIncompatible, match="only sketches of the same parameters"):
        _filled(k, v, **WORDS["poly"]).merge(_filled(k, v, **WORDS["sample"]))
    with pytest.raises(InputMissing, match="nothing.sattn"):
        open_sketch(tmp_path / "nothing.sattn")


@pytest.mark.parametrize("name, value, expected", [
    ("method", "nistrom", "use balance, evict, exact, nystrom, poly"),
    ("method", 3, "expected a word or None"),
    ("effort", "bst", "use fast, default or best"),
    ("polynomial", "odd", "use hermite or taylor"),
    ("nan_policy", None, "expected a word"),
    ("resident_rows", "512x", "--resident-rows 512x: give a number of rows"),
    ("resident_rows", 512.5, "expected a whole number or None"),
    ("threads", True, "expected a whole number or None"),
    ("degree", None, "degree=None found, expected a whole number"),
    ("beta", "1", "expected a number or None"),
    ("max_error", [1], "expected a number"),
    ("memory", "lots", "'lots' is not a size"),
    ("scale", "root", "sqrt"),
    ("scales", 1, "unknown setting scales"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused_at_once(name, value, expected):
    with pytest.raises(UsageError, match=expected) as refusal:
        AttentionSketch(**{name: value})
    assert isinstance(refusal.value, ValueError)


def test_settings_are_read_as_the_command_reads_them():
    k, v = _arrays(30)
    sketch = _filled(k, v, memory="512MiB", scale=np.float32(0.5), resident_rows=np.int64(64), beta=None, max_error=1)
    np.testing.assert_array_equal(sketch.query(k), _filled(k, v, memory=512 << 20, resident_rows=64).query(k))


@pytest.mark.parametrize("dtype", ["i4", "i2", "u4", "?", "c8", "O", ">f4"])
def test_arrays_of_other_dtypes_are_refused_at_once_and_change_nothing(dtype):
    k, v = _arrays(30)
    sketch = AttentionSketch()
    for wrong in ((k.astype(dtype), v), (k, v.astype(dtype))):
        with pytest.raises(InputMalformed, match="found, expected float16, float32 or float64") as refusal:
            sketch.absorb(*wrong)
        assert isinstance(refusal.value, TypeError)
    sketch.absorb(k, v)
    assert sketch.rows == 30
    with pytest.raises(TypeError, match="q: dtype"):
        sketch.query(k.astype(dtype))
    with pytest.raises(TypeError, match="queries: dtype"):
        AttentionSketch(queries=k.astype(dtype))


def test_rows_that_cannot_be_absorbed_do_not_wait():
    k, v = _arrays(1100)
    bad = k.copy()
    bad[-1, 0, 0] = np.inf
    sketch = AttentionSketch(resident_rows=64)
    for _ in range(2):
        with pytest.raises(NonFinite, match="row 1099"):
            sketch.absorb(bad, v)
        assert sketch.rows == 0
    sketch.absorb(k.astype(np.float64), v.astype(np.float64))
    assert sketch.rows == 1100


def test_metadata_says_where_rows_came_from(tmp_path):
    _filled(*_arrays(50), **WORDS["poly"]).save(tmp_path / "s.sattn")
    assert '"kind":"pipe"' in read_header(str(tmp_path / "s.sattn")).meta["source"]


class Tensor:
    """As much of a tensor of PyTorch as is used: it needs `detach` and `cpu`, and NumPy does not know bfloat16."""

    def __init__(self, array, dtype, ready=False):
        self.array, self.dtype, self.ready = array, dtype, ready

    def __array__(self, *_args, **_kwargs):
        raise RuntimeError("can't convert this tensor to numpy")

    def detach(self):
        return Tensor(self.array, self.dtype, self.ready)

    def cpu(self):
        return Tensor(self.array, self.dtype, ready=True)

    def float(self):
        return Tensor(self.array.astype("f4"), "torch.float32", self.ready)

    def numpy(self):
        if not self.ready or self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.array


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_tensors_of_pytorch_are_taken(kind):
    rng = np.random.default_rng(0)
    plain = [rng.standard_normal((1200, 2, 8)).astype("f2" if kind == "float16" else "f4") for _ in range(3)]
    stored = plain
    if kind == "bfloat16":
        stored = [(array.view("u4") >> 16).astype("u2") for array in plain]
        plain = [(array.astype("u4") << 16).view("f4") for array in stored]
    tensors = [Tensor(array, f"torch.{kind}") for array in plain]
    answers = []
    for q, k, v in (stored, tensors):
        sketch = AttentionSketch(queries=q, resident_rows=64)
        sketch.absorb(k, v)
        answers.append(sketch.query(q))
    np.testing.assert_array_equal(*answers)
