"""What an outcome says of each sequence of each layer, and of all their heads in few numbers."""

import numpy as np
import pytest
from keptruns import not_warmed, run, silent  # noqa: F401

from streamattn_cli.engine.audit.together import of_heads
from streamattn_cli.engine.jobs.layers import attend_layers
from streamattn_cli.engine.jobs.spread import attend_spread
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.watch.events import Audit, ErrorEstimate, SequenceError
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.rows.spec import InputSpec

LENGTHS = [150, 0, 97, 200]
WORDS = {"causal": True, "resident_rows": 40, "audit": 10**6}

pytestmark = pytest.mark.usefixtures("not_warmed")


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """Two layers of four padded sequences, four query and two key heads."""
    path, rng = tmp_path_factory.mktemp("dump") / "dump.npz", np.random.default_rng(4)
    shapes = {"q": (4, 4, 200, 8), "k": (4, 2, 200, 8), "v": (4, 2, 200, 8)}
    np.savez(path, **{f"layers.{n}.{p}": rng.standard_normal(shapes[p]).astype("f4") for n in (0, 3) for p in "qkv"})
    return path


def _spec(dump, layer):
    return InputSpec(input=str(dump), layout="BHTD", lengths=",".join(map(str, LENGTHS)), layer=layer)


@pytest.fixture(scope="module")
def errors(dump, tmp_path_factory):
    """{(layer, sequence): error of all heads, and of each}, from whole outputs."""
    folder, found = tmp_path_factory.mktemp("whole"), {}
    for layer in (0, 3):
        for name, words in (("mine", {}), ("exact", {"method": "exact", "audit": 0, "resident_rows": None})):
            request = AttendRequest(
                inputs=_spec(dump, str(layer)), output=str(folder / f"{name}{layer}.npy"), **WORDS | words
            )
            attend_layers(request, silent, Interrupts())
        mine, exact = (np.load(folder / f"{name}{layer}.npy").astype("f8") for name in ("mine", "exact"))
        for s in range(4):
            wrong, size = (np.square(x).sum(axis=(1, 2)) for x in (mine[s] - exact[s], exact[s]))
            if LENGTHS[s]:
                found[layer, s] = [np.sqrt(wrong.sum() / size.sum()), *np.sqrt(wrong / size)]
    return found


@pytest.mark.parametrize("engine", [None, "threads"])
def test_every_sequence_of_every_layer_has_its_error(dump, errors, tmp_path, monkeypatch, engine):
    monkeypatch.setattr("streamattn_cli.engine.jobs.pieces.LEAST_ROWS", 1)
    request = AttendRequest(inputs=_spec(dump, "all"), output=str(tmp_path / "out.h5"), engine=engine, **WORDS)
    told = (attend_spread if engine else attend_layers)(request, silent, Interrupts()).to_dict()
    assert [(s["layer"], s["sequence"], s["rows"], s["audited"]) for s in told["sheets"]] == [
        (layer, at, rows, rows) for layer in (0, 3) for at, rows in enumerate(LENGTHS)
    ]
    for sheet in told["sheets"]:
        expected = errors.get((sheet["layer"], sheet["sequence"]))
        found = [sheet["error"], *sheet["heads"]]
        assert found == ([None] if expected is None else pytest.approx(expected, rel=1e-3))
    cells = sorted((e for each in errors.values() for e in each[1:]), reverse=True)
    streams = told["streams"]
    assert streams["count"] == 16 and streams["measured"] == len(cells) == 24
    assert [one["error"] for one in streams["worst"]] == pytest.approx(cells[:10], rel=1e-3)
    worst = streams["worst"][0]
    assert errors[worst["layer"], worst["sequence"]][1 + worst["head"]] == pytest.approx(worst["error"], rel=1e-3)
    assert streams["quantiles"] == pytest.approx(
        np.quantile(cells, [0.05, 0.25, 0.5, 0.75, 0.95], method="nearest"), rel=1e-3
    )
    assert "sequences" not in told["audit"]


def test_beyond_a_number_of_streams_few_numbers_are_told(dump, tmp_path, monkeypatch):
    for module in ("streams", "summary"):
        monkeypatch.setattr(f"streamattn_cli.engine.jobs.{module}.MOST_STREAMS", 7)
    request = AttendRequest(inputs=_spec(dump, "all"), output=str(tmp_path / "out.h5"), **WORDS)
    told = attend_layers(request, silent, Interrupts()).to_dict()
    assert "sheets" not in told and told["streams"]["count"] == 16 and len(told["streams"]["worst"]) == 10
    assert [layer["heads"] for layer in told["layers"]] == [(), ()] and told["layers"][0]["error"]


def test_one_sequence_is_told_as_ever(tmp_path):
    rng = np.random.default_rng(0)
    for part in "qkv":
        np.save(tmp_path / f"{part}.npy", rng.standard_normal((90, 2, 8)).astype("f4"))
    spec = InputSpec(**{part: str(tmp_path / f"{part}.npy") for part in "qkv"}, layout="THD")
    told = run(spec, output=str(tmp_path / "o.npy"), **WORDS).to_dict()
    assert not {"sheets", "streams", "layers"} & told.keys()


def test_heads_that_audited_other_sequences_are_joined():
    one = ErrorEstimate(0.1, 0.1, 0.1, 0.1, 0.1)
    parts = [
        Audit(4, one, one, (one,), norms=(1.0,), norm=1.0, history_mass=(0.0,), sequences=tuple(sequences))
        for sequences in (
            [SequenceError(2, 3, 0.3, 4.0, (0.3,))],
            [SequenceError(1, 2, 0.2, 1.0, (0.2,)), SequenceError(2, 1, 0.4, 3.0, (0.4,))],
        )
    ]
    first, second = of_heads(parts).sequences
    assert first == SequenceError(1, 2, 0.2, 1.0, (None, 0.2))
    assert second.error == pytest.approx(np.sqrt((0.3**2 * 16 + 0.4**2 * 9) / 25)) and second.heads == (0.3, 0.4)
    assert (second.sequence, second.audited, second.norm) == (2, 1, 5.0)
