"""Language models whose attention is answered through the interface of transformers, and what `perplexity` says of them."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from described import described
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from clirun import COMMAND, environment  # noqa: E402
from smallmodels import KINDS, save_model, save_text  # noqa: E402

from streamattn_cli.cli.main import app  # noqa: E402
from streamattn_cli.errors import CannotMeet, StreamattnError  # noqa: E402
from streamattn_cli.models.interface import ExactRows, LayerFacts, answered_by, attention  # noqa: E402
from streamattn_cli.models.load import layer_types, load, weight_bytes  # noqa: E402
from streamattn_cli.models.nats import Perplexity, Reading, paired  # noqa: E402
from streamattn_cli.models.rotary import rope_of  # noqa: E402
from streamattn_cli.models.text import token_ids  # noqa: E402
from streamattn_cli.report.text.perplexity import perplexity_lines  # noqa: E402

ROWS = 200


def _invoke(*words):
    """`streamattn perplexity` in this process: torch is slow to import."""
    return CliRunner().invoke(app, ["perplexity", *map(str, words)])


def _document(*words):
    done = _invoke(*words, "--json")
    assert done.exit_code == 0, done.exception
    return described(json.loads(done.stdout))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of each kind, and a text."""
    made = {kind: save_model(tmp_path_factory.mktemp("model"), kind) for kind in KINDS}
    return made | {"text": save_text(tmp_path_factory.mktemp("text") / "text.txt")}


def _read(model, ids, reading, chunk):
    logits = []
    with torch.inference_mode(), answered_by(reading):
        for a in range(0, len(ids), chunk):
            part = torch.from_numpy(ids[a : a + chunk])[None]
            positions = torch.arange(a, a + part.shape[1])[None]
            logits.append(model.network(input_ids=part, position_ids=positions, use_cache=False).logits[0])
    return torch.cat(logits)


