"""`--share adaptive`: one budget over key heads, divided by what each of them needs."""

import itertools

import h5py
import numpy as np
import pytest
from clirun import run as command
from hypothesis import given
from hypothesis import strategies as st
from keptruns import not_warmed, run, silent  # noqa: F401

from streamattn_cli.engine.jobs.spread import attend_spread, plan_spread
from streamattn_cli.engine.planning.shares import Curve, divide
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import UsageError
from streamattn_cli.rows.spec import InputSpec

ROWS, DIM, HEADS = 3000, 8, 3
ROW = 2 * DIM * 4  # bytes of a row of k and v of one head
BUDGET = 96 * HEADS * ROW
ADAPTIVE = {"causal": True, "share": "adaptive", "memory_per_layer": BUDGET}

pytestmark = pytest.mark.usefixtures("not_warmed")


@pytest.fixture(autouse=True)
def cold(monkeypatch):
    """See not_warmed."""
    monkeypatch.setattr("streamattn_cli.engine.jobs.ceremony.warm", lambda plan, listener: None)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """Three key heads, of which the first has logits that spread widely, and the last hardly any."""
    folder, rng = tmp_path_factory.mktemp("uneven"), np.random.default_rng(0)
    spread = np.array([2.5, 1.0, 0.1])[None, :, None]
    arrays = {part: rng.standard_normal((ROWS, HEADS, DIM)) for part in "qkv"}
    arrays |= {"q": arrays["q"] * spread, "v": arrays["v"] + 0.5}
    for part, array in arrays.items():
        np.save(folder / f"{part}.npy", array.astype("f4"))
    return InputSpec(**{part: str(folder / f"{part}.npy") for part in "qkv"}, layout="THD")


def _spread(spec, engine=None, **words):
    return attend_spread(AttendRequest(inputs=spec, engine=engine, **words), silent, Interrupts())


# --- the division


def _best(curves, total, sizes):
    """The least sum over all divisions: brute force."""
    every = itertools.product(sizes, repeat=len(curves))
    return min(
        sum(float(curve.at(np.array([n]))[0]) for curve, n in zip(curves, rows, strict=True))
        for rows in every
        if sum(rows) <= total
    )


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(0.2, 3)), min_size=1, max_size=3), st.integers(10, 24))
def test_a_division_of_convex_curves_is_the_best(powers, mean):
    """Powers of the rows are convex."""
    curves = [Curve((8, 16, 32), tuple(scale * n**-power for n in (8, 16, 32))) for scale, power in powers]
    total = mean * len(curves)
    rows = divide(curves, total, 8, 40)
    assert sum(rows) <= total and all(8 <= n <= 40 for n in rows)
    reached = sum(float(curve.at(np.array([n]))[0]) for curve, n in zip(curves, rows, strict=True))
    assert reached == pytest.approx(_best(curves, total, range(8, 41)), rel=1e-9)


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=3, max_size=3), min_size=1, max_size=40), st.integers(0, 5000))
def test_any_curves_are_divided_within_the_budget(squares, more):
    curves = [Curve((50, 100, 200), tuple(each)) for each in squares]
    total = 50 * len(curves) + more
    rows = divide(curves, total, 50, 3000)
    assert sum(rows) <= total and all(50 <= n <= 3000 for n in rows)


def test_a_curve_is_a_power_between_its_points_and_beyond():
    curve = Curve((10, 100), (1.0, 0.01))
    assert curve.at(np.array([5, 10, 30, 100, 1000])) == pytest.approx([4, 1, 1 / 9, 0.01, 1e-4])


def test_an_error_that_rises_with_rows_counts_as_flat():
    assert Curve((10, 20, 40), (1.0, 2.0, 0.5)).at(np.array([15, 20])) == pytest.approx([1, 1])


# --- the run


def test_heads_that_err_more_get_more_and_all_of_them_err_less(spec, tmp_path):
    words = {"causal": True, "memory_per_layer": BUDGET, "audit": ROWS}
    equal = run(spec, output=str(tmp_path / "equal.npy"), **words)
    found = _spread(spec, output=str(tmp_path / "adaptive.npy"), share="adaptive", **words)
    rows = found.facts["params"]["head_rows"]
    assert rows[0] > rows[1] > rows[2] and sum(rows) <= 96 * HEADS
    assert found.facts["params"]["resident_bytes"] <= BUDGET
    assert equal.facts["params"]["resident_bytes"] * HEADS <= BUDGET
    assert found.audit.method.error < 0.9 * equal.audit.method.error
    assert any(f"key heads have {rows[0]}, {rows[1]}, {rows[2]} resident rows" in note for note in found.notes)


