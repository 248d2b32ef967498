"""--softcap and --logit-bias: logits that models cap or bias, against the loops, by all that have every key."""

import h5py
import naive_variants
import numpy as np
import pytest
from keptruns import METHODS, ask, make_sketch, run, save_stream
from keptruns import not_warmed as not_warmed
from numpy.testing import assert_array_equal

from streamattn_cli import CausalAttention, attend, audit
from streamattn_cli.engine.jobs.merge import merge
from streamattn_cli.engine.jobs.pieces import Piece, narrow
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.errors import CannotMeet, CheckpointIncompatible, InputMalformed, UsageError
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.sketches.bend import standard_slopes

pytestmark = pytest.mark.usefixtures("not_warmed")
ROWS, CAP = 300, 1.5
SLOPES = (0.25, 0.0625, 0.015625, 0.00390625)  # of four heads
BENDS = {
    "softcap": ({"softcap": "1.5"}, {"cap": CAP}, (0.0,) * 4),
    "slopes": ({"logit_bias": "slope"}, {}, SLOPES),
    "both, a sink": ({"softcap": "1.5", "logit_bias": "0.1,-0.05,0,2", "sink_logit": "1,1,1,1"}, {"cap": CAP, "sink": 1.0},
                     (0.1, -0.05, 0.0, 2.0)),
}  # fmt: skip
WORDS = {"softcap": "1.5", "logit_bias": "slope"}


def _spec(folder, rows=ROWS, dtype="f4"):
    """Four query heads on two key heads; logits far enough apart for a cap to matter."""
    spec = save_stream(folder, rows, 2, dtype=dtype)
    np.save(spec.q, 3 * np.random.default_rng(9).standard_normal((rows, 4, 4)).astype(dtype))
    return spec


