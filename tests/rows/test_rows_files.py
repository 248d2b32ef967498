"""Every kind of file, dtype and layout gives back the heads that were written, however it is read."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import rowfiles as rf

from streamattn_cli.rows.inputs.open import InputSpec, open_inputs
from streamattn_cli.rows.tensors.memory import MemoryTensor
from streamattn_cli.rows.tensors.readahead import ReadAhead

ROWS = 23
CHUNKS = {"TD": (5, 3), "TC": (4, 6), "THD": (7, 1, 3), "HTD": (2, 6, 4), "BTHD": (1, 9, 2, 4), "BHTD": (2, 1, 5, 4)}


def made(layout, dtype, seed=1):
    """(heads by part as (H, T, D) items, arrays by part in this layout)."""
    rng = np.random.default_rng(seed)
    batch = 2 if "B" in layout else 1
    key_heads = 1 if layout == "TD" else 2
    count = {"q": batch * key_heads * (1 if layout == "TD" else 3), "k": batch * key_heads, "v": batch * key_heads}
    heads = {part: rf.bits(rng, (n, ROWS, 4), dtype) for part, n in count.items()}
    return heads, {part: rf.lay_out(items, layout, batch) for part, items in heads.items()}


def spec_words(layout):
    return {"layout": layout, "heads": 6, "kv_heads": 2} if layout == "TC" else {"layout": layout}


def check(spec, heads, piece):
    with open_inputs(spec) as inputs:
        for part in "qkv":
            found = getattr(inputs, part)
            assert found.rows == ROWS
            np.testing.assert_array_equal(rf.head_items(found, piece), heads[part])
            first = found.tensor.peek(3)
            assert first.shape == (found.tensor.outer, 3, found.tensor.width)
            np.testing.assert_array_equal(first, rf.tensor_items(found.tensor, ROWS)[:, :3])


@pytest.mark.parametrize("layout", rf.LAYOUTS)
@pytest.mark.parametrize("dtype", rf.DTYPES)
@pytest.mark.parametrize("kind", ["npy", "safetensors", "contiguous", "userblock", "chunked", "gzip"])
def test_round_trip(tmp_path, kind, dtype, layout):
    heads, arrays = made(layout, dtype)
    words = spec_words(layout)
    if kind == "npy":
        words |= {part: rf.write_npy(tmp_path / f"{part}.npy", array, dtype) for part, array in arrays.items()}
    elif kind == "safetensors":
        words["input"] = rf.write_safetensors(tmp_path / "x.safetensors", arrays, dtype)
    else:
        storage = {
            "contiguous": {},
            "userblock": {"userblock": 1024},
            "chunked": {"chunks": CHUNKS[layout]},
            "gzip": {"chunks": CHUNKS[layout], "compression": "gzip"},
        }[kind]
        words["input"] = rf.write_hdf5(tmp_path / "x.h5", arrays, dtype, **storage)
    for piece in (1, 4, 1000):
        check(InputSpec(**words), heads, piece)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
@pytest.mark.parametrize("chunks", [None, (4, 2)])
def test_big_endian_hdf5_is_swapped(tmp_path, dtype, chunks):
    values = np.random.default_rng(2).standard_normal((9, 4)).astype(dtype)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for part in "qkv":
            file.create_dataset(part, data=values, chunks=chunks)
    with open_inputs(InputSpec(str(tmp_path / "x.h5"), layout="TD")) as inputs:
        expected = values.astype(values.dtype.newbyteorder("<"))
        np.testing.assert_array_equal(rf.head_items(inputs.k)[0].view(expected.dtype), expected)


@pytest.mark.parametrize("layout", ["compact", "external", "virtual", "unwritten"])
def test_other_hdf5_storage(tmp_path, layout):
    values = np.arange(12.0).reshape(6, 2)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        if layout == "compact":
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple(values.shape)
            dataset = h5py.h5d.create(file.id, b"k", h5py.h5t.NATIVE_DOUBLE, space, plist)
            dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
        elif layout == "external":
            external = [(str(tmp_path / "raw.bin"), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset("k", data=values, external=external)
        elif layout == "virtual":
            file.create_dataset("real", data=values)
            virtual = h5py.VirtualLayout(values.shape, values.dtype)
            virtual[...] = h5py.VirtualSource(file["real"])
            file.create_virtual_dataset("k", virtual)
        else:
            values = np.full((6, 2), 2.5)
            file.create_dataset("k", values.shape, "f8", fillvalue=2.5)
    word = f"{path}:/k"
    missing = "zeros" if layout == "unwritten" else "error"
    with open_inputs(InputSpec(k=word, v=word, missing=missing), need_q=False) as inputs:
        np.testing.assert_array_equal(rf.head_items(inputs.k, 4)[0], values)


def test_external_link_is_read_from_its_own_file(tmp_path):
    rf.write_hdf5(tmp_path / "real.h5", {"deep": np.arange(8.0).reshape(4, 2)}, "f8", userblock=2048)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["k"] = h5py.ExternalLink(str(tmp_path / "real.h5"), "/deep")
    word = f"{tmp_path / 'x.h5'}:/k"
    with open_inputs(InputSpec(k=word, v=word), need_q=False) as inputs:
        np.testing.assert_array_equal(rf.head_items(inputs.k)[0], np.arange(8.0).reshape(4, 2))


@pytest.mark.parametrize("piece", [1, 5, 64])
def test_chunk_cache_holds_one_band_and_reads_every_chunk_once(tmp_path, piece):
    """A damaged second read would go unseen; what is seen is the cache's promise: bytes of one band of chunks."""
    items = rf.bits(np.random.default_rng(3), (64, 5, 6), "f2")
    path = rf.write_hdf5(
        tmp_path / "x.h5", dict.fromkeys("qkv", items), "f2", {"layout": "THD"}, chunks=(16, 2, 4), compression="gzip"
    )
    with open_inputs(InputSpec(path)) as inputs:
        band = 3 * 2  # chunks that share rows
        assert inputs.k.tensor.held_bytes == (band + 2) * 16 * 2 * 4 * 2
        np.testing.assert_array_equal(rf.tensor_items(inputs.k.tensor, piece)[0], items.reshape(64, 30))


