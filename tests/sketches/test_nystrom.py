"""`nystrom` against the loops, on hostile numbers, through the engine, and on a real head at several sizes."""

import os
from dataclasses import replace
from pathlib import Path

import h5py
import naive_nystrom as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamattn_cli.engine.jobs.attend import attend
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import CheckpointIncompatible, UsageError
from streamattn_cli.kernels import blas, dense
from streamattn_cli.kernels import compress as module
from streamattn_cli.kernels import queries as query_kernel
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams, allocate, spec_bytes
from streamattn_cli.sketches.histories import querymodel
from streamattn_cli.sketches.histories.nystrom import NystromHistory, insert_size
from streamattn_cli.sketches.histories.nystromparams import NystromParams, atom_bytes, nystrom_params
from streamattn_cli.sketches.histories.querymodel import QueryModel
from streamattn_cli.sketches.histories.window import window_params
from streamattn_cli.sketches.rope import rotation
from streamattn_cli.testing.streams import Stream, attention

HEADS = Path(__file__).parents[2] / "sample_data" / "heads.h5"


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def causal(params, stream):
    """Causal answers, the sketch and its scratch."""
    sketch, work = HeadAttention(params), allocate(params.work_spec())
    out = np.full((len(stream.q), stream.rows, params.value_dim), np.nan, stream.k.dtype)
    sketch.step(stream.q, stream.k, stream.c, out, work)
    return out, sketch, work


def full(params, stream, pieces=1):
    """Answers over all rows, in so many merged shards; the queries are known beforehand."""
    work, shards = allocate(params.work_spec()), []
    for k, c in zip(np.array_split(stream.k, pieces), np.array_split(stream.c, pieces), strict=True):
        shards.append(HeadAttention(params))
        shards[-1].calibrate(k, c, stream.q.reshape(-1, params.dim))
        shards[-1].absorb(k, c, work)
    for other in shards[1:]:
        shards[0].merge(other, work)
    shards[0].finish(work)
    out = np.full((len(stream.q), stream.q.shape[1], params.value_dim), np.nan, stream.k.dtype)
    shards[0].answer(stream.q, 0, out, work)
    return out, shards[0], work


def compress(keys, coefs, mean, covariance, scale, temper, keep, dtype="f8", rope="", turns=0, now=0.0, draw=0):
    """(indices of the survivors, their coefficients)."""
    (n, d), width = keys.shape, coefs.shape[1]
    scratch, alive = np.full(insert_size(n, d, width, n - keep, rope), np.nan, dtype), np.zeros(n, bool)
    factor = np.linalg.cholesky(covariance).T.astype(dtype, order="C")
    direction = np.linalg.solve(factor.T, mean).astype(dtype)
    x, w = keys.astype(dtype), coefs.astype(dtype)
    turning = (*rotation(rope, d), turns), now, np.uint32(draw)
    module.compress(blas.address(dtype), x, w, factor, direction, scale, temper, keep, *turning, scratch, alive)
    return np.flatnonzero(alive), w[alive]


APART = module.APART, module.STEEP, module.MOST, module.ALIKE


def sample_head(rows=4096):
    """The real head of sample_data: three query heads of one key head."""
    with h5py.File(HEADS) as file:
        q, k, v = (np.ascontiguousarray(file[name][:rows].astype("f4").transpose(1, 0, 2)) for name in "qkv")
    return Stream(q, k[0], np.concatenate([v[0], np.ones((rows, 1), "f4")], axis=1))


HEAD = HeadParams(64, 64, 0.125, "f4", sinks=4, storage="f2")


@pytest.fixture(scope="module")
def real():
    stream = sample_head()
    return stream, np.concatenate([later_answers(stream, a) for a in range(2048, 4096, 256)], axis=1)


def later_answers(stream, a):
    """Exact causal answers of rows a .. a + 256, in float32."""
    logits = 0.125 * stream.q[:, a : a + 256] @ stream.k[: a + 256].T
    logits[:, np.arange(a, a + 256)[:, None] < np.arange(a + 256)] = -np.inf
    p = np.exp(logits - logits.max(axis=2, keepdims=True))
    return p @ stream.v[: a + 256] / p.sum(axis=2, keepdims=True)


# --- against the loops