def _expected(spec, rows, window=None, slopes=SLOPES, **words):
    """All four heads; rows: where each query stands."""
    q, k, v = (np.load(getattr(spec, part)) for part in "qkv")
    heads = [
        naive_variants.attention(
            q[:, h], k[:, h // 2], v[:, h // 2], 0.5, rows, window, words.get("sink"), words.get("cap"), slopes[h]
        )
        for h in range(4)
    ]
    return np.stack(heads, axis=1)


def _error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", BENDS)
@pytest.mark.parametrize(
    "words",
    [
        {"method": "exact"},
        {"method": "window", "window": 300},
        {"method": "nystrom", "local": "33"},
        {"method": "exact", "local": "33"},
    ],
)
def test_exact_answers_against_the_loops(tmp_path, name, words):
    given, naive, slopes = BENDS[name]
    spec = _spec(tmp_path)
    outcome = run(spec, output=str(tmp_path / "o.npy"), causal=True, audit=40, **given, **words)
    window = 33 if "local" in words else None
    assert _error(np.load(tmp_path / "o.npy"), _expected(spec, range(ROWS), window, slopes, **naive)) < 5e-6
    assert words["method"] == "exact" or outcome.audit.method.error < 5e-6
    without = _expected(spec, range(ROWS), window, (0.0,) * 4)
    assert _error(np.load(tmp_path / "o.npy"), without) > 0.05  # the bend matters


def test_doubles(tmp_path):
    spec = _spec(tmp_path, dtype="f8")
    for words in ({"method": "exact"}, {"method": "window", "window": 300}):
        run(spec, output=str(tmp_path / "o.npy"), force=True, causal=True, **WORDS, **words)
        assert _error(np.load(tmp_path / "o.npy"), _expected(spec, range(ROWS), cap=CAP)) < 1e-14


@pytest.mark.parametrize("method", ["exact", "window"])
def test_full_attention_is_capped(tmp_path, method):
    spec = _spec(tmp_path)
    run(spec, output=str(tmp_path / "o.npy"), method=method, resident_rows=500, softcap="1.5")
    assert _error(np.load(tmp_path / "o.npy"), _expected(spec, None, slopes=(0.0,) * 4, cap=CAP)) < 5e-6


def test_a_window_with_sinks_is_audited_and_repaired(tmp_path):
    """Sinks lie far from the window, and have their own rows; what is left out counts as error."""
    spec, out = _spec(tmp_path), tmp_path / "o.npy"
    words = WORDS | {"method": "window", "window": 50, "sinks": 4, "causal": True, "audit": ROWS, "output": str(out)}
    expected = _expected(spec, range(ROWS), cap=CAP)
    outcome = run(spec, **words)
    plain = np.load(out)
    assert outcome.audit.method.error == pytest.approx(_error(plain, expected), rel=1e-3)
    assert outcome.audit.method.error > 0.01
    repaired = run(spec, repair="200", force=True, **words)
    assert repaired.audit.method.error == pytest.approx(_error(np.load(out), expected), rel=1e-3)
    exact = np.linalg.norm(np.load(out) - expected, axis=2) <= 1e-5 * np.linalg.norm(expected, axis=2)
    assert exact.sum() >= 200 * expected.shape[1]
    q, k, v = (np.load(getattr(spec, part)) for part in "qkv")
    mine = [audit(array, q, k, v, rows=ROWS, causal=True, **WORDS).method.error for array in (plain, expected)]
    assert mine[0] == pytest.approx(outcome.audit.method.error, rel=1e-3) and mine[1] < 5e-6
    q, k = q[-1:, 1:2].astype("f8"), k[:, 0].astype("f8")
    seen = [*range(4), *range(ROWS - 50, ROWS)]
    logits = CAP * np.tanh(0.5 * k[seen] @ q[0, 0] / CAP) + SLOPES[1] * (np.array(seen) - (ROWS - 1))
    weights = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(plain[-1, 1], weights @ v[seen, 0], rtol=1e-5, atol=1e-5)


def test_resume_gives_the_same_bytes_and_refuses_another_bend(tmp_path):
    spec, out = _spec(tmp_path), tmp_path / "o.npy"
    words = WORDS | {"method": "window", "window": 50, "causal": True, "output": str(out), "force": True}
    run(spec, **words)
    expected = np.load(out)
    words |= {"checkpoint": str(tmp_path / "c.sattn"), "block_rows": 64}
    run(spec, **words)
    assert_array_equal(np.load(out), expected)
    for other in ({"softcap": "2"}, {"logit_bias": "1,1,1,1"}, {"softcap": "none"}):
        with pytest.raises(CheckpointIncompatible, match="softcap|slopes"):
            run(spec, resume=True, **words | other)


@pytest.mark.parametrize("shards", [None, 2])
def test_sketches_remember_it(tmp_path, shards):
    """Queries stand in the last row."""
    spec, kept = _spec(tmp_path), tmp_path / "s.sattn"
    make_sketch(spec, kept, shards, method="window", window=ROWS, sinks=4, **WORDS)
    found = ask(kept, spec, tmp_path / "o.npy", audit=100, k=spec.k, v=spec.v)
    assert _error(np.load(tmp_path / "o.npy"), _expected(spec, [ROWS - 1] * ROWS, cap=CAP)) < 5e-6
    assert found.audit.method.error < 5e-6
    for other, option in (({"softcap": "1.5"}, "--logit-bias"), ({"logit_bias": "slope"}, "--softcap")):
        make_sketch(spec, tmp_path / "other.sattn", method="window", window=ROWS, sinks=4, force=True, **other)
        with pytest.raises(CheckpointIncompatible, match=f"other {option}"):
            merge([str(kept), str(tmp_path / "other.sattn")], str(tmp_path / "m.sattn"))
    make_sketch(
        InputSpec(k=spec.k, v=spec.v, layout="THD"),
        tmp_path / "k.sattn",
        shards,
        method="window",
        window=ROWS,
        sinks=4,
        **WORDS,
    )
    ask(tmp_path / "k.sattn", spec, tmp_path / "k.npy")  # which knows the slopes when it sees how many heads ask
    assert (tmp_path / "k.npy").read_bytes() == (tmp_path / "o.npy").read_bytes()


def test_sequences_chunks_and_pieces(tmp_path):
    """Rows count within a sequence; fewer queries than keys stand at their end; a piece has the slopes of its heads."""
    spec = _spec(tmp_path)
    q, k, v = (np.load(getattr(spec, part)) for part in "qkv")
    packed = attend(spec.q, spec.k, spec.v, causal=True, method="window", window=300, **WORDS)
    parts = [tmp_path / f"{part}2.npy" for part in "qkv"]
    for path, array in zip(parts, (q, k, v), strict=True):
        np.save(path, np.concatenate([array[:150], array]))
    files = dict(zip("qkv", map(str, parts), strict=True))
    two = InputSpec(**files, layout="THD", starts="0,150,450")
    for method in ({"method": "exact"}, {"method": "window", "window": 300}):
        run(two, output=str(tmp_path / "o.npy"), force=True, causal=True, **WORDS, **method)
        assert _error(np.load(tmp_path / "o.npy")[150:], packed.out) < 5e-6
        chunk = attend(q[-30:], k, v, causal=True, **WORDS, **method).out
        assert _error(chunk, packed.out[-30:]) < 5e-6
    request = AttendRequest(spec, causal=True, method="exact", **WORDS)
    with open_inputs(request.inputs) as inputs:
        assert narrow(resolve(request, inputs), Piece(heads=(1, 2))).bend.slopes == SLOPES[2:]


def test_steps_from_python(tmp_path):
    spec = _spec(tmp_path, 60)
    q, k, v = (np.load(getattr(spec, part)) for part in "qkv")
    layer = CausalAttention(softcap=1.5, logit_bias="slope", method="window", window=60)
    found = [layer.step(q[:25], k[:25], v[:25])]
    layer.save(tmp_path / "layer.sattn")
    found.append(CausalAttention.load(tmp_path / "layer.sattn").step(q[25:], k[25:], v[25:]))
    assert _error(np.concatenate(found), _expected(spec, range(60), cap=CAP)) < 5e-6


def test_the_file_says_it_and_selected_heads_have_their_slopes(tmp_path):
    spec, out = _spec(tmp_path), tmp_path / "o.npy"
    with h5py.File(tmp_path / "dump.h5", "w") as file:
        for part in "qkv":
            file[part] = np.load(getattr(spec, part))
        file.attrs["softcap"], file.attrs["logit_bias"] = CAP, "slope"
    dump, words = str(tmp_path / "dump.h5"), {"output": str(out), "causal": True, "force": True, "method": "exact"}
    outcome = run(InputSpec(dump, layout="THD"), **words)
    expected = _expected(spec, range(ROWS), cap=CAP)
    assert _error(np.load(out), expected) < 5e-6
    assert {"softcap 1.5 is taken from the file", "logit_bias is taken from the file"} <= set(outcome.notes)
    run(InputSpec(dump, layout="THD", select=(1,)), **words)
    assert _error(np.load(out), expected[:, 2:]) < 5e-6
    run(InputSpec(dump, layout="THD"), softcap="none", logit_bias="none", **words)
    assert _error(np.load(out), _expected(spec, range(ROWS), slopes=(0.0,) * 4)) < 5e-6
    run(InputSpec(dump, layout="THD"), **words | {"method": "auto", "resident_rows": 64})
    assert _error(np.load(out), expected) < 5e-6
    with h5py.File(dump, "a") as file:
        file.attrs["logit_bias"], file.attrs["softcap"] = np.array(SLOPES), "much"
    with pytest.raises(InputMalformed, match="attribute softcap much: give a number above 0"):
        run(InputSpec(dump, layout="THD"), **words)
    run(InputSpec(dump, layout="THD"), softcap="1.5", **words)
    assert _error(np.load(out), expected) < 5e-6


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"window"}))
def test_methods_with_a_history_refuse_and_say_who_can(tmp_path, name):
    spec = _spec(tmp_path)
    for words, option in (({"softcap": "50"}, "--softcap"), ({"logit_bias": "slope"}, "--logit-bias")):
        with pytest.raises(CannotMeet, match=f"{option} bends .* use --method exact or window, or --local W"):
            run(spec, output=str(tmp_path / "o.npy"), causal=True, **METHODS[name], **words)


def test_what_cannot_be_is_refused(tmp_path):
    words = {"output": str(tmp_path / "o.npy"), "method": "exact"}
    spec = _spec(tmp_path)
    for cap in ("-1", "nan", "inf", "fifty"):
        with pytest.raises(UsageError, match=f"--softcap {cap}: give a number above 0"):
            run(spec, softcap=cap, **words)
    with pytest.raises(InputMalformed, match="3 numbers found, .* has 4 query heads"):
        run(spec, logit_bias="1,2,3", causal=True, **words)
    with pytest.raises(UsageError, match="--logit-bias needs causal"):
        run(spec, logit_bias="slope", causal=False, **words)


def test_slopes_of_any_number_of_heads():
    """Those of the paper for 8 heads; for 12 the 8 of 8 and every other one of 16, as models define them."""
    assert standard_slopes(8) == tuple(2.0**-i for i in range(1, 9))
    assert standard_slopes(1) == (2.0**-8,)
    sixteen = tuple(2.0 ** (-i / 2) for i in range(1, 17))
    assert standard_slopes(16) == sixteen
    assert standard_slopes(12) == standard_slopes(8) + sixteen[0:8:2]
    assert len(standard_slopes(71)) == 71
