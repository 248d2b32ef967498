"""Exact attention for held queries: against the oracle, and on a real head."""

from pathlib import Path

import h5py
import naive
import numpy as np
import pytest

from streamattn_cli.sketches.exact import CHUNK, ExactQueries, KeyTiles, ValueMeans
from streamattn_cli.sketches.headparams import allocate
from streamattn_cli.sketches.partial import Partial
from streamattn_cli.sketches.tiles import TILE

HEADS = Path(__file__).parents[2] / "sample_data" / "heads.h5"
ROWS = 1800  # several tiles of keys, a ragged one at the end


def answered(q, k, c, positions, scale):
    held = ExactQueries(q, positions, c.shape[1] - 1, scale)
    work = allocate(held.work_spec(c.shape[1] - 1))
    held.absorb(k, c, work)
    held.finish(work)
    out = np.full((*q.shape[:2], c.shape[1] - 1), np.nan, q.dtype)
    held.outputs(out)
    return out


def with_weights(v):
    return np.column_stack([v, np.ones(len(v))]).astype(v.dtype)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("causal", [True, False])
def test_small_against_the_loops(rng, causal, dtype):
    q, k, v = (rng.standard_normal((30, n)).astype(dtype) * 2 for n in (3, 3, 2))
    found = answered(q[None], k, with_weights(v), np.arange(30) if causal else None, 0.8)[0]
    expected = naive.attention(q, k, v, 0.8, causal)
    assert np.linalg.norm(found - expected) <= {"f4": 2e-6, "f8": 1e-13}[dtype] * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("causal", [True, False])
def test_small_shares_against_the_loops(rng, causal, dtype):
    """Rows 3 to 8 (causal: those of them that are seen), over several tiles of which the first is never seen whole."""
    q, k, v = (rng.standard_normal((TILE + 40, n)).astype(dtype) * 2 for n in (3, 3, 2))
    rows = np.array([0, 3, 5, 9, 20, TILE, TILE + 39])
    ends = np.minimum(rows + 1, 9) if causal else np.full(7, 9)
    held = ExactQueries(q[None, rows], rows if causal else None, 2, 0.8, (3, ends))
    work = allocate(held.work_spec(2))
    held.absorb(k, with_weights(v), work)
    held.finish(work)
    for i, row in enumerate(rows):
        weights = np.exp(0.8 * k[: row + 1 if causal else None].astype("f8") @ q[row].astype("f8"))
        expected = weights[3 : ends[i]].sum() / weights.sum()
        assert held.shares()[0, i] == pytest.approx(expected, rel=1e-5, abs=1e-12)


def float64_attention(q, k, v, scale, first):
    """Float64 softmax, vectorised: q (n, d) at rows first.. (None: full)."""
    logits = scale * q.astype("f8") @ k.astype("f8").T
    if first is not None:
        logits[np.arange(len(k)) > np.arange(first, first + len(q))[:, None]] = -np.inf
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights @ v.astype("f8") / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("causal", [True, False])
def test_a_real_head_to_2e_6(causal):
    """float32 rows, logits of a dozen units: every head within 2e-6 of float64, no row farther than 1e-5."""
    with h5py.File(HEADS) as file:
        q, k, v = (file[name][:ROWS].astype("f4") for name in "qkv")
        scale = float(file.attrs["scale"])
    q, k, v = np.ascontiguousarray(q.transpose(1, 0, 2)), np.ascontiguousarray(k[:, 0]), v[:, 0]
    found = answered(q, k, with_weights(v), np.arange(ROWS) if causal else None, scale)
    for head in range(3):
        expected = float64_attention(q[head], k, v, scale, 0 if causal else None)
        wrong = np.linalg.norm(found[head] - expected, axis=1)
        assert np.linalg.norm(wrong) <= 2e-6 * np.linalg.norm(expected)
        assert (wrong <= 1e-5 * np.linalg.norm(expected, axis=1)).all()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_huge_logits(dtype):
    """Logits of 1e4 and their negatives: the largest wins alone, ties share, nothing overflows."""
    k = np.array([[1e4], [-1e4], [1e4], [0.0]], dtype)
    v = np.array([[2.0], [3], [4], [5]], dtype)
    q = np.array([[[1.0], [-1.0], [0.0]]], dtype)
    found = answered(q, k, with_weights(v), None, 1.0)[0, :, 0]
    np.testing.assert_allclose(found, [3, 3, 3.5], rtol=1e-6)


