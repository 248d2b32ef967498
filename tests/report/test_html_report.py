"""The page: complete, self-contained, within its size, readable by eyes and by screen readers in every mode."""

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from importlib.metadata import version

import jsonruns
import numpy as np
import pytest
from clirun import SAMPLE, refused, run

from streamattn_cli.engine.watch.events import Audit, ErrorEstimate, WorstRow
from streamattn_cli.report.html.compare import comparison_page
from streamattn_cli.report.html.outcome import outcome_page
from streamattn_cli.report.html.page import percent
from streamattn_cli.report.html.perplexity import perplexity_page
from streamattn_cli.report.html.style import STYLE
from streamattn_cli.report.html.svg import Scale, heat_map, interval_plot, line_plot, scatter_plot, shade
from streamattn_cli.units import format_bytes, format_duration

VOID = {"meta"}


class Checker(HTMLParser):
    """Walks a page: every element closed in order, and what it found on the way."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.faults, self.text, self.told = [], [], [], [], None
        self.feed(page)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag in VOID:
            return
        if tag == "th" and attrs.get("scope") not in ("row", "col"):
            self.faults.append("th without scope")
        if tag == "svg" and attrs.get("role") != "img":
            self.faults.append("svg without role")
        if tag == "title" and self.open[-1] == "svg" and self.tags[-2][0] != "svg":
            self.faults.append("the title of an svg must come first")
        if any(value and re.match(r"(https?:)?//", value) for name, value in attrs.items() if name not in ("xmlns",)):
            self.faults.append(f"{tag} fetches something")
        if any(name.startswith("on") for name in attrs):
            self.faults.append(f"{tag} has a handler")
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "th" and self.tags[-1][0] == "th" and self.tags[-1] is not self.told:
            self.faults.append("an empty table header")

    def handle_data(self, data):
        self.text.append(data)
        self.told = self.tags[-1] if self.tags else None  # the last element that has a text

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def audit(heads):
    """An audit of many heads."""
    each = [
        ErrorEstimate(0.01 * (1 + i % 7), 0.008 * (1 + i % 7), 0.02 * (1 + i % 7), 0.009, 0.05) for i in range(heads)
    ]
    pieces = tuple(tuple(None if (i + j) % 13 == 0 else 0.001 * (1 + i + j) for j in range(16)) for i in range(heads))
    worst = tuple(WorstRow(100 - i, i % heads, 0.9 - 0.01 * i) for i in range(10))
    return Audit(
        256, each[0], ErrorEstimate(0.9, 0.8, 1.0, 0.9, 1.2), tuple(each), tuple(range(0, 1700, 100)), pieces, worst
    )


def outcome(heads, **changed):
    """An outcome as its JSON gives it."""
    samples = range(1, 121)
    series = {
        "seconds": [0.5 * i for i in samples],
        "phase": ["rows"] * 120,
        "rows": [1000 * i for i in samples],
        "memory": [1 << 20] * 120,
    }
    found = {
        "type": "outcome",
        "command": "attend",
        "rows": 120000,
        "seconds": 60.0,
        "wait_seconds": 1.0,
        "bytes_read": 1 << 30,
        "facts": {"method": "nystrom", "mode": "causal", "params": {"window": 65}, "scale": 0.125, "seed": 0},
        "memory": {"allowed": 1 << 30, "reserved": 1 << 26, "projected": 1 << 22, "peak": 1 << 21},
        "counts": {"dropped_keys": 0},
        "audit": asdict(audit(heads)),
        "audit_reason": None,
        "output": "<out>&.npy",
        "notes": ["a < b & c"],
        "series": series,
    }
    return json.loads(json.dumps(found | changed))


@pytest.mark.parametrize("heads", [1, 9, 64, 300])
def test_a_page_is_whole_and_small(heads):
    page = outcome_page(outcome(heads))
    seen = Checker(page)
    assert seen.faults == [] and len(page.encode()) < 1 << 20
    assert seen.count("script") == seen.count("link") == seen.count("img") == 0
    assert seen.count("svg") == seen.count("desc") == 4 and seen.count("title") == 5
    assert seen.count("h1") == 1 and ("html", {"lang": "en"}) in seen.tags
    assert "<out>&.npy" in seen.text and "a < b & c" in seen.text  # escaped in the page, and read back
    assert seen.count("caption") == seen.count("table") >= 4
    if heads > 64:
        assert "The 64 worst of 300 query heads are shown." in seen.text


def layers(count, heads):
    """Layers as an outcome's JSON has them: of the first, one head is infinitely wrong; the last one failed."""
    each = {"error": 0.02, "low": 0.01, "high": 0.03, "median_row": 0.01, "p95_row": 0.05, "enough": True}
    made = [
        {"number": 3 * n, "group": f"l{n}", "rows": 100, "seconds": 2.0, "peak": 1 << 20, "output": "o", "error": each,
         "heads": [0.001 * (1 + n + h) for h in range(heads)], "head_rows": [], "failed": None}
        for n in range(count)
    ]  # fmt: skip
    made[0]["heads"][0] = None
    made[-1] |= {"heads": [], "error": None, "peak": None, "failed": {"message": "bad <k>: row 7", "code": 5}}
    return made


