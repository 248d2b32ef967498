"""evict with rows of few bits, and with other scores: the conformance suite, naive versions, and what a budget holds."""

from dataclasses import replace

import numpy as np
import pytest
from clirun import SAMPLE, refused, run
from naive_sixbits import orthogonal

from streamattn_cli.errors import UsageError
from streamattn_cli.kernels import coded
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.coding.codedrows import CodedRows, code_bytes
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams, allocate, spec_bytes
from streamattn_cli.sketches.histories.evict import EvictParams
from streamattn_cli.sketches.histories.querymodel import QueryModel
from streamattn_cli.sketches.method import MethodOptions
from streamattn_cli.testing.sketch import LEARNING_LAWS, SKETCH_LAWS, SketchCase
from streamattn_cli.testing.streams import Stream, attention, make_stream

HEAD = HeadParams(64, 64, 0.125, "f4", sinks=4, storage="f2")
STEP = {4: 1 / 14, 6: 1 / 62, 8: 1 / 254}  # half a level, relative to the largest number of a turned row


def head(history, dtype="f4", **words):
    return HeadParams(dim=3, value_dim=2, scale=0.5, dtype=dtype, group=16, history=history, **words)


LEARNING = {
    "4 bits": SketchCase(head(EvictParams(20, 5, bits=4)), step_rows=16, slack=0.6, chooses=True),
    "6 bits, f8": SketchCase(
        head(EvictParams(20, 5, storage="f8", bits=6), "f8", sinks=3), step_rows=16, slack=0.15, chooses=True
    ),
    "8 bits, nothing recent": SketchCase(head(EvictParams(20, 0, bits=8)), step_rows=16, slack=0.05, chooses=True),
    "last": SketchCase(head(EvictParams(20, 5, forget=16.0, score="last")), step_rows=16),
    "expected": SketchCase(head(EvictParams(20, 5, score="expected")), step_rows=16),
    "expected, 6 bits": SketchCase(
        head(EvictParams(20, 5, bits=6, score="expected")), step_rows=16, slack=0.15, chooses=True
    ),
}
PROBED = SketchCase(head(EvictParams(20, 5, probes=7, bits=8)), step_rows=16, slack=0.05, chooses=True)


def name(law):
    return law.__name__


@pytest.mark.parametrize("law", LEARNING_LAWS, ids=name)
@pytest.mark.parametrize("case", LEARNING.values(), ids=LEARNING)
def test_learning_laws(case, law):
    law(case)


@pytest.mark.parametrize("law", SKETCH_LAWS, ids=name)
def test_laws(law):
    law(PROBED)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("dim", [1, 7, 64])
def test_codes_are_the_nearest_levels(bits, dim):
    """Number by number: a bfloat16 scale rounded up, and levels no farther than half of one."""
    rows = np.random.default_rng(dim).standard_normal((9, dim)).astype("f4") * np.logspace(-9, 9, 9)[:, None].astype(
        "f4"
    )
    rows[4] = 0
    codes, scales = np.zeros((9, code_bytes(dim, bits)), "u1"), np.zeros(9, "u2")
    coded.encode(rows.copy(), bits, codes, scales)
    found = np.empty_like(rows)
    coded.decode(codes, scales, bits, found)
    limit, steps = 2 ** (bits - 1) - 1, (scales.astype("u4") << 16).view("f4")
    top = np.abs(rows).max(axis=1)
    assert (steps * np.float32(limit) >= top * (1 - 1e-6)).all()
    assert (steps * limit <= np.maximum(top * (1 + 2**-7), 1e-27)).all()
    levels = np.rint(rows.astype("f8") / steps[:, None].astype("f8"))
    assert np.abs(levels).max() <= limit
    assert np.abs(found - levels * steps[:, None]).max() <= 0.51 * steps.max() and (found[4] == 0).all()
    assert (np.abs(found - rows) <= 0.501 * steps[:, None]).all()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_rows_come_back_but_for_rounding_and_answer_as_they_come_back(bits):
    """Relative to the means, in the turned frame: METHODS.md (B9), with the orthogonal map as a matrix."""
    rng = np.random.default_rng(bits)
    k, c = rng.standard_normal((40, 12)) + 3, np.ones((40, 6))
    c[:, :-1] = rng.standard_normal((40, 5)) - 2
    state = {n: np.zeros(shape, dtype) for n, (shape, dtype) in CodedRows.spec(50, 12, 5, bits).items()}
    kept = CodedRows(state, 12, bits)
    kept.centre[:], kept.mean[:] = k.mean(axis=0), c[:, :-1].mean(axis=0)
    kept.put(3, k, c)
    found = kept.load(3, 43, np.empty((40, 12)), np.empty((40, 6)))
    for x, y, mean in ((k, found[0], kept.centre), (c[:, :-1], found[1][:, :-1], kept.mean)):
        turn = orthogonal(x.shape[1])
        turned = (x - mean) @ turn.T
        apart = (y - mean) @ turn.T - turned
        assert (np.abs(apart) <= STEP[bits] * 1.02 * np.abs(turned).max(axis=1, keepdims=True)).all()
        assert np.abs(apart).max() > 0
    stay = np.zeros(43, bool)
    stay[[3, 20, 42]] = True
    kept.keep(stay)
    after = kept.load(0, 3, np.empty((3, 12)), np.empty((3, 6)))
    assert np.array_equal(after[0], found[0][[0, 17, 39]]) and np.array_equal(after[1], found[1][[0, 17, 39]])


