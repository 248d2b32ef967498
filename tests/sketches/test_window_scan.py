"""A window's sketch scans what it will not hold: finite rows are looked at as they are stored, and never widened."""

from dataclasses import replace

import numpy as np
import pytest
from keptruns import keys_only, make_sketch, not_warmed, save_stream, silent, state_of  # noqa: F401

from streamattn_cli.engine.jobs.sketch import keys_problem
from streamattn_cli.engine.passes.lane_sketches import StoredRows
from streamattn_cli.engine.passes.warm import warm
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.workers.lanes import Lane, Part
from streamattn_cli.rows.inputs.open import Inputs
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.memory import MemoryTensor
from streamattn_cli.sketches.coding.rowstore import kernel

WINDOW = {"method": "window", "resident_rows": 64}


def plan_of(dtype="f2", **words):
    """The plan of a window's sketch of 2000 rows in memory."""
    heads = Heads(MemoryTensor(np.ones((2000, 8), dtype)), (0,), (0,), 8)
    request = AttendRequest(InputSpec(), **WINDOW | words)
    return make_plan(keys_problem(request, Inputs(None, heads, heads), None))


@pytest.mark.usefixtures("not_warmed")
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("block_rows", [7, 100, 512, 3000])
@pytest.mark.parametrize(("layout", "select"), [("THD", None), ("HTD", None), ("THD", (2, 0, 1)), ("THD", (3,))])
def test_finite_rows_are_never_widened(tmp_path, monkeypatch, dtype, block_rows, layout, select):
    spec = keys_only(save_stream(tmp_path, 1777, heads=4, dtype=dtype))
    if layout == "HTD":
        for part in "kv":
            np.save(tmp_path / f"{part}.npy", np.load(tmp_path / f"{part}.npy").swapaxes(0, 1))
    spec = replace(spec, layout=layout, select=select)
    with monkeypatch.context() as patched:
        patched.setattr(StoredRows, "take", lambda shortcut, block: 0)
        make_sketch(spec, tmp_path / "plain.sattn", block_rows=block_rows, **WINDOW)
    monkeypatch.setattr(Lane, "keys", None)
    make_sketch(spec, tmp_path / "quick.sattn", block_rows=block_rows, **WINDOW)
    plain, quick = (state_of(tmp_path / f"{name}.sattn") for name in ("plain", "quick"))
    for name in plain:
        assert plain[name].tobytes() == quick[name].tobytes(), name


@pytest.mark.usefixtures("not_warmed")
@pytest.mark.parametrize("rows", [[0], [3, 700], [1776], range(0, 1777, 40)])
@pytest.mark.parametrize("dtypes", ["f2 f2", "f2 f4", "f4 f4"])
def test_dropped_rows_leave_the_same_state(tmp_path, monkeypatch, rows, dtypes):
    spec = keys_only(save_stream(tmp_path, 1777, heads=2))
    for part, dtype in zip("kv", dtypes.split(), strict=True):
        items = np.load(tmp_path / f"{part}.npy").astype(dtype)
        if part == "v":
            items[list(rows), 1, 2] = np.nan
        np.save(tmp_path / f"{part}.npy", items)
    words = WINDOW | {"nan_policy": "drop", "block_rows": 300}
    quick = make_sketch(spec, tmp_path / "quick.sattn", **words)
    monkeypatch.setattr(StoredRows, "take", lambda shortcut, block: 0)
    plain = make_sketch(spec, tmp_path / "plain.sattn", **words)
    assert quick.counts == plain.counts and quick.counts["dropped_keys"] == len(rows)
    plain, quick = (state_of(tmp_path / f"{name}.sattn") for name in ("plain", "quick"))
    for name in plain:
        assert plain[name].tobytes() == quick[name].tobytes(), name


def test_heads_side_by_side_are_looked_at_as_one():
    tensor = MemoryTensor(np.ones((5, 24), "f4"))
    heads = Heads(tensor, (0,) * 4, (0, 6, 18, 12), 6)
    assert Part("k", heads, 0, 4, False)._runs.T.tolist() == [[0, 0, 12], [0, 18, 6], [0, 12, 6]]
    assert Part("k", heads, 1, 1, False)._runs.T.tolist() == [[0, 6, 6]]


def test_a_sketch_without_queries_has_no_room_for_answers():
    plan = plan_of()
    assert plan.query_block_rows == 0 and plan.parts["output"] == 0


def test_what_rows_that_are_not_finite_need_is_compiled_before(monkeypatch):
    """Or it would count as memory of the run, where the first of them comes."""
    calls, store = [], kernel.store
    monkeypatch.setattr(kernel, "store", lambda *words: calls.append(words) or store(*words))
    warm(plan_of(), silent)
    assert calls
