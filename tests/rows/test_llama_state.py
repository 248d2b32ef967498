"""Sequence states of llama.cpp: keys and values of a layer as they are, or refused by name."""

import llamafiles
import numpy as np
import pytest
from clirun import refused, run

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.formats import registry, strided
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.layout import extent
from streamattn_cli.testing.source import SOURCE_LAWS, SourceCase

ROWS, WIDTH = 700, 48


def layers(dtype="<f2", rows=ROWS, count=2):
    rng = np.random.default_rng(5)
    bits = [[rng.standard_normal((rows, WIDTH)).astype("f4") for _ in "kv"] for _ in range(count)]
    if dtype == "<u2":
        return [tuple((array.view("u4") >> 16).astype("u2") for array in layer) for layer in bits]
    return [tuple(array.astype(dtype) for array in layer) for layer in bits]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<u2"])
def test_rows_are_those_of_the_cache(tmp_path, dtype, transposed, monkeypatch):
    """Values may be stored by columns; pieces of 16 rows."""
    monkeypatch.setattr(strided, "COLUMNS", 16 * WIDTH * np.dtype(dtype).itemsize)
    made = layers(dtype)
    path = llamafiles.save(tmp_path / "slot.bin", made, transposed)
    spec = InputSpec(str(path), group="layers.1", kv_heads=3)
    with open_inputs(spec, need_q=False) as inputs:
        assert (len(inputs.k), inputs.k.dim) == (3, 16)
        assert inputs.k.tensor.dtype == {"<u2": "bf16"}.get(dtype, dtype[1:])
        for part, heads in enumerate((inputs.k, inputs.v)):
            buf = np.empty((1, 50, WIDTH), dtype if dtype != "<f2" else "<u2")
            for start in (0, 333, 650):
                assert heads.tensor.read_into(buf, start) == 50
                np.testing.assert_array_equal(buf[0], made[1][part][start : start + 50].view(buf.dtype))


@pytest.mark.parametrize("law", SOURCE_LAWS, ids=lambda law: law.__name__)
def test_its_rows_obey_the_laws_of_a_source(tmp_path, law):
    made = layers("<f4")
    path = llamafiles.save(tmp_path / "slot.bin", made, True)
    stored = registry.find("llama-state").arrays(str(path), {"v": "layers.0.v"}, None)["v"]
    law(SourceCase(lambda: stored.open(extent((ROWS, WIDTH), "TC", "v", 3)), made[0][1][None]))


@pytest.mark.parametrize(("version", "more", "streams"), [(2, 0, 3), (2, 8, 3), (2, 0, 0), (3, 0, 3), (3, 12, 3)])
def test_what_is_known_of_cells_is_told_by_the_size_of_the_file(tmp_path, version, more, streams):
    path = llamafiles.save(tmp_path / "slot.bin", layers(), version=version, more=more, streams=streams)
    with open_inputs(InputSpec(str(path), group="layers.0"), need_q=False) as inputs:
        np.testing.assert_array_equal(inputs.v.tensor.peek(ROWS)[0], layers()[0][1].view("<u2"))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_cache_is_sketched_and_queried(tmp_path, transposed):
    (keys, values), _ = layers("<f2")
    llamafiles.save(tmp_path / "slot.bin", layers("<f2"), transposed)
    np.save(tmp_path / "k.npy", keys)
    np.save(tmp_path / "v.npy", values)
    words = ("--kv-heads", "3", "--method", "window", "--resident-rows", "64", "-o")
    run("sketch", tmp_path / "slot.bin", "--group", "layers.0", *words, tmp_path / "a.sattn")
    run("sketch", "--k", tmp_path / "k.npy", "--v", tmp_path / "v.npy", *words, tmp_path / "b.sattn")
    for name in "ab":
        run("query", tmp_path / f"{name}.sattn", tmp_path / "k.npy", "--heads", "3", "-o", tmp_path / f"{name}.npy")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize(("words", "said"), [
    ({"kinds": {"<f2": 8}}, "q8_0"), ({"kinds": {"<f2": 99}}, "ggml type 99"), ({"version": 4}, "version 4"),
    ({"behind": bytes(20)}, "sliding windows"), ({"positions": [*range(50), 7, *range(51, ROWS)]}, "order of their positions"),
    ({"more": 4}, "damaged"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, words, said):
    path = llamafiles.save(tmp_path / "slot.bin", layers(), **words)
    refused("sketch", path, "--group", "layers.0", "-o", tmp_path / "o.sattn", code=4, words=[said])


def test_a_file_that_was_cut_is_refused(tmp_path):
    path = llamafiles.save(tmp_path / "slot.bin", layers(rows=20))
    data = path.read_bytes()
    for size in [*range(4, 300, 7), len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(InputMalformed, match="damaged"):
            open_inputs(InputSpec(str(path), group="layers.0"), need_q=False)