def _exactly():
    kept = {}
    return kept, lambda facts: kept.setdefault(facts.index, ExactRows(ROWS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [ROWS, 37])
def test_exact_attention_gives_the_models_own_logits(folders, kind, chunk):
    model = load(folders[kind])
    ids = token_ids(model.tokenizer, [folders["text"]], ROWS)
    found = _read(model, ids, _exactly()[1], chunk)
    model.network.set_attn_implementation("eager")
    with torch.inference_mode():
        own = model.network(input_ids=torch.from_numpy(ids)[None]).logits[0]
    assert own.std() > 0.3
    np.testing.assert_allclose(found, own, atol=1e-4, rtol=0)


def test_a_window_keeps_its_rows_alone(folders):
    model = load(folders["a window in every layer"])
    kept, reading = _exactly()
    _read(model, token_ids(model.tokenizer, [folders["text"]], ROWS), reading, 16)
    row = 2 * 2 * 12 * 4  # k and v, 2 key heads, 12 items, float32
    assert [layer.nbytes for layer in kept.values()] == [(40 + 16) * row] * 3


def test_layers_say_what_they_are(folders):
    model, seen = load(folders["softcap, and windows"]), {}

    def reading(facts):
        seen[facts.index] = facts
        return ExactRows(ROWS)

    _read(model, np.arange(3, 20), reading, 20)
    assert [facts.local for facts in seen.values()] == [40, None, 40] and model.global_layers == [1]
    assert seen[1] == LayerFacts(1, pytest.approx(256**-0.5), None, 2.0, None)


def test_the_rotation_is_found(folders):
    assert rope_of(load(folders["grouped heads"]).network, 12) == "10000.0:half"
    assert rope_of(load(folders["other value dims"]).network, 16) is None  # only a part of each row is turned


@pytest.mark.parametrize("layer", [None, "1"])
def test_perplexity_of_methods_that_keep_everything_is_exact(folders, layer):
    words = ("--layer", layer) if layer else ()
    found = _document(
        folders["grouped heads"], folders["text"], "--methods", "nystrom,window", "--resident-rows", "2048",
        "--chunk", "64", "--samples", "50", *words,
    )  # fmt: skip
    assert found["tokens"] == 700 and found["layers"] == ([1] if layer else [0, 1, 2])
    exact, *others = found["readings"]
    assert [other["method"] for other in others] == ["nystrom", "window"]
    for other in others:
        assert other["nats"] == pytest.approx(exact["nats"], abs=1e-5)
        assert abs(other["increase"]["mean"]) < 1e-5 and abs(other["kl"]) < 1e-5 and other["agreement"] == 1
        assert other["samples"] == 50


@pytest.mark.parametrize(("kind", "method"), [("sinks, and windows", "evict"), ("softcap, and windows", "window")])
def test_layers_as_models_have_them_are_sketched_too(folders, kind, method):
    """Enough rows: exact, so that windows, softcap and the logits of sinks are those of the model."""
    found = _document(
        folders[kind], folders["text"], "--methods", method, "--resident-rows", "1024", "--layer", "all", "--tokens", ROWS,
    )  # fmt: skip
    exact, mine = found["readings"]
    assert found["layers"] == [0, 1, 2] and abs(mine["increase"]["mean"]) < 1e-5 and abs(mine["kl"]) < 1e-5
    assert mine["agreement"] == 1


def test_exact_attention_looks_back_a_reference_window(folders, tmp_path):
    """As a model with a mask does, and the methods are what they are without it; and the page of both."""
    words = (
        folders["grouped heads"],
        folders["text"],
        "--methods",
        "window",
        "--resident-rows",
        "24,48",
        "--tokens",
        ROWS,
    )
    found = _document(*words, "--reference-window", "30")
    exact, *others = found["readings"]
    model = load(folders["grouped heads"])
    ids = token_ids(model.tokenizer, [folders["text"]], ROWS)
    model.network.set_attn_implementation("eager")
    own = {}
    for name, params in (("reference", {"window": 30, "sinks": 4}), ("short", others[0]["params"])):
        own[name] = float(-_windowed(model, ids, params)[np.arange(ROWS - 1), ids[1:]].double().mean())
    assert found["reference_window"] == 30 and own["reference"] != pytest.approx(own["short"], abs=1e-3)
    assert [exact["nats"], others[0]["nats"]] == pytest.approx([own["reference"], own["short"]], abs=1e-4)
    (tmp_path / "found.json").write_text(json.dumps(found))
    page = CliRunner().invoke(app, ["report", str(tmp_path / "found.json")]).stdout
    assert all(
        told in page for told in ("looks back 30 rows", "window 24", "More nats by position", f"{exact['nats']:.4f}")
    )


def test_perplexity_is_that_of_the_logits(folders):
    """Nats, KL and agreement, computed again from whole logits of the model's own attention and of a short window."""
    exact, window = _document(
        folders["grouped heads"], folders["text"], "--methods", "window", "--resident-rows", "24",
        "--chunk", "50", "--samples", "10000", "--tokens", ROWS,
    )["readings"]  # fmt: skip
    model = load(folders["grouped heads"])
    ids = token_ids(model.tokenizer, [folders["text"]], ROWS)
    model.network.set_attn_implementation("eager")
    with torch.inference_mode():
        own = torch.log_softmax(model.network(input_ids=torch.from_numpy(ids)[None]).logits[0], 1)
    nats = -own[np.arange(ROWS - 1), ids[1:]].double()
    assert exact["nats"] == pytest.approx(float(nats.mean()), abs=1e-4)
    parts = exact["by_position"]
    assert [(part["first"], part["last"]) for part in parts] == [(1, ROWS)]
    sketch = _windowed(model, ids, window["params"])
    theirs = -sketch[np.arange(ROWS - 1), ids[1:]].double()
    assert window["nats"] == pytest.approx(float(theirs.mean()), abs=1e-4)
    assert window["increase"]["mean"] == pytest.approx(float((theirs - nats).mean()), abs=1e-4)
    kl = (own.exp() * (own - sketch)).sum(1)[:-1]
    assert window["kl"] == pytest.approx(float(kl.mean()), abs=1e-4) and float(kl.mean()) > 0.01
    assert window["agreement"] == pytest.approx(float((own.argmax(1) == sketch.argmax(1))[:-1].float().mean()))
    assert window["attention_bytes"] < exact["attention_bytes"] == window["full_bytes"] == 3 * ROWS * 2 * 2 * 12 * 4


def _windowed(model, ids, params):
    """Log probabilities where every layer sees the sinks and its window alone, from a mask."""
    at = torch.arange(len(ids))
    seen = (at[None] <= at[:, None]) & ((at[None] > at[:, None] - params["window"]) | (at[None] < params["sinks"]))
    mask = torch.where(seen, 0.0, -torch.inf)[None, None]
    with torch.inference_mode():
        return torch.log_softmax(model.network(input_ids=torch.from_numpy(ids)[None], attention_mask=mask).logits[0], 1)


def test_chunks_change_no_figure_but_by_rounding(folders):
    words = (
        folders["grouped heads"],
        folders["text"],
        "--tokens",
        "400",
        "--methods",
        "nystrom",
        "--resident-rows",
        "96",
    )
    one, two = (_document(*words, "--chunk", chunk)["readings"][1] for chunk in (400, 70))
    assert one["nats"] == pytest.approx(two["nats"], abs=2e-3)
    assert one["attention_bytes"] == two["attention_bytes"]


def test_the_table(folders):
    done = _invoke(folders["grouped heads"], folders["text"], "--resident-rows", "16%,128", "--tokens", "600")
    assert "--resident-rows 16% of 600 keys: 96" in done.stderr
    assert "600 tokens, nats per token: exact" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("streamattn perplexity:")
    assert "beyond them exact attention is no truth" in " ".join(done.stdout.split())
    assert [line.split()[:2] for line in lines if line.startswith(("nystrom", "evict", "window"))] == 2 * [
        [method, rows] for method in ("nystrom", "evict", "window") for rows in ("96", "128")
    ]


def _told(budgets, more):
    """The text's facts of two methods, of which the second has this increase at the first 255 tokens, the first a larger one."""
    exact = Reading("exact", None, nats=np.ones(599, np.float32))
    found = [exact]
    for method, factor in (("evict", 3.0), ("nystrom", 1.0)):
        for rows in budgets:
            nats = exact.nats + np.float32(0.1 * factor / rows)
            nats[:255] += np.float32(more * factor)
            found.append(Reading(method, rows, nats=nats, nbytes=rows << 10))
    return Perplexity("model", ("text",), 600, (0,), None, (1, 256, 512, 600), tuple(found), 1.0, {}, ()).to_dict()


@pytest.mark.parametrize(("budgets", "against"), [((64, 512), "resident rows"), ((64,), "position")])
def test_the_plot_shows_the_increase(budgets, against):
    for width, dots in ((30, True), (40, False), (80, False), (200, True)):
        lines = perplexity_lines(_told(budgets, 0.0), width, dots)
        assert max(map(len, lines)) <= width and dots != "\n".join(lines).isascii()
        start = next(at for at, line in enumerate(lines) if line.startswith("more nats against"))
        assert f"against {against} (logarithmic): a evict, b nystrom" in " ".join(lines[start:])
        body = [line.partition("\u2502" if dots else "|")[2] for line in lines if "\u2502" in line or "|" in line]
        high, low = (next(at for at, line in enumerate(body) if letter in line) for letter in "ab")
        assert len(body) == 10 and high == 0 < low  # evict is worse
        assert ("b" in body[-1]) and lines[-1].split() == sorted(lines[-1].split(), key=float)


def test_what_has_no_place_on_a_logarithmic_axis_is_named():
    lines = perplexity_lines(_told((64,), -0.5), 80)
    assert "not above 0: evict to 256, nystrom to 256" in " ".join(lines)
    assert not any("more nats against" in line for line in perplexity_lines(_told((64, 512), -5.0), 200))


def test_intervals_cover_the_mean_of_tokens_that_err_together():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        shared = np.repeat(rng.standard_normal(512), 16)
        found = paired(0.3 + shared + rng.standard_normal(8192))
        inside += found.low <= 0.3 <= found.high
    assert 0.92 <= inside / 400 <= 0.98
    assert paired(np.ones(20)).low == -np.inf


def test_refusals_of_models(folders, tmp_path):
    text, model = folders["text"], folders["grouped heads"]
    (tmp_path / "file.gguf").write_bytes(b"not a model")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\3\0\0\0")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    bare = save_model(tmp_path / "bare", "grouped heads", tokenizer=False)
    for code, word, *words in (
        (3, "no such folder", tmp_path / "absent", text),
        (4, "neither a folder nor a GGUF file", tmp_path / "file.gguf", text),
        (4, "cut.gguf: damaged", tmp_path / "cut.gguf", text),
        (3, "no config.json", tmp_path, text),
        (2, "--tokens 1: must be at least 2", model, text, "--tokens", "1"),
        (3, "absent.txt", model, "absent.txt"),
        (4, "UTF-8", model, tmp_path / "bytes.txt"),
        (4, "700 tokens found, 701 are needed", model, text, "--tokens", "701"),
        (6, "--memory", model, text, "--memory", "100KiB"),
        (2, "has layers 0 to 2", model, text, "--layer", "3"),
        (2, "--chunk 0", model, text, "--chunk", "0"),
        (2, "--reference-window 0", model, text, "--reference-window", "0"),
        (2, "always read", model, text, "--methods", "exact"),
        (2, "method nistrom", model, text, "--methods", "nistrom"),
        (11, "method poly", model, text, "--methods", "poly"),
        (11, "softcap", folders["softcap, and windows"], text, "--layer", "1"),
        (3, "tokenizer", bare, text),
    ):
        done = _invoke(*words)
        assert isinstance(done.exception, StreamattnError), done.exception
        assert done.exception.code == code and word in str(done.exception)


def test_layers_that_are_no_softmax_are_named():
    told = SimpleNamespace(num_hidden_layers=3, layer_types=["full_attention", "chunked_attention", "full_attention"])
    with pytest.raises(CannotMeet, match="layer 1 is of type chunked_attention"):
        layer_types("model", SimpleNamespace(get_text_config=lambda: told))
    module = SimpleNamespace(layer_idx=4, is_causal=False)
    with pytest.raises(CannotMeet, match="layer 4 .SimpleNamespace"):
        attention(module, torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), None)


