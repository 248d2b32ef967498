"""The checkpoint file as FORMAT.md has it: bytes, golden file, laws, laziness, size."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from crashfs import SmallDisk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamattn_cli.checkpoint.commit import CheckpointWriter, save
from streamattn_cli.checkpoint.container import DTYPES, decode, encode, read, read_header
from streamattn_cli.checkpoint.header import LONGEST_HEADER, canonical_json
from streamattn_cli.errors import CheckpointIncompatible, InputMissing, MemoryBudget, OutputFailed, StreamattnError
from streamattn_cli.rows.formats.safetensors import read_safetensors_header

GOLDEN = Path(__file__).parents[1] / "golden" / "container-1.sattn"


def golden():
    """What the golden file holds: every dtype, shapes with and without padding, empty, scalar, stacked."""
    state = {f"every.{name}": (np.arange(5) * 3 % 7).astype(string) for string, name in DTYPES.items()}
    state |= {
        "head00.moments": np.linspace(-1, 1, 24, dtype="f4").reshape(2, 3, 4),
        "head01.moments": np.array([[np.nan, np.inf], [-0.0, 5e-324]]),
        "counters": [np.array([turn, 10 * turn], "i8") for turn in range(4)],
        "empty": np.zeros((0, 3), "f2"),
        "scalar": np.array(2.5),
        "Z-last_of.capitals": np.array([1], "u1"),
    }
    meta = {
        "method": "golden", "schema": "3", "params": canonical_json({"scale": 0.125, "dim": 4, "of": [None, True]}),
        "seed": "18446744073709551615", "rows": "257", "source": "Zürich/数据.h5", "created_by": "streamattn 0.1.0",
    }  # fmt: skip
    return state, meta


def encoded(state, meta):
    return b"".join(encode(state, meta))


def decoded(content, **words):
    return decode("mem.sattn", io.BytesIO(content), len(content), **words)


def same(found, expected):
    """Equal names, shapes, dtypes and bits; a sequence in `expected` stands for its stack."""
    assert list(found) == sorted(expected)
    for name, value in expected.items():
        array = value if hasattr(value, "dtype") else np.stack(value)
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        assert found[name].tobytes() == array.tobytes(), name


def test_golden_file_of_version_1():
    """Later versions must still read it, and this one still writes it."""
    state, meta = golden()
    found, words = read(str(GOLDEN))
    same(found, state)
    assert words == meta
    assert encoded(state, meta) == GOLDEN.read_bytes()
    assert hashlib.sha256(GOLDEN.read_bytes()).hexdigest()[:16] == "864ba56c731943ed"  # nobody makes it anew unnoticed


def test_it_is_a_safetensors_file():
    """By the rules of the format, read by the code that reads inputs."""
    tensors, metadata, start = read_safetensors_header(str(GOLDEN))
    state, meta = golden()
    assert metadata == {**meta, "container": "sattn/1"}
    size = GOLDEN.stat().st_size
    at = 0
    for entry in tensors.values():  # in the order of the header: contiguous from the first byte to the last
        assert entry["data_offsets"][0] == at
        at = entry["data_offsets"][1]
    assert start + at == size
    assert start % 64 == 0
    assert all(tensors[name]["data_offsets"][0] % 64 == 0 for name in state)
    assert [name for name in tensors if not name.startswith("~")] == [*sorted(state), "seal"]
    content = GOLDEN.read_bytes()
    assert content[-32:] == hashlib.sha256(content[:-32]).digest()
    begin, end = tensors["head00.moments"]["data_offsets"]
    assert content[start + begin : start + end] == state["head00.moments"].tobytes()


def test_read_header_needs_no_numpy(tmp_path):
    code = (
        "import sys; from streamattn_cli.checkpoint.container import read_header; h = read_header(sys.argv[1]);"
        "print(h.meta['rows'], h.version, len(h.tensors), h.state_bytes, h.file_bytes);"
        "print([m for m in ('numpy', 'numba', 'h5py', 'hashlib') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(GOLDEN)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    size = sum(array.nbytes for array in read(str(GOLDEN))[0].values())
    assert run.stdout == f"257 1 {len(golden()[0])} {size} {GOLDEN.stat().st_size}\n['hashlib']\n"


TAKEN = ("seal", "__metadata__")
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True).filter(lambda name: name not in TAKEN)
arrays = st.sampled_from(list(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
)
texts = st.dictionaries(st.text().filter(lambda key: key != "container"), st.text(), max_size=5)


@given(st.dictionaries(names, arrays, max_size=6), texts)
def test_any_state_comes_back_and_gives_the_same_bytes(state, meta):
    content = encoded(state, meta)
    found, words = decoded(content)
    same(found, state)
    assert words == meta
    assert all(array.flags.writeable and array.flags.c_contiguous for array in found.values())
    shuffled = dict(reversed(state.items())), dict(reversed(meta.items()))
    assert encoded(*shuffled) == content == encoded(found, words)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    assert all(
        (start + entry["data_offsets"][0]) % 64 == 0
        for name, entry in header.items()
        if name[0] not in "~_" or name in state
    )


def test_a_state_that_is_not_contiguous(rng):
    """Written as if it were."""
    block = rng.standard_normal((6, 8))
    for view in (block.T, block[::2], block[:, 3], np.broadcast_to(block[0], (3, 8)), block[::-1]):
        assert encoded({"a": view}, {}) == encoded({"a": np.ascontiguousarray(view)}, {})


def test_stacked_heads():
    """The arrays of all heads as one tensor; rows of it are each head's own, contiguous and writable."""
    heads = [{"moments": np.full((3, 4), head, "f4"), "rows": np.array(head)} for head in range(40)]
    content = encoded({name: [head[name] for head in heads] for name in heads[0]}, {})
    found, _ = decoded(content)
    assert found["moments"].shape == (40, 3, 4) and found["rows"].shape == (40,)
    assert found["moments"][7].flags.c_contiguous and found["moments"][7].tobytes() == heads[7]["moments"].tobytes()
    assert encoded(found, {}) == content


