"""Zarr folders: the same rows as from .npy, chunk by chunk, and nothing run, invented or larger than it says."""

import gzip
import json
import warnings

import numcodecs
import numpy as np
import pytest
import zarr
from clirun import refused, run
from zarr import codecs

from streamattn_cli.errors import InputMalformed, SourceChanged
from streamattn_cli.rows.formats import registry
from streamattn_cli.rows.inputs.fingerprint import check_unchanged, file_states
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.layout import extent
from streamattn_cli.testing.source import SOURCE_LAWS, SourceCase

SHAPE = (1, 3, 700, 24)  # B, H, T, D
WINDOW = ("--causal", "--method", "window", "--resident-rows", "128", "--quiet", "-o")
KINDS = {
    "v2": {"zarr_format": 2},
    "v2 nested": {"zarr_format": 2, "compressors": numcodecs.Zlib(), "order": "F",
                  "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v2 lz4": {"zarr_format": 2, "compressors": numcodecs.LZ4(), "filters": [numcodecs.Shuffle(4)]},
    "v3": {},
    "v3 plain": {"compressors": None},
    "v3 gzip": {"compressors": codecs.GzipCodec(), "filters": [codecs.TransposeCodec(order=(0, 2, 3, 1))]},
    "v3 blosc": {"compressors": codecs.BloscCodec(), "chunk_key_encoding": {"name": "v2", "separator": "."}},
    "shards": {"shards": (1, 3, 240, 24)},
    "one chunk": {"chunks": SHAPE},
}  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(3)
    return {part: rng.standard_normal(SHAPE).astype("f4") for part in "qkv"}


def saved(path, arrays, zarr_format=3, attrs=None, **words):
    """A folder as zarr writes it, in chunks of 120 rows of one head unless `words` say otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        group.attrs.update(attrs or {})
        for name, array in arrays.items():
            shape = (*np.minimum(array.shape, (1, 1, 120, 24)[-array.ndim :]),) if array.ndim else ()
            made = group.create_array(name, shape=array.shape, dtype=array.dtype, **{"chunks": shape or "auto"} | words)
            made[...] = array
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_the_same_bytes_as_npy(tmp_path, parts, kind):
    for part, array in parts.items():
        np.save(tmp_path / f"{part}.npy", array)
    run("attend", *(w for p in "qkv" for w in (f"--{p}", tmp_path / f"{p}.npy")), *WINDOW, tmp_path / "expected.npy")
    saved(tmp_path / "dump.zarr", parts, **KINDS[kind])
    for size in ("50", "400"):
        run("attend", tmp_path / "dump.zarr", "--block-rows", size, *WINDOW, tmp_path / "out.npy", "--force")
        assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


@pytest.mark.parametrize("kind", ["v2", "v3", "shards"])
@pytest.mark.parametrize("law", SOURCE_LAWS, ids=lambda law: law.__name__)
def test_its_rows_obey_the_laws_of_a_source(tmp_path, parts, kind, law):
    stored = registry.find("zarr").arrays(str(saved(tmp_path / "d.zarr", parts, **KINDS[kind])), {"k": "k"}, None)["k"]
    law(SourceCase(lambda: stored.open(extent(SHAPE, "BHTD", "k")), parts["k"][0]))


def test_batches_are_read_one_after_the_other(tmp_path):
    rng = np.random.default_rng(4)
    arrays = {part: rng.standard_normal((3, 2, 300, 24)).astype("f2") for part in "qkv"}
    np.savez(tmp_path / "dump.npz", **arrays)
    saved(tmp_path / "dump.zarr", arrays, chunks=(2, 1, 70, 24))
    for name in ("dump.npz", "dump.zarr"):
        run("attend", tmp_path / name, "--lengths", "300,20,111", *WINDOW, tmp_path / f"{name}.npy")
    assert (tmp_path / "dump.zarr.npy").read_bytes() == (tmp_path / "dump.npz.npy").read_bytes()


@pytest.mark.parametrize("version", [2, 3])
def test_layers_and_attributes_are_those_of_groups(tmp_path, parts, version):
    named = {f"model/layers/{n}/{part}": array + n for n in (2, 10) for part, array in parts.items()}
    saved(tmp_path / "dump.zarr", named, version, {"causal": True, "scale": 0.5, "layout": "BHTD"})
    words = ("--method", "window", "--resident-rows", "64", "--json", "-o")
    done = run("attend", tmp_path / "dump.zarr", "--layer", "all", *words, tmp_path / "o-{layer}.npy")
    assert [layer["number"] for layer in done.document["layers"]] == [2, 10]
    run("attend", tmp_path / "dump.zarr", "--group", "model/layers/10", *words, tmp_path / "o.npy")
    assert (tmp_path / "o.npy").read_bytes() == (tmp_path / "o-10.npy").read_bytes()
    files = (word for part in "qkv" for word in (f"--{part}", f"{tmp_path}/dump.zarr/model/layers/10/{part}"))
    run("attend", *files, "--causal", "--scale", "0.5", *words, tmp_path / "alone.npy")
    assert (tmp_path / "alone.npy").read_bytes() == (tmp_path / "o.npy").read_bytes()


@pytest.mark.parametrize(("kind", "missing", "first"), [("v2", 240, 240), ("v3 plain", 240, 240), ("shards", 220, 480)])
def test_rows_that_are_not_stored_are_refused_or_what_fills_them(tmp_path, parts, kind, missing, first):
    """Of the second head alone, too: a row that is there in part is not there."""
    path = saved(tmp_path / "in.zarr", {}, KINDS[kind].get("zarr_format", 3))
    group, filled = zarr.open_group(path), {part: array.copy() for part, array in parts.items()}
    for part, array in filled.items():
        words = {key: word for key, word in KINDS[kind].items() if key != "zarr_format"}
        made = group.create_array(part, shape=SHAPE, dtype="f4", chunks=(1, 1, 120, 24), fill_value=0.25, **words)
        for head in range(3):
            for at in (0, 120, 240, 360, 480, 600):
                left_out = head == 1 and (at in (240, 360) if kind != "shards" else at >= 480)
                if left_out:
                    array[0, head, at : at + 120] = 0.25
                else:
                    made[0, head, at : at + 120] = array[0, head, at : at + 120]
    words = [f"{missing} rows are not stored", f"row {first} is the first", "write_empty_chunks"]
    refused("attend", path, *WINDOW, tmp_path / "o.npy", code=4, words=words)
    np.savez(tmp_path / "filled.npz", **filled)
    run("attend", tmp_path / "filled.npz", *WINDOW, tmp_path / "expected.npy")
    done = run("attend", path, "--missing", "zeros", *WINDOW[:-2], "-o", tmp_path / "o.npy")
    assert f"{missing} rows are not stored" in done.err
    assert (tmp_path / "o.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


@pytest.mark.parametrize("version", [2, 3])
def test_dtypes_that_numpy_has_not(tmp_path, version):
    """As other programs write them; a scale is an array without axes."""
    bits = np.random.default_rng(0).integers(0, 100, (300, 24)).astype("u1")
    path = saved(tmp_path / "d.zarr", {"k": bits, "v": bits.astype("u2") << 7, "k_scale": np.float32(0.5)}, version)
    for part, word in (("k", "float8_e4m3fn"), ("v", "bfloat16")):
        file = path / part / ("zarr.json" if version == 3 else ".zarray")
        said = json.loads(file.read_text())
        said["data_type" if version == 3 else "dtype"] = word
        file.write_text(json.dumps(said | {"fill_value": "0x0000"}))
    with open_inputs(InputSpec(str(path)), need_q=False) as inputs:
        assert (inputs.k.tensor.dtype, inputs.v.tensor.dtype, inputs.k.factors) == ("f8e4m3", "bf16", (0.5,))
        np.testing.assert_array_equal(inputs.k.tensor.peek(300)[0], bits)
        np.testing.assert_array_equal(inputs.v.tensor.peek(300)[0], bits.astype("u2") << 7)


def test_without_the_package_the_extra_is_named(tmp_path, parts):
    saved(tmp_path / "d.zarr", parts)
    (tmp_path / "hidden/zarr").mkdir(parents=True)
    (tmp_path / "hidden/zarr/__init__.py").write_text("raise ImportError('not here')")
    hidden = {"PYTHONPATH": str(tmp_path / "hidden")}
    refused("inspect", tmp_path / "d.zarr", code=2, words=["streamattn-cli[zarr]"], env=hidden)
    refused("inspect", tmp_path, code=3, words=["is a folder"])


def test_a_chunk_that_changes_is_noticed(tmp_path, parts):
    path = saved(tmp_path / "d.zarr", parts)
    with open_inputs(InputSpec(str(path))) as inputs:
        before = file_states([inputs.k.tensor, inputs.q.tensor])
        check_unchanged(before)
        zarr.open_array(path / "k", mode="r+")[0, 0, 5] = 7
        with pytest.raises(SourceChanged):
            check_unchanged(before)


class Evil:
    """What leaves a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.mark.parametrize("where", ["filters", "compressor"])
def test_a_codec_that_would_run_code_is_refused(tmp_path, parts, where):
    import pickle

    path = saved(tmp_path / "d.zarr", parts, 2, compressors=None)
    said = json.loads((path / "k/.zarray").read_text())
    (path / "k/.zarray").write_text(
        json.dumps(said | {where: [{"id": "pickle"}] if where == "filters" else {"id": "pickle"}})
    )
    for chunk in (path / "k").glob("0*"):
        chunk.write_bytes(pickle.dumps(Evil(str(tmp_path / "ran"))))
    refused("inspect", path, code=4, words=["codec pickle"])
    assert not (tmp_path / "ran").exists()


BIG = 1 << 24
BOMBS = {
    "v2": lambda: numcodecs.Blosc().encode(np.zeros(BIG, "u1")),
    "v2 nested": lambda: numcodecs.Zlib().encode(np.zeros(BIG, "u1")),
    "v2 lz4": lambda: numcodecs.LZ4().encode(bytes(BIG)),
    "v3": lambda: numcodecs.Zstd().encode(bytes(BIG)),
    "v3 gzip": lambda: gzip.compress(bytes(11000)) + gzip.compress(bytes(BIG)),
    "v3 plain": lambda: bytes(BIG),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_chunk_larger_than_it_may_be_is_not_decoded(tmp_path, parts, kind, monkeypatch):
    path = saved(tmp_path / "d.zarr", parts, **KINDS[kind])
    chunk = next(file for file in sorted((path / "k").rglob("*")) if file.is_file() and file.name[-1].isdigit())
    chunk.write_bytes(BOMBS[kind]())
    with open_inputs(InputSpec(str(path))) as inputs:
        monkeypatch.setattr(zarr.Array, "__getitem__", lambda *_: pytest.fail("it was decoded"))
        with pytest.raises(InputMalformed, match="larger than"):
            inputs.k.tensor.peek(1)


def test_offsets_of_a_shard_that_lie_are_refused(tmp_path, parts):
    path = saved(tmp_path / "d.zarr", parts, **KINDS["shards"])
    shard = path / "k/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[-100:-92] = (1 << 40).to_bytes(8, "little")  # in the index of six entries of 16 bytes, before a checksum
    shard.write_bytes(data)
    with open_inputs(InputSpec(str(path))) as inputs, pytest.raises(InputMalformed):
        inputs.k.tensor.peek(700)