def streamed(params, stream):
    sketch, out = HeadAttention(params), np.empty((*stream.q.shape[:2], params.value_dim), stream.k.dtype)
    sketch.step(stream.q, stream.k, stream.c, out, allocate(params.work_spec()))
    return sketch, out


def test_with_room_for_all_rows_only_rounding_is_wrong():
    """Nothing is evicted: the answers are those of the rows as they come back, and better with more bits."""
    stream, errors = make_stream(300, 3, 2, "f4", heads=2), []
    exact = attention(stream, 0.5, causal=True)
    for bits in (4, 6, 8, 0):
        sketch, out = streamed(head(EvictParams(300, 40, bits=bits)), stream)
        rows = replace(sketch.params, history=None).group * 18  # those that are whole groups in the history
        k, c = sketch.history.held.load()
        assert len(k) == rows
        held = Stream(stream.q[:, -4:], k, c)
        both = np.concatenate([k, stream.k[rows:]]), np.concatenate([c, stream.c[rows:]])
        weights = np.exp(0.5 * held.q @ both[0].T) * (np.arange(300) <= np.arange(296, 300)[:, None])
        expected = weights @ both[1][:, :-1] / weights.sum(axis=2, keepdims=True)
        np.testing.assert_allclose(out[:, -4:], expected, atol=1e-5)
        errors.append(np.linalg.norm(out - exact) / np.linalg.norm(exact))
    assert errors[0] > errors[1] > errors[2] > errors[3] and errors[0] > 4 * errors[2] and errors[3] < 1e-5


@pytest.mark.parametrize("bits", [4, 6, 8, 0])
def test_rounded_rows_are_doubted_though_none_was_evicted(bits):
    """By as much as their rounding may do; answers that saw none of them are exact."""
    stream, params = make_stream(300, 3, 2, "f4", heads=2), head(EvictParams(300, 40, bits=bits))
    sketch, out, doubt = HeadAttention(params), np.empty((2, 300, 2), "f4"), np.empty((2, 300), "f4")
    sketch.step(stream.q, stream.k, stream.c, out, allocate(params.work_spec()), doubt)
    assert (doubt[:, :16] == 0).all() and ((doubt[:, -16:] > 0) == (bits > 0)).all()
    if bits:
        exact = attention(stream, 0.5, causal=True)
        wrong = np.linalg.norm(out - exact, axis=2) / np.linalg.norm(exact, axis=2)
        assert (wrong[:, 100:] < 2 * doubt[:, 100:]).all()


def test_recent_rows_are_not_rounded():
    sketch, _ = streamed(head(EvictParams(100, 32, storage="f4", bits=4)), make_stream(300, 3, 2, "f4"))
    stream = make_stream(300, 3, 2, "f4")
    k, _ = sketch.history.held.load()
    assert np.array_equal(k[-32:], stream.k[288 - 32 : 288]) and not np.isin(k[:-32, 0], stream.k[:, 0]).any()


@pytest.mark.parametrize("score", ["mass", "last", "expected"])
def test_fewer_bits_keep_more_rows_in_the_same_bytes(score):
    kept = []
    for bits in (None, 8, 6, 4):
        options = MethodOptions(resident_rows=200, bits=bits, score=score)
        params = registry.find("evict").settings(HEAD, options, True, None)
        held = spec_bytes(params.state_spec())
        assert 0 <= 200 * params.row_bytes - held < params.row_bytes
        kept.append(params.history.rows)
    assert kept[0] * 1.5 < kept[1] < kept[2] < kept[3]


def test_the_expected_score_is_the_mean_weight_of_gaussian_queries():
    """Against a million draws; rows with long values count more."""
    rng = np.random.default_rng(0)
    params = head(EvictParams(64, 0, score="expected"))
    sketch = HeadAttention(params)
    q = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 3)) + rng.standard_normal(3)
    k, c = rng.standard_normal((6, 3)), np.ones((6, 3))
    c[:, :2] = rng.standard_normal((6, 2)) * 4
    sketch.calibrate(k, c, q.astype("f4"))
    model: QueryModel = sketch.history.model
    covariance = model.covariance() + 0.01 * np.trace(model.covariance()) / 3 * np.eye(3)
    draws = rng.multivariate_normal(q.mean(axis=0), covariance, 1_000_000)
    expected = np.exp(0.5 * draws @ (k - k.mean(axis=0)).T).mean(axis=0) * np.linalg.norm(c[:, :2], axis=1)
    np.testing.assert_allclose(np.exp(sketch.history._expected(model, k, c)), expected, rtol=0.03)


