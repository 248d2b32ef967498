"""Arrow and Parquet: columns of fixed-size lists give the same rows as .npy."""

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from clirun import refused, run

from streamattn_cli.errors import InputMalformed, UsageError
from streamattn_cli.rows.formats import registry
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.layout import extent
from streamattn_cli.testing.source import SOURCE_LAWS, SourceCase

SHAPE = (700, 3, 24)  # T, H, D
WINDOW = ("--causal", "--method", "window", "--resident-rows", "128", "--quiet", "-o")


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(3)
    return {part: rng.standard_normal(SHAPE).astype("f4") for part in "qkv"}


def column(array):
    """One list of lists for each row."""
    found = pa.array(array.reshape(-1))
    for size in array.shape[:0:-1]:
        found = pa.FixedSizeListArray.from_arrays(found, size)
    return found


def table(arrays, tensors=False, **metadata):
    """A table with a column of texts before and behind, as people have them; tensors: of fixed shape."""
    make = pa.FixedShapeTensorArray.from_numpy_ndarray if tensors else column
    columns = {name: make(np.ascontiguousarray(array)) for name, array in arrays.items()}
    texts = pa.array(["token", None, "x"] * len(next(iter(arrays.values()))), pa.string())[
        : len(next(iter(arrays.values())))
    ]
    lists = pa.array([[1, 2], [], None] * len(texts))[: len(texts)]
    return pa.table({"id": texts, "ids": lists, **columns, "zz": texts.dictionary_encode()}).replace_schema_metadata(
        metadata
    )


def ipc(path, made, stream=False, compression=None):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as file:
        with (pa.ipc.new_stream if stream else pa.ipc.new_file)(file, made.schema, options=options) as writer:
            writer.write_table(made, max_chunksize=230)
    return path


