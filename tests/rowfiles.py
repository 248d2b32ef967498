"""Files of rows for tests: every kind, dtype and layout, and plain ways to read heads back."""

import json

import h5py
import numpy as np

from streamattn_cli.rows import dtypes

DTYPES = ("f2", "bf16", "f4", "f8")
LAYOUTS = ("TD", "TC", "THD", "HTD", "BTHD", "BHTD")
_SAFE = {name: found.safetensors for name, found in dtypes.DTYPES.items()}


def bits(rng, shape, dtype):
    """Normal numbers as storage items: uint16 patterns for halves, else floats."""
    values = rng.standard_normal(shape)
    if dtype == "f2":
        return values.astype("<f2").view("<u2")
    if dtype == "bf16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return values.astype(dtypes.DTYPES[dtype].holder)


def lay_out(heads, layout, batch):
    """(batch * H, T, D) heads -> the array in this layout."""
    total, rows, dim = heads.shape
    split = heads.reshape(batch, total // batch, rows, dim)
    axes = {"B": 0, "H": 1, "T": 2, "D": 3}
    if layout == "TD":
        return np.ascontiguousarray(heads[0])
    if layout == "TC":
        return np.ascontiguousarray(heads.transpose(1, 0, 2)).reshape(rows, total * dim)
    letters = layout if "B" in layout else "B" + layout
    array = np.ascontiguousarray(split.transpose([axes[letter] for letter in letters]))
    return array if "B" in layout else array[0]


def as_numpy(array, dtype):
    """Storage items as the array a user would save: float16, uint16 (bfloat16 patterns), float32, float64."""
    return array.view("<f2") if dtype == "f2" else array


def brain_type():
    """HDF5's way to say bfloat16: a custom float."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


def write_hdf5(path, arrays, dtype, attrs=None, **storage):
    """Datasets name -> storage items; `storage` as for create_dataset (chunks, compression ...)."""
    with h5py.File(path, "w", userblock_size=storage.pop("userblock", 0)) as file:
        file.attrs.update(attrs or {})
        for name, array in arrays.items():
            if dtype != "bf16":
                file.create_dataset(name, data=as_numpy(array, dtype), **storage)
                continue
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            if storage.get("chunks"):
                plist.set_chunk(storage["chunks"])
            if storage.get("compression") == "gzip":
                plist.set_deflate(4)
            kind = brain_type()
            group, _, leaf = name.rpartition("/")
            owner = file.require_group(group) if group else file
            dataset = h5py.h5d.create(owner.id, leaf.encode(), kind, h5py.h5s.create_simple(array.shape), plist)
            dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array, kind)
    return str(path)


def write_safetensors(path, arrays, dtype, metadata=None):
    """Tensors name -> storage items."""
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, array in arrays.items():
        place = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": _SAFE[dtype], "shape": list(array.shape), "data_offsets": place}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return str(path)


def write_npy(path, array, dtype):
    """One .npy file of storage items."""
    np.save(path, as_numpy(array, dtype))
    return str(path)


def tensor_items(tensor, piece):
    """All rows of a tensor as (O, T, I), read `piece` rows at a time."""
    blocks, at = [], 0
    while True:
        room = piece if tensor.rows is None else min(piece, tensor.rows - at)
        block = np.full((tensor.outer, room, tensor.width), 7, dtypes.DTYPES[tensor.dtype].holder)
        got = tensor.read_into(block, at) if room else 0
        blocks.append(block[:, :got])
        at += got
        if got < piece:
            return np.concatenate(blocks, axis=1)


def head_items(heads, piece=1000):
    """(H, T, dim) storage items of Heads, by its own definition."""
    items = tensor_items(heads.tensor, piece)
    return np.stack([items[o, :, c : c + heads.dim] for o, c in zip(heads.outer, heads.column, strict=True)])
