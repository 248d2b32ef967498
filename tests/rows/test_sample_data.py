"""The sample files are what sample_data/README.md says they are."""

from pathlib import Path

import h5py
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "sample_data"


def test_the_real_head_group():
    with h5py.File(FOLDER / "heads.h5") as heads:
        shapes = {name: (heads[name].shape, heads[name].dtype.str) for name in heads}
        assert shapes == {"q": ((4096, 3, 64), "<f2"), "k": ((4096, 1, 64), "<f2"), "v": ((4096, 1, 64), "<f2")}
        assert (heads.attrs["scale"], heads.attrs["causal"], heads.attrs["layout"]) == (0.125, True, "THD")
        assert (heads.attrs["model"], heads.attrs["layer"]) == ("SmolLM2-135M-Instruct", 14)
        assert all(np.isfinite(heads[name][:]).all() and np.ptp(heads[name][:]) > 1 for name in heads)


def test_both_forms_of_the_tiny_example_are_the_same():
    with h5py.File(FOLDER / "tiny.h5") as tiny:
        assert 2 ** (tiny.attrs["scale"] / np.log(2)) == pytest.approx(2)
        for name in "qkv":
            assert np.array_equal(tiny[name][:], np.load(FOLDER / f"tiny_{name}.npy"))


@pytest.mark.parametrize("causal, expected", [(False, [[3, 4], [5, 5], [4, 4.8]]), (True, [[4, 0], [2, 2], [4, 4.8]])])
def test_the_answers_written_out_by_hand(causal, expected):
    q, k, v = (np.load(FOLDER / f"tiny_{name}.npy").astype(float) for name in "qkv")
    weights = 2.0 ** (q @ k.T) * (np.tri(3) if causal else 1)
    np.testing.assert_allclose(weights @ v / weights.sum(1, keepdims=True), expected, rtol=1e-15)
    text = (FOLDER / "README.md").read_text()
    assert all(f"({a:g}, {b:g})" in text for a, b in expected)