@pytest.mark.parametrize("count, heads", [(3, 2), (33, 32), (128, 128)])
def test_a_run_over_layers_has_a_map_and_the_worst_ten(count, heads):
    page = outcome_page(outcome(1, layers=layers(count, heads), series={}, inputs={"q": "dump27.h5:/q"}))
    seen = Checker(page)
    assert f"streamattn attend: {count} layers" in seen.text and "dump27" not in page  # which is one of them
    assert seen.faults == [] and len(page.encode()) < 1 << 20 and seen.count("script") == 0
    assert seen.count("svg") == seen.count("desc") == 1
    assert f"1 of {count} layers failed; nothing of them was written:" in seen.text
    assert f"layer {3 * (count - 1)}: bad <k>: row 7" in seen.text
    worst = page.partition("The worst query heads of all layers")[2].partition("</table>")[0]
    rows = re.findall(r'<th scope="row">(\d+)</th><td>(\d+)</td><td class="n">([^<]+)</td>', worst)
    assert rows[0] == ("0", "0", "infinite") and len(rows) == min(10, (count - 1) * heads)
    assert rows[1][:2] == (str(3 * (count - 2)), str(heads - 1))


def test_the_worst_heads_of_sequences_are_listed():
    worst = [{"layer": 3, "sequence": 40 + n, "head": n, "error": None if n == 0 else 0.5 / n} for n in range(10)]
    streams = {"count": 20_000, "measured": 640, "quantiles": [0.001, 0.002, 0.003, 0.004, 0.5], "worst": worst}
    page = outcome_page(outcome(1, layers=layers(3, 2), streams=streams, series={}))
    seen, listed = Checker(page), page.partition("The worst heads of all sequences")[2].partition("</table>")[0]
    assert seen.faults == [] and listed.count("<tr") == 11 and '<th scope="row">3</th><td>41</td><td>1</td>' in listed
    assert '<td>0</td><td class="n">infinite' in listed
    assert "640 query heads of sequences were audited, of 20000 streams" in page and "less than 0.3%" in page


def test_layers_that_were_not_audited_have_a_page_too():
    plain = [layer | {"heads": [], "error": None} for layer in layers(3, 2)]
    seen = Checker(outcome_page(outcome(1, layers=plain, audit=None, audit_reason="not asked for", series={})))
    assert seen.faults == [] and seen.count("svg") == 0 and "not measured" in seen.text


def test_a_run_without_an_audit_says_why():
    seen = Checker(outcome_page(outcome(1, audit=None, audit_reason="not asked for (--audit N)", series={})))
    assert "The error was not measured: not asked for (--audit N)." in seen.text and seen.count("svg") == 0


def test_an_exact_answer_and_an_unknown_interval_have_pages_too():
    zero = {"error": 0.0, "low": 0.0, "high": None, "median_row": 0.0, "p95_row": 0.0}
    found = outcome(2)
    found["audit"] |= {"method": zero, "heads": [zero, zero], "by_position": [[0.0] * 16] * 2}
    seen = Checker(outcome_page(found))
    assert "95%: too few rows to tell" in seen.text and seen.count("svg") == 2