def test_queries_in_chunks_are_as_good_as_alone(rng):
    """More queries than one tile holds; positions in any order."""
    n = CHUNK + 70
    q, k = rng.standard_normal((2, n, 4)), rng.standard_normal((ROWS, 4))
    c = with_weights(rng.standard_normal((ROWS, 2)))
    positions = rng.permutation(ROWS)[:n]
    found = answered(q, k, c, positions, 0.7)
    for i in (0, CHUNK - 1, CHUNK, n - 1):
        for head in range(2):
            expected = float64_attention(q[head, i : i + 1], k, c[:, :-1], 0.7, positions[i])
            np.testing.assert_allclose(found[head, i], expected[0], rtol=1e-12)


def test_a_query_before_all_keys_gets_nothing():
    """No key seen, or none that counts: zeros."""
    q = np.ones((1, 2, 2))
    assert (answered(q, np.ones((0, 2)), np.ones((0, 3)), None, 1.0) == 0).all()
    assert (answered(q, np.ones((5, 2)), np.zeros((5, 3)), np.array([0, 4]), 1.0) == 0).all()


@pytest.mark.parametrize("sizes", [(1000, 300, 1), (TILE, TILE, 277), (1301,)])
def test_key_tiles_are_aligned_whatever_the_blocks(rng, sizes):
    k, c = rng.standard_normal((1301, 2)), rng.standard_normal((1301, 3))
    tiles, at, seen = KeyTiles(2, 3, "f8"), 0, []
    for size in sizes:
        seen += [(start, a.copy(), b.copy()) for start, a, b in tiles.feed(k[at : at + size], c[at : at + size])]
        at += size
    seen += [(start, a.copy(), b.copy()) for start, a, b in tiles.rest()]
    assert [start for start, _, _ in seen] == [0, TILE, 2 * TILE]
    assert all(a.shape == (TILE, 2) and b.shape == (TILE, 3) for _, a, b in seen)
    for index, whole in ((1, k), (2, c)):
        joined = np.concatenate([tile[index] for tile in seen])
        np.testing.assert_array_equal(joined[:1301], whole)
        assert (joined[1301:] == 0).all()


@pytest.mark.parametrize("sizes", [(700, 1), (1,), (TILE,)])
def test_value_means(rng, sizes):
    """The mean of the values seen up to each position, or of all; weight 0 does not count."""
    c = with_weights(rng.standard_normal((1100, 2)))
    c[::3] = 0
    positions = np.array([1099, 1, 511, 512, 600, 1])
    for place in (positions, None):
        means, at, turn = ValueMeans(place, len(positions), 2), 0, 0
        while at < len(c):
            means.absorb(c[at : at + sizes[turn % len(sizes)]])
            at, turn = at + sizes[turn % len(sizes)], turn + 1
        means.finish()
        ends = [1100] * 6 if place is None else positions + 1
        expected = [c[:end, :2].sum(axis=0) / c[:end, 2].sum() for end in ends]
        np.testing.assert_allclose(means.outputs(), expected, rtol=1e-12)


def test_tokens_that_no_query_of_a_chunk_sees_are_not_looked_at(rng, monkeypatch):
    """Also where the share of the history is counted: half of a large audit's work."""
    n, looked = 3 * TILE, []
    q, k, c = rng.standard_normal((1, n, 4)), rng.standard_normal((n, 4)), np.ones((n, 3))
    held = ExactQueries(q, np.arange(n), 2, 0.5, history=(0, np.arange(n)))
    work = allocate(held.work_spec(2))
    attend = Partial.attend

    def looking(self, *words, **more):
        looked.append(len(words[1]))
        attend(self, *words, **more)

    monkeypatch.setattr(Partial, "attend", looking)
    for a in range(0, n, TILE):
        held.absorb(k[a : a + TILE], c[a : a + TILE], work)
    held.finish(work)
    seen = sum(min(-(-stop // TILE) * TILE, n) for stop in range(CHUNK, n + 1, CHUNK))
    assert 0 < sum(looked) <= seen < n * n // CHUNK
