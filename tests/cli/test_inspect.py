"""`inspect`: what it says of inputs whose answer is known."""

import math

import h5py
import numpy as np
import pytest
from clirun import run

from streamattn_cli.engine.jobs.inspect import _not_finite, inspect
from streamattn_cli.engine.planning.adviser import predicted_poly_error
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.synthetic.generated import SyntheticSpec, SyntheticTensor

SAMPLE = "sample_data/heads.h5"


def look(scale=None, **words):
    """The report on an input."""
    return inspect(InputSpec(**words), scale, lambda event: None, Interrupts())


def made(path, rows, dim, std, value_dim=4):
    """An HDF5 file of generated rows whose logits have a known spread at the scale 1/sqrt(dim)."""
    spec = SyntheticSpec(rows=rows, dim=dim, value_dim=value_dim, logit_std=std, scale=dim**-0.5, seed=3)
    tensor = SyntheticTensor(spec, "qkv")
    items = np.empty((1, rows, tensor.width), "f4")
    tensor.read_into(items, 0)
    with h5py.File(path, "w") as file:
        for name, a, b in (("q", 0, dim), ("k", dim, 2 * dim), ("v", 2 * dim, 2 * dim + value_dim)):
            file[name] = items[0, :, None, a:b]
        file.attrs["layout"] = "THD"
    return str(path)


def test_real_heads_are_described_and_poly_is_not_advised():
    report = look(input=SAMPLE)
    shapes = {t["part"]: (t["rows"], t["heads"], t["dim"], t["dtype"], t["not_finite"]) for t in report["tensors"]}
    assert shapes == {"q": (4096, 3, 64, "f2", 0), "k": (4096, 1, 64, "f2", 0), "v": (4096, 1, 64, "f2", 0)}
    assert report["logits"]["causal"] is True and len(report["logits"]["row_std"]) == 3
    assert all(2 < std < 6 for std in report["logits"]["row_std"])
    assert "poly" not in report["advice"].split(":")[0]


@pytest.mark.parametrize("std", [0.3, 0.7, 2.0])
def test_the_spread_of_logits_is_measured(tmp_path, std):
    report = look(input=made(tmp_path / "x.h5", 3000, 8, std))
    assert report["logits"]["row_std"][0] == pytest.approx(std, rel=0.06)


def test_advice_follows_the_spread(tmp_path):
    cases = {"flat": (20000, 0.3, "poly --degree 4"), "wide": (20000, 5.0, "nystrom"), "short": (2000, 0.3, "exact")}
    for name, (rows, std, expected) in cases.items():
        path = made(tmp_path / f"{name}.h5", rows, 8, std)
        advice = look(input=path)["advice"]
        assert advice.startswith(f"--method {expected}: "), advice
        notes = run("attend", path, "--full", "--method", "auto", "--dry-run", "--json").document["notes"]
        assert f"--method auto takes {advice.removeprefix('--method ')}" in notes


def test_the_scale_given_wins_over_the_default(tmp_path):
    path = made(tmp_path / "x.h5", 2000, 8, 0.7)
    plain, scaled = look(input=path), look("d", input=path)
    assert scaled["logits"]["row_std"][0] == pytest.approx(plain["logits"]["row_std"][0] / math.sqrt(8), rel=1e-6)


def test_predicted_error_is_the_lost_part_of_the_hermite_series():
    for degree, std in ((1, 0.5), (4, 0.7), (6, 1.3)):
        weights = [math.exp(-(std**2)) * std ** (2 * l) / math.factorial(l) for l in range(80)]
        assert predicted_poly_error(degree, std) == pytest.approx(math.sqrt(sum(weights[degree + 1 :])), rel=1e-6)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_items_that_are_not_finite_are_counted(tmp_path, dtype):
    rng = np.random.default_rng(0)
    parts = {name: rng.standard_normal((50, 4)).astype(dtype) for name in "qkv"}
    parts["k"][7, 1], parts["k"][9, 0], parts["v"][3, 3] = np.nan, np.inf, -np.inf
    paths = {}
    for name, array in parts.items():
        paths[name] = str(tmp_path / f"{name}.npy")
        np.save(paths[name], array)
    counts = {t["part"]: t["not_finite"] for t in look(**paths)["tensors"]}
    assert counts == {"q": 0, "k": 2, "v": 1}


@pytest.mark.parametrize("dtype", ["f2", "bf16", "f4", "f8"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_item_that_is_not_finite_is_found_among_the_largest(dtype, bad):
    """The first look is at maxima of bit patterns: the sign must not hide anything, nor the largest number count."""
    largest = float(np.finfo("f4" if dtype == "bf16" else dtype).max) * 0.99  # finite as bfloat16, too
    numbers = np.array([0.0, -0.0, largest, -largest, 1e-5, -1.0], "f8")

    def stored(x):
        return (
            (x.astype("f4").view("u4") >> 16).astype("u2") if dtype == "bf16" else x.astype(dtype).view(f"u{dtype[1]}")
        )

    holder = {"bf16": "u2", "f2": "u2"}.get(dtype, dtype)
    assert _not_finite(stored(numbers).view(holder), dtype) == 0
    assert _not_finite(stored(np.array([-1.0, -largest])).view(holder), dtype) == 0
    for at in range(len(numbers)):
        spoilt = numbers.copy()
        spoilt[at] = bad
        assert _not_finite(stored(spoilt).view(holder), dtype) == 1
    assert _not_finite(stored(numbers[:0]).view(holder), dtype) == 0


def test_keys_and_values_alone_are_described_without_logits(tmp_path):
    for name in "kv":
        np.save(tmp_path / f"{name}.npy", np.ones((5, 2), "f4"))
    report = look(k=str(tmp_path / "k.npy"), v=str(tmp_path / "v.npy"))
    assert [t["part"] for t in report["tensors"]] == ["k", "v"]
    assert "logits" not in report and any("no queries" in note for note in report["notes"])


def test_one_array_alone_is_listed(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((7, 3), "f4"))
    report = look(input=str(tmp_path / "x.npy"))
    assert report["arrays"] == [{"name": str(tmp_path / "x.npy"), "shape": [7, 3], "dtype": "f4"}]
    assert report["tensors"] == []


def test_the_command_prints_one_json_document():
    assert run("inspect", SAMPLE, "--json").document["type"] == "inspection"


def test_a_missing_file_is_3():
    run("inspect", "nowhere.h5", code=3)
