"""Every sketch, source and sink of this package passes the shipped conformance suite."""

import io

import h5py
import numpy as np
import pytest
import rowfiles as rf

from streamattn_cli.rows.inputs.open import InputSpec, open_inputs
from streamattn_cli.rows.tensors.memory import MemoryTensor
from streamattn_cli.rows.writers.writer import open_raw, open_writer
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.sketches.histories.nystromparams import NystromParams
from streamattn_cli.sketches.histories.poly import PolyParams
from streamattn_cli.testing.dual import DUAL_LAWS, DualCase
from streamattn_cli.testing.sink import ROWS, SINK_LAWS, SinkCase
from streamattn_cli.testing.sketch import LEARNING_LAWS, SKETCH_LAWS, SketchCase
from streamattn_cli.testing.source import SOURCE_LAWS, SourceCase


def name(law):
    return law.__name__


def head(dtype="f4", history=None, **words):
    return HeadParams(dim=3, value_dim=2, scale=0.5, dtype=dtype, group=16, history=history, **words)


HERMITE, TAYLOR = PolyParams(degree=4), PolyParams(degree=2, polynomial="taylor", beta=2.0, max_error=9.0)
SKETCHES = {
    "window": SketchCase(head(window=20)),
    "window with sinks": SketchCase(head(window=1, sinks=3)),
    "window of whole groups, f8": SketchCase(head("f8", window=33, sinks=17)),
    "sinks alone": SketchCase(head(sinks=2)),
    "poly": SketchCase(head(history=HERMITE)),
    "poly of degree 1": SketchCase(head(history=PolyParams(degree=1, max_error=9.0))),
    "poly with sinks and window": SketchCase(head(history=HERMITE, sinks=5, window=24)),
    "poly, more sinks than a group, f8": SketchCase(head("f8", history=HERMITE, sinks=20, window=9)),
    "taylor, clipped": SketchCase(head(history=TAYLOR, sinks=4, window=6)),
    "many value channels": SketchCase(HeadParams(2, 7, 0.7, group=8, window=3, history=PolyParams(degree=3))),
    "rows stored in bf16": SketchCase(head(history=HERMITE, sinks=3, window=20, storage="bf16"), slack=0.01),
    "rows stored in f2": SketchCase(head("f8", sinks=3, window=20, storage="f2"), slack=1e-3),
    "one dimension": SketchCase(HeadParams(1, 1, 1.0, "f8", group=32, history=PolyParams(degree=6))),
}


@pytest.mark.parametrize("law", SKETCH_LAWS, ids=name)
@pytest.mark.parametrize("case", SKETCHES.values(), ids=SKETCHES)
def test_sketch(case, law):
    law(case)


ATOMS = {
    f"{what}, {dtype}, {bits} bits": SketchCase(
        head(dtype, NystromParams(24, 16, bits, storage=dtype), sinks=3, window=window),
        rows=rows,
        step_rows=16,
        slack=0.05 if bits > 6 else 0.1,
        chooses=True,
    )  # fmt: skip
    for what, window, rows in (("atoms", 0, 150), ("atoms behind a window", 20, 150), ("bank under way", 5, 40))
    for dtype, bits in (("f4", 6), ("f8", 6), ("f4", 8), ("f4", 16), ("f8", 8))
}

ATOMS["rotary positions"] = SketchCase(
    head("f4", NystromParams(24, 16, 6, storage="f4", rope="100.0:half", turns=2), sinks=3, window=17), rows=150, step_rows=16,
    slack=0.1,
)  # fmt: skip


@pytest.mark.parametrize("law", LEARNING_LAWS, ids=name)
@pytest.mark.parametrize("case", ATOMS.values(), ids=ATOMS)
def test_learning_sketch(case, law):
    law(case)


@pytest.mark.parametrize("law", DUAL_LAWS, ids=name)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_exact_queries(dtype, causal, law):
    law(DualCase(dtype, causal))


# --- sources

OUTER, WIDTH, LONG = 2, 12, 3600
ITEMS = {dtype: rf.bits(np.random.default_rng(3), (OUTER, LONG, WIDTH), dtype) for dtype in rf.DTYPES}


def opener(spec, part="k"):
    """open() of a SourceCase: the inputs' only tensor."""
    return lambda: getattr(open_inputs(spec(), need_q=False), part).tensor


def file_case(kind, dtype, folder):
    """HTD items in a file of this kind."""
    items = ITEMS[dtype]
    if kind == "npy":
        word = rf.write_npy(folder / "k.npy", items, dtype)
        word = InputSpec(k=word, v=word, layout="HTD", dtype="f16" if dtype == "f2" else None)
    elif kind == "safetensors":
        word = InputSpec(
            rf.write_safetensors(folder / "x.safetensors", dict.fromkeys("kv", items), dtype), layout="HTD"
        )
    else:
        storage = {"contiguous": {}, "gzip": {"chunks": (1, 300, 5), "compression": "gzip"}}[kind]
        word = InputSpec(rf.write_hdf5(folder / "x.h5", dict.fromkeys("kv", items), dtype, **storage), layout="HTD")
    return SourceCase(opener(lambda: word), items)


