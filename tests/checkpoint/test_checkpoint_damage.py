"""Damage of every kind is detected, and a hostile file can neither crash the reader nor make it large.

STREAMATTN_MUTATIONS=200000 runs that many structure-aware mutations.
"""

import hashlib
import io
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from streamattn_cli.checkpoint.container import decode, encode, read, read_header
from streamattn_cli.checkpoint.header import LONGEST_HEADER, parse_header
from streamattn_cli.errors import CheckpointCorrupt, CheckpointIncompatible, InputMalformed

MUTATIONS = int(os.environ.get("STREAMATTN_MUTATIONS", "6000"))
STATE = {
    "a.sums": np.arange(6, dtype="f4").reshape(2, 3),
    "b.rows": np.array([3, 4], "i8"),
    "b.empty": np.zeros((0, 2), "f2"),
    "c": np.arange(64, dtype="u1"),
}
SMALL = b"".join(encode(STATE, {"method": "poly", "rows": "7"}))


def decoded(content):
    return decode("mem.sattn", io.BytesIO(content), len(content))


def header_of(content):
    """(header as JSON text, data)."""
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end].decode(), content[end:]


def file_of(text, data, align=True, seal=True):
    """A file with this header and data, sealed anew as an attacker, or a buggy program, would."""
    head = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if align:
        head = head.rstrip(b" ")
        head += b" " * (-(8 + len(head)) % 64)
    content = len(head).to_bytes(8, "little") + head + data
    return content[:-32] + hashlib.sha256(content[:-32]).digest() if seal else content


def test_every_bit_flip():
    """Exit code 7; 8 only for a digit of the container version."""
    digit = SMALL.index(b"sattn/1") + 6
    newer = 0
    for at in range(len(SMALL)):
        for bit in range(8):
            content = bytearray(SMALL)
            content[at] ^= 1 << bit
            with pytest.raises((CheckpointCorrupt, CheckpointIncompatible)) as caught:
                decoded(bytes(content))
            if type(caught.value) is CheckpointIncompatible:
                assert at == digit
                newer += 1
            else:
                assert str(caught.value).startswith("mem.sattn: damaged checkpoint: ")
    assert newer == 3  # 1 becomes 3, 5 or 9


def test_every_truncation(tmp_path):
    """Found by the reader of the header already, so that `info` sees it too."""
    path = tmp_path / "short.sattn"
    for size in range(len(SMALL)):
        with pytest.raises(CheckpointCorrupt, match="truncated"):
            decoded(SMALL[:size])
    for size in (0, 7, 8, 100, len(SMALL) - 33, len(SMALL) - 1):
        path.write_bytes(SMALL[:size])
        with pytest.raises(CheckpointCorrupt, match="short.sattn: .*truncated.*restore it from a copy"):
            read_header(str(path))


def test_trailing_bytes():
    for more in (b"\0", b" " * 64, SMALL):
        with pytest.raises(CheckpointCorrupt, match="trailing bytes"):
            decoded(SMALL + more)


@pytest.mark.parametrize("swap", range(0, 320, 64))
def test_blocks_in_another_order(swap):
    """As a file system that lost track of its blocks would leave it."""
    content = SMALL[:swap] + SMALL[swap + 64 : swap + 128] + SMALL[swap : swap + 64] + SMALL[swap + 128 :]
    with pytest.raises(CheckpointCorrupt):
        decoded(content)


