"""Archives and indices of other programs: the same rows as from .npy, and nothing run or invented."""

import io
import json
import os
import pickle
import pickletools
import struct
import zipfile

import numpy as np
import pytest
import torchfiles
from clirun import refused, run

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.formats import inflate, npz, pytorch, registry
from streamattn_cli.rows.formats.names import find_parts
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.file import FileTensor
from streamattn_cli.rows.tensors.layout import extent
from streamattn_cli.testing.source import SOURCE_LAWS, SourceCase

COUNT = int(os.environ.get("STREAMATTN_MUTATIONS", "1500")) // 3
SHAPE = (1, 3, 700, 24)  # B, H, T, D


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(3)
    return {part: rng.standard_normal(SHAPE).astype("f4") for part in "qkv"}


def moved(array):
    """The same array, stored as (B, T, H, D): what transpose(1, 2) of a projection is."""
    return np.ascontiguousarray(array.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


def torch_dict(folder, arrays, name="dump.pt"):
    with torchfiles.pretended():
        torchfiles.save(folder / name, {part: torchfiles.Tensor(array) for part, array in arrays.items()})
    return folder / name


def sharded(folder, arrays):
    """An index and one safetensors file for each array."""
    for part, array in arrays.items():
        text = json.dumps({part: {"dtype": "F32", "shape": array.shape, "data_offsets": [0, array.nbytes]}}).encode()
        (folder / f"{part}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + array.tobytes())
    places = {part: f"{part}.safetensors" for part in arrays}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder / "model.safetensors.index.json"


def saved(folder, arrays, how):
    """A file of q, k and v."""
    if how == "torch":
        return torch_dict(folder, arrays)
    if how == "torch, transposed":
        return torch_dict(folder, {part: moved(array) for part, array in arrays.items()})
    if how == "index":
        return sharded(folder, arrays)
    (np.savez if how == "npz" else np.savez_compressed)(folder / "dump.npz", **arrays)
    return folder / "dump.npz"


KINDS = ("torch", "torch, transposed", "index", "npz", "npz, compressed")


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("mode", ["--causal", "--full"])
def test_every_format_gives_the_same_bytes_as_npy(tmp_path, parts, how, mode):
    """Without a word about names and layout; the output has the axes of the queries."""
    for part, array in parts.items():
        np.save(tmp_path / f"{part}.npy", array)
    words = (mode, "--method", "window", "--resident-rows", "128", "--audit", "8", "--quiet", "-o")
    run("attend", *(w for p in "qkv" for w in (f"--{p}", tmp_path / f"{p}.npy")), *words, tmp_path / "expected.npy")
    run("attend", saved(tmp_path, parts, how), *words, tmp_path / "out.npy")
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


def source(path, how, parts):
    """A case of the conformance suite: the keys of a file, read as BHTD."""
    found = registry.find({"t": "pytorch", "i": "safetensors-index", "n": "npz"}[how[0]])
    stored = found.arrays(str(path), {"k": "k"}, None)["k"]
    return SourceCase(lambda: stored.open(extent(SHAPE, "BHTD", "k")), parts["k"][0])


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("law", SOURCE_LAWS, ids=lambda law: law.__name__)
def test_its_rows_obey_the_laws_of_a_source(tmp_path, parts, how, law):
    law(source(saved(tmp_path, parts, how), how, parts))


# --- PyTorch


@pytest.mark.parametrize("dtype", ["<f2", "<u2", "<f4", "<f8"])
@pytest.mark.parametrize("view", [
    lambda a: a, lambda a: a[:, 1:3], lambda a: a[:, :, ::2], lambda a: a[..., ::3], lambda a: moved(a)[:, ::2, 5:],
    lambda a: a.swapaxes(0, 1), lambda a: np.ascontiguousarray(a.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1),
], ids=["whole", "some heads", "every other row", "every third item", "moved", "no batch first", "rows first"])  # fmt: skip
def test_a_view_of_a_storage_is_read_as_its_tensor_is(tmp_path, parts, dtype, view):
    array = view(parts["k"].view("<u2")[..., ::2].copy() if dtype == "<u2" else parts["k"].astype(dtype))
    path = torch_dict(tmp_path, {"k": array})
    stored = pytorch.pytorch_arrays(str(path), {"k": "k"})["k"]
    assert stored.shape == array.shape and stored.dtype == {"<u2": "bf16"}.get(dtype, dtype[1:])
    tensor = stored.open(extent(array.shape, "BHTD", "k"))
    expected = array.reshape(-1, *array.shape[2:])
    found = np.zeros((len(expected), 60, array.shape[3]), dtype if dtype != "<f2" else "<u2")
    for start in (0, 41, array.shape[2] - 60):
        assert tensor.read_into(found, start) == 60
        np.testing.assert_array_equal(found, expected[:, start : start + 60].copy().view(found.dtype))
    tensor.close()


def test_heads_that_lie_side_by_side_are_read_in_place(tmp_path, parts):
    """A transposed projection, whole or some of its batches: the file is read as it is, through no buffer."""
    many = {part: moved(np.concatenate([array, array + 1])) for part, array in parts.items()}
    for arrays, dim in ((parts, 1), (many, 2)):
        path = torch_dict(tmp_path, {part: moved(array) for part, array in arrays.items()})
        with open_inputs(InputSpec(str(path))) as inputs:
            assert isinstance(inputs.k.tensor, FileTensor) and inputs.k.tensor.held_bytes == 0
            assert (inputs.k.layout, inputs.k.batch, len(inputs.k)) == ("BHTD", dim, 3 * dim)
            rows = inputs.k.tensor.peek(700)
            found = [rows[o, :, c : c + 24] for o, c in zip(inputs.k.outer, inputs.k.column, strict=True)]
        np.testing.assert_array_equal(found, arrays["k"].reshape(-1, 700, 24))
    np.savez(tmp_path / "many.npz", **many)
    for name in ("dump.pt", "many.npz"):
        words = ("--method", "window", "--resident-rows", "128", "--lengths", "700,33", "--select", "0,2", "-o")
        run("attend", tmp_path / name, "--causal", *words, tmp_path / f"{name}.npy")
    assert (tmp_path / "dump.pt.npy").read_bytes() == (tmp_path / "many.npz.npy").read_bytes()


def test_a_tensor_whose_items_lie_far_apart_is_refused(tmp_path):
    array = np.zeros((64, 80_000), "f4").T  # (rows, items), one item of all rows after the other
    path = torch_dict(tmp_path, dict.fromkeys("qkv", array))
    refused("attend", path, "--causal", "-o", tmp_path / "o.npy", code=4, words=["contiguous()"], folder=tmp_path)


def layered(kind, parts):
    """A KV cache of two layers, as two versions of transformers save it, or as plain lists; inside `pretended`."""
    keys, values = ([torchfiles.Tensor(parts[part] + layer) for layer in range(2)] for part in "kv")
    if kind == "lists":
        return {"layers": [{"keys": k, "values": v} for k, v in zip(keys, values, strict=True)]}
    if kind == "old cache":
        return torchfiles.instance("DynamicCache", key_cache=keys, value_cache=values, _seen_tokens=700)
    layers = [
        torchfiles.instance("DynamicLayer", keys=k, values=v, is_initialized=True)
        for k, v in zip(keys, values, strict=True)
    ]
    return torchfiles.instance("DynamicCache", layers=layers, offloading=False, layer_class=type(layers[0]))


@pytest.mark.parametrize(("kind", "group"), [("lists", "layers.1"), ("old cache", "1"), ("new cache", "layers.1")])
def test_a_kv_cache_is_sketched_by_layer(tmp_path, parts, kind, group):
    with torchfiles.pretended():
        torchfiles.save(tmp_path / "cache.pt", layered(kind, parts))
    for part in "kv":
        np.save(tmp_path / f"{part}.npy", parts[part] + 1)
    words = ("--method", "window", "--resident-rows", "64", "-o")
    run("sketch", tmp_path / "cache.pt", "--group", group, *words, tmp_path / "a.sattn")
    run("sketch", "--k", tmp_path / "k.npy", "--v", tmp_path / "v.npy", *words, tmp_path / "b.sattn")
    found = []
    for name in "ab":
        run("query", tmp_path / f"{name}.sattn", tmp_path / "k.npy", "-o", tmp_path / f"{name}.npy")
        found.append((tmp_path / f"{name}.npy").read_bytes())
    assert found[0] == found[1]
    said = refused(
        "sketch", tmp_path / "cache.pt", *words, tmp_path / "c.sattn", code=4, words=["--group"], folder=tmp_path
    )
    assert group.replace("1", "0") in said


class Evil:
    """What runs a command when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, exec, eval, io.open], ids=lambda f: f.__name__)
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, parts, function):
    mark = tmp_path / "ran"
    text = {"system": f"touch {mark}", "open": str(mark)}.get(function.__name__, f"open({str(mark)!r}, 'w')")
    arguments = (text, "w") if function is io.open else (text,)
    with torchfiles.pretended():
        torchfiles.save(tmp_path / "e.pt", {"q": torchfiles.Tensor(parts["q"]), "x": Evil(function, *arguments)})
    refused("inspect", tmp_path / "e.pt", code=4, words=["not run"], folder=tmp_path)
    assert not mark.exists()


def test_no_opcode_runs_anything(tmp_path):
    """Every way in which a pickle names something and uses it."""
    mark = tmp_path / "ran"
    ways = [
        f"cos\nsystem\n(S'touch {mark}'\ntR.",  # REDUCE
        f"(S'touch {mark}'\nios\nsystem\n.",  # INST
        f"(cos\nsystem\nS'touch {mark}'\no.",  # OBJ
        f"cbuiltins\nexec\n(S'open({str(mark)!r}, \"w\")'\ntR.",
        "cos\nsystem\n)\x81.",  # NEWOBJ of what is no class
        f"c__builtin__\ngetattr\n(cos\nsystem\nS'__call__'\ntR(S'touch {mark}'\ntR.",
        f"ccollections\nOrderedDict\n)R(dS'x'\ncos\nsystem\nsb(S'touch {mark}'\ntR.",  # BUILD
    ]
    for way in ways:
        with zipfile.ZipFile(tmp_path / "e.pt", "w") as archive:
            archive.writestr("a/data.pkl", way.encode())
        with pytest.raises(InputMalformed):
            open_inputs(InputSpec(str(tmp_path / "e.pt")))
    assert not mark.exists() and {op.name for op in pickletools.opcodes} >= {"REDUCE", "INST", "OBJ", "NEWOBJ", "BUILD"}
    assert pickle.loads(b"N.") is None  # nothing of ours has changed how others unpickle


@pytest.mark.parametrize(("kind", "said"), [
    ("old", "before version 1.6"), ("int8", "CharStorage"), ("nothing", "no tensors"), ("gone", "are not there"),
    ("short", "bytes of data"), ("big-endian", "big-endian"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, parts, kind, said):
    path = tmp_path / "x.pt"
    with torchfiles.pretended():
        made = {part: torchfiles.Tensor(parts[part].astype("i1" if kind == "int8" else "f4")) for part in "qkv"}
        torchfiles.save(path, {} if kind == "nothing" else made)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if kind == "gone":
        del members["dump/data/1"]
    elif kind == "short":
        members["dump/data/1"] = members["dump/data/1"][:-4]
    elif kind == "big-endian":
        members["dump/byteorder"] = b"big"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    if kind == "old":
        path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    refused("attend", path, "--causal", "-o", tmp_path / "o.npy", code=4, words=[said], folder=tmp_path)


# --- .npz and indices


def test_a_bomb_is_never_inflated_beyond_its_rows(tmp_path):
    """1 GiB of zeros behind a header that says 4 rows."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (4, 8)})
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for part in "qkv":
            archive.writestr(f"{part}.npy", header.getvalue() + bytes(1 << 26))
    refused(
        "attend",
        tmp_path / "b.npz",
        "--causal",
        "-o",
        tmp_path / "o.npy",
        code=4,
        words=["q", "bytes"],
        folder=tmp_path,
    )


def test_many_heads_of_a_compressed_array_are_inflated_twice(tmp_path, monkeypatch):
    """And not once up to each of them; a second pass inflates it once more."""
    array = np.random.default_rng(0).standard_normal((32, 300, 8)).astype("f4")
    np.savez_compressed(tmp_path / "h.npz", k=array)
    inflated, following = [], inflate.Inflater._next

    def counted(self, size):
        found = following(self, size)
        inflated.append(len(found))
        return found

    monkeypatch.setattr(inflate.Inflater, "_next", counted)
    tensor = npz.npz_arrays(str(tmp_path / "h.npz"), {"k": "k"})["k"].open(extent(array.shape, "HTD", "k"))
    block = np.empty((32, 50, 8), "f4")
    for passes in (1, 2):
        for start in range(0, 300, 50):
            tensor.read_into(block, start)
            np.testing.assert_array_equal(block, array[:, start : start + 50])
        assert sum(inflated) <= (passes + 1.1) * array.nbytes
    tensor.close()


def test_an_archive_of_other_things_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused("inspect", tmp_path / "a.npz", code=4, words=["readme.txt", "numpy.savez"], folder=tmp_path)


@pytest.mark.parametrize(("places", "code", "said"), [
    ({"q": "../q.safetensors"}, 4, "its own folder"), ({"q": "/etc/passwd"}, 4, "its own folder"), ({"q": 3}, 4, "weight_map"),
    ({"q": "gone.safetensors", "k": "gone.safetensors", "v": "gone.safetensors"}, 3, "beside the index"),
    ({"q": "q.safetensors"}, 3, "no tensor k"),
])  # fmt: skip
def test_an_index_that_leads_astray_is_refused(tmp_path, parts, places, code, said):
    path = sharded(tmp_path, parts)
    path.write_text(json.dumps({"weight_map": places}))
    refused("attend", path, "--causal", "-o", tmp_path / "o.npy", code=code, words=[said], folder=tmp_path)


@pytest.mark.parametrize("how", ["torch", "index", "npz", "npz, compressed"])
def test_damaged_files_end_in_an_error_of_ours(tmp_path, how):
    """Or in rows, never in anything else, and quickly."""
    rng = np.random.default_rng(11)
    path = saved(tmp_path, {part: rng.standard_normal((5, 4)).astype("f4") for part in "qkv"}, how)
    good, block = path.read_bytes(), np.empty((1, 5, 4), "f4")
    for _ in range(COUNT):
        data = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(data)))
            if rng.random() < 0.2:
                del data[at : at + int(rng.integers(1, 40))]
            elif rng.random() < 0.5:
                data[at] = int(rng.integers(256))
            else:
                data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            with open_inputs(InputSpec(str(path), layout="TD")) as inputs:
                for heads in (inputs.q, inputs.k, inputs.v):
                    if heads.tensor.rows == 5 and heads.tensor.width == 4 and heads.tensor.dtype == "f4":
                        heads.tensor.read_into(block, 0)
        except (InputMalformed, InputMissing, UsageError):
            pass


