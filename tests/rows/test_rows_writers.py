"""Outputs: what is written is what is read, and nothing stands under the final name before it is complete."""

import io
import json
import os
import pty
import subprocess
import threading

import h5py
import numpy as np
import pytest
import rowfiles as rf
from numpy.lib.format import read_array

from streamattn_cli.errors import OutputFailed, StreamattnError, UsageError
from streamattn_cli.rows.writers.npyout import npy_header
from streamattn_cli.rows.writers.writer import open_writer

HEADS = np.random.default_rng(1).standard_normal((4, 23, 3)).astype("f4")  # (head, row, item)
META = {"method": "exact", "rows": 23, "error": 0.25, "causal": True, "params": {"degree": 2}}


def write_all(writer, heads=HEADS, sizes=(5, 1, 9, 8)):
    rows = np.ascontiguousarray(heads.transpose(1, 0, 2))
    at = 0
    for size in sizes:
        writer.write(at, rows[at : at + size])
        at += size


def read(path):
    if str(path).endswith(".npy"):
        return np.load(path)
    with h5py.File(path) as file:
        return file["out"][...]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("layout", rf.LAYOUTS)
@pytest.mark.parametrize("extension", [".npy", ".h5"])
def test_round_trip(tmp_path, extension, layout, known, dtype):
    heads = HEADS[:1] if layout == "TD" else HEADS
    batch = 2 if "B" in layout else 1
    path = tmp_path / ("out" + extension)
    rows = 23 if known else None
    if not known and layout in ("HTD", "BTHD", "BHTD"):
        with pytest.raises(UsageError, match="needs the number of rows in advance"):
            open_writer(str(path), rows, len(heads), 3, dtype, layout, batch)
        assert os.listdir(tmp_path) == []
        return
    writer = open_writer(str(path), rows, len(heads), 3, dtype, layout, batch)
    write_all(writer, heads)
    assert not path.exists() and writer.rows_written == 23
    writer.commit(META)
    writer.abort()
    np.testing.assert_array_equal(read(path), rf.lay_out(heads, layout, batch).astype(dtype))
    assert read(path).dtype == np.dtype(dtype)
    assert sorted(os.listdir(tmp_path)) == ["out.npy", "out.npy.json"] if extension == ".npy" else ["out.h5"]


def test_meta(tmp_path):
    for name in ("o.npy", "o.h5", "grown.h5"):
        writer = open_writer(str(tmp_path / name), None if name == "grown.h5" else 23, 4, 3)
        write_all(writer)
        writer.commit(META)
    assert json.loads((tmp_path / "o.npy.json").read_text()) == META
    for name in ("o.h5", "grown.h5"):
        with h5py.File(tmp_path / name) as file:
            assert file.attrs["method"] == "exact" and file.attrs["causal"] and file.attrs["error"] == 0.25
            assert json.loads(file.attrs["params"]) == {"degree": 2}


def test_one_row_unknown(tmp_path):
    for name in ("o.npy", "o.h5"):
        writer = open_writer(str(tmp_path / name), None, 4, 3)
        write_all(writer, HEADS[:, :1], (1,))
        writer.commit({})
        assert read(tmp_path / name).shape == (1, 4, 3)


