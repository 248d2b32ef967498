"""`compare`: the same truth for all, the errors that attend --audit measures, fronts, and what cannot run."""

import numpy as np
import pytest
from clirun import SAMPLE, refused, run, save_heads
from keptruns import not_warmed, silent  # noqa: F401

from streamattn_cli.engine.audit.estimate import draw_rows
from streamattn_cli.engine.jobs.candidates import parse_candidates
from streamattn_cli.engine.jobs.compare import compare
from streamattn_cli.engine.request.requests import CompareRequest
from streamattn_cli.engine.watch.events import Progress
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import UsageError
from streamattn_cli.report.html.compare import comparison_page
from streamattn_cli.report.text.braille import Axis, Point, scatter
from streamattn_cli.report.text.compare import compare_lines
from streamattn_cli.rows.spec import InputSpec

HEADS = SAMPLE / "heads.h5"


@pytest.fixture(scope="module")
def comparison():
    return run("compare", HEADS, "--rows", "0:2000", "--methods", "window,sample,poly,window:sinks=0",
               "--resident-rows", "96,12.8%", "--audit", "40", "--json").document  # fmt: skip


def test_every_method_runs_at_every_budget_or_says_why_not(comparison):
    assert comparison["type"] == "comparison" and comparison["audited"] == 40
    assert "--resident-rows 12.8% of 2000 keys: 256" in comparison["notes"]
    assert [(t["label"], t["budget"]) for t in comparison["trials"]] == [
        (label, rows) for rows in (96, 256) for label in ("window", "sample", "poly", "window:sinks=0")
    ]
    for trial in comparison["trials"]:
        assert (trial["audit"] is None) == (trial["refused"] is not None)
        if trial["audit"] and trial["method"] != "poly":
            assert 0.9 * trial["budget"] * 256 <= trial["resident_bytes"] <= trial["budget"] * 256
            assert trial["peak"] <= trial["projected"]
    assert {t["budget"] for t in comparison["trials"] if t["refused"]} == {96, 256}
    assert "degree 1 alone takes" in comparison["trials"][2]["refused"]


def test_the_errors_are_those_of_attend(comparison, tmp_path):
    words = ("attend", HEADS, "--rows", "0:2000", "--quiet")
    run(*words, "--method", "window", "--resident-rows", "256", "-o", tmp_path / "window.npy")
    run(*words, "--method", "exact", "-o", tmp_path / "exact.npy")
    found, exact = (np.load(tmp_path / f"{name}.npy").astype("f8") for name in ("window", "exact"))
    design = draw_rows(2000, 40, 0)
    wrong, size = (((x**2).sum(axis=(1, 2))[design.rows]) @ (1 / design.chances) for x in (found - exact, exact))
    trial = next(t for t in comparison["trials"] if (t["label"], t["budget"]) == ("window", 256))
    assert trial["audit"]["method"]["error"] == pytest.approx(np.sqrt(wrong / size), rel=1e-4)


def test_the_fronts_hold_what_nothing_beats(comparison):
    ran = [t for t in comparison["trials"] if t["audit"]]
    for name, cost in (("memory", "resident_bytes"), ("time", "seconds")):
        for t in ran:
            own = (t["audit"]["method"]["error"], t[cost])
            others = [(o["audit"]["method"]["error"], o[cost]) for o in ran]
            beaten = any(o[0] < own[0] and o[1] <= 1.03 * own[1] for o in others)
            assert (name in t["front"]) == (not beaten)


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """A dump of two layers, and what compares methods on some of them."""
    path, rng = tmp_path_factory.mktemp("layers") / "dump.npz", np.random.default_rng(3)
    shapes = {f"layers.{layer}.{part}": (500, 2, 8) for layer in (1, 4) for part in "qkv"}
    np.savez(path, **{name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()})

    def found(layer="all", listener=silent, **words):
        spec = InputSpec(input=str(path), layout="THD", layer=layer)
        methods = {"methods": "window,sample,poly:degree=13", "budgets": (96,)}
        request = CompareRequest(spec, causal=True, **methods, **{"audit": 40, "threads": 1, **words})
        return compare(request, listener, Interrupts())

    return found


def figures(trials):
    """What does not depend on time, or on what else the process did."""
    return [(t.label, t.budget, t.audit, t.params, t.resident_bytes, t.projected, t.refused) for t in trials]