def test_a_missing_extra_is_named(folders):
    """As if transformers was not installed."""
    code = "import sys; sys.modules['transformers'] = None; from streamattn_cli.cli.main import main; main()"
    words = "perplexity", folders["grouped heads"], folders["text"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2 and "streamattn-cli[models]" in done.stderr


def test_no_other_command_imports_torch():
    code = (
        "import sys, streamattn_cli.cli.main, streamattn_cli.api_causal, streamattn_cli.models.load;"
        "print([name for name in ('torch', 'transformers', 'gguf') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.fixture(scope="module")
def wordy(tmp_path_factory):
    """Kind -> a model with as many words as those of today, and 700 rows."""
    found = {kind: save_model(tmp_path_factory.mktemp("model"), kind, vocab_size=60000) for kind in list(KINDS)[::2]}
    return found | {"text": save_text(tmp_path_factory.mktemp("text") / "text.txt")}


@pytest.mark.parametrize("kind", list(KINDS)[::2])
def test_memory_is_projected_before_a_weight_is_read(wordy, kind):
    """In a process of its own, whose allocator has seen nothing before. Logits are most of it."""
    words = (
        wordy[kind],
        wordy["text"],
        "--methods",
        "window",
        "--resident-rows",
        "96",
        "--layer",
        "all",
        "--threads",
        "1",
    )
    done = subprocess.run([*COMMAND, "perplexity", *words, "--json"], capture_output=True, env=environment())
    memory = json.loads(done.stdout)["memory"]
    assert 512 * 60000 * 4 < memory["peak"] <= memory["projected"] < 2 * memory["peak"]
    needed = weight_bytes(wordy[kind]) + memory["projected"]
    refused = _invoke(*words, "--memory", needed - 1)
    assert refused.exception.code == 6 and "reading 700 tokens" in str(refused.exception)
    assert "smaller --chunk" in str(refused.exception)
    _document(*words, "--chunk", "64", "--tokens", "100", "--memory", needed - (100 << 20))


def test_weights_are_counted_from_headers(folders):
    model = load(folders["grouped heads"])
    held = sum(weight.nbytes for weight in model.network.state_dict().values())
    assert weight_bytes(folders["grouped heads"]) == pytest.approx(held, rel=0.01)