@pytest.mark.parametrize("name", ["o.npy", "o.h5", "grown.h5"])
def test_the_old_file_stays_until_commit(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    rows = None if name == "grown.h5" else 23
    for end in ("abort", "commit"):
        writer = open_writer(str(path), rows, 4, 3)
        write_all(writer)
        hidden = [entry for entry in os.listdir(tmp_path) if entry != name]
        assert path.read_bytes() == b"old" and len(hidden) == 1
        assert hidden[0].startswith(f".{name}.") and hidden[0].endswith(".tmp")
        if end == "abort":
            writer.abort()
            assert os.listdir(tmp_path) == [name] and path.read_bytes() == b"old"
    writer.commit({})
    np.testing.assert_array_equal(read(path), HEADS.transpose(1, 0, 2))


def test_links_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.npy").symlink_to(tmp_path / "real" / "x.npy")
    writer = open_writer(str(tmp_path / "link.npy"), 23, 4, 3)
    write_all(writer)
    writer.commit({})
    assert (tmp_path / "link.npy").is_symlink() and (tmp_path / "real" / "x.npy").is_file()


def test_rows_must_be_complete_and_in_order(tmp_path):
    writer = open_writer(str(tmp_path / "o.npy"), 23, 4, 3)
    for start, block in ((1, HEADS[:, :2]), (0, HEADS[:, :2, :2]), (0, HEADS[:3])):
        with pytest.raises(ValueError, match="expected"):
            writer.write(start, block.transpose(1, 0, 2))
    writer.write(0, np.ones((22, 4, 3)))
    with pytest.raises(StreamattnError, match="22 rows written, 23 promised"):
        writer.commit({})
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="do not fit layout TD"):
        open_writer(str(tmp_path / "o.npy"), 23, 4, 3, "f4", "TD")


def records(data):
    """Arrays of concatenated .npy records."""
    stream, found = io.BytesIO(data), []
    while stream.tell() < len(data):
        found.append(read_array(stream))
    return found


@pytest.mark.parametrize(
    ("layout", "shape"), [("TD", (23, 3)), ("TC", (23, 12)), ("THD", (23, 4, 3)), ("BHTD", (23, 4, 3))]
)
def test_standard_output_without_descriptor(layout, shape):
    out = io.BytesIO()
    heads = HEADS[:1] if layout == "TD" else HEADS
    writer = open_writer("-", None, len(heads), 3, "f8", layout, 2 if layout == "BHTD" else 1, stdout=out)
    write_all(writer, heads)
    writer.commit(META)
    found = records(out.getvalue())
    assert [len(array) for array in found] == [5, 1, 9, 8]
    np.testing.assert_array_equal(np.concatenate(found), heads.transpose(1, 0, 2).reshape(shape).astype("f8"))


def test_standard_output_is_written_block_by_block():
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "wb") as out:
        writer = open_writer("-", None, 4, 3, stdout=out)
        writer.write(0, HEADS[:, :2].transpose(1, 0, 2))
        data = os.read(reader.fileno(), 65536)
        np.testing.assert_array_equal(records(data)[0], HEADS[:, :2].transpose(1, 0, 2))
        reader.close()
        with pytest.raises(BrokenPipeError):
            writer.write(2, HEADS[:, :2].transpose(1, 0, 2))
        writer.abort()


def test_a_terminal_is_refused():
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0), os.fdopen(follower, "wb", buffering=0) as terminal:
        with pytest.raises(UsageError, match="is a terminal"):
            open_writer("-", None, 4, 3, stdout=terminal)
        with pytest.raises(UsageError, match="is a terminal"):
            open_writer(os.ttyname(follower), None, 4, 3)