def planted(asked):
    """400 rows; keys 10 and 20 are loud; the queries of rows `asked` look at them, and the others away."""
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((400, 4)) * 0.1, rng.standard_normal((400, 2))
    k[[10, 20], 0] = 6
    q = np.zeros((1, 400, 4))
    q[..., 0] = -1
    q[:, asked, 0] = 1
    return Stream(q, k, np.concatenate([v, np.ones((400, 1))], axis=1))


@pytest.mark.parametrize(("asked", "left"), [
    (slice(None), {"mass": 2, "last": 2, "expected": 2}),
    (slice(0, 240), {"mass": 2, "last": 0, "expected": 2}),
])  # fmt: skip
def test_what_each_score_keeps(asked, left):
    """Rows that were asked for until 160 rows ago are what the last queries alone forget."""
    stream = planted(asked)
    for score, count in left.items():
        history = EvictParams(24, 8, forget=16.0 if score == "last" else 128.0, storage="f8", score=score)
        sketch, _ = streamed(HeadParams(4, 2, 1.0, "f8", group=8, history=history), stream)
        held = sketch.history.held.load()[0][:, 0]
        assert (held == 6).sum() == count, score


@pytest.mark.parametrize("history", [
    EvictParams(60, 16, bits=8), EvictParams(60, 16, bits=6, score="expected"), EvictParams(60, 16, score="expected"),
    EvictParams(60, 16, probes=9, bits=8),
])  # fmt: skip
def test_merged_sketches_are_worth_what_one_is(history):
    """Their centres differ: rows are rounded again, but none is lost, and the newest are exact."""
    stream, params = make_stream(400, 3, 2, "f4", heads=1), head(history)
    exact, work, errors = attention(stream, 0.5, causal=False), allocate(params.work_spec()), []
    for pieces in (1, 3):
        shards = []
        for k, c in zip(np.array_split(stream.k, pieces), np.array_split(stream.c, pieces), strict=True):
            shards.append(HeadAttention(params))
            shards[-1].calibrate(k, c, stream.q.reshape(-1, 3))
            shards[-1].absorb(k, c, work)
        for other in shards[1:]:
            shards[0].merge(other, work)
        shards[0].finish(work)
        assert shards[0].history.kept == 60
        assert np.array_equal(shards[0].history.held.load()[0][-16:], stream.k[-16:].astype("f8"))
        out = np.empty((1, 400, 2), "f4")
        shards[0].answer(stream.q, 0, out, work)
        errors.append(np.linalg.norm(out - exact) / np.linalg.norm(exact))
    assert errors[1] < 1.5 * errors[0] + 0.05


def test_rows_that_were_rounded_before_a_merge_stay_as_they_are():
    stream, params = make_stream(96, 3, 2, "f4", heads=1), head(EvictParams(200, 16, bits=6))
    work, shards = allocate(params.work_spec()), []
    for part in (slice(0, 48), slice(48, 96)):
        shards.append(HeadAttention(params))
        shards[-1].absorb(stream.k[part], stream.c[part], work)
    shards[0].finish(work)
    before = shards[0].state["history.codes"][:32].copy()
    shards[0].merge(shards[1], work)
    assert np.array_equal(shards[0].state["history.codes"][:32], before)


def test_words_that_make_no_sense_are_refused():
    for options, causal, told in (
        (MethodOptions(bits=5), True, "--bits 5: use 4, 6 or 8"),
        (MethodOptions(bits=0), True, "--bits 0: use 4, 6 or 8"),
        (MethodOptions(score="last"), False, "--score last is of causal attention"),
    ):
        with pytest.raises(UsageError, match=told):
            registry.find("evict").settings(HEAD, options, causal, None)
    words = ("attend", SAMPLE / "heads.h5", "--causal", "--method", "evict", "--bits", "7", "-o", "never.npy")
    refused(*words, code=2, words=("--bits 7",))


def test_old_parameters_read_as_they_were_written():
    """Checkpoints of versions that knew neither bits nor scores."""
    assert EvictParams(20, 5).to_dict() == {"rows": 20, "recent": 5, "forget": 128.0, "probes": 0, "storage": "f4"}
    assert EvictParams(**EvictParams(20, 5, bits=4, score="last").to_dict()) == EvictParams(20, 5, bits=4, score="last")


def test_compare_takes_them(tmp_path):
    words = ("compare", SAMPLE / "heads.h5", "--causal", "--rows", "0:3000", "--resident-rows", "150", "--audit", "128", "--json",
             "--methods", "evict,evict:bits=6,evict:score=last,evict:bits=4:score=expected")  # fmt: skip
    trials = run(*words, cwd=tmp_path).document["trials"]
    assert [t["label"] for t in trials if "label" in t] == [
        "evict", "evict:bits=6", "evict:score=last", "evict:bits=4:score=expected",
    ]  # fmt: skip