@pytest.mark.parametrize("law", SOURCE_LAWS, ids=name)
@pytest.mark.parametrize(("kind", "dtype"), [
    ("npy", "f4"), ("npy", "f2"), ("safetensors", "bf16"), ("contiguous", "f8"), ("gzip", "f2"), ("gzip", "bf16"),
])  # fmt: skip
def test_file_source(tmp_path, kind, dtype, law):
    law(file_case(kind, dtype, tmp_path))


@pytest.mark.parametrize("law", SOURCE_LAWS, ids=name)
def test_memory_source(law):
    law(SourceCase(lambda: MemoryTensor(ITEMS["f4"], "HTD"), ITEMS["f4"]))


@pytest.mark.parametrize("law", SOURCE_LAWS, ids=name)
def test_range_source(tmp_path, law):
    """A range of a file's rows."""
    path = rf.write_npy(tmp_path / "k.npy", ITEMS["f4"], "f4")
    spec = InputSpec(k=path, v=path, layout="HTD", rows=(100, 3300))
    law(SourceCase(opener(lambda: spec), ITEMS["f4"][:, 100:3300]))


@pytest.mark.parametrize("law", SOURCE_LAWS, ids=name)
@pytest.mark.parametrize("way", ["records", "raw", "range"])
def test_stream_source(way, law):
    """Rows on standard input."""
    items = np.ascontiguousarray(ITEMS["f4"][0])
    if way == "raw":
        spec = lambda: InputSpec("-", stdin=io.BytesIO(items.tobytes()), raw="f32", dim=WIDTH // 2)  # noqa: E731
        law(SourceCase(opener(spec), items[None]))
        return
    data = io.BytesIO()
    for a, b in ((0, 1), (1, 1500), (1500, 1507), (1507, LONG)):
        np.save(data, items[a:b])
    rows = (100, 3300) if way == "range" else None
    spec = lambda: InputSpec("-", stdin=io.BytesIO(data.getvalue()), rows=rows)  # noqa: E731
    law(SourceCase(opener(spec), items[None, slice(*rows)] if rows else items[None]))


# --- sinks

HEADS, DIM = 2, 3
OPENED = {}  # streams by folder


def from_file(extension, layout):
    def read(folder):
        path = folder / f"out{extension}"
        if extension == ".npy":
            array = np.load(path)
        else:
            with h5py.File(path) as file:
                array = file["out"][...]
        if layout == "HTD":
            return array.transpose(1, 0, 2).copy()
        return array.reshape(ROWS, HEADS, DIM)

    return read


def placed(extension, layout, known=True, dtype="f4"):
    """A SinkCase of open_writer."""

    def open_(folder):
        return open_writer(str(folder / f"out{extension}"), ROWS if known else None, HEADS, DIM, dtype, layout)

    return SinkCase(open_, from_file(extension, layout))


def open_records(folder):
    """A writer to a given stream, which stays open."""
    OPENED[folder] = open(folder / "pipe", "wb", buffering=0)  # noqa: SIM115
    return open_writer("-", None, HEADS, DIM, stdout=OPENED[folder])


def read_records(folder):
    """The rows of concatenated .npy records."""
    OPENED.pop(folder).close()
    with open(folder / "pipe", "rb") as file:
        parts = []
        while file.peek(1):
            parts.append(np.load(file))
    return np.concatenate(parts)


SINKS = {
    "npy": placed(".npy", "THD"),
    "npy, f2, heads fused": placed(".npy", "TC", dtype="f2"),
    "npy of unknown rows": placed(".npy", "THD", known=False),
    "npy, heads first": placed(".npy", "HTD"),
    "hdf5": placed(".h5", "THD"),
    "hdf5, heads first, f8": placed(".h5", "HTD", dtype="f8"),
    "hdf5 that grows": placed(".h5", "THD", known=False),
    "records": SinkCase(open_records, read_records, named=False),
    "bare rows": SinkCase(
        lambda folder: open_raw(str(folder / "rows.f32"), ROWS, HEADS * DIM, np.dtype("f4")),
        lambda folder: np.fromfile(folder / "rows.f32", "f4").reshape(ROWS, 1, HEADS * DIM),
        heads=1,
        dim=HEADS * DIM,
    ),
}


@pytest.mark.parametrize("law", SINK_LAWS, ids=name)
@pytest.mark.parametrize("case", SINKS.values(), ids=SINKS)
def test_sink(tmp_path, case, law):
    law(case, tmp_path)


@pytest.mark.parametrize("known", [True, False])
def test_hdf5_outputs_do_not_tell_the_time(tmp_path, known):
    """Equal results are equal bytes, also a second later: the dataset's header holds no time of modification."""
    case = placed(".h5", "THD", known)
    writer = case.open(tmp_path)
    writer.write(0, case.rows())
    writer.commit({})
    with h5py.File(tmp_path / "out.h5") as file:
        assert h5py.h5g.get_objinfo(file["out"].id).mtime == 0