@pytest.mark.parametrize("name", ["rows", "rows.npy", "rows.h5"])
def test_fifo_is_written_to_never_replaced(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    got = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    writer = open_writer(str(path), 23, 4, 3)
    write_all(writer)
    writer.commit(META)
    reader.join()
    assert path.is_fifo() and os.listdir(tmp_path) == [name]
    np.testing.assert_array_equal(np.concatenate(records(got[0])), HEADS.transpose(1, 0, 2))


def test_devices_are_written_to_never_replaced(tmp_path):
    """Through links too, whatever the link is called."""
    (tmp_path / "null.npy").symlink_to("/dev/null")
    for target in ("/dev/null", str(tmp_path / "null.npy")):
        writer = open_writer(target, 23, 4, 3)
        write_all(writer)
        writer.commit(META)
    writer = open_writer("/dev/full", 23, 4, 3)
    with pytest.raises(OutputFailed, match="/dev/full: cannot be written: No space left on device; free some room"):
        write_all(writer)
    assert not os.path.isfile("/dev/null") and not os.path.isfile("/dev/full")


@pytest.mark.parametrize(("name", "error", "match"), [
    ("o.txt", UsageError, "extension .txt unknown"),
    ("o", UsageError, "extension .none. unknown"),
    ("missing/o.npy", OutputFailed, "there is no folder"),
    ("file/o.npy", OutputFailed, "Not a directory"),
    ("folder", OutputFailed, "is a folder"),
    ("x" * 300 + ".npy", OutputFailed, "File name too long"),
    ("x" * 245 + ".h5", OutputFailed, "File name too long"),
])  # fmt: skip
def test_targets_that_cannot_be(tmp_path, name, error, match):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(error, match=match):
        open_writer(str(tmp_path / name), 23, 4, 3)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_words(tmp_path):
    with pytest.raises(UsageError, match="bf16"):
        open_writer(str(tmp_path / "o.npy"), 23, 4, 3, "bf16")


def test_float16_overflow_is_infinite(tmp_path):
    writer = open_writer(str(tmp_path / "o.npy"), 1, 1, 1, "f2", "TD")
    writer.write(0, np.full((1, 1, 1), 1e6, "f4"))
    writer.commit({})
    assert np.isinf(read(tmp_path / "o.npy")).all()


def test_the_disk_begins_before_the_end(tmp_path, monkeypatch):
    """Long blocks are on their way to the disk when `commit` waits for it; where the system refuses that, nothing is lost."""
    asked = []

    def advise(fd, position, size, advice):
        asked.append((position, size, advice))
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", advise)
    block = np.random.default_rng(2).standard_normal((1024, 1, 512)).astype("f4")
    writer = open_writer(str(tmp_path / "out.npy"), 2560, 1, 512)
    for at, rows in ((0, 1024), (1024, 1024), (2048, 512), (2560, 0)):
        writer.write(at, block[:rows])
    writer.commit(META)
    assert asked == [
        (128 + at * 2048, rows * 2048, os.POSIX_FADV_DONTNEED) for at, rows in ((0, 1024), (1024, 1024), (2048, 512))
    ]
    np.testing.assert_array_equal(read(tmp_path / "out.npy")[1024:2048], block)


def test_npy_header_has_one_size():
    for shape in ((0,), (10**18, 10**6, 10**6), (1, 2, 3, 4)):
        header = npy_header(shape, np.dtype("<f4"))
        assert len(header) == 128 and header.endswith(b"\n")
        assert np.lib.format.read_array_header_1_0(io.BytesIO(header[8:]))[0] == shape


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 KiB."""
    place = tmp_path / "tiny"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", ["o.npy", "o.h5"])
def test_disk_full(tiny_disk, name, known):
    (tiny_disk / name).write_bytes(b"old")
    rows = 200_000
    with pytest.raises(OutputFailed, match=f"{name}: cannot be written: .*[Nn]o space left"):  # noqa: PT012
        writer = open_writer(str(tiny_disk / name), rows if known else None, 1, 4, "f4", "TD")
        for at in range(0, rows, 1000):
            writer.write(at, np.ones((1000, 1, 4), "f4"))
        writer.commit({})
    assert os.listdir(tiny_disk) == [name] and (tiny_disk / name).read_bytes() == b"old"


def test_disk_full_at_commit(tiny_disk):
    """The array fits, its attributes or its JSON do not."""
    rows = (256 * 1024 - 8 * 4096) // 16
    for name in ("o.npy", "o.h5"):
        writer = open_writer(str(tiny_disk / name), rows, 1, 4, "f4", "TD")
        writer.write(0, np.ones((rows, 1, 4), "f4"))
        with pytest.raises(OutputFailed, match="cannot be written"):
            writer.commit({str(n): "x" * 1000 for n in range(60)})
        assert os.listdir(tiny_disk) == []
