"""Causal attention step by step from Python: the bytes of the command, however rows are cut."""

import os
import threading

import numpy as np
import pytest
from clirun import record_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from keptruns import METHODS, not_warmed, run, save_stream  # noqa: F401

from streamattn_cli import AttentionSketch, CausalAttention, open_sketch
from streamattn_cli.errors import (
    CannotMeet,
    CheckpointIncompatible,
    InputMalformed,
    MemoryBudget,
    NonFinite,
    UsageError,
)
from streamattn_cli.rows.spec import InputSpec

ROWS = 1700  # 160 resident rows: nystrom's bank is full of exact rows by then, and compresses
pytestmark = pytest.mark.usefixtures("not_warmed")
WORDS = {name: words for name, words in METHODS.items() if "poly" not in name}
WORDS["nystrom with rope"] = WORDS["nystrom"] | {"rope": "10000:half"}


def _arrays(rows=ROWS, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rows, heads, dim)).astype(dtype) for heads, dim in ((4, 4), (2, 4), (2, 6))]


def _stepped(arrays, borders=(), layer=None, **words):
    layer = layer or CausalAttention(**words)
    return np.concatenate(
        [layer.step(*(x[rows] for x in arrays)) for rows in np.split(np.arange(len(arrays[0])), borders)]
    )


def _command(folder, arrays, **words):
    """What `attend --causal` of three pipes writes."""
    for part, array in zip("qkv", arrays, strict=True):
        os.mkfifo(folder / part)

        def feed(part=part, array=array):
            with open(folder / part, "wb") as pipe:
                pipe.write(record_bytes(array))

        threading.Thread(target=feed, daemon=True).start()
    spec = InputSpec(**{part: str(folder / part) for part in "qkv"})
    run(spec, output=str(folder / "out.npy"), causal=True, **words)
    return np.load(folder / "out.npy")


@pytest.mark.parametrize("name", WORDS)
def test_answers_are_those_of_the_command(tmp_path, name):
    arrays = _arrays()
    expected = _command(tmp_path, arrays, **WORDS[name])
    assert np.array_equal(_stepped(arrays, **WORDS[name]), expected)
    assert np.array_equal(_stepped(arrays, [1, 2, 3, 40, 511, 512, 513, 1699], **WORDS[name]), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint16])
def test_dtypes_are_those_of_the_command(tmp_path, dtype):
    arrays = _arrays(700)
    if dtype == np.uint16:
        arrays = [(x.view(np.uint32) >> 16).astype(np.uint16) for x in arrays]
    else:
        arrays = [x.astype(dtype) for x in arrays]
    out = _stepped(arrays, [333], **WORDS["nystrom"])
    assert np.array_equal(out, _command(tmp_path, arrays, **WORDS["nystrom"]))
    assert out.dtype == (np.float64 if dtype == np.float64 else np.float32)


def test_files_that_are_long_enough_are_answered_the_same(tmp_path):
    spec = save_stream(tmp_path, 1300)
    run(spec, output=str(tmp_path / "out.npy"), causal=True, **WORDS["nystrom"])
    arrays = [np.load(tmp_path / f"{part}.npy") for part in "qkv"]
    assert np.array_equal(_stepped(arrays, [77], **WORDS["nystrom"]), np.load(tmp_path / "out.npy"))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, ROWS), max_size=5).map(sorted), st.integers(0, 5), st.sampled_from(sorted(WORDS)))
def test_cuts_and_saving_change_nothing(tmp_path_factory, borders, saved, name):
    folder = tmp_path_factory.mktemp("cuts")
    arrays = _arrays()
    expected = _stepped(arrays, **WORDS[name])
    layer, out = CausalAttention(**WORDS[name]), []
    for at, rows in enumerate(np.split(np.arange(ROWS), borders)):
        out.append(layer.step(*(x[rows] for x in arrays)))
        if at == saved:
            layer.save(folder / "half.sattn")
            again = CausalAttention.load(folder / "half.sattn")
            assert again.rows == layer.rows
            layer = again
    assert layer.rows == ROWS
    assert np.array_equal(np.concatenate(out), expected)


def test_threads_change_nothing():
    arrays = _arrays()
    one, two = (_stepped(arrays, [600], threads=threads, **WORDS["nystrom"]) for threads in (1, 2))
    assert np.array_equal(one, two)


