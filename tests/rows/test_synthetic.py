"""The made-up rows: what they promise about their statistics, and that no cut or neighbour changes an entry."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamattn_cli.errors import UsageError
from streamattn_cli.rows.synthetic.generated import MAX_ROWS, SyntheticSpec, SyntheticTensor

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
GOLDEN_BITS = ["3fd223bfbb4c62d5", "bfe7be7d7a4821d2"]
HOLDERS = {"f2": np.uint16, "bf16": np.uint16, "f4": np.float32, "f8": np.float64}


def _spec(**words):
    return SyntheticSpec(**{"rows": 300, "dim": 8, "value_dim": 8, "seed": 1, "dtype": "f8"} | words)


def _read(spec, emit, start=0, rows=None):
    tensor = SyntheticTensor(spec, emit)
    buf = np.empty((1, spec.rows - start if rows is None else rows, tensor.width), HOLDERS[spec.dtype])
    done = tensor.read_into(buf, start)
    return buf[0, :done]


def _mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def _naive_hash(seed, stream, row, pair):
    key = _mix(_mix((seed + GOLDEN) & MASK) ^ ((stream * GOLDEN) & MASK))
    return _mix((key + ((row << 20) | pair) * GOLDEN) & MASK)


def _naive_normal(seed, stream, row, column):
    """Box-Muller with the library's logarithm and sines, from the bits that the module's text names."""
    h = _naive_hash(seed, stream, row, column // 2)
    radius = math.sqrt(-2 * math.log(((h >> 32) + 0.5) / 2**32))
    angle = (((h >> 2) & (2**30 - 1)) / 2**30 - 0.5) * math.pi / 2
    x, y = math.cos(angle), math.sin(angle)
    if h & 1:
        x, y = y, x
    if h & 2:
        x, y = -x, -y
    return radius * (y if column % 2 else x)


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
@pytest.mark.parametrize("start", [0, 12345, MAX_ROWS - 5])
def test_entries_are_those_of_a_hash_in_plain_integers(seed, start):
    spec = _spec(rows=MAX_ROWS, dim=5, value_dim=7, kv_heads=1, seed=seed, logit_std=math.sqrt(5.0))
    assert spec.entry_std == pytest.approx(1)
    found = _read(spec, "qkv", start, 5)
    expected = []
    for r in range(start, start + 5):
        q, k, v = ([_naive_normal(seed, s, r, c) for c in range(width)] for s, width in ((1, 5), (2, 5), (3, 7)))
        length = math.sqrt(sum(x * x for x in q))
        expected.append([x * math.sqrt(5.0) / length for x in q] + k + v)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-12)


def test_entries_have_not_changed():
    """Golden bits: the same on every machine, compiled or not, and in every version."""
    first = _read(_spec(logit_std=math.sqrt(8.0)), "k", 0, 1)[0, :2]
    assert [struct.pack(">d", x).hex() for x in first] == GOLDEN_BITS


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 300), max_size=4),
    emit=st.sampled_from(["q", "k", "v", "kv", "qkv"]),
    dtype=st.sampled_from(sorted(HOLDERS)),
    heavy=st.sampled_from([0, 7, 300]),
    dim=st.sampled_from([2, 5, 8]),
)
def test_no_cut_changes_a_byte(cuts, emit, dtype, heavy, dim):
    spec = _spec(rows=300, dim=dim, heads=2, dtype=dtype, heavy=heavy)
    whole = _read(spec, emit)
    edges = sorted({0, 300, *cuts})
    parts = [_read(spec, emit, a, b - a) for a, b in zip(edges, edges[1:], strict=False)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("heavy", [0, 9])
def test_a_tensor_is_the_same_whatever_is_emitted_beside_it(heavy):
    spec = _spec(heads=4, kv_heads=2, value_dim=3, heavy=heavy)
    q, k, v = (_read(spec, part) for part in "qkv")
    assert (q.shape[1], k.shape[1], v.shape[1]) == (32, 16, 6)
    assert np.array_equal(_read(spec, "kv"), np.hstack([k, v]))
    assert np.array_equal(_read(spec, "qkv"), np.hstack([q, k, v]))


def test_wide_rows_and_their_heads_do_not_depend_on_the_width():
    narrow, wide = _read(_spec(rows=3), "k"), _read(_spec(rows=3, heads=2000, kv_heads=2000), "k")
    assert wide.shape == (3, 16000)
    assert np.array_equal(wide[:, :8], narrow)


def test_normal_moments_and_independence():
    rows = 20_000
    x = _read(_spec(rows=rows, value_dim=4), "v")
    error = 1 / math.sqrt(x.size)
    assert abs(x.mean()) < 4 * error
    assert abs(x.var() - 1) < 4 * math.sqrt(2) * error
    assert abs((x**3).mean()) < 4 * math.sqrt(15) * error
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96) * error
    correlations = np.corrcoef(np.hstack([x[1:], x[:-1]]).T) - np.eye(8)
    assert np.abs(correlations).max() < 4.5 / math.sqrt(rows)
    # The share within each of 20 equally likely slices: chi-squared with 19 degrees of freedom.
    edges = np.array([-math.inf, *(_quantile(i / 20) for i in range(1, 20)), math.inf])
    counts = np.histogram(x[:, 1], edges)[0]
    assert ((counts - rows / 20) ** 2 / (rows / 20)).sum() < 50


def _quantile(p):
    low, high = -8.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle / math.sqrt(2)) / 2 + 0.5 < p else (low, middle)
    return low


@pytest.mark.parametrize("heavy", [0, 20])
@pytest.mark.parametrize("sigma, dim, scale", [(0.7, 8, 8**-0.5), (3.0, 64, 1 / 64), (1.0, 3, 1.0)])
def test_logits_have_the_spread_that_was_asked_for(sigma, dim, scale, heavy):
    spec = _spec(rows=2000, dim=dim, scale=scale, logit_std=sigma, heavy=heavy)
    logits = scale * _read(spec, "q") @ _read(spec, "k").T
    ordinary = np.ones(2000, bool)
    ordinary[SyntheticTensor(spec, "k").heavy_rows(0, 2000)[1]] = False
    # The variance of var(q.k) over 2000 x 2000 pairs is ruled by the rows: about 2 (2 / (2000 dim)) relative.
    assert logits[:, ordinary].std() == pytest.approx(sigma, rel=4 * math.sqrt(1 / (2000 * dim)))
    rows = logits[:, ordinary].std(axis=1)
    np.testing.assert_allclose(rows, sigma, rtol=6 * math.sqrt(1 / (2 * 2000)))  # every row, not only their mean


@pytest.mark.parametrize("rows, heavy", [(1000, 1), (1000, 7), (1003, 100), (50, 50)])
def test_heavy_rows(rows, heavy):
    spec = _spec(rows=rows, heavy=heavy, heavy_logit=12.0, scale=0.25, heads=2, value_dim=4)
    q, k, v = (_read(spec, part) for part in "qkv")
    ranks, positions = SyntheticTensor(spec, "v").heavy_rows(0, rows)
    assert ranks.tolist() == list(range(heavy))
    base, longer = divmod(rows, heavy)
    starts = np.cumsum([0] + [base + (i < longer) for i in range(heavy)])
    assert np.all((starts[:-1] <= positions) & (positions < starts[1:]))  # one in each segment
    for head in range(2):
        logits = 0.25 * q[:, head * 8 : head * 8 + 8] @ k[positions].T
        np.testing.assert_allclose(logits, 12.0, rtol=1e-12)
    plain = _read(_spec(rows=rows, value_dim=4), "v")
    shift = v - plain
    expected = np.zeros_like(shift)
    expected[positions, ranks % 4] = 1
    np.testing.assert_allclose(shift, expected, atol=1e-12)


def test_heavy_rows_of_a_range_are_those_of_the_whole():
    tensor = SyntheticTensor(_spec(rows=997, heavy=41), "k")
    ranks, positions = tensor.heavy_rows(0, 997)
    for start, stop in ((0, 1), (100, 250), (996, 997), (400, 400), (0, 997)):
        inside = (positions >= start) & (positions < stop)
        found = tensor.heavy_rows(start, stop)
        assert found[0].tolist() == ranks[inside].tolist() and found[1].tolist() == positions[inside].tolist()


def test_value_mean_moves_every_value_entry_and_nothing_else():
    plain, moved = _spec(), _spec(value_mean=2.5)
    np.testing.assert_allclose(_read(moved, "v") - _read(plain, "v"), 2.5, rtol=1e-13)
    assert np.array_equal(_read(moved, "k"), _read(plain, "k"))


def test_seeds_and_streams_differ():
    a, b = _read(_spec(seed=1), "qkv"), _read(_spec(seed=2), "qkv")
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.06
    q, k, v = a[:, :8], a[:, 8:16], a[:, 16:]
    assert abs(np.corrcoef(np.vstack([q.ravel(), k.ravel(), v.ravel()])) - np.eye(3)).max() < 0.09


def test_narrow_types_are_the_float_rounded():
    wide = _read(_spec(dtype="f4"), "kv")
    half = _read(_spec(dtype="f2"), "kv").view(np.float16)
    assert np.array_equal(half, wide.astype(np.float16))
    brain = (_read(_spec(dtype="bf16"), "kv").astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(brain, wide, rtol=2**-8)
    # Nearest: no neighbour that bfloat16 has is closer.
    step = (_read(_spec(dtype="bf16"), "kv").astype(np.int64)[..., None] + [[[-1, 1]]]).astype(np.uint32) << 16
    assert np.all(np.abs(brain - wide)[..., None] <= np.abs(step.view(np.float32) - wide[..., None]))


def test_single_precision_is_the_double_rounded():
    single, double = _read(_spec(dtype="f4", heads=3), "qkv"), _read(_spec(heads=3), "qkv")
    assert np.array_equal(single[:, 24:], double[:, 24:].astype(np.float32))
    np.testing.assert_allclose(single[:, :24], double[:, :24], rtol=3e-7)  # queries are rounded, then set to length


def test_reading_over_the_end_and_peeking():
    tensor = SyntheticTensor(_spec(rows=10), "kv")
    buf = np.full((1, 8, 16), np.nan)
    assert tensor.read_into(buf, 6) == 4
    assert np.isnan(buf[0, 4:]).all() and not np.isnan(buf[0, :4]).any()
    assert tensor.read_into(buf, 10) == 0
    assert tensor.peek(99).shape == (1, 10, 16)
    assert np.array_equal(tensor.peek(3)[0], _read(_spec(rows=10), "kv", 0, 3))


@pytest.mark.parametrize(
    "words, message",
    [
        ({"rows": 0}, "--rows is 0: it must be at least 1"),
        ({"rows": MAX_ROWS + 1}, "--rows"),
        ({"value_dim": 0}, "--value-dim is 0"),
        ({"logit_std": 0.0}, "--logit-std is 0.0: it must be a finite number above 0"),
        ({"scale": math.nan}, "--scale is nan"),
        ({"value_mean": math.inf}, "--value-mean is inf"),
        ({"heads": 3, "kv_heads": 2}, r"--heads is 3: it must be a multiple of kv_heads \(2\)"),
        ({"seed": -1}, "--seed is -1"),
        ({"dtype": "f3"}, "--dtype is f3: it must be one of f2, bf16, f4, f8"),
        ({"heavy": 301}, r"--heavy is 301: it must be from 0 to the number of rows \(300\)"),
        ({"heavy": 1, "dim": 1}, "--dim is 1: it must be at least 2 when heavy rows are planted"),
        ({"heavy": 1, "heavy_logit": 0.0}, "--heavy-logit is 0.0"),
    ],
)
def test_what_cannot_be_made_is_refused(words, message):
    with pytest.raises(UsageError, match=message):
        _spec(**words)


def test_what_cannot_be_emitted_is_refused():
    with pytest.raises(UsageError, match="--emit is 'vk': it must be one of q, k, v, kv, qkv"):
        SyntheticTensor(_spec(), "vk")
    with pytest.raises(UsageError, match="a row of 1056768 columns"):
        SyntheticTensor(_spec(dim=1032, heads=1024), "q")


def test_the_scratch_it_admits_to_is_the_kernels():
    from streamattn_cli.kernels.synthetic import CHUNK
    from streamattn_cli.rows.synthetic.generated import SCRATCH_PAIRS

    assert SCRATCH_PAIRS == CHUNK
    assert SyntheticTensor(_spec(), "kv").held_bytes == 24 * CHUNK
