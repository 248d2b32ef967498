"""Shapes that models have: values of another dim than keys, one key head for 128 query heads, heads as wide as 576."""

import naive_variants
import numpy as np
import pytest
from keptruns import ask, make_sketch, run
from keptruns import not_warmed as not_warmed

from streamattn_cli.rows.spec import InputSpec

pytestmark = pytest.mark.usefixtures("not_warmed")
SHAPES = {  # rows, query heads, key heads, dim, value dim
    "values narrower": (300, 2, 1, 24, 9),
    "values wider": (300, 2, 2, 8, 40),
    "one key head for 128": (120, 128, 1, 16, 16),
    "latent attention": (150, 4, 1, 576, 512),
}


def _spec(folder, shape):
    rows, heads, kv_heads, dim, value_dim = shape
    rng = np.random.default_rng(1)
    for part, (count, width) in {"q": (heads, dim), "k": (kv_heads, dim), "v": (kv_heads, value_dim)}.items():
        np.save(folder / f"{part}.npy", rng.standard_normal((rows, count, width)).astype("f4"))
    return InputSpec(**{part: str(folder / f"{part}.npy") for part in "qkv"}, layout="THD")


def _expected(spec, causal, heads):
    q, k, v = (np.load(getattr(spec, part)) for part in "qkv")
    group, rows = q.shape[1] // k.shape[1], range(len(q)) if causal else None
    scale = 1 / np.sqrt(q.shape[2])
    return np.stack(
        [naive_variants.attention(q[:, h], k[:, h // group], v[:, h // group], scale, rows) for h in heads], axis=1
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("words", [{"method": "exact"}, {"method": "window", "window": 300}], ids=lambda w: w["method"])
def test_exact_answers_against_the_loops(tmp_path, name, causal, words):
    spec, heads = _spec(tmp_path, SHAPES[name]), sorted({0, 1, SHAPES[name][1] - 1})
    run(spec, output=str(tmp_path / "o.npy"), causal=causal, **words)
    found, expected = np.load(tmp_path / "o.npy"), _expected(spec, causal, heads)
    assert found.shape == (SHAPES[name][0], SHAPES[name][1], SHAPES[name][4])
    assert np.linalg.norm(found[:, heads] - expected) <= 3e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_nystrom_of_half_the_rows_is_audited(tmp_path, name, causal):
    """The error told of all rows is that against exact attention, and less than that of the mean of the values."""
    rows, heads, *_ = SHAPES[name]
    spec = _spec(tmp_path, SHAPES[name])
    words = {"method": "nystrom", "resident_rows": rows // 2, "sinks": 2, "buffer": 8, "atoms": rows // 3}
    outcome = run(spec, output=str(tmp_path / "o.npy"), causal=causal, audit=rows, **words)
    run(spec, output=str(tmp_path / "e.npy"), causal=causal, method="exact")
    found, exact = np.load(tmp_path / "o.npy"), np.load(tmp_path / "e.npy")
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert outcome.audit.method.error == pytest.approx(error, rel=1e-3)
    assert error < outcome.audit.trivial.error


def test_a_sketch_of_one_key_head_answers_128(tmp_path):
    spec = _spec(tmp_path, SHAPES["one key head for 128"])
    make_sketch(spec, tmp_path / "s.sattn", method="window", window=120, sinks=0)
    ask(tmp_path / "s.sattn", spec, tmp_path / "o.npy")
    found, expected = np.load(tmp_path / "o.npy"), _expected(spec, False, [0, 77, 127])
    assert np.linalg.norm(found[:, [0, 77, 127]] - expected) <= 3e-6 * np.linalg.norm(expected)