def test_layers_that_take_turns_do_not_disturb_one_another():
    first, second = _arrays(seed=1), _arrays(seed=2)
    layers = [CausalAttention(**WORDS["nystrom"]) for _ in range(2)]
    out = [[], []]
    for rows in np.split(np.arange(ROWS), [100, 600, 1000]):
        for at, arrays in enumerate((first, second)):
            out[at].append(layers[at].step(*(x[rows] for x in arrays)))
    for arrays, answers in zip((first, second), out, strict=True):
        assert np.array_equal(np.concatenate(answers), _stepped(arrays, **WORDS["nystrom"]))


def test_answers_are_causal_attention():
    q, k, v = _arrays(150)
    logits = np.einsum("ihd,jhd->hij", q, np.repeat(k, 2, axis=1)) / 2
    logits[:, ~np.tri(150, dtype=bool)] = -np.inf
    shares = np.exp(logits - logits.max(axis=2, keepdims=True))
    shares /= shares.sum(axis=2, keepdims=True)
    expected = np.einsum("hij,jhd->ihd", shares, np.repeat(v, 2, axis=1))
    out = _stepped((q, k, v), [7, 90], resident_rows=512)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    one = _stepped((q[:, 0], k[:, 0], v[:, 0]), [7], resident_rows=512)
    np.testing.assert_allclose(one, expected[:, 0], rtol=1e-5, atol=1e-6)


def test_the_audit_sees_every_step():
    arrays, seen = _arrays(900), []
    layer = CausalAttention(audit=lambda *given: seen.append(given), **WORDS["nystrom"])
    out = _stepped(arrays, [300, 310], layer)
    assert [given[0] for given in seen] == [0, 300, 310]
    for at in range(4):
        together = np.concatenate([given[1 + at] for given in seen])
        assert np.array_equal(together, (*arrays, out)[at])
    doubt = np.concatenate([given[5] for given in seen])
    assert doubt.shape == (900, 4) and doubt[0, 0] == 0 and doubt[-1].max() > 0


def test_memory_does_not_grow():
    arrays = _arrays()
    layer = CausalAttention(**WORDS["nystrom"])
    assert layer.nbytes == 0
    layer.step(*(x[:5] for x in arrays))
    held = layer.nbytes
    _stepped([x[5:] for x in arrays], [400], layer)
    sketches = sum(array.nbytes for sketch in layer._sketches for array in sketch.state.values())
    waiting = sum(part.nbytes for part in layer._waiting)
    assert waiting and sketches < sketches + waiting <= layer.nbytes == held


def test_a_refused_step_changes_nothing():
    arrays = _arrays()
    layer = CausalAttention(**WORDS["nystrom"])
    before = _stepped([x[:1000] for x in arrays], [], layer)
    for part in range(3):
        bad = [x[1000:].copy() for x in arrays]
        bad[part][-1, 1, 2] = np.nan
        with pytest.raises(NonFinite, match=f"in {'qkv'[part]}, row 1699, head 1"):
            layer.step(*bad)
    with pytest.raises(InputMalformed, match="as before"):
        layer.step(*(x[:5].astype(np.float64) for x in arrays))
    with pytest.raises(InputMalformed, match="expected \\(n, query heads, dim\\)"):
        layer.step(arrays[0][:3], *(x[:5] for x in arrays[1:]))
    after = _stepped([x[1000:] for x in arrays], [], layer)
    assert np.array_equal(np.concatenate([before, after]), _stepped(arrays, **WORDS["nystrom"]))


def test_refusals(tmp_path):
    arrays = _arrays(20)
    for method in ("exact", "auto"):
        with pytest.raises(CannotMeet, match=f"method {method}"):
            CausalAttention(method=method)
    with pytest.raises(CannotMeet, match="first rows"):
        CausalAttention(method="poly").step(*arrays)
    with pytest.raises(UsageError, match="--rope full"):
        CausalAttention(rope="full").step(*arrays)
    with pytest.raises(UsageError, match="rope=3"):
        CausalAttention(rope=3)
    with pytest.raises(UsageError, match="unknown setting local"):
        CausalAttention(locally=3)
    with pytest.raises(MemoryBudget):
        CausalAttention(memory="1MiB").step(*arrays)
    with pytest.raises(UsageError, match="nothing to save"):
        CausalAttention().save(tmp_path / "a.sattn")
    sketch = AttentionSketch()
    sketch.absorb(*arrays[1:])
    sketch.save(tmp_path / "sketch.sattn")
    with pytest.raises(CheckpointIncompatible, match="open_sketch"):
        CausalAttention.load(tmp_path / "sketch.sattn")
    layer = CausalAttention()
    layer.step(*arrays)
    layer.save(tmp_path / "layer.sattn")
    with pytest.raises(CheckpointIncompatible, match="causal"):
        open_sketch(tmp_path / "layer.sattn")