# --- names and layouts


@pytest.mark.parametrize(("names", "group", "expected"), [
    (["q", "k", "v"], None, "q k v"),
    (["model.q", "model.k", "model.v"], None, "model.q model.k model.v"),
    (["blocks.0.attn.hook_rot_q", "blocks.0.attn.hook_rot_k", "blocks.0.attn.hook_v"], None,
     "blocks.0.attn.hook_rot_q blocks.0.attn.hook_rot_k blocks.0.attn.hook_v"),
    (["Q", "K", "V"], None, "Q K V"),
    (["query", "key", "value"], None, "query key value"),
    (["layers.0.q", "layers.0.keys", "layers.0.values", "layers.1.q", "layers.1.keys", "layers.1.values"], "layers.1",
     "layers.1.q layers.1.keys layers.1.values"),
    (["q", "key_cache.0", "key_cache.1", "value_cache.0", "value_cache.1"], "1", None),
])  # fmt: skip
def test_names_of_producers_are_understood(names, group, expected):
    if expected is None:
        assert find_parts("x", names, ("k", "v"), group) == {"k": "key_cache.1", "v": "value_cache.1"}
    else:
        assert find_parts("x", names, ("q", "k", "v"), group) == dict(zip("qkv", expected.split(), strict=True))


@pytest.mark.parametrize(("shape", "layout"), [
    ((4000, 2, 32), "THD"), ((2, 4000, 32), "HTD"), ((1, 2, 300, 8), "BHTD"), ((1, 300, 2, 8), "BTHD"),
])  # fmt: skip
def test_far_more_rows_than_heads_decide_a_layout(tmp_path, shape, layout):
    for part in "qkv":
        np.save(tmp_path / f"{part}.npy", np.zeros(shape, "f4"))
    with open_inputs(InputSpec(**{part: str(tmp_path / f"{part}.npy") for part in "qkv"})) as inputs:
        assert inputs.k.layout == layout and any(f"layout {layout}" in note for note in inputs.notes)


def test_about_as_many_rows_as_heads_do_not(tmp_path):
    for part in "qkv":
        np.save(tmp_path / f"{part}.npy", np.zeros((1, 40, 8, 8), "f4"))
    with pytest.raises(UsageError, match="layout not clear"):
        open_inputs(InputSpec(**{part: str(tmp_path / f"{part}.npy") for part in "qkv"}))