def test_attributes_and_groups(tmp_path):
    items = rf.bits(np.random.default_rng(4), (8, 2, 4), "f4")
    path = rf.write_hdf5(
        tmp_path / "x.h5",
        {f"a/b/{p}": items for p in "qkv"},
        "f4",
        {"scale": 0.25, "causal": True, "layout": "THD", "model": "m", "many": [1, 2]},
    )
    with h5py.File(path, "r+") as file:
        file["a"].attrs["scale"] = np.float32(0.5)
        file["a/b/k"].attrs["layer"] = 3
    for group in ("a/b", "/a/b/"):
        with open_inputs(InputSpec(path, group=group)) as inputs:
            assert inputs.attrs == {"scale": 0.5, "causal": True, "layout": "THD", "model": "m", "layer": 3}
    with open_inputs(InputSpec(k=path + ":a/b/k", v=path + ":/a/b/v"), need_q=False) as inputs:
        assert inputs.k.tensor.name == path + ":/a/b/k"


def test_safetensors_names(tmp_path):
    items = rf.bits(np.random.default_rng(4), (8, 2, 4), "bf16")
    names = [f"layers.{n}.{p}" for n in (0, 1) for p in "qkv"] + ["odd"]
    path = rf.write_safetensors(
        tmp_path / "x.safetensors",
        dict.fromkeys(names, items),
        "bf16",
        {"scale": "0.5", "causal": "false", "layout": "thd"},
    )
    with open_inputs(InputSpec(path, group="layers.1")) as inputs:
        assert inputs.v.tensor.name == path + ":layers.1.v"
        assert inputs.attrs == {"scale": 0.5, "causal": False, "layout": "THD"}
    with open_inputs(InputSpec(path, group="layers.1", q=path + ":odd")) as inputs:
        assert inputs.q.tensor.name == path + ":odd"