@pytest.mark.parametrize(("state", "meta", "match"), [
    ({"seal": np.zeros(1)}, {}, "name found"),
    ({"__metadata__": np.zeros(1)}, {}, "name found"),
    ({"": np.zeros(1)}, {}, "name found"),
    ({"~a": np.zeros(1)}, {}, "name found"),
    ({"a\n": np.zeros(1)}, {}, "name found"),
    ({"é": np.zeros(1)}, {}, "name found"),
    ({"a" * 201: np.zeros(1)}, {}, "name found"),
    ({"a": np.zeros(1, ">f4")}, {}, "unknown dtype '>f4'"),
    ({"a": np.zeros(1, bool)}, {}, "unknown dtype"),
    ({"a": np.zeros(1, complex)}, {}, "unknown dtype"),
    ({"a": np.array([None])}, {}, "unknown dtype"),
    ({"a": np.zeros((1,) * 9)}, {}, "9 dimensions"),
    ({"a": []}, {}, "expected"),
    ({"a": [np.zeros(1), np.zeros(2)]}, {}, "one shape and dtype"),
    ({"a": [np.zeros(1), np.zeros(1, "f4")]}, {}, "one shape and dtype"),
    ({}, {"container": "sattn/9"}, "container"),
    ({}, {"rows": 3}, "Unicode text"),
    ({}, {"source": os.fsdecode(b"caf\xe9")}, "Unicode text"),
    ({}, {"source": "x" * LONGEST_HEADER}, "expected at most 1048576"),
    ({f"head{n:05}.sums": np.zeros(1) for n in range(9000)}, {}, "stack the arrays of all heads"),
])  # fmt: skip
def test_what_the_format_does_not_allow(tmp_path, state, meta, match):
    """Refused before a byte is written; the old checkpoint stays, and so does the writer."""
    path = str(tmp_path / "run.sattn")
    with CheckpointWriter(path) as writer:
        writer.commit({"a": np.arange(3)}, {})
        with pytest.raises(StreamattnError, match=match):
            writer.commit(state, meta)
        assert read(path)[0]["a"].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["run.sattn"]


