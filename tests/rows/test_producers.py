"""The same made-up model in every format, under every producer's names, gives the same numbers: those of exact attention."""

import shlex

import formatfiles
import numpy as np
import pyarrow as pa
import pytest
from clirun import refused, run

LAYERS, BATCHES, HEADS, GROUP, ROWS, DIM = 2, 3, 2, 2, 40, 8


def model():
    """Part -> (layers, batches, heads, rows, items)."""
    rng = np.random.default_rng(8)
    heads = {"q": HEADS * GROUP, "k": HEADS, "v": HEADS}
    return {part: rng.standard_normal((LAYERS, BATCHES, n, ROWS, DIM)).astype("f4") for part, n in heads.items()}


def exact(parts, layer):
    """Causal attention (batches, query heads, rows, items)."""
    q, k, v = (np.float64(parts[part][layer]) for part in "qkv")
    k, v = k.repeat(GROUP, 1), v.repeat(GROUP, 1)
    logits = np.where(np.tri(ROWS, dtype=bool), q @ k.swapaxes(-1, -2) / np.sqrt(DIM), -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights @ v / weights.sum(-1, keepdims=True)


NAMES = {  # name of a part of a layer
    "plain": "layers.{n}.{part}",
    "TransformerLens": "blocks.{n}.attn.hook_{part}",
    "rotated": "blocks.{n}.attn.hook_{rot}{part}",
    "words": "model.layers.{n}.self_attn.{word}",
    "variables": "layer_{n}.{word}_states",
    "number behind": "{part}_{n}",
    "number before": "layer{n}_{word}",
    "projections": "model.layers.{n}.self_attn.{part}_proj",
    "lists": "{part}.{n}",
}
WORDS = {"q": "query", "k": "key", "v": "value"}
CACHES = {  # the same of caches, which have no queries
    "transformers": {"k": "layers.{n}.keys", "v": "layers.{n}.values"},
    "old transformers": {"k": "key_cache.{n}", "v": "value_cache.{n}"},
    "MLX": {"k": "{n}.0", "v": "{n}.1"},
    "pairs": {"k": "past_key_values.{n}.0", "v": "past_key_values.{n}.1"},
}
FILES = [kind for kind in formatfiles.WRITERS if kind not in formatfiles.TABLES]


def named(parts, pattern):
    return {
        pattern.format(n=n, part=part, word=WORDS[part], rot="rot_" * (part != "v")): array[n]
        for part, array in parts.items()
        for n in range(LAYERS)
    }


def pasted(folder, path):
    """Run the command that `inspect` prints, with a method whose kernels are small; the line."""
    line = run("inspect", path, "--json").document["command"]
    run(*shlex.split(line)[1:], "--method", "window", "--resident-rows", "500", "--quiet", cwd=folder)
    return line


OTHERS = [("safetensors", names) for names in NAMES if names != "plain"] + [
    ("v3.zarr", "words"),
    ("h5", "number behind"),
]


@pytest.mark.parametrize(("kind", "names"), [*((kind, "plain") for kind in FILES), *OTHERS])
def test_one_option_takes_all_layers(tmp_path, kind, names):
    parts = model()
    path = formatfiles.written(tmp_path, kind, named(parts, NAMES[names]))
    run("attend", path, "--layer", "all", "--causal", "--method", "exact", "--quiet", "-o", tmp_path / "o-{layer}.npy")
    assert pasted(tmp_path, path) == f"streamattn attend {path} --layer all -o 'out-{{layer}}.npy'"
    for layer in range(LAYERS):
        found = np.load(tmp_path / f"o-{layer}.npy")
        np.testing.assert_allclose(found, exact(parts, layer), atol=2e-6)
        np.testing.assert_allclose(np.load(tmp_path / f"out-{layer}.npy"), full(parts, layer), atol=1e-5)


@pytest.mark.parametrize("kind", formatfiles.TABLES)
def test_rows_of_tables_are_packed_sequences(tmp_path, kind):
    """A table has a row for each token, so that its sequences are told by --starts."""
    parts = model()
    flat = {
        part: array.transpose(0, 1, 3, 2, 4).reshape(LAYERS, BATCHES * ROWS, -1, DIM) for part, array in parts.items()
    }
    path = formatfiles.written(tmp_path, kind, named(flat, NAMES["plain"]))
    starts = ",".join(str(at * ROWS) for at in range(BATCHES + 1))
    words = ("--layer", "all", "--starts", starts, "--causal", "--method", "exact", "--quiet", "-o")
    run("attend", path, *words, tmp_path / "o-{layer}.npy")
    for layer in range(LAYERS):
        found = np.load(tmp_path / f"o-{layer}.npy").reshape(BATCHES, ROWS, -1, DIM).swapaxes(1, 2)
        np.testing.assert_allclose(found, exact(parts, layer), atol=2e-6)
    if kind == "arrow":  # one option is enough where the table says it itself
        table = pa.ipc.open_file(path).read_all().replace_schema_metadata({"starts": starts})
        with pa.ipc.new_file(tmp_path / "said.arrow", table.schema) as writer:
            writer.write_table(table)
        run("attend", tmp_path / "said.arrow", *words[:2], *words[4:], tmp_path / "again-{layer}.npy")
        for layer in range(LAYERS):
            np.testing.assert_array_equal(
                np.load(tmp_path / f"again-{layer}.npy"), np.load(tmp_path / f"o-{layer}.npy")
            )


def answers(folder, file, group, parts, layer):
    """Those of a sketch that keeps everything, to all queries."""
    words = ("--group", group) if group else ()
    run(
        "sketch",
        file,
        *words,
        "--method",
        "window",
        "--resident-rows",
        "500",
        "-o",
        folder / "s.sattn",
        "--force",
        "--quiet",
    )
    np.save(folder / "q.npy", parts["q"][layer])
    run("query", folder / "s.sattn", folder / "q.npy", "-o", folder / "a.npy", "--force", "--quiet")
    return np.load(folder / "a.npy")


def full(parts, layer):
    """Attention of every query to all keys."""
    q, k, v = (np.float64(parts[part][layer]) for part in "qkv")
    logits = q @ k.repeat(q.shape[1] // k.shape[1], 1).swapaxes(-1, -2) / np.sqrt(DIM)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights @ v.repeat(q.shape[1] // v.shape[1], 1) / weights.sum(-1, keepdims=True)


GROUPS = {"transformers": "layers.1", "old transformers": "1", "MLX": "1", "pairs": "past_key_values.1"}


@pytest.mark.parametrize("names", CACHES)
@pytest.mark.parametrize("kind", ["safetensors"])
def test_a_cache_needs_the_name_of_its_layer_alone(tmp_path, kind, names):
    parts = model()
    arrays = {CACHES[names][part].format(n=n): parts[part][n] for part in "kv" for n in range(LAYERS)}
    path = formatfiles.written(tmp_path, kind, arrays)
    first = GROUPS[names].replace("1", "0")
    assert pasted(tmp_path, path).split()[1:5] == ["sketch", str(path), "--group", first]
    found = answers(tmp_path, path, GROUPS[names], parts, 1)
    np.testing.assert_allclose(found, full(parts, 1), atol=2e-6)


@pytest.mark.parametrize("kind", ["pt"])
@pytest.mark.parametrize("layout", ["2HTD", "2THD", "TH2D", "2TC"])
def test_a_packed_cache_is_taken_apart(tmp_path, kind, layout):
    """One sequence; of (2, T, C) one head, as nothing says how many there are."""
    parts = {part: array[:, :1] for part, array in model().items()}
    k, v = parts["k"][1, 0], parts["v"][1, 0]
    if layout == "2TC":
        parts = {part: array[:, :, : 1 + (part == "q")] for part, array in parts.items()}
        both = np.stack([k[0], v[0]])
    elif layout == "TH2D":
        both = np.concatenate([k, v], -1).swapaxes(0, 1)
    else:
        both = np.stack([k, v]) if layout == "2HTD" else np.stack([k, v]).swapaxes(1, 2)
    path = formatfiles.written(tmp_path, kind, {"layers.0.kv_cache": both * 0 + 1, "layers.1.kv_cache": both})
    assert pasted(tmp_path, path).split()[1:5] == ["sketch", str(path), "--group", "layers.0"]
    found = answers(tmp_path, path, "layers.1", parts, 1)
    np.testing.assert_allclose(found, full(parts, 1), atol=2e-6)


def test_arrays_without_names_are_told_from_others_by_options(tmp_path):
    """numpy.savez of arrays alone: the message is what to type."""
    arrays = [model()[part][0, 0].swapaxes(0, 1) for part in "qkv"]
    np.savez(tmp_path / "dump.npz", *arrays)
    said = refused("inspect", "dump.npz", code=3, words=["without names", "give --q"], cwd=tmp_path)
    words = said.partition("give ")[2].split()
    run("attend", *words, "--method", "exact", "--quiet", "-o", "o.npy", cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "o.npy").swapaxes(0, 1), full(model(), 0)[0], atol=1e-5)
