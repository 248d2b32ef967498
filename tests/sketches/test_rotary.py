"""`nystrom` with rotary positions: against the loops, as a stream, and on a real head."""

import h5py
import naive_nystrom as naive
import numpy as np
import pytest
from clirun import refused, run
from test_nystrom import APART, HEAD, HEADS, causal, compress, relative, sample_head

from streamattn_cli.kernels import compress as module
from streamattn_cli.kernels import rotary
from streamattn_cli.sketches.headparams import HeadParams, allocate, spec_bytes
from streamattn_cli.sketches.histories.nystromparams import NystromParams, nystrom_params
from streamattn_cli.sketches.histories.querymodel import LOOKBACK, QueryModel
from streamattn_cli.sketches.rope import PAIRS, rope_word, rotation
from streamattn_cli.testing.streams import Stream, attention

THETA = 100.0


@pytest.fixture(autouse=True)
def wrap_around():
    """Without the compiler: the products of hashes overflow on purpose."""
    with np.errstate(over="ignore"):
        yield


def turn(x, pairs, start, stride):
    """x turned by the kernel, in float64."""
    out = x.copy()
    rotary.turn(
        out, (*rotation(rope_word(THETA, pairs), x.shape[1]), 1), float(start), float(stride), np.empty(2 * x.shape[1])
    )
    return out


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("start, stride", [(0, 1), (12345, -1), (-(10**9), 0)])
def test_rows_are_turned_as_the_loops_turn_them(rng, pairs, start, stride):
    x = rng.standard_normal((50, 6))
    expected = [naive.turned(row, start + stride * i, THETA, pairs) for i, row in enumerate(x)]
    np.testing.assert_allclose(turn(x, pairs, start, stride), expected, atol=1e-6)


def test_an_odd_number_is_left_alone(rng):
    x = rng.standard_normal((4, 7))
    out = turn(x, "half", 3, 1)
    np.testing.assert_array_equal(out[:, 6], x[:, 6])
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), np.linalg.norm(x, axis=1))


@pytest.mark.parametrize("turns", [1, 2, 4])
def test_distances_ahead_are_spread_over_all_scales(turns):
    """One in each part of the range, cut evenly in logarithms, and everywhere in it in the course of time."""
    found = np.array([[rotary.ahead(np.uint32(draw), t, turns) for t in range(turns)] for draw in range(500)])
    share = np.log(found / rotary.NEAREST) / np.log(rotary.FARTHER * turns / rotary.NEAREST)
    assert ((share >= np.arange(turns) / turns) & (share <= (np.arange(turns) + 1) / turns)).all()
    mean = (np.arange(turns) + 0.5) / turns
    np.testing.assert_allclose(share.mean(axis=0), mean, atol=0.05 / turns)
    assert len(np.unique(found)) == found.size


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("turns, dtype", [(1, "f8"), (3, "f8"), (2, "f4")])
def test_compression_for_queries_ahead_is_the_naive_one(rng, pairs, turns, dtype):
    """To turn queries forward, as the loops do, and keys back, as the kernel does, is the same."""
    for n, keep, d in ((9, 4, 2), (30, 12, 4), (5, 5, 2)):
        keys, coefs = rng.standard_normal((n, d)) * 2 + 1, rng.standard_normal((n, 3))
        root = rng.standard_normal((d, d))
        mean, covariance = rng.standard_normal(d), root @ root.T + 0.1 * np.eye(d)
        numbers = keys, coefs, mean, covariance, 0.6, 0.8, keep
        index, found = compress(*numbers, dtype, rope_word(THETA, pairs), turns, 70.0, 5)
        positions = [70.0 + rotary.ahead(np.uint32(5), t, turns) for t in range(turns)]
        turning = positions, THETA, pairs
        expected_index, expected = naive.compress(*numbers, module.ALPHA_TURNED, module.RIDGE, APART, turning)
        assert index.tolist() == expected_index.tolist()
        rtol, atol = (1e-5, 1e-6) if dtype == "f8" else (1e-2, 2e-3)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol * np.abs(expected).max())


def stream(rng, rows, heads=3, dim=8):
    q, k, v = rng.standard_normal((heads, rows, dim)), rng.standard_normal((rows, dim)), rng.standard_normal((rows, 4))
    return Stream(*(x.astype("f4") for x in (q, k, np.concatenate([v, np.ones((rows, 1))], axis=1))))


@pytest.mark.parametrize("pairs", PAIRS)
def test_a_stream_learns_its_queries_turned_back(rng, monkeypatch, pairs):
    """Also where a tile does not hold all query heads and the last group is short; nothing is compressed before its end."""
    monkeypatch.setattr(HeadParams, "stack", 2)
    history = NystromParams(200, 100, rope=rope_word(THETA, pairs), turns=2)
    given, params = stream(rng, 45), HeadParams(8, 4, 0.3, "f4", 2, 9, group=8, history=history)
    _, sketch, _ = causal(params, given)
    oracle = naive.QueryModel(2 * 200, LOOKBACK)
    shares = shares_of(given, params)
    for a in range(0, 45, 8):
        rows = range(a, min(a + 8, 45))
        for heads in ((0, 1), (2,)):
            turned = [naive.turned(given.q[h, i], -i, THETA, pairs) for h in heads for i in rows]
            oracle.learn(np.array(turned), [shares[h, i] for h in heads for i in rows], len(rows) * len(heads) / 3)
    mean, covariance = oracle.moments(0)
    np.testing.assert_allclose(sketch.history.queries.arrays[1], mean, atol=1e-5)
    np.testing.assert_allclose(sketch.history.queries.covariance(), covariance, atol=1e-3)
    assert sketch.state["history.query.at"][0] == 45