@pytest.mark.usefixtures("not_warmed")
def test_layers_are_compared_as_each_alone_and_together(dump):
    found, alone = dump(), [dump(layer) for layer in ("1", "4")]
    assert [(layer.number, layer.group) for layer in found.layers] == [(1, "layers.1"), (4, "layers.4")]
    for layer, own in zip(found.layers, alone, strict=True):
        assert figures(layer.trials) == figures(own.layers[0].trials)
    for at, trial in enumerate(found.trials[:2]):
        parts = [layer.trials[at].audit for layer in found.layers]
        squares = sum((part.norm * part.method.error) ** 2 for part in parts) / sum(part.norm**2 for part in parts)
        assert trial.audit.method.error == pytest.approx(squares**0.5, rel=1e-9)
        assert trial.rows == 1000 and trial.resident_bytes == 2 * found.layers[0].trials[at].resident_bytes
    assert found.trials[2].refused.startswith("layer 1: ") and found.audited == 80
    text = "\n".join(compare_lines(found.to_dict(), 100))
    assert "error by layer" in text and f"{found.layers[1].trials[0].audit.method.error:.3g}" in text
    assert "Error by layer" in comparison_page(found.to_dict())


@pytest.mark.usefixtures("not_warmed")
@pytest.mark.parametrize("way", [("threads", 1), ("threads", 3), ("processes", 2)], ids="{0[0]} {0[1]}".format)
def test_an_engine_changes_nothing_but_times(dump, way):
    engine, threads = way
    told = []
    plain, found = dump("4"), dump("4", engine=engine, threads=threads, listener=told.append)
    assert [event.rows for event in told if isinstance(event, Progress) and event.phase == "pieces"] == [
        500,
        1000,
        1500,
    ]
    assert figures(found.trials) == figures(plain.trials)
    assert found.trivial == plain.trivial and found.notes == plain.notes
    assert all((trial.peak is None) == (engine == "threads") for trial in found.trials[:2])


def test_full_attention_and_a_budget_in_bytes(tmp_path):
    save_heads(tmp_path, rows=1200, dim=4, value_dim=4, factor=1.0)
    files = ("--q", "q.npy", "--k", "k.npy", "--v", "v.npy")
    words = ("--full", "--scale", "0.25", "--methods", "poly,sample", "--resident", "16KiB", "--audit", "50", "--json")
    found = run("compare", *files, *words, cwd=tmp_path).document
    poly, sample = found["trials"]
    assert poly["resident_bytes"] <= 16384 and sample["resident_bytes"] <= 16384
    assert poly["params"]["degree"] >= 3  # 35 moments of 5 float64 fit well
    assert poly["audit"]["method"]["error"] < 0.1 < sample["audit"]["method"]["error"]


def test_the_text_fits_its_terminal_and_holds_both_plots():
    words = ("--rows", "0:1500", "--methods", "window,sample", "--resident-rows", "64,128", "--audit", "16")
    for width in (40, 120):
        text = run("compare", HEADS, *words, env={"COLUMNS": str(width)}).out.decode()
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        assert "window" in text and "against resident memory" in " ".join(text.split())
        assert any("⠀" < c <= "⣿" for c in text)
    assert "95% interval" in text and "not beaten in" in text


def test_what_cannot_be_compared_is_refused():
    refused("compare", HEADS, "--methods", "exact", code=2, words=["--methods exact", "omit it"])
    refused("compare", HEADS, "--methods", "magic", code=2, words=["--methods magic", "nystrom"])
    refused("compare", HEADS, "--methods", "window:width=3", code=2, words=["'width=3' is not a setting", "sinks"])
    refused("compare", HEADS, "--memory", "1MiB,2MiB", code=2, words=["budget of one run", "--resident 1MiB,2MiB"])
    refused("compare", HEADS, "--audit", "0", code=2, words=["--audit 0"])
    for words in ("64,many", "64,0%", "64,-1"):
        refused("compare", HEADS, "--resident-rows", words, code=2, words=["--resident-rows", "such as"])
    refused("compare", "-", "--raw", "f32", "--dim", "2", code=11, words=["standard input", "once"], input=b"\0" * 24)
    refused("compare", HEADS, "--methods", "poly", "--resident-rows", "8", code=11, words=["no method could run"])


def test_settings_are_read_from_their_words():
    first, second = parse_candidates("nystrom:effort=best:sinks=8, poly:degree=2")
    assert (first.method, first.settings) == ("nystrom", {"effort": "best", "sinks": 8})
    assert (second.label, second.settings) == ("poly:degree=2", {"degree": 2})
    with pytest.raises(UsageError, match="'x' is not a value of degree"):
        parse_candidates("poly:degree=x")


def test_a_scatter_puts_points_where_they_belong():
    lines = scatter([Point(1, 1, "a", "one"), Point(100, 0.01, "b", "one"), Point(100, 1, "c")], 40, 8)
    assert (len(lines), {len(line) for line in lines}) == (8, {40})
    a, b, c = (next((y, line.index(letter)) for y, line in enumerate(lines) if letter in line) for letter in "abc")
    assert a[0] == c[0] == 0 and b[0] == 7 and a[1] < 4 and b[1] == c[1] > 35
    assert sum("⠀" < ch <= "⣿" for line in lines for ch in line) > 20
    assert Axis.over([5.0], 10).place(5.0) == pytest.approx(5)
