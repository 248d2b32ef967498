"""Writes the same named arrays in every format, as its producers do."""

import json
import struct
import warnings
from pathlib import Path

import h5py
import llamafiles
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import torchfiles
import zarr

SAFE = {"<f2": "F16", "<u2": "BF16", "<f4": "F32", "<f8": "F64"}


def safetensors(path, arrays, metadata=None):
    """One file; metadata: words about it."""
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": SAFE[array.dtype.str], "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def sharded(path, arrays):
    """An index, and a file for each array beside it."""
    places = {name: f"shard-{number}.safetensors" for number, name in enumerate(arrays)}
    for name, place in places.items():
        safetensors(path.parent / place, {name: arrays[name]})
    path.write_text(json.dumps({"metadata": {}, "weight_map": places}))


def hdf5(path, arrays):
    """Groups where names have dots, in chunks."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name.replace(".", "/"), data=array, chunks=True)


def torch(path, arrays, turned=False):
    """A dict of tensors; turned: stored with the two axes before the last exchanged."""
    if turned:
        arrays = {name: np.ascontiguousarray(array.swapaxes(-2, -3)).swapaxes(-2, -3) for name, array in arrays.items()}
    with torchfiles.pretended():
        torchfiles.save(path, {name: torchfiles.Tensor(array) for name, array in arrays.items()})


def zarr_folder(path, arrays, version):
    """Groups where names have dots, in chunks of half an array."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(path, mode="w", zarr_format=version)
        for name, array in arrays.items():
            chunks = tuple(-(-size // 2) for size in array.shape)
            made = group.create_array(name.replace(".", "/"), shape=array.shape, dtype=array.dtype, chunks=chunks)
            made[...] = array


def table(arrays):
    """A column of lists for each array, whose first axis is the rows."""
    columns = {}
    for name, array in arrays.items():
        columns[name] = pa.array(np.ascontiguousarray(array).reshape(-1))
        for size in array.shape[:0:-1]:
            columns[name] = pa.FixedSizeListArray.from_arrays(columns[name], size)
    return pa.table(columns)


def arrow(path, arrays):
    """An Arrow file of two batches."""
    made = table(arrays)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
        writer.write_table(made, max_chunksize=-(-len(made) // 2))


WRITERS = {  # end of the file's name -> write(path, arrays by name)
    "npz": lambda path, arrays: np.savez(path, **arrays),
    "packed.npz": lambda path, arrays: np.savez_compressed(path, **arrays),
    "h5": hdf5,
    "safetensors": safetensors,
    "safetensors.index.json": sharded,
    "pt": torch,
    "turned.pt": lambda path, arrays: torch(path, arrays, True),
    "v2.zarr": lambda path, arrays: zarr_folder(path, arrays, 2),
    "v3.zarr": lambda path, arrays: zarr_folder(path, arrays, 3),
    "arrow": arrow,
    "feather": lambda path, arrays: feather.write_feather(table(arrays), str(path), compression="zstd"),
    "parquet": lambda path, arrays: pq.write_table(table(arrays), path),
}
TABLES = ("arrow", "feather", "parquet")  # whose first axis is the rows


def written(folder, kind, arrays):
    """The path of these arrays in that format."""
    path = Path(folder) / f"dump.{kind}"
    WRITERS[kind](path, arrays)
    return path


def small(folder, kind):
    """A small file of that format, or a llama.cpp state, that holds k and v."""
    rows = np.arange(20, dtype="f4").reshape(5, 4)
    if kind == "state":
        return llamafiles.save(Path(folder) / "slot.bin", [(rows, rows + 1)], transposed=True)
    arrays = {"k": rows, "v": rows.astype("f2")}
    if kind == "turned.pt":
        arrays = {name: array.reshape(2, 5, 2) for name, array in arrays.items()}
    return written(folder, kind, arrays)