NAMED = [
    ('"rows":"7"', '"rows":"7","rows":"7"', "a key occurs twice"),
    ('"c":{"dtype":"U8"', '"c":{"dtype":"U8","dtype":"U8"', "a key occurs twice"),
    ('"c":{', '"a.sums":{', "a key occurs twice"),
    ('"dtype":"F32"', '"dtype":"F33"', "unknown dtype 'F33'"),
    ('"dtype":"F32"', '"dtype":"BOOL"', "unknown dtype 'BOOL'"),
    ('"dtype":"F32"', '"dtype":3', "without a sane dtype"),
    ('"shape":[2,3]', '"shape":[3,2.0]', "without a sane dtype, shape"),
    ('"shape":[2,3]', '"shape":[-2,-3]', "without a sane dtype, shape"),
    ('"shape":[2,3]', '"shape":[true,6]', "without a sane dtype, shape"),
    ('"shape":[2,3]', '"shape":[2,4]', "expected a.sums F32 \\[2, 4\\] at data bytes 0 to 32"),
    ('"shape":[2,3]', '"shape":[1,1,1,1,1,1,1,2,3]', "9 dimensions"),
    ('"shape":[0,2]', '"shape":[0,4611686018427387904]', "absurd shape"),
    ('"shape":[2,3]', '"shape":[' + "9" * 5000 + "]", "not plain JSON"),
    ('"shape":[2,3]', '"shape":[' + "9" * 4000 + "]", "without a sane dtype, shape"),
    ('"data_offsets":[0,24]', '"data_offsets":[0,24,24]', "data_offsets"),
    ('"data_offsets":[64,64]', '"data_offsets":[128,128]', "a gap of 64 bytes"),
    ('"data_offsets":[64,64]', '"data_offsets":[0,0]', "it overlaps the tensor before it by 64 bytes"),
    ('"shape":[2,3],"data_offsets":[0,24]', '"data_offsets":[0,24],"shape":[2,3]', "not spelled"),
    ('"c":{', '"\\u0063":{', "not spelled"),
    ('"rows":"7"', '"rows": "7"', "not spelled"),
    ('"rows":"7"', '"rows":7', "no __metadata__ of Unicode strings"),
    ('"rows":"7"', '"rows":"\\udc80"', "no __metadata__ of Unicode strings"),
    ('"__metadata__"', '"metadata"', "no __metadata__"),
    ("sattn/1", "sattn/0", "not a checkpoint"),
    ("sattn/1", "sattn/01", "not a checkpoint"),
    ("sattn/1", "sattn/-1", "not a checkpoint"),
    ('"seal":{', '"zeal":{', "last tensor 'zeal' found, expected 'seal'"),
    ('"~a.sums":{', '"~b":{', "found, expected ~a.sums"),
    ('"~a.sums":{', '"~":{', "name found"),
    ('"c":{', '"..":{', "name found"),
    ('"c":{', '"é":{', "not plain JSON"),
    ('"rows":"7"', '"rows":NaN', "no __metadata__"),
    ("{", "[", "not plain JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "match"), NAMED)
def test_what_is_wrong_is_named(old, new, match):
    """Though the file was sealed after the change."""
    text, data = header_of(SMALL)
    assert old in text
    with pytest.raises(CheckpointCorrupt, match=match):
        decoded(file_of(text.replace(old, new, 1), data))


@pytest.mark.parametrize(("content", "match"), [
    (b"", "empty"),
    (b"\0" * 8, "not plain JSON"),
    (b"\xff" * 64, "header of 18446744073709551615 bytes found, expected at most 1048576"),
    (file_of("[]", b"\0" * 32), "JSON list found as header"),
    (file_of("{}", b"\0" * 32), "no __metadata__"),
    (file_of('{"__metadata__":{"container":"sattn/1"}}', b"\0" * 32), "last tensor 'none' found"),
    (file_of(header_of(SMALL)[0] + " " * 64, header_of(SMALL)[1], align=False), "not spelled"),
    (file_of(header_of(SMALL)[0].rstrip(), header_of(SMALL)[1], align=False), "not spelled"),
    (file_of(header_of(SMALL)[0], header_of(SMALL)[1].replace(b"\0" * 40, b"\0" * 39 + b"\1", 1)), "not zero found in"),
])  # fmt: skip
def test_other_files(content, match):
    with pytest.raises(CheckpointCorrupt, match=match):
        decoded(content)


FOREIGN = {
    "an .npy file": b"\x93NUMPY\x01\0" + b"v\0{'descr': '<f4'" + bytes(100),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(2000),
    "a zip archive": b"PK\x03\x04" + bytes(100),
    "a gzip file": b"\x1f\x8b\x08" + bytes(100),
    "a text file": "q,k,v\n1,2,3\n\u00e9".encode() * 90,
    "a safetensors file": file_of('{"k":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4), seal=False),
    "a safetensors file,": file_of(header_of(SMALL)[0].replace('"container":"sattn/1",', ""), header_of(SMALL)[1]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_never_was_a_checkpoint_is_called_what_it_is(tmp_path, kind):
    """Exit code 4: there is nothing to restore. What one bit or a truncation can make of a checkpoint stays 7."""
    path = tmp_path / "x.sattn"
    path.write_bytes(FOREIGN[kind])
    for call in (read, read_header):
        with pytest.raises(InputMalformed, match=f"x.sattn: is {kind}.*not a streamattn checkpoint; give") as caught:
            call(str(path))
        assert "damaged" not in str(caught.value)


def test_a_file_that_shrinks_while_it_is_read():
    with pytest.raises(CheckpointCorrupt, match="became shorter"):
        decode("mem.sattn", io.BytesIO(SMALL[:-100]), len(SMALL))


BOMBS = {
    "nested": "[" * (LONGEST_HEADER - 64),
    "nested objects": '{"a":' * 150_000,
    "empty lists": "[" + "[]," * 340_000 + "[]]",
    "long shape": '{"__metadata__":{"container":"sattn/1"},"a":{"dtype":"U8","shape":[' + "1," * 500_000 + "1]}}",
    "many keys": json.dumps({"__metadata__": {"container": "sattn/1"}, **{f"{n:x}": 0 for n in range(80_000)}}),
    "long name": json.dumps({"__metadata__": {"container": "sattn/1"}, "a" * 1_000_000: {}}),
    "long version": json.dumps({"__metadata__": {"container": "sattn/" + "9" * 1_000_000}}),
    "long number": '{"__metadata__":' + "9" * 1_000_000 + "}",
    "claims 2^61": '{"__metadata__":{"container":"sattn/1"},"a":{"dtype":"U8","shape":[2305843009213693952],'
                   '"data_offsets":[0,2305843009213693952]},"seal":{"dtype":"U8","shape":[32],'
                   '"data_offsets":[2305843009213693952,2305843009213693984]}}',
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_hostile_headers_stay_small(kind):
    """The most that a header of 1 MiB may cost, and no message repeats it."""
    content = file_of(BOMBS[kind], b"\0" * 32)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointCorrupt) as caught:
            decoded(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
    assert len(str(caught.value)) < 600


class Mutator:
    """Structure-aware changes of a sealed file; every choice comes from `rng`."""

    VALUES = (0, 1, -1, 2, 3, 24, 63, 64, 65, 128, 2**31, 2**53, 2**62, 2**63, 2**64, 10**30, 0.5, 1e308, True, None,
              "", "a", "seal", "U8", "F64", "BF16", "BOOL", "é", "\ud800", "sattn/2", "sattn/1",
              [], [0], [[0]], {}, {"a": 1})  # fmt: skip

    def __init__(self, rng):
        self._rng = rng
        text, self._data = header_of(SMALL)
        self._header = json.loads(text)

    def pick(self, items):
        return items[int(self._rng.integers(len(items)))]

    def mutate(self):
        """The bytes of one mutant."""
        kind = self.pick([self._objects, self._objects, self._objects, self._text, self._bytes, self._length])
        content = kind()
        if self._rng.random() < 0.3:
            content = self._cut(content)
        return content

    def _objects(self):
        """Change values, keys and order of the parsed header, one to three times."""
        header = json.loads(json.dumps(self._header))
        data = self._data
        for _ in range(self._rng.integers(1, 4)):
            change = self.pick(
                [
                    self._value,
                    self._value,
                    self._value,
                    self._rename,
                    self._drop,
                    self._reorder,
                    self._add,
                    self._retype,
                    self._retype,
                    self._words,
                ]
            )
            header = change(header)
        if self._rng.random() < 0.2:
            data = data[: self._rng.integers(len(data) + 1)] + bytes(self._rng.integers(0, 200)) + data[-32:]
        separators = self.pick([(",", ":"), (",", ":"), (",", ":"), (", ", ": ")])
        text = json.dumps(header, separators=separators, ensure_ascii=bool(self._rng.random() < 0.9))
        return file_of(text, data, align=self._rng.random() < 0.9, seal=self._rng.random() < 0.9)

    def _entry(self, header):
        entries = [value for value in header.values() if isinstance(value, dict) and value]
        return self.pick(entries) if entries else header

    def _value(self, header):
        entry = self._entry(header)
        if entry:
            key = self.pick(list(entry))
            if isinstance(entry[key], list) and entry[key] and self._rng.random() < 0.7:
                entry[key][self._rng.integers(len(entry[key]))] = self.pick(self.VALUES)
            else:
                entry[key] = self.pick(self.VALUES)
        return header

    def _rename(self, header):
        old = self.pick(list(header) or ["a"])
        new = self.pick(["a", "~a", "seal", "~seal", "__metadata__", "", "z", "c", "b.rows", "~c", "~~c", "x" * 300])
        return {new if key == old else key: value for key, value in header.items()}

    def _drop(self, header):
        target = self._entry(header) if self._rng.random() < 0.3 else header
        if target:
            target.pop(self.pick(list(target)))
        return header

    def _reorder(self, header):
        keys = list(header)
        self._rng.shuffle(keys)
        return {key: header[key] for key in keys}

    def _add(self, header):
        at = int(self._rng.integers(0, 400))
        dtype, shape = self.pick(["U8", "F32", "I64"]), [int(self._rng.integers(0, 9))]
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [at, at]}
        return {**header, self.pick(["b", "d", "~c", "zz", "a"]): entry}

    def _retype(self, header):
        """A change that keeps the size, and may therefore be a valid file."""
        for name, (dtype, shape) in (("b.rows", ("U64", [2])), ("a.sums", ("I32", [6])), ("c", ("F32", [4, 4]))):
            if isinstance(header.get(name), dict) and self._rng.random() < 0.5:
                header[name].update(dtype=dtype, shape=shape)
        return header

    def _words(self, header):
        """Other metadata; mostly valid."""
        if isinstance(header.get("__metadata__"), dict):
            words = ["sattn/1", "sattn/2", "sattn/999999999", "sattn/", "7", "é", "\0", "x" * 99]
            header["__metadata__"][self.pick(["container", "rows", "method", "zebra"])] = self.pick(words)
        return header

    def _text(self):
        """Change characters of the header, sealed or not."""
        text, data = header_of(SMALL)
        letters = list(text)
        for _ in range(self._rng.integers(1, 5)):
            at = int(self._rng.integers(len(letters)))
            letters[at : at + int(self._rng.integers(0, 3))] = self.pick([*'"{}[],:09-e\\\0 ~é', "\\u0000", ""])
        return file_of("".join(letters), data, align=self._rng.random() < 0.8)

    def _bytes(self):
        """Change bytes anywhere; where the seal is made anew, changed data is a valid file."""
        content = bytearray(SMALL)
        for _ in range(self._rng.integers(1, 9)):
            content[self._rng.integers(len(content))] = self._rng.integers(256)
        if self._rng.random() < 0.5:
            content[-32:] = hashlib.sha256(content[:-32]).digest()
        return bytes(content)

    def _length(self):
        """Another header length."""
        n = self.pick([0, 1, 7, 56, 120, 504, 568, len(SMALL), LONGEST_HEADER, LONGEST_HEADER + 1, 2**32, 2**64 - 1])
        return n.to_bytes(8, "little") + SMALL[8:]

    def _cut(self, content):
        """Remove, repeat or insert a piece."""
        a, b = sorted(self._rng.integers(0, len(content) + 1, 2).tolist())
        piece = self.pick([b"", content[a:b] * 2, bytes(b - a), self._rng.bytes(min(b - a, 64))])
        return content[:a] + piece + content[b:]


def test_mutations(rng):
    """A mutant is refused with exit code 7, 8 or (beyond recognition) 4, or it is the one file of a state: encoding that
    gives the mutant."""
    mutator = Mutator(rng)
    accepted, incompatible, distinct = 0, 0, set()
    for _ in range(MUTATIONS):
        content = mutator.mutate()
        distinct.add(hash(content))
        try:
            state, meta = decoded(content)
        except (CheckpointCorrupt, InputMalformed):  # the latter where nothing is left that looks like a checkpoint
            continue
        except CheckpointIncompatible:
            incompatible += 1
            continue
        assert b"".join(encode(state, meta)) == content
        accepted += 1
    print(f"{MUTATIONS} mutants, {len(distinct)} distinct: {accepted} valid, {incompatible} newer, others refused")
    assert len(distinct) > MUTATIONS // 2
    assert 0 < accepted < MUTATIONS // 3  # the mutator does reach what lies behind the seal
    assert incompatible > 0


def test_headers_of_mutants_agree_with_whole_files(rng):
    """read_header refuses nothing that read accepts, and accepts what only the seal or the padding gives away."""
    mutator = Mutator(rng)
    behind = 0
    for _ in range(min(MUTATIONS, 2000)):
        content = mutator.mutate()
        end = 8 + int.from_bytes(content[:8], "little")
        try:
            parse_header("mem.sattn", content[:end], len(content))
        except (CheckpointCorrupt, CheckpointIncompatible) as error:
            with pytest.raises((type(error), InputMalformed)):
                decoded(content)
        else:
            try:
                decoded(content)
            except CheckpointCorrupt as error:
                assert "seal" in str(error) or "padding" in str(error)
                behind += 1
    assert behind > 0


def test_reading_a_damaged_file_by_name(tmp_path):
    path = tmp_path / "run.sattn"
    path.write_bytes(SMALL[:-1] + b"?")
    with pytest.raises(CheckpointCorrupt, match=r"run.sattn: damaged checkpoint: its seal is [0-9a-f]{16}\.\.\., "):
        read(str(path))
    assert read_header(str(path)).meta == {"method": "poly", "rows": "7"}
    assert Path(path).read_bytes() == SMALL[:-1] + b"?"