@pytest.mark.parametrize("descr", ["<u2", "|V2"])
def test_two_byte_patterns_are_noted(tmp_path, descr):
    items = rf.bits(np.random.default_rng(4), (8, 4), "bf16")
    np.save(tmp_path / "k.npy", items.view(descr))
    word = str(tmp_path / "k.npy")
    with open_inputs(InputSpec(k=word, v=word), need_q=False) as inputs:
        assert inputs.k.tensor.dtype == "bf16"
        assert any("bfloat16 bit patterns" in note for note in inputs.notes)
    with open_inputs(InputSpec(k=word, v=word, dtype="f16"), need_q=False) as inputs:
        assert inputs.k.tensor.dtype == "f2"


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_versions(tmp_path, version):
    values = np.arange(6.0).reshape(3, 2)
    with open(tmp_path / "k.npy", "wb") as file:
        np.lib.format.write_array(file, values, version)
    word = str(tmp_path / "k.npy")
    with open_inputs(InputSpec(k=word, v=word), need_q=False) as inputs:
        np.testing.assert_array_equal(rf.head_items(inputs.k)[0], values)


def test_magic_beats_the_extension(tmp_path):
    items = np.arange(8.0).reshape(4, 2)
    lying = tmp_path / "x.npy"
    rf.write_hdf5(lying, dict.fromkeys("qkv", items), "f8")
    with open_inputs(InputSpec(str(lying), layout="TD")) as inputs:
        assert any("is a hdf5 file whatever its name says" in note for note in inputs.notes)


def test_a_colon_in_a_file_name(tmp_path):
    word = rf.write_npy(tmp_path / "a:b.npy", np.ones((4, 2)), "f8")
    with open_inputs(InputSpec(k=word, v=word), need_q=False) as inputs:
        assert inputs.k.rows == 4


@pytest.mark.parametrize("layout", rf.LAYOUTS)
def test_memory_tensor(layout):
    heads, arrays = made(layout, "f4")
    tensor = MemoryTensor(arrays["k"], layout, heads=2)
    outer, column = tensor.extent.head_places()
    items = rf.tensor_items(tensor, 5)
    found = np.stack([items[o, :, c : c + 4] for o, c in zip(outer, column, strict=True)])
    np.testing.assert_array_equal(found, heads["k"])


def test_threads_read_hdf5_silently(tmp_path, capfd):
    """A damaged chunk is an InputMalformed in the consumer, and the library prints nothing."""
    from streamattn_cli.errors import InputMalformed

    items = rf.bits(np.random.default_rng(3), (64, 600), "f2")
    path = rf.write_hdf5(tmp_path / "x.h5", {"k": items}, "f2", chunks=(16, 600), compression="gzip")
    with h5py.File(path) as file:
        place = file["k"].id.get_chunk_info(2)
    with open(path, "r+b") as file:
        file.seek(place.byte_offset)
        file.write(bytes(64))
    with open_inputs(InputSpec(k=path, v=path), need_q=False) as inputs:
        tensors = [inputs.k.tensor]
        with ReadAhead(tensors, block_rows=8) as ahead, pytest.raises(InputMalformed, match="rows 32 to 39 cannot be"):
            list(ahead)
    assert capfd.readouterr().err == ""


def test_npy_needs_no_heavy_modules(tmp_path):
    """Looking at an .npy file must not cost the import of numba or h5py."""
    word = rf.write_npy(tmp_path / "k.npy", np.ones((4, 2)), "f8")
    program = (
        "import sys\n"
        "from streamattn_cli.rows.inputs.open import InputSpec, open_inputs\n"
        "import streamattn_cli.rows.tensors.readahead, streamattn_cli.rows.writers.writer\n"
        f"open_inputs(InputSpec(k={word!r}, v={word!r}), need_q=False).close()\n"
        "print(sorted({'numba', 'h5py', 'hdf5plugin'} & set(sys.modules)))"
    )
    home = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=home)
    assert run.stdout.strip() == "[]", run.stderr
