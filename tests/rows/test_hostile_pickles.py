"""Pickles that are made to hurt: exit 4 with a sentence, in bounded memory and steps, and no number that is not there."""

import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from clirun import environment, refused, run

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.formats import plainpickle, pytorch
from streamattn_cli.rows.formats.inflate import members

MIB = 1 << 20


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def tensor(offset=b"K\x00", shape=b"K\x0aK\x0a\x86", strides=b"K\x0aK\x01\x86"):
    """A tensor (10, 10) of float32 over storage 0."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"KdtQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + strides + b"\x89NtR"


def named(**parts):
    """A dict of these, as a whole pickle."""
    return b"\x80\x02}(" + b"".join(text(name) + part for name, part in parts.items()) + b"u."


def saved(path, pickled, deflate=False):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", np.arange(100, dtype="f4").tobytes())
    return path


def shared(depth, step):
    """A container that holds one twice that holds one twice ... `step`(i) makes it of number i - 1."""
    return b"".join(step(i) + b"q" + bytes([i]) for i in range(1, depth))


LISTS = b"]q\x00" + shared(14, lambda i: b"](" + (b"h" + bytes([i - 1])) * 200 + b"e")
TUPLES = b")q\x00" + shared(60, lambda i: b"h" + bytes([i - 1]) + b"h" + bytes([i - 1]) + b"\x86")
HOSTILE = {
    "a memo of a billion places": b"\x80\x02Nr\xff\xff\xff\x3f.",
    "16 million lists": b"\x80\x02(" + b"]" * (plainpickle.LONGEST - 10) + b"l.",
    "more than 16 million bytes": b"\x80\x02(" + b"]" * (4 * plainpickle.LONGEST) + b"l.",
    "lists that are shared": b"\x80\x02" + LISTS + b".",
    "tuples that are shared, as a key": b"\x80\x02}" + TUPLES + b"K\x01s.",
    "a key of a megabyte in a chain": b"\x80\x02" + text("x" * MIB) + b"q\x00"
    + b"}q\x01h\x00}q\x02sh\x00" + b"".join(b"}q\x03sh\x00" for _ in range(14)) + tensor() + b"s.",
    "a list that holds itself": b"\x80\x02]q\x00(h\x00h\x00h\x00e.",
    "a number of ten million digits": b"\x80\x02\x8b" + struct.pack("<I", 10 * MIB) + b"\x7f" * (10 * MIB) + b".",
    "text of more than there is": b"\x80\x02\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "a hundred thousand axes": named(q=tensor(shape=b"(" + b"K\x02" * 100_000 + b"t", strides=b"(" + b"K\x01" * 100_000 + b"t")),
    "an axis of 2^63": named(q=tensor(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x7f" + b"K\x01\x86")),
    "an offset before the storage": named(q=tensor(offset=b"J\xf0\xff\xff\xff")),
    "an offset beyond the storage": named(q=tensor(offset=b"K\x20"), k=tensor(), v=tensor()),
    "nothing": b"",
    "no end": b"\x80\x02]",
    "a stop at once": b".",
    "a tuple of what is not there": b"\x80\x02\x87.",
    "a mark that was not set": b"\x80\x02t.",
    "what was not remembered": b"\x80\x02h\x07.",
    "an instance of a number": b"\x80\x02K\x01)\x81.",
    "items of a number": b"\x80\x02K\x01K\x02a.",
    "a storage that is text": b"\x80\x02" + text("storage") + b"Q.",
    "a storage of a class that is text": named(q=tensor().replace(b"ctorch\nFloatStorage\n", text("torch"))),
    "an opcode of another kind": b"\x80\x02\x82\x01.",
    "no opcode": b"\x80\x02\xff.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused(tmp_path, name):
    path = saved(tmp_path / "x.pt", HOSTILE[name], deflate=True)
    refused("inspect", path, code=4, words=["x.pt"], folder=tmp_path)


PEAK = """
import resource, sys
from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.formats.pytorch import FORMAT
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    FORMAT.names(sys.argv[1])
except InputMalformed:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("name", [name for name, pickled in HOSTILE.items() if len(pickled) < 4 * plainpickle.LONGEST])
def test_it_takes_little_memory(tmp_path, name):
    """At most three times the largest pickle that is read, and what 500,000 steps may make."""
    path = saved(tmp_path / "x.pt", HOSTILE[name], deflate=True)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, path], env=environment(), capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 3 * plainpickle.LONGEST / MIB + 100


@pytest.mark.parametrize("change", [
    b"}" + text("offset") + b"J\xf0\xff\xff\xffsb", b"}" + text("dtype") + b"]sb", b"}(" + text("shape") + text("abc") + b"ub",
])  # fmt: skip
def test_attributes_of_a_tensor_change_nothing(tmp_path, change):
    path = saved(tmp_path / "x.pt", named(**{part: tensor() + change for part in "qkv"}))
    run("attend", path, "--causal", "--method", "exact", "--layout", "TD", "-o", tmp_path / "a.npy")
    saved(tmp_path / "x.pt", named(**{part: tensor() for part in "qkv"}))
    run("attend", tmp_path / "x.pt", "--causal", "--method", "exact", "--layout", "TD", "-o", tmp_path / "b.npy")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize("change", [b"}" + text("name") + b"]sb", b"}" + text("module") + b"K\x01sb"])
def test_attributes_of_a_class_change_nothing(tmp_path, change):
    whole = named(q=tensor().replace(b"ctorch\nFloatStorage\n", b"ctorch\nFloatStorage\n" + change))
    assert pytorch.pytorch_arrays(str(saved(tmp_path / "x.pt", whole)), {"q": "q"})["q"].shape == (10, 10)


def test_what_is_known_of_a_file_is_forgotten_when_it_changes(tmp_path):
    path = saved(tmp_path / "x.pt", named(q=tensor()))
    assert pytorch.FORMAT.names(str(path)) == ["q"]
    saved(path, named(k=tensor(), v=tensor()))
    assert pytorch.FORMAT.names(str(path)) == ["k", "v"]


def test_the_directory_of_an_archive_is_bounded(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for number in range(50):
            archive.writestr("x" * 60_000 + f"{number:05}.npy", b"")
    assert len(members(str(tmp_path / "many.npz"))) == 50
    with zipfile.ZipFile(tmp_path / "many.npz", "a") as archive:
        for number in range(50, 100):
            archive.writestr("x" * 60_000 + f"{number:05}.npy", b"")
    with pytest.raises(InputMalformed, match="list of members is too long"):
        members(str(tmp_path / "many.npz"))


def test_random_opcodes_end_in_an_error_of_ours(tmp_path):
    """Or in tensors: every opcode there is, in any order, with whatever follows as its argument."""
    import pickletools

    rng = np.random.default_rng(23)
    codes = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
    pieces = [*codes, tensor(), text("q"), b"K\x01", b"}", b"]", b"(", b"\x81", b"b", b"R", b"s", b"u", b"a"]
    ended = {True: 0, False: 0}
    for _ in range(20_000):
        pickled = b"\x80\x02" + b"".join(pieces[i] for i in rng.integers(len(pieces), size=rng.integers(1, 30))) + b"."
        try:
            plainpickle.load(pickled, pytorch.CALLED, pytorch._storage)
            ended[True] += 1
        except plainpickle.Refused as error:
            assert str(error)
            ended[False] += 1
    assert all(ended.values())