KINDS = {
    "file": lambda path, arrays: ipc(path, table(arrays)),
    "stream": lambda path, arrays: ipc(path, table(arrays), stream=True),
    "lz4": lambda path, arrays: ipc(path, table(arrays), compression="lz4"),
    "zstd": lambda path, arrays: ipc(path, table(arrays), compression="zstd"),
    "tensors": lambda path, arrays: ipc(path, table(arrays, tensors=True)),
    "feather": lambda path, arrays: feather.write_feather(table(arrays), path) or path,
    "parquet": lambda path, arrays: pq.write_table(table(arrays), path, row_group_size=300) or path,
    "parquet, plain": lambda path, arrays: pq.write_table(table(arrays), path, compression="none", use_dictionary=False) or path,
    "parquet, tensors": lambda path, arrays: pq.write_table(table(arrays, True), path, compression="zstd") or path,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_the_same_bytes_as_npy(tmp_path, parts, kind):
    for part, array in parts.items():
        np.save(tmp_path / f"{part}.npy", array)
    run("attend", *(w for p in "qkv" for w in (f"--{p}", tmp_path / f"{p}.npy")), *WINDOW, tmp_path / "expected.npy")
    path = KINDS[kind](tmp_path / "dump", parts)
    for size in ("50", "400"):
        run("attend", path, "--block-rows", size, *WINDOW, tmp_path / "out.npy", "--force")
        assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


@pytest.mark.parametrize("kind", ["file", "zstd", "parquet"])
@pytest.mark.parametrize("law", SOURCE_LAWS, ids=lambda law: law.__name__)
def test_its_rows_obey_the_laws_of_a_source(tmp_path, parts, kind, law):
    path = KINDS[kind](tmp_path / "dump", parts)
    stored = registry.find("parquet" if kind == "parquet" else "arrow").arrays(str(path), {"k": "k"}, None)["k"]
    law(SourceCase(lambda: stored.open(extent(SHAPE, "THD", "k")), parts["k"].reshape(1, 700, 72)))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_found_in_any_order(tmp_path, parts, kind):
    path = KINDS[kind](tmp_path / "dump", parts)
    with open_inputs(InputSpec(str(path)), need_q=False) as inputs:
        buf = np.empty((1, 40, 72), "f4")
        for start in (0, 40, 10, 299, 200, 660, 229, 0):
            inputs.v.tensor.read_into(buf, start)
            np.testing.assert_array_equal(buf[0], parts["v"].reshape(700, 72)[start : start + 40])


@pytest.mark.parametrize("write", [ipc, pq.write_table], ids=["arrow", "parquet"])
def test_halves_patterns_layers_and_metadata(tmp_path, parts, write):
    halves = {f"layers.{n}.{part}": (array + n).astype("f2") for n in (0, 7) for part, array in parts.items()}
    made, path = table(halves, scale="0.5", causal="true"), tmp_path / "x"
    write(*((path, made) if write is ipc else (made, path)))
    np.savez(tmp_path / "x.npz", **halves)
    words = ("--method", "window", "--resident-rows", "64", "--layer", "all", "--quiet", "-o")
    run("attend", path, *words, tmp_path / "a-{layer}.npy")
    run("attend", tmp_path / "x.npz", "--causal", "--scale", "0.5", *words, tmp_path / "b-{layer}.npy")
    for layer in (0, 7):
        assert (tmp_path / f"a-{layer}.npy").read_bytes() == (tmp_path / f"b-{layer}.npy").read_bytes()
    bits = {part: (array.view("u4") >> 16).astype("u2") for part, array in parts.items()}
    made = table(bits)
    write(*((path, made) if write is ipc else (made, path)))
    with open_inputs(InputSpec(str(path))) as inputs:
        assert inputs.k.tensor.dtype == "bf16"
        np.testing.assert_array_equal(inputs.k.tensor.peek(700)[0], bits["k"].reshape(700, 72))


def nulls(array):
    return pa.array(
        [None if at == 5 else row.tolist() for at, row in enumerate(array[:, 0])], pa.list_(pa.float32(), 24)
    )


WRONG = {
    "nulls": (nulls, "has nulls"),
    "lists of any size": (lambda a: pa.array(a[:, 0].tolist()), "fixed-size lists"),
    "texts": (lambda a: pa.array([str(row) for row in a[:, 0, 0]]), "fixed-size lists"),
    "whole numbers": (lambda a: column(a[:, 0].astype("i8")), "int64"),
}


@pytest.mark.parametrize("write", [ipc, pq.write_table], ids=["arrow", "parquet"])
@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_column_of_rows_is_named(tmp_path, parts, kind, write):
    make, said = WRONG[kind]
    made, path = pa.table({part: make(array) for part, array in parts.items()}), tmp_path / "x"
    write(*((path, made) if write is ipc else (made, path)))
    with pytest.raises(InputMalformed, match=said):
        with open_inputs(InputSpec(str(path))) as inputs:
            inputs.k.tensor.peek(700)


def test_rows_of_a_table_are_tokens(tmp_path, parts):
    path = ipc(tmp_path / "x", table({part: array.transpose(1, 0, 2) for part, array in parts.items()}))
    with pytest.raises(UsageError, match="one token"):
        open_inputs(InputSpec(str(path)))


@pytest.mark.parametrize("stream", [False, True])
def test_a_file_that_was_cut_is_refused(tmp_path, parts, stream):
    path = ipc(tmp_path / "x", table(parts), stream)
    data = path.read_bytes()
    for size in (9, 100, len(data) // 2, len(data) - (9 if stream else 40000)):
        path.write_bytes(data[:size])
        with pytest.raises(InputMalformed):
            open_inputs(InputSpec(str(path)))


def test_a_compressed_batch_that_lies_is_refused(tmp_path, parts):
    data = ipc(tmp_path / "x", table(parts), compression="zstd").read_bytes()
    size = 230 * 72 * 4
    for lie in (1 << 40, size - 4, -2):
        (tmp_path / "x").write_bytes(data.replace(size.to_bytes(8, "little"), lie.to_bytes(8, "little", signed=True)))
        with open_inputs(InputSpec(str(tmp_path / "x"))) as inputs, pytest.raises(InputMalformed, match="expected"):
            inputs.k.tensor.peek(1)


@pytest.mark.parametrize("kind", ["file", "parquet"])
def test_without_the_package_the_extra_is_named(tmp_path, parts, kind):
    path = KINDS[kind](tmp_path / "dump", parts)
    (tmp_path / "hidden/pyarrow").mkdir(parents=True)
    (tmp_path / "hidden/pyarrow/__init__.py").write_text("raise ImportError('not here')")
    refused("inspect", path, code=2, words=["streamattn-cli[arrow]"], env={"PYTHONPATH": str(tmp_path / "hidden")})