def test_canonical_json():
    assert canonical_json({"b": 1, "a": [0.1, "é"]}) == '{"a":[0.1,"\\u00e9"],"b":1}'
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))


def test_a_newer_container_is_refused_whatever_else_it_holds(tmp_path):
    header = b'{"__metadata__":{"container":"sattn/12"},"strange":{"dtype":"F8_E4M3"}}'
    (tmp_path / "new.sattn").write_bytes(len(header).to_bytes(8, "little") + header + b"anything")
    for call in (read, read_header):
        with pytest.raises(CheckpointIncompatible, match="new.sattn: .*version 12 found, expected at most 1; read it"):
            call(str(tmp_path / "new.sattn"))


def test_nothing_to_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, match in (("nowhere", "No such file"), ("pipe", "not a regular file"), ("", "is a folder")):
        for call in (read, read_header):
            with pytest.raises(InputMissing, match=match):
                call(str(tmp_path / name))


def test_the_size_of_the_state_can_be_limited(tmp_path):
    path = str(tmp_path / "run.sattn")
    save(path, {"a": np.zeros(1000)}, {})
    assert read_header(path).state_bytes == 8000
    assert len(read(path, allowed=8000)[0]["a"]) == 1000
    with pytest.raises(MemoryBudget, match="run.sattn: state of 8000 bytes found, expected at most 7999"):
        read(path, allowed=7999)


def test_a_state_too_large_for_the_machine(tmp_path):
    """A file with a hole of 2^60 bytes costs no disk, and must cost no memory."""
    path = tmp_path / "run.sattn"
    save(str(path), {"a": np.zeros(0)}, {})
    text = path.read_bytes()[8:-32]
    huge = text.replace(b'"shape":[0],"data_offsets":[0,0]', b'"shape":[%d],"data_offsets":[0,%d]' % (1 << 39, 1 << 42))
    huge = huge.replace(b'"data_offsets":[0,32]', b'"data_offsets":[%d,%d]' % (1 << 42, (1 << 42) + 32)).rstrip(b" ")
    huge += b" " * (-(8 + len(huge)) % 64)
    path.write_bytes(len(huge).to_bytes(8, "little") + huge)
    os.truncate(path, 8 + len(huge) + (1 << 42) + 32)
    assert read_header(str(path)).state_bytes == 1 << 42
    with pytest.raises(MemoryBudget, match="4398046511104"):
        read(str(path), allowed=1 << 30)


def test_64_mib(tmp_path, rng):
    """Nothing is copied on the way out; the times of this run are printed beside those of plain Python."""
    state = {f"head{head:02}.moments": rng.integers(0, 1 << 62, (1 << 17,)) for head in range(64)}
    path, plain = str(tmp_path / "run.sattn"), str(tmp_path / "plain")
    content = b"".join(array.tobytes() for array in state.values())
    for _ in range(3):
        start = time.perf_counter()
        with open(plain, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        middle = time.perf_counter()
        save(path, state, {})
        end = time.perf_counter()
        print(
            f"64 MiB: plain write and fsync {middle - start:.3f} s, commit {end - middle:.3f} s, "
            f"{(end - middle) / (middle - start):.2f} times"
        )
    same(read(path)[0], state)
    tracemalloc.start()
    save(path, state, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_large_commit_that_fails_stops_hashing(tmp_path, rng):
    """The state is the caller's again when commit has raised: no thread looks at it any more."""
    with CheckpointWriter(str(tmp_path / "run.sattn"), SmallDisk(1 << 20)) as writer:
        with pytest.raises(OutputFailed, match="No space left"):
            writer.commit({"a": rng.standard_normal(4 << 20)}, {})
        assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint-digest"]
    assert os.listdir(tmp_path) == []