@pytest.mark.parametrize("bits", [6, 8])
def test_doubt_is_the_naive_one(bits):
    """Of rows of the last group, which the atoms that are left have answered; the last row sees all that there is."""
    stream = sample_head(1024)
    params = nystrom_params(HEAD, 96, "default")
    params = replace(params, history=replace(params.history, bits=bits, recent_bits=12 if bits == 6 else 0))
    sketch, work, out, doubt = HeadAttention(params), allocate(params.work_spec()), *empty(1024)
    sketch.step(stream.q, stream.k, stream.c, out, work, doubt)
    later, again = empty(1)
    sketch.answer(stream.q[:, -1:], 1023, later, work, again)
    np.testing.assert_allclose(doubt[:, -1:], again, rtol=1e-5)
    atoms, coefs = (x.astype("f8") for x in sketch.history._atoms())
    q, k, base = stream.q.astype("f8"), stream.k.astype("f8"), params.base(1023 // params.group)
    for head, row in ((0, 1023), (1, 1020), (2, 1017)):
        exact = np.concatenate([k[:4], k[base : row + 1]])
        words = (q[head, row], 0.125, atoms, coefs[:, -1], exact, sketch.state["range"], out[head, row])
        assert doubt[head, row] == pytest.approx(naive.doubt(*words), rel=1e-3)


def empty(rows):
    """Room for the answers to so many queries of the sample head, and for their doubt."""
    return np.empty((3, rows, 64), "f4"), np.empty((3, rows), "f4")


@pytest.mark.parametrize(("dim", "value_dim", "storage", "bits"), [(1, 1, "f4", 6), (2, 3, "f2", 6), (3, 3, "f2", 8)])
def test_rows_that_take_less_room_than_atoms(rng, dim, value_dim, storage, bits):
    """More of them wait in the bank than atoms have room: those were written beyond it, and the process ended."""
    params = nystrom_params(HeadParams(dim, value_dim, 1.0, "f4", sinks=4, storage=storage), 400, "default")
    params = replace(params, history=replace(params.history, bits=bits, recent_bits=0, atoms=150, active=64))
    assert len(HeadAttention(params).history.exact) > 150
    k, v = rng.standard_normal((900, dim)), rng.standard_normal((900, value_dim))
    c = np.concatenate([v, np.ones((900, 1))], axis=1).astype("f2").astype("f4")
    stream = Stream(rng.standard_normal((1, 900, dim)).astype("f4"), k.astype("f2").astype("f4"), c)
    out, sketch, _ = full(params, stream)
    assert relative(out, attention(stream, 1.0, False)) < 0.05
    assert sketch.history.state["held"][:2].tolist() == [150, 1]
    causal_out, sketch, _ = causal(params, stream)
    assert relative(causal_out, attention(stream, 1.0, True)) < 0.05


def test_doubt_where_nothing_can_be_told(rng):
    """Weights that cancel are doubtful; an answer of 0 among values that differ is not trusted much; equal values are."""
    low, high = np.full((2, 3), -1.0), np.full((2, 3), 1.0)
    y, doubt = (
        np.array([[0.0, 0, 0, 2], [2.0, 2, 2, 2], [3e-200, 0, 0, 1], [1, 1, 1, 1]]),
        np.float32([0.01, 0.01, 0.01, 1]),
    )
    dense.relate(y, low[0], high[0], doubt)
    assert doubt[0] == pytest.approx(1 - 1e-6) and doubt[2] == pytest.approx(1 - 1e-6) and doubt[3] == 1
    assert doubt[1] == pytest.approx(0.03 / 1.03, rel=1e-5)
    doubt = np.float32([0.01, 0.0])
    dense.relate(np.array([[0.0, 0, 0, 2]] * 2), low[0], low[0], doubt)
    assert doubt.tolist() == pytest.approx([0.01 / 1.01, 0])


@pytest.mark.parametrize("temper", [0.8, 1.0])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_compression_is_the_naive_one(rng, temper, dtype):
    """In float32 to what a condition of 1 / RIDGE leaves of it."""
    precise = dtype == "f8"
    for n, keep, d in ((9, 4, 2), (12, 11, 3), (30, 12, 3), (5, 5, 1)):
        keys, coefs = rng.standard_normal((n, d)) * 3 + 1, rng.standard_normal((n, 3))
        root = rng.standard_normal((d, d))
        mean, covariance = rng.standard_normal(d), root @ root.T + 0.1 * np.eye(d)
        index, found = compress(keys, coefs, mean, covariance, 0.6, temper, keep, dtype)
        words = (keys, coefs, mean, covariance, 0.6, temper, keep, module.ALPHA, module.RIDGE, APART)
        expected_index, expected = naive.compress(*words)
        assert index.tolist() == expected_index.tolist()
        top = np.abs(expected).max()
        np.testing.assert_allclose(
            found, expected, rtol=1e-5 if precise else 1e-2, atol=(1e-7 if precise else 1e-3) * top
        )


def test_kernel_is_what_it_stands_for(rng):
    """The closed form is the mean of p_q(k) p_q(k') over Gaussian queries."""
    keys, mean, covariance = rng.standard_normal((6, 2)), np.array([0.5, -1.0]), np.array([[1.0, 0.3], [0.3, 0.5]])
    queries = rng.multivariate_normal(mean, covariance, 20000)
    h, e = naive.kernel(keys, mean, covariance, 0.5, 1.0, 1.0)
    sampled, root = naive.sampled_kernel(keys, 0.5, 1.0, queries)
    np.testing.assert_allclose(h, sampled, atol=0.01)
    # the quadratic part of e counts half in `compress`: the root's log is e + |z|^2/2 (no better on real heads)
    x = keys - keys.mean(axis=0)
    inner = np.linalg.inv(np.linalg.inv(covariance) + 0.5 * x.T @ x / 6)
    whole = e + 0.125 * np.einsum("ij,jk,ik->i", x, inner, x)
    np.testing.assert_allclose(whole - whole[0], root - root[0], atol=0.03)


def test_compression_beats_leaving_atoms_out(rng):
    """Half of the atoms with new coefficients answer much better than the best half with the old ones."""
    keys, coefs = rng.standard_normal((40, 2)), rng.random((40, 2)) + 1
    queries = rng.standard_normal((500, 2))
    index, found = compress(keys, coefs, np.zeros(2), np.eye(2), 0.7, 1.0, 20)
    whole = np.exp(0.7 * queries @ keys.T) @ coefs
    errors = [relative(np.exp(0.7 * queries @ keys[index].T) @ c, whole) for c in (found, 2 * coefs[index])]
    assert errors[0] < 0.01 < 0.1 < errors[1]


def test_keys_far_longer_than_others_stay(rng):
    """However little they matter for queries that are like those before: one of their own may come."""
    keys, coefs, long = rng.standard_normal((40, 16)), rng.random((40, 2)) + 1, [7, 25]
    keys[long] *= 10 / np.linalg.norm(keys[long], axis=1, keepdims=True)
    coefs[long] *= 0.05
    index, found = compress(keys, coefs, np.zeros(16), np.eye(16), 0.25, 0.8, 20)
    assert set(long) <= set(index)
    np.testing.assert_allclose(found[np.isin(index, long)], coefs[long], rtol=0.2)


def test_keys_that_logits_hardly_tell_apart_are_no_needles(rng):
    """What keeps long keys for a query of their own must not hide the little that does tell them apart."""
    q, k, v = (0.4 * rng.standard_normal((1, 4000, 8)).astype("f4") for _ in "qkv")
    stream = Stream(q, k[0], np.concatenate([v[0], np.ones((4000, 1), "f4")], axis=1))
    found, _, _ = full(nystrom_params(HeadParams(8, 8, 8**-0.5, "f4"), 128, "default"), stream)
    p = np.exp(q[0].astype("f8") @ k[0].T * 8**-0.5)
    assert relative(found[0], p @ v[0] / p.sum(axis=1, keepdims=True)) < 0.11


def test_needles_are_found(rng):
    """A key in a direction of its own, once in 128 rows, is asked for much later by one query along it."""
    rows, dim = 4096, 64
    q, k, v = noise(rng, rows, dim)
    needles, asking = np.arange(100, rows // 2, 128), np.arange(rows // 2 + 100, rows, 128)
    directions = rng.standard_normal((len(needles), dim))
    directions *= 12 / np.linalg.norm(directions, axis=1, keepdims=True)
    k[needles] = q[0, asking] = directions
    stream = Stream(*(x.astype("f4") for x in (q, k, np.concatenate([v, np.ones((rows, 1))], axis=1))))
    found, _, _ = causal(nystrom_params(HEAD, 410, "default"), stream)
    assert relative(found[0, asking], v[needles]) < 0.15


@pytest.mark.parametrize("spoil", [1e30, 3e38])
def test_keys_beyond_all_measure_lose_the_smallest(spoil):
    """Where nothing can be said of the keys, nothing is broken: the atoms with the least coefficients go."""
    n, d = 12, 3
    x = np.full((n, d), spoil, "f4") * np.where(np.arange(n) % 2, -1, 1).astype("f4")[:, None]
    w = np.arange(1, n + 1, dtype="f4")[:, None] * np.ones((1, 2), "f4")
    alive = np.zeros(n, bool)
    scratch = np.zeros(insert_size(n, d, 2, 4), "f4")
    numbers = 1.0, 0.8, n - 4, (*rotation("", d), 0), 0.0, np.uint32(0)
    module.compress(blas.address("f4"), x, w, np.eye(d, dtype="f4"), np.zeros(d, "f4"), *numbers, scratch, alive)
    assert alive.sum() == n - 4 and np.isfinite(w[alive]).all()


def learn(model, q, share, rows):
    model.learn(q.astype("f4"), share.astype("f4"), rows, np.empty(QueryModel.scratch_size(q.shape[1], len(q)), "f4"))


def moments(model):
    """Mean and regularised covariance, from the factor that a compression uses."""
    d = len(model.arrays[1])
    upper, direction = np.full((d, d), np.nan, "f4"), np.empty(d, "f4")
    model.factor(upper, direction)
    upper = np.triu(upper).astype("f8")
    return upper.T @ direction, upper.T @ upper


@pytest.mark.parametrize("bits, own, close", [(16, 0.0, 1e-3), (8, query_kernel.OWN, 0.03)])
def test_query_model_is_the_naive_one(rng, bits, own, close):
    """Moments of all queries so far with their weights, to the precision of their correlations."""
    model = QueryModel(allocate(QueryModel.state_spec(4, bits=bits)))
    oracle = naive.QueryModel(querymodel.FORGET, querymodel.LOOKBACK)
    for turn in range(6):
        q = rng.standard_normal((10, 4)) * [1, 2, 0.1, 30] + turn * 0.3
        share, rows = rng.random(10), float(rng.integers(1, 400))
        learn(model, q, share, rows)
        oracle.learn(q, share, rows)
        mean, covariance = moments(model)
        expected_mean, expected = oracle.moments(query_kernel.RIDGE)
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-4, atol=1e-4)
        size = np.sqrt(np.diag(expected))
        expected += own * np.diag(
            np.diag(expected) - query_kernel.RIDGE * np.trace(expected) / (4 + 4 * query_kernel.RIDGE)
        )
        assert (np.abs(covariance - expected) <= 1e-3 + close * np.outer(size, size)).all()


def test_merged_query_models_are_one(rng):
    """Pooling two models is the model of all their queries (of the same age)."""
    q = rng.standard_normal((40, 3)) * [1, 5, 2] + [3, 0, -1]
    parts = [QueryModel(allocate(QueryModel.state_spec(3))) for _ in range(3)]
    for part, rows in zip(parts, (q[:15], q[15:], q), strict=True):
        learn(part, rows, np.full(len(rows), 0.5), 0)
    parts[0].merge(parts[1])
    for found, expected in zip(moments(parts[0]), moments(parts[2]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    empty = QueryModel(allocate(QueryModel.state_spec(3)))
    empty.merge(parts[2])
    np.testing.assert_allclose(moments(empty)[1], moments(parts[2])[1], rtol=1e-3, atol=1e-3)


def test_query_model_without_queries_and_with_hopeless_ones():
    """The unit Gaussian around 0; nothing but finite numbers."""
    model = QueryModel(allocate(QueryModel.state_spec(3)))
    np.testing.assert_array_equal(moments(model)[1], np.eye(3))
    learn(model, np.zeros((4, 3)), np.zeros(4), 4)  # all alike, all zero
    mean, covariance = moments(model)
    assert (mean == 0).all() and np.abs(covariance - 1e-12 * np.eye(3)).max() < 1e-13
    learn(model, np.full((4, 3), 3e38) * [[1], [-1], [1], [-1]], np.ones(4), 4)
    assert all(np.isfinite(part).all() for part in moments(model))


def test_correlations_that_rounding_made_impossible(rng):
    """A covariance of rank 1 is just below positive when its correlations are rounded: the ridge must bear that."""
    model = QueryModel(allocate(QueryModel.state_spec(40)))
    learn(model, rng.standard_normal((60, 1)) * rng.standard_normal(40) * np.geomspace(1e-3, 1e3, 40), np.ones(60), 0)
    mean, covariance = moments(model)
    plain = model.covariance()
    ridge = query_kernel.RIDGE * np.trace(plain) / 40
    np.testing.assert_allclose(covariance, plain + ridge * np.eye(40), atol=1e-5 * np.trace(plain))


def test_correlations_of_eight_bits_that_rounding_made_impossible(rng):
    """With a few loud channels the ridge of the mean does not reach what rounding takes from the others; one in proportion to
    each variance does. Without it the model was given up (a real head: .50 instead of .05)."""
    model = QueryModel(allocate(QueryModel.state_spec(40, bits=8)))
    loud = np.geomspace(1e-3, 1e3, 40)
    learn(model, (rng.standard_normal((60, 2)) @ rng.standard_normal((2, 40))) * loud, np.ones(60), 0)
    covariance, plain = moments(model)[1], model.covariance()
    own = np.diag(covariance - plain - query_kernel.RIDGE * np.trace(plain) / 40 * np.eye(40)) / np.diag(plain)
    doubled = np.log2(own[[-1, -5]] / query_kernel.OWN)
    assert np.abs(doubled - round(doubled[0])).max() < 0.01 and -0.01 < doubled[0] < 3.01
    off = (covariance - plain) / np.outer(loud, loud)
    assert np.abs(off - np.diag(np.diag(off))).max() < 1e-3
    assert np.linalg.eigvalsh(plain / np.outer(loud, loud))[0] < 0  # or nothing was tested


@pytest.mark.parametrize(
    "dim, rows, bits", [(64, 160, 8), (64, 300, 8), (64, 330, 16), (128, 600, 8), (256, 1024, 8), (8, 96, 16)]
)
def test_the_model_of_the_queries_takes_eight_bits_where_sixteen_are_a_large_part(dim, rows, bits):
    params = nystrom_params(HeadParams(dim, dim, 0.1, "f4", sinks=4, storage="f2"), rows, "default")
    assert params.history.model_bits == bits
    assert 0 <= rows * params.row_bytes - spec_bytes(params.state_spec()) < atom_bytes(dim, dim, 6)


# --- in one go


class GroupByGroup(NystromHistory):
    """The same history, which HeadAttention leads through a stream with one small kernel after the other."""

    step = None

    def learn(self, q, share, rows, work):
        self.queries.learn(q, share, rows, work["fit"], self.params.forget)


@pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT") != "1", reason="compiled code may round elsewhere: see test_nojit"
)
@pytest.mark.parametrize("sinks, window, rows", [(4, 17, 90), (0, 1, 96), (11, 1, 75), (40, 9, 109)])
@pytest.mark.parametrize(
    "bits, recent, storage", [(6, 0, "f4"), (6, 12, "f4"), (6, 12, "bf16"), (8, 0, "f4"), (16, 0, "bf16")]
)
def test_one_kernel_for_whole_streams_does_what_many_do(rng, monkeypatch, sinks, window, rows, bits, recent, storage):
    """Bit by bit, in answers, state and counts; with dropped rows, several tiles of heads and a short last group."""
    q, k, v = (x.astype("f4") for x in noise(rng, rows, 8, 5))
    c = np.concatenate([v, np.ones((rows, 1), "f4")], axis=1)
    lost = rng.random(rows) < 0.15
    k[lost], c[lost] = 0, 0
    if storage == "bf16":
        k, c = ((x.view("u4") & np.uint32(0xFFFF0000)).view("f4") for x in (k, c))
    history = NystromParams(atoms=24, active=12, bits=bits, storage=storage, recent_bits=recent)
    params = HeadParams(8, 8, 0.3, "f4", sinks, window, group=8, history=history, storage=storage)
    monkeypatch.setattr(HeadParams, "stack", 2)
    found = [causal(params, Stream(q, k, c))]
    monkeypatch.setattr(registry, "history_of", lambda params: GroupByGroup)
    found.append(causal(params, Stream(q, k, c)))
    (out, sketch, work), (expected, other, others) = found
    assert isinstance(other.history, GroupByGroup) and sketch.state["history.held"][3] > 1
    np.testing.assert_array_equal(out, expected)
    for name, array in sketch.state.items():
        np.testing.assert_array_equal(array, other.state[name], err_msg=name)
    np.testing.assert_array_equal(work["counts"], others["counts"])


# --- hostile numbers


def noise(rng, rows=1500, dim=64, heads=1):
    q, k, v = (rng.standard_normal((n, rows, dim)) for n in (heads, 1, 1))
    return q, k[0], v[0]


HOSTILE = {  # what happens to q, k, v; the largest allowed relative error at R = 192
    "plain": (lambda q, k, v: (q, k, v), 1.1),
    "common offset, raw logits of 1e4": (lambda q, k, v: (q + 3, k + 400, v), 1.1),
    "keys offset, no mean query": (lambda q, k, v: (q, k + 1000 * np.linspace(-1, 1, 64), v), 1.1),
    "sharp": (lambda q, k, v: (5 * q, 4 * k, v), 2.0),
    "constant keys": (lambda q, k, v: (q, 0 * k + 1, v), 0.5),
    "duplicate rows": (lambda q, k, v: (q, np.tile(k[:10], (150, 1)), np.tile(v[:10], (150, 1))), 0.05),
    "constant queries": (lambda q, k, v: (0 * q + 0.5, k, v), 0.2),
    "zero queries": (lambda q, k, v: (0 * q, k, v), 0.2),
    "equal values": (lambda q, k, v: (q, k, 0 * v + 3), 1e-3),
    "zero values": (lambda q, k, v: (q, k, 0 * v), None),
    "values of 1e6": (lambda q, k, v: (q, k, 1e6 * v), 1.1),
    "one channel of 1e6": (lambda q, k, v: (q, k, v * np.r_[1e6, np.ones(63)]), 1.1),
    "one loud key channel": (lambda q, k, v: (q, k * np.r_[100, np.ones(63)], v), 1.5),
    "tiny": (lambda q, k, v: (1e-6 * q, 1e-6 * k, 1e-6 * v), 1.1),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("storage, rope", [("f4", ""), ("bf16", ""), ("f4", "1e4:half")])
def test_hostile_streams(rng, name, storage, rope):
    """Finite, within the range of the values, nothing guarded beyond a few, and no worse than the problem is hard."""
    change, bound = HOSTILE[name]
    q, k, v = (np.ascontiguousarray(x, "f4") for x in change(*noise(rng)))
    if storage == "bf16":
        k, v = ((x.view("u4") & np.uint32(0xFFFF0000)).view("f4") for x in (k, v))
    stream = Stream(q, k, np.concatenate([v, np.ones((len(v), 1), "f4")], axis=1))
    params = nystrom_params(replace(HEAD, storage=storage), 192, "default", rope=rope)
    out, _, work = causal(params, stream)
    assert np.isfinite(out).all()
    slack = 1e-3 * np.abs(v).max()  # twelve bits
    assert (out >= v.min(axis=0) - slack).all() and (out <= v.max(axis=0) + slack).all()
    guarded, unanswered = work["counts"][1:]
    assert guarded <= 15 and unanswered == 0
    exact = attention(stream, HEAD.scale, causal=True)
    if bound is None:
        assert (out == 0).all()
    else:
        assert relative(out[:, 750:], exact[:, 750:]) <= bound


def test_float16_extremes(rng):
    """Keys up to the largest half-precision number; one key takes everything, and the answer is one of the values."""
    q, k, v = noise(rng)
    k, v = (np.clip(x, -65504, 65504).astype("f2").astype("f4") for x in (3e4 * k, 6e4 * v))
    stream = Stream(np.ascontiguousarray(100 * q, "f4"), k, np.concatenate([v, np.ones((len(v), 1), "f4")], axis=1))
    for rope in ("", "1e4:interleaved"):
        out, _, _ = causal(nystrom_params(HEAD, 192, "default", rope=rope), stream)
        assert np.isfinite(out).all() and np.abs(out).max() <= 65504 * 1.002


def test_wide_heads(rng):
    """d = 256: the statistics take a good part of a small budget, and the answers stay near the window's or better."""
    q, k, v = (x.astype("f4") for x in noise(rng, 1200, 256, 2))
    stream = Stream(2 * q, k, np.concatenate([v, np.ones((len(v), 1), "f4")], axis=1))
    head = HeadParams(256, 256, 1 / 16, "f4", sinks=4, storage="f4")
    params = nystrom_params(head, 512, "default")
    assert spec_bytes(params.state_spec()) <= 512 * params.row_bytes
    exact = attention(stream, 1 / 16, causal=True)[:, 600:]
    ours, window = (causal(p, stream)[0][:, 600:] for p in (params, window_params(head, 512)))
    assert np.isfinite(ours).all()
    assert relative(ours, exact) < relative(window, exact)


@pytest.mark.parametrize("rows", [1, 63, 128])
def test_short_streams_are_exact(rng, rows):
    """As long as nothing has to be compressed, the bank holds the rows themselves."""
    q, k, v = (x[..., :rows, :].astype("f2").astype("f4") for x in noise(rng, 200))
    stream = Stream(3 * q, k, np.concatenate([v, np.ones((rows, 1), "f4")], axis=1))
    params = nystrom_params(HEAD, 192, "default")
    for way, is_causal in ((causal, True), (full, False)):
        assert relative(way(params, stream)[0], attention(stream, 0.125, is_causal)) < 1e-5


# --- memory


@settings(max_examples=60)
@given(
    st.integers(128, 5000), st.sampled_from([1, 4, 16, 64, 80, 128, 256]), st.sampled_from([1, 8, 64, 128, 256]),
    st.sampled_from(["f2", "bf16", "f4", "f8"]), st.sampled_from(["fast", "default", "best"]), st.booleans(),
)  # fmt: skip
def test_state_fits_the_budget(rows, dim, value_dim, storage, effort, is_causal):
    """Everything resident is at most R rows, and little less."""
    head = HeadParams(dim, value_dim, 0.1, "f8" if storage == "f8" else "f4", sinks=4, storage=storage)
    try:
        params = nystrom_params(head, rows, effort, causal=is_causal)
    except UsageError:
        assert rows < 2048  # room for the statistics of wide heads with narrow values
        return
    budget, held = rows * params.row_bytes, spec_bytes(params.state_spec())
    assert held <= budget
    assert budget - held < 4 * (dim + 2 * value_dim) + 16  # less than one atom
    state = HeadAttention(params).state
    assert sum(array.nbytes for array in state.values()) == held


def test_a_budget_below_the_statistics_is_refused_with_what_would_do():
    with pytest.raises(UsageError, match="give --resident-rows") as refusal:
        nystrom_params(HEAD, 20, "default")
    enough = int(str(refusal.value).split("--resident-rows ")[2].split()[0])
    assert nystrom_params(HEAD, enough + 8, "default").history.atoms > 0


# --- the same bytes


@pytest.fixture
def run(tmp_path):
    """Answers of the sample head by the engine, as bytes."""

    def run(name, **words):
        request = AttendRequest(
            InputSpec(input=str(HEADS), rows=(0, 1500)), str(tmp_path / f"{name}.npy"), method="nystrom", resident_rows=256,
            **words,
        )  # fmt: skip
        attend(request, lambda event: None, Interrupts())
        return np.load(tmp_path / f"{name}.npy").tobytes()

    return run


@pytest.mark.parametrize("is_causal", [True, False])
def test_threads_and_blocks_change_nothing(run, is_causal):
    expected = run("a", causal=is_causal, threads=1)
    for threads, block_rows in ((2, 160), (1, 512), (2, 1)):
        assert run("b", causal=is_causal, threads=threads, block_rows=block_rows, force=True) == expected


def test_resume_at_every_group(real):
    """Copies of the state arrays, taken after any group, go on to the same answers and the same state."""
    stream = real[0].head(700)
    params = nystrom_params(HEAD, 160, "default")
    expected, whole, _ = causal(params, stream)
    sketch, work = HeadAttention(params), allocate(params.work_spec())
    out = np.empty_like(expected)
    for a in range(0, 700, params.group):
        b = min(a + params.group, 700)
        sketch = HeadAttention(params, {name: array.copy() for name, array in sketch.state.items()})
        sketch.step(stream.q[:, a:b], stream.k[a:b], stream.c[a:b], out[:, a:b], work)
    assert out.tobytes() == expected.tobytes()
    assert all(sketch.state[name].tobytes() == array.tobytes() for name, array in whole.state.items())


# --- merging


@pytest.mark.parametrize("pieces", [2, 16])
def test_merged_shards_answer_like_one_pass(real, pieces):
    """Full attention over 4,096 rows in shards: at most 1.1 times the error of one pass."""
    stream = Stream(real[0].q[:, ::16], real[0].k, real[0].c)
    params = nystrom_params(HEAD, 256, "default", causal=False)
    exact = attention(stream, 0.125, causal=False)
    one, many = (full(params, stream, n) for n in (1, pieces))
    assert relative(many[0], exact) <= 1.1 * relative(one[0], exact)
    assert many[1].rows == 4096 and many[2]["counts"][1] == 0


def test_merging_what_is_not_full_is_exact(rng):
    """Shards whose banks still hold exact rows: so does the merged one, byte for byte what one pass gives."""
    q, k, v = (x[..., :150, :].astype("f2").astype("f4") for x in noise(rng, 200))
    stream = Stream(q, k, np.concatenate([v, np.ones((150, 1), "f4")], axis=1))
    params = nystrom_params(HEAD, 256, "default", causal=False)
    for pieces in (1, 2, 5):
        found, sketch, _ = full(params, stream, pieces)
        assert relative(found, attention(stream, 0.125, causal=False)) < 1e-5
        assert sketch.state["history.held"][1] == 0


@pytest.mark.parametrize("change", [{"scale": 0.5}, {"dim": 32}, {"value_dim": 8}, {"window": 9}])
def test_unlike_sketches_do_not_merge(change):
    params = nystrom_params(HEAD, 256, "default")
    sketches = [HeadAttention(p) for p in (params, replace(params, **change))]
    with pytest.raises(CheckpointIncompatible, match="differ"):
        sketches[0].merge(sketches[1], allocate(params.work_spec()))


# --- a real head


def error(params, real):
    stream, exact = real
    out, _, work = causal(params, stream)
    assert work["counts"][1] == 0  # z <= 0
    return relative(out[:, 2048:], exact)


def test_real_head_is_answered_well(real):
    """Bounds measured on the sample head, with a margin; far below the window's."""
    for rows, bound in ((384, 0.018), (1024, 0.0036)):
        ours = error(nystrom_params(HEAD, rows, "default", stream=4096), real)
        assert ours <= bound
        assert ours < 0.3 * error(window_params(HEAD, rows), real)


def test_fast_compresses_half_as_often_for_a_seventh_more_error(real):
    """In slices of the same size: 1.01 to 1.27 times the error; a row of the buffer is nearly two atoms of eight bits."""
    ratios = []
    for rows in (128, 256, 640, 1024):
        ours = nystrom_params(HEAD, rows, "fast")
        often = nystrom_params(HEAD, rows, "fast", buffer=ours.group // 2)
        often = replace(often, history=replace(often.history, active=ours.history.active))
        ratios.append(error(ours, real) / error(often, real))
    assert np.prod(ratios) ** 0.25 <= 1.15 and max(ratios) <= 1.28


@pytest.mark.parametrize("rope, forgets", [("", [32, 191, 256]), ("1e5:half", [200, 512, 512])])
def test_few_atoms_forget_soon(rope, forgets):
    history = nystrom_params(HEAD, 512, "default", rope=rope).history
    assert [replace(history, atoms=atoms).forget for atoms in (100, 764, 2000)] == forgets


def test_without_positions_small_budgets_follow_the_queries(real, monkeypatch):
    """Keys of the sample head are turned: what queries looked for 256 rows ago is nothing that they look for now."""
    params = nystrom_params(HEAD, 82, "default")
    ours = relative(causal(params, real[0])[0][:, 2048:], real[1])
    monkeypatch.setattr(NystromParams, "forget", 256.0)
    assert ours < 0.9 * relative(causal(params, real[0])[0][:, 2048:], real[1])


@pytest.mark.parametrize(
    "rows, effort, stream, bits, group, window",
    [
        (511, "default", None, 6, 32, 65),
        (512, "default", None, 6, 64, 129),
        (512, "best", None, 6, 64, 129),
        (512, "default", 6 * 512, 8, 32, 65),
        (511, "fast", None, 8, 32, 65),
        (512, "fast", None, 8, 64, 129),
        (512, "fast", 6 * 512, 8, 64, 65),
    ],
)
def test_layout_of_budgets(rows, effort, stream, bits, group, window):
    """Long streams get larger groups and windows from 512 rows on; `fast` keeps eight bits."""
    params = nystrom_params(HEAD, rows, effort, stream=stream)
    assert (params.history.bits, params.group, params.window) == (bits, group, window)
    assert params.history.recent_bits == (12 if bits == 6 else 0)


def test_short_streams_are_worse_off_with_the_layout_of_long_ones(real):
    """Their atoms have eight bits, and are few rows each. Of the sample head, a fifth to a quarter."""
    ours = nystrom_params(HEAD, 1024, "default", stream=4096)
    other = nystrom_params(HEAD, 1024, "default", stream=4096, buffer=64, window=321)
    assert error(ours, real) < 0.9 * error(other, real)


@pytest.mark.parametrize("rope", ["", "1e5:interleaved"])
@pytest.mark.parametrize("rows", [96, 192, 512, 1024])
def test_more_effort_is_never_less_accurate(real, rows, rope):
    """Within 5%, also where the slices of `best` would be all atoms, and its positions ahead too many for them."""
    errors = [error(nystrom_params(HEAD, rows, effort, rope=rope), real) for effort in ("fast", "default", "best")]
    assert errors[1] <= 1.05 * errors[0] and errors[2] <= 1.05 * errors[1]


def test_error_falls_with_memory(real):
    """Monotone within 5%, down to rounding where every row fits."""
    errors = [error(nystrom_params(HEAD, rows, "default"), real) for rows in (128, 256, 512, 1024, 2048)]
    assert all(b <= 1.05 * a for a, b in zip(errors, errors[1:], strict=False))
    params = nystrom_params(HEAD, 4096 + 256, "default")
    assert error(params, real) < 2e-6