def shares_of(given, params):
    """The part (heads, n) of each query's mass that lies in the history (A6)."""
    shares = np.zeros(given.q.shape[:2])
    for i in range(given.rows):
        base = params.base(i // params.group)
        p = np.exp(0.3 * given.q[:, i].astype("f8") @ given.k[: i + 1].T)
        shares[:, i] = p[:, 2:base].sum(axis=1) / p.sum(axis=1)
    return shares


def test_models_of_two_streams_pool_where_the_second_follows_the_first(rng):
    """As if the other's queries had come at the positions after ours."""
    rope, models = (*rotation(rope_word(THETA, "half"), 4), 1), []
    for part in range(2):
        state = allocate(QueryModel.state_spec(4, True))
        models.append(QueryModel(state, rope))
        state["query.at"][0] = 37 + part
    q = rng.standard_normal((2, 60, 4)) + np.array([2, 0, 1, 0])
    for model, rows in zip(models, q, strict=True):
        model.learn(rows.astype("f4"), np.ones(60, "f4"), 0, np.empty(QueryModel.scratch_size(4, 60), "f4"))
    models[0].merge(models[1])
    both = np.concatenate([q[0], [naive.turned(row, -37, THETA, "half") for row in q[1]]])
    np.testing.assert_allclose(models[0].arrays[1], both.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(models[0].covariance(), np.cov(both.T, bias=True), atol=1e-3)
    assert models[0].arrays[4][0] == 37 + 38


def test_without_a_rotation_parameters_and_state_are_those_of_before():
    plain, rotating = (nystrom_params(HEAD, 256, "default", stream=4096, rope=rope) for rope in ("", "1e4:half"))
    assert not {"rope", "turns"} & plain.to_dict()["history"]["nystrom"].keys()
    assert not any("query.at" in name for name in plain.state_spec())
    assert HeadParams.from_dict(rotating.to_dict()) == rotating and rotating.history.turns
    assert nystrom_params(HEAD, 256, "default", causal=False, rope="1e4:half").history.rope == ""
    assert spec_bytes(rotating.state_spec()) <= 256 * 256


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_positions_pay_on_a_real_head(effort):
    given, ratios = sample_head(), []
    with h5py.File(HEADS) as file:
        theta = float(file.attrs["rope_theta"])
    exact = attention(given, HEAD.scale, True)
    for rows in (128, 256, 512):
        errors = []
        for rope in ("", rope_word(theta, "interleaved")):
            out, _, _ = causal(nystrom_params(HEAD, rows, effort, rope=rope), given)
            errors.append(relative(out[:, 2048:], exact[:, 2048:]))
        ratios.append(errors[1] / errors[0])
    # .93 with both; another machine's last bits move one of them by 1 to 5%, and small budgets with fast gain nothing
    assert np.exp(np.mean(np.log(ratios))) < 0.97
    assert max(ratios) < 1.08


@pytest.mark.parametrize(
    "theta, pairs", [(1.0, "half"), (float("nan"), "half"), (1e4, "quarter"), (float("inf"), "half")]
)
def test_what_is_no_rotation(theta, pairs):
    with pytest.raises(ValueError):
        rope_word(theta, pairs)


# --- the option and the attributes


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The sample's first rows in files that say everything about their rotation, half of it, and nonsense."""
    folder = tmp_path_factory.mktemp("rope")
    with h5py.File(HEADS) as file:
        arrays = {name: file[name][:1200] for name in "qkv"}
    for name, pairs in (("told", "interleaved"), ("half_told", None), ("wrong", "sideways")):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            for part, rows in arrays.items():
                file[part] = rows
            file.attrs.update({"layout": "THD", "rope_theta": 1e5} | ({"rope_pairs": pairs} if pairs else {}))
    return folder


def answers(told, name, *words):
    """The bytes of the answers, and what was said."""
    out = told / "out.npy"
    done = run("attend", told / f"{name}.h5", "--causal", "--resident-rows", 96, *words, "--force", "-o", out)
    return out.read_bytes(), done.err


def test_the_file_or_the_option_says_how_positions_turn(told):
    by_file, said = answers(told, "told")
    assert "rope 100000:interleaved is taken from the file" in said
    by_option, _ = answers(told, "half_told", "--rope", "1e5:interleaved")
    without, _ = answers(told, "told", "--rope", "none")
    unsaid, said = answers(told, "half_told")
    assert "rope_pairs" in said and "--rope 100000.0:half" in said
    assert by_file == by_option != without == unsaid
    assert answers(told, "told", "--block-rows", 33, "--threads", 2)[0] == by_file


@pytest.mark.parametrize("word", ["1", "nan", "ten", "1e4:both", "1e4:", ":half", "none:half"])
def test_words_of_rope_that_say_nothing_are_2(told, word):
    refused(
        "attend",
        told / "told.h5",
        "--causal",
        f"--rope={word}",
        "-o",
        told / "no.npy",
        code=2,
        words=["--rope", "THETA"],
    )


def test_attributes_that_are_no_rotation_are_4(told):
    words = ("attend", told / "wrong.h5", "--causal", "--resident-rows", 96, "-o", told / "no.npy")
    refused(*words, code=4, words=["rope_pairs", "sideways", "interleaved"])
    run(*words, "--rope", "none")


@pytest.mark.parametrize("words, said", [
    (("--full",), "full attention"), (("--causal", "--method", "window"), "--method window"),
])  # fmt: skip
def test_where_a_rotation_has_no_meaning_that_is_said(told, words, said):
    done = run(
        "attend", told / "told.h5", *words, "--resident-rows", 96, "--rope", "1e4", "--force", "-o", told / "out.npy"
    )
    assert "--rope has no meaning" in done.err and said in done.err