def colours():
    """Mode -> name -> colour, each mode on top of the light one."""
    blocks = re.findall(r":root\{([^}]*)\}", STYLE)
    found = [dict(re.findall(r"--(\w+):(#\w+)", block)) for block in blocks]
    return {"light": found[0], "dark": found[0] | found[1], "print": found[0] | found[2]}


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    """WCAG 2 contrast ratio."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark", "print"])
def test_texts_have_contrast(mode):
    names = colours()[mode]
    for ink in ("ink", "dim", "mark", "warn"):
        for paper in ("paper", "card"):
            assert contrast(names[ink], names[paper]) >= 4.5, (mode, ink, paper)
    assert contrast(names["paper"], names["dim"]) >= 4.5  # letters on points
    shades = [luminance(names[f"s{i}"]) for i in range(7)]
    assert shades == sorted(shades, reverse=mode != "dark")


def test_from_a_real_run_to_its_page(tmp_path):
    done = run(
        "attend",
        SAMPLE / "heads.h5",
        "--rows",
        "0:1500",
        "--method",
        "window",
        "--window",
        "64",
        "--audit",
        "64",
        "--block-rows",
        "128",
        "--json",
        "-o",
        tmp_path / "out.npy",
    )
    (tmp_path / "run.json").write_bytes(done.out)
    run("report", "run.json", "-o", "run.html", cwd=tmp_path)
    seen = Checker((tmp_path / "run.html").read_text())
    assert seen.faults == [] and seen.count("svg") == 4
    error = done.document["audit"]["method"]["error"]
    assert f"{100 * error:.3g}%" in seen.text
    assert run("report", "-", input=done.out).out == (tmp_path / "run.html").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"out.npy", "out.npy.json", "run.json", "run.html"}


def test_from_a_json_log_to_its_page(tmp_path):
    done = run("attend", SAMPLE / "tiny.h5", "--full", "--method", "exact", "--log-json", "-o", tmp_path / "out.npy")
    assert b"The error was not measured: not asked for (--audit N)." in run("report", input=done.err.encode()).out


def test_from_a_comparison_to_its_page():
    done = run(
        "compare",
        SAMPLE / "heads.h5",
        "--rows",
        "0:1200",
        "--methods",
        "window,sample,poly",
        "--resident-rows",
        "64,128",
        "--audit",
        "32",
        "--json",
    )
    page = comparison_page(done.document)
    seen = Checker(page)
    assert seen.faults == [] and seen.count("svg") == 2 and "Not run" in seen.text
    assert_origin(page, "compare", SAMPLE / "heads.h5")
    for trial in done.document["trials"]:
        if trial["audit"]:
            assert f"{100 * trial['audit']['method']['error']:.3g}%" in seen.text


def assert_origin(page, command, given):
    """A page names its input, the command line, the date and the version."""
    words = "".join(f"<span>{word}</span> " for word in ("streamattn", command, given))
    assert f"<code>{words}" in page and f"streamattn {version('streamattn-cli')}</p>" in page
    assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC", page)


def test_what_has_no_page_is_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"type": "plan"}')
    (tmp_path / "words.json").write_text("hello")
    good = json.dumps(outcome(1))
    refused("report", "nowhere.json", code=3, words=["nowhere.json", "No such file"])
    refused("report", "other.json", code=4, words=["other.json", "--json"], cwd=tmp_path)
    refused("report", "words.json", code=4, words=["words.json", "attend, compare or perplexity"], cwd=tmp_path)
    refused("report", "-", "-o", "page.pdf", code=2, words=["page.pdf", "FILE.html"], input=good.encode())
    refused(
        "report",
        "-",
        "-o",
        "nowhere/page.html",
        code=10,
        words=["nowhere/page.html"],
        input=good.encode(),
        cwd=tmp_path,
    )


def test_scales_have_round_ticks_within():
    for values, words in (([0, 7.3], {}), ([1e-4, 0.9], {"log": True}), ([3000, 90000], {"log": True, "binary": True})):
        scale = Scale(values, 100, 0, **words)
        ticks = scale.ticks()
        assert 2 <= len(ticks) <= 8 and all(scale.low <= t <= scale.high for t in ticks)
        places = [scale.at(t) for t in ticks]
        assert places == sorted(places, reverse=True) and 0 <= places[-1] and places[0] <= 100
    assert (shade(None, 1, 2), shade(1, 1, 2), shade(2, 1, 2), shade(1, 1, 1)) == ("none", "s0", "s6", "s3")
    assert shade(1e-9, 1, 2) == "s0"


def test_the_map_keeps_its_shades_for_errors_that_matter():
    drawn = heat_map("t", "d", [[1e-9, 0.5, 0.7], [0.9, 1.0, 0.01]], ["a", "b"], [0, 1, 2, 3], "row", str)
    assert ">up to 0.01<" in drawn and drawn.count('class="s6" x="') == 4  # three cells, and the legend's
    whole = heat_map("t", "d", [[0.5, 1.0]], ["a"], [0, 1, 2], "row", str)
    assert ">0.5<" in whole and "up to " not in whole


@pytest.mark.parametrize(
    "factors, more, said",
    [
        ((1, 1, 1e6), ("--resident-rows", "96", "--out-dtype", "f16", "--nan-policy", "drop"), "infinite"),
        ((9, 1, 1), ("--method", "poly", "--beta", "1", "--max-error", "1e9"), "Flagged rows"),
    ],
)
def test_infinite_errors_and_flagged_rows_are_on_the_page(tmp_path, factors, more, said):
    for seed, name in enumerate("qkv"):
        rows = np.random.default_rng(seed).standard_normal((300, 8)).astype("f4")
        np.save(tmp_path / f"{name}.npy", rows * np.float32(factors[seed]))
    files = ("--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "--full", "--audit", "32")
    (tmp_path / "run.json").write_bytes(run("attend", *files, *more, "-o", "o.npy", "--json", cwd=tmp_path).out)
    run("report", "run.json", "-o", "run.html", cwd=tmp_path)
    page = (tmp_path / "run.html").read_text()
    assert said in page and not re.search(r"\b(nan(?!-policy)|inf)\b", page)
    text = run("compare", *files, "--methods", "window,evict", "--resident-rows", "96", cwd=tmp_path).out
    assert b"nan" not in text


# --- axes, names and origins


def labels(svg):
    """(x, anchor, words) of every label of a drawing."""
    found = re.findall(r'<text x="([\d.]+)" y="[\d.]+" class="(?:tick|name|note)" text-anchor="(\w+)">([^<]*)', svg)
    return [(float(x), anchor, words) for x, anchor, words in found]


@pytest.mark.parametrize("low, high", [(0.011, 0.019), (0.02, 0.021), (0.2, 0.3), (1e-6, 3.0), (0.7, 0.7)])
def test_every_logarithmic_axis_has_ticks(low, high):
    ticks = Scale([low, high], 50, 400, log=True).ticks()
    assert 2 <= len(ticks) <= 8 and ticks == sorted(ticks)
    assert len({f"{100 * tick:.3g}%" for tick in ticks}) == len(ticks)


@pytest.mark.parametrize("low, high", [(60_000, 70_000), (65_536, 131_072), (1_000, 1 << 30)])
def test_every_axis_of_bytes_has_ticks(low, high):
    ticks = Scale([low, high], 50, 400, log=True, binary=True).ticks()
    assert 2 <= len(ticks) <= 8


def drawings():
    names = [f"batch {b} head {h}" for b in range(2) for h in range(16)]
    yield interval_plot("t", "d", [(name, 0.015, 0.013, 0.018) for name in names], percent)
    yield heat_map("t", "d", [[0.1, 0.2]] * 32, names, [0, 100_000, 200_000], "row", percent)
    yield line_plot("t", "d", [0.0, 1.0, 2.0], [0.0, 1e6, 9e6], format_duration, format_bytes,
                    x_name="time", y_name="memory", marks=[(1e7, "projected 9.54 MiB")], binary=True)  # fmt: skip
    points = [(65_000.0 + 300 * i, 0.01 + i / 1e4, 0.009, 0.02, "abc"[i], i == 0) for i in range(3)]
    yield scatter_plot("t", "d", points, format_bytes, percent, "resident memory", binary=True)


@pytest.mark.parametrize("svg", list(drawings()), ids=["intervals", "map", "lines", "points"])
def test_no_label_is_cut_though_letters_are_larger_on_a_phone(svg):
    """There 14 units high, and thus at most 8 wide, in a drawing of 440."""
    assert len(labels(svg)) > 3
    for x, anchor, words in labels(svg):
        wide = 7.6 * len(words)
        left = {"start": x, "middle": x - wide / 2, "end": x - wide}[anchor]
        assert -4 <= left and left + wide <= 444, (x, anchor, words)


def test_heads_of_several_batches_are_named_by_both(tmp_path):
    rng = np.random.default_rng(0)
    for name, heads in (("q", 4), ("k", 2), ("v", 2)):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((2, heads, 600, 8)).astype("f4"))
    keys = ("--k", "k.npy", "--v", "v.npy")
    run(
        "sketch",
        *keys,
        "--layout",
        "BHTD",
        "--method",
        "window",
        "--resident-rows",
        "64",
        "-o",
        "s.sattn",
        cwd=tmp_path,
    )
    words = ("query", "s.sattn", "q.npy", *keys, "--audit", "64", "-o", "o.npy")
    done = run(*words, "--json", cwd=tmp_path)
    (tmp_path / "run.json").write_bytes(done.out)
    assert done.document["facts"]["shapes"]["batches"] == 2
    run("report", "run.json", "-o", "run.html", cwd=tmp_path)
    page = (tmp_path / "run.html").read_text()
    assert "batch 1 head 3" in page and ">head " not in page
    said = run(*words, "--force", cwd=tmp_path).err
    assert re.search(r"row \d+ batch [01] head [0-3] ", " ".join(said.split()))


def test_rows_of_several_sequences_are_named_by_both(tmp_path):
    rows = np.random.default_rng(0).standard_normal((3, 2, 400, 8)).astype("f4")
    np.savez(tmp_path / "x.npz", q=rows, k=rows, v=rows)
    words = ("attend", "x.npz", "--layout", "BHTD", "--causal", "--resident-rows", "64", "--audit", "64", "-o", "o.npy")
    (tmp_path / "run.json").write_bytes(run(*words, "--json", cwd=tmp_path).out)
    run("report", "run.json", "-o", "run.html", cwd=tmp_path)
    assert re.search("<th[^>]*>sequence</th>", (tmp_path / "run.html").read_text())
    said = run(*words, "--force", cwd=tmp_path).err
    assert re.search(r"sequence [0-2] row \d+ head [01] ", " ".join(said.split()))


def test_a_page_says_where_it_comes_from(tmp_path):
    words = (
        "attend",
        SAMPLE / "heads.h5",
        "--rows",
        "0:600",
        "--method",
        "window",
        "--audit",
        "16",
        "--json",
        "-o",
        "o.npy",
    )
    (tmp_path / "run.json").write_bytes(run(*words, cwd=tmp_path).out)
    run("report", "run.json", "-o", "run.html", cwd=tmp_path)
    page = (tmp_path / "run.html").read_text()
    assert "<h1>streamattn attend: heads.h5</h1>" in page
    assert_origin(page, "attend", SAMPLE / "heads.h5")
    assert page.index("Measured against exact attention") < page.index("buffer ")  # what was found comes before how
    older = json.loads((tmp_path / "run.json").read_text())
    for name in ("inputs", "command_line", "finished"):
        del older[name]
    (tmp_path / "older.json").write_text(json.dumps(older))
    run("report", "older.json", "-o", "older.html", cwd=tmp_path)
    assert "<h1>streamattn attend</h1>" in (tmp_path / "older.html").read_text()


def test_a_reading_has_a_page_with_its_points():
    """Points that are not beaten stand out; without an increase there is no place on a logarithmic axis."""
    found = jsonruns.perplexity()
    seen = Checker(perplexity_page(found))
    assert_origin(perplexity_page(found), "perplexity", "model.gguf")
    assert seen.faults == [] and seen.count("svg") == 0  # one point only
    window = found["readings"][1]
    for rows, mean in ((128, 0.02), (256, 0.05), (512, -0.001)):
        more = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}
        found["readings"].append(window | {"resident_rows": rows, "increase": more})
    window["increase"] = {"mean": 0.1, "low": None, "high": None}
    seen = Checker(perplexity_page(found))
    text = " ".join(seen.text)
    assert seen.faults == [] and seen.count("svg") == 1 and seen.count("circle") == 3
    assert (
        "3 methods and budgets; in colour: window 64, window 128, window 512." in text and "more nats per token" in text
    )