def test_every_head_is_answered_as_alone_with_its_rows(spec, tmp_path):
    found = _spread(spec, output=str(tmp_path / "all.npy"), **ADAPTIVE)
    out = np.load(tmp_path / "all.npy")
    for head, rows in enumerate(found.facts["params"]["head_rows"]):
        path = tmp_path / f"{head}.npy"
        words = ("--k", spec.k, "--v", spec.v, "--q", spec.q, "--layout", "THD", "--causal", "--quiet")
        command("attend", *words, "--select", head, "--resident-rows", rows, "-o", path)
        assert np.array_equal(out[:, head : head + 1], np.load(path))


def test_engines_and_workers_change_no_byte(spec, tmp_path):
    made = set()
    for at, way in enumerate([{"threads": 1}, {"threads": 3}, {"threads": 2, "engine": "processes"}]):
        _spread(spec, output=str(tmp_path / f"{at}.npy"), **ADAPTIVE, **way)
        made.add(((tmp_path / f"{at}.npy").read_bytes(), (tmp_path / f"{at}.npy.json").read_bytes()))
    assert len(made) == 1


def test_the_plan_tells_the_rows(spec, tmp_path):
    plan = plan_spread(AttendRequest(inputs=spec, output=str(tmp_path / "out.npy"), **ADAPTIVE))
    assert any("key heads have" in note for note in plan.problem.notes) and not list(tmp_path.iterdir())


def test_layers_share_one_budget(spec, tmp_path):
    rng = np.random.default_rng(2)
    with h5py.File(tmp_path / "dump.h5", "w") as file:
        for layer, spread in ((0, 2.5), (1, 0.1)):
            for part in "qkv":
                file[f"layer{layer}/{part}"] = rng.standard_normal((ROWS, 2, DIM)).astype("f4") * (
                    spread if part == "q" else 1
                )
    words = ("--layer", "all", "--layout", "THD", "--causal", "--memory-per-layer", 2 * 96 * ROW, "--share", "adaptive")
    done = command("attend", tmp_path / "dump.h5", *words, "--json", "--quiet", "-o", tmp_path / "o.h5").document
    hard, easy = (layer["head_rows"] for layer in done["layers"])
    assert min(hard) > max(easy) and sum(hard + easy) <= 4 * 96
    assert done["facts"]["params"]["head_rows"] == hard + easy
    assert done["facts"]["params"]["resident_bytes"] <= 2 * 2 * 96 * ROW


def test_sequences_are_tried_as_they_are(spec, tmp_path):
    found = _spread(InputSpec(spec.input, q=spec.q, k=spec.k, v=spec.v, layout="THD", starts="0,1200,3000"), **ADAPTIVE,
                    output=str(tmp_path / "out.npy"))  # fmt: skip
    rows = found.facts["params"]["head_rows"]
    assert rows[0] > rows[2] and found.rows == ROWS


def test_a_budget_in_bytes_is_one_in_rows(spec, tmp_path):
    run(spec, output=str(tmp_path / "rows.npy"), causal=True, resident_rows=96)
    run(spec, output=str(tmp_path / "bytes.npy"), causal=True, memory_per_layer=BUDGET + ROW)
    assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "bytes.npy").read_bytes()


REFUSED = [
    ({"memory_per_layer": BUDGET, "resident_rows": 64}, "give one of them"),
    ({"memory_per_layer": 64}, "one row of 3 key heads takes 192 bytes"),
    ({"share": "adaptive", "method": "poly", "degree": 2}, "--method poly decides otherwise"),
    ({"share": "adaptive", "window": 9}, "--window decides otherwise"),
]


@pytest.mark.parametrize("words, said", REFUSED, ids=[said for _, said in REFUSED])
def test_refusals(spec, tmp_path, words, said):
    with pytest.raises(UsageError, match=said):
        _spread(spec, output=str(tmp_path / "out.npy"), causal=True, **words)


def test_advice_in_rows_names_the_option_that_it_replaces(tmp_path):
    """And the advice, followed, works."""
    words = ("attend", "sample_data/heads.h5", "--causal", "--dry-run", "-o", tmp_path / "o.npy")
    told = command(*words, "--memory-per-layer", "1KiB", code=2).err
    advice = told[told.index("give --resident-rows") :].split()[1:3]
    assert "--resident-rows takes the place of --memory-per-layer" in told
    command(*words, *advice)
