"""Bad input, told by the real program: the exit code, one line that names the file, and no output left behind."""

import ctypes
import os

import h5py
import numpy as np
import pytest
from clirun import FILES, record_bytes, refused, run, save_heads

ROWS, DIM = 50, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good files q, k, v, and a bad one of every kind."""
    folder = tmp_path_factory.mktemp("bad")
    arrays = save_heads(folder, ROWS, DIM)
    k, good = arrays["k"], (folder / "k.npy").read_bytes()
    np.save(folder / "short.npy", k[:-1])
    np.save(folder / "narrow.npy", k[:, :6])
    np.save(folder / "empty.npy", k[:0])
    np.save(folder / "integers.npy", k.astype(np.int32))
    np.save(folder / "q3.npy", np.stack([k] * 3, axis=1))
    np.save(folder / "k2.npy", np.stack([k] * 2, axis=1))
    np.save(folder / "objects.npy", np.array([[1, None]], object), allow_pickle=True)
    np.save(folder / "fortran.npy", np.asfortranarray(k))
    (folder / "zero.npy").write_bytes(b"")
    (folder / "truncated.npy").write_bytes(good[:-100])
    (folder / "header.npy").write_bytes(good[:40])
    (folder / "longer.npy").write_bytes(good.replace(b"(50, 8)", b"(99, 8)"))
    (folder / "shorter.npy").write_bytes(good.replace(b"(50, 8)", b"(40, 8)"))
    (folder / "negative.npy").write_bytes(good.replace(b"(50, 8)", b"(-5, 8)"))
    (folder / "text.npy").write_text("0.5 0.25\n" * 20)
    (folder / "rows.f32").write_bytes(np.concatenate(list(arrays.values()), axis=1).tobytes())
    (folder / "partial.f32").write_bytes((folder / "rows.f32").read_bytes()[:-3])
    with h5py.File(folder / "good.h5", "w") as file:
        file.update(arrays)
    with h5py.File(folder / "other.h5", "w") as file:
        file.update({"queries": k, "rows": k, "layer/values": k})
    with h5py.File(folder / "lengths.h5", "w") as file:
        file.update({"q": k, "k": k, "v": k[:-1]})
    (folder / "cut.h5").write_bytes((folder / "good.h5").read_bytes()[:3000])
    (folder / "folder.npy").mkdir()
    return folder


def attend(folder, *args, code, words, **kwargs):
    return refused("attend", *args, "-o", "out.npy", code=code, words=words, folder=folder, cwd=folder, **kwargs)


@pytest.mark.parametrize("args, words", [
    (["nowhere.h5"], ["nowhere.h5: No such file", "check the path"]),
    (["--q", "q.npy", "--k", "nowhere.npy", "--v", "v.npy"], ["nowhere.npy: No such file"]),
    (["other.h5"], ["other.h5: no dataset /q", "/queries", "/rows", "/layer/values"]),
    (["good.h5", "--group", "layer"], ["good.h5: no dataset /layer/q", "/q, /v"]),
    (["--q", "q.npy", "--k", "good.h5:/keys", "--v", "v.npy"], ["good.h5: no dataset /keys", "/k, /q, /v"]),
    (["."], [".: is a folder, expected a file"]),
    (["--q", "q.npy", "--k", "folder.npy", "--v", "v.npy"], ["folder.npy: is a folder"]),
])  # fmt: skip
def test_missing_input_is_3(folder, args, words):
    attend(folder, *args, code=3, words=words)


@pytest.mark.parametrize("k, v, words", [
    ("k.npy", "short.npy", ["k.npy has 50 rows", "short.npy 49", "one value"]),
    ("narrow.npy", "v.npy", ["q.npy", "8 items", "narrow.npy", "6", "must agree"]),
    ("empty.npy", "empty.npy", ["empty.npy: no rows"]),
    ("zero.npy", "v.npy", ["zero.npy: is empty"]),
    ("truncated.npy", "v.npy", ["truncated.npy: truncated", "1728 bytes", "the file has 1628"]),
    ("header.npy", "v.npy", ["header.npy: truncated"]),
    ("longer.npy", "v.npy", ["longer.npy", "(99, 8)", "the file has 1728"]),
    ("shorter.npy", "v.npy", ["shorter.npy", "(40, 8)", "the header does not belong to this data"]),
    ("negative.npy", "v.npy", ["negative.npy", "(-5, 8)"]),
    ("text.npy", "v.npy", ["text.npy", "found b'0.5 0.25"]),
    ("integers.npy", "v.npy", ["integers.npy: dtype int32", "expected float16", "astype"]),
    ("objects.npy", "v.npy", ["objects.npy: dtype object", "save a plain float array"]),
    ("fortran.npy", "v.npy", ["fortran.npy", "Fortran", "ascontiguousarray"]),
])  # fmt: skip
def test_malformed_npy_is_4(folder, k, v, words):
    attend(folder, "--q", "q.npy", "--k", k, "--v", v, code=4, words=words)


@pytest.mark.parametrize("args, words", [
    (["lengths.h5"], ["lengths.h5:/k has 50 rows", "lengths.h5:/v 49"]),
    (["cut.h5"], ["cut.h5: not readable as HDF5", "truncated"]),
    (["partial.f32", "--raw", "f32", "--dim", "8"],
     ["partial.f32: 4797 bytes", "rows of 96 bytes", "93 bytes are left"]),
    (["rows.f32"], ["rows.f32: not an .npy, .npz, HDF5, safetensors or PyTorch file", "--raw"]),
    (["--q", "q3.npy", "--k", "k2.npy", "--v", "k2.npy", "--layout", "THD"],
     ["q3.npy has 3 query heads", "k2.npy 2 key heads", "multiple"]),
    (["--q", "empty.npy", "--k", "k.npy", "--v", "v.npy", "--full"], ["empty.npy: no rows"]),
    (["--q", "k.npy", "--k", "short.npy", "--v", "short.npy", "--causal"], ["k.npy has 50", "short.npy 49", "--full"]),
])  # fmt: skip
def test_other_malformed_input_is_4(folder, args, words):
    attend(folder, *args, code=4, words=words)


@pytest.mark.parametrize("data, args, words", [
    (b"", [], ["standard input: is empty", "--raw"]),
    (record_bytes(np.zeros((0, 24), "f4")), [], ["standard input: no rows"]),
    (record_bytes(np.zeros((9, 24), "f4"))[:-5], [], ["standard input", "truncated", "5 bytes before"]),
    (record_bytes(np.zeros((9, 24), "f4"), np.zeros((9, 20), "f4")), [], ["record 2", "(20,)", "expected (24,)"]),
    (bytes(96 * 4 + 33), ["--raw", "f32", "--dim", "8"], ["inside row 4", "a row is 96 bytes", "has 33"]),
    (b"q,k,v\n1,2,3\n", [], ["standard input: record 1", "found bytes b'q,k,v"]),
])  # fmt: skip
def test_malformed_standard_input_is_4(folder, data, args, words):
    attend(folder, "-", *args, code=4, words=words, input=data)


def test_one_row_works_and_is_its_own_value(folder, tmp_path):
    arrays = save_heads(tmp_path, rows=1)
    for method in ("window", "poly", "exact"):
        run("attend", *FILES, "--causal", "--method", method, "-o", f"{method}.npy", cwd=tmp_path)
        assert np.array_equal(np.load(tmp_path / f"{method}.npy"), arrays["v"])


def test_an_unreadable_file_is_3(tmp_path):
    save_heads(tmp_path)
    os.chmod(tmp_path / "k.npy", 0)
    done = run("attend", *FILES, "-o", "out.npy", code=3, cwd=tmp_path, preexec_fn=_bound_by_permissions)
    assert "k.npy: no permission to read it" in done.err
    assert not (tmp_path / "out.npy").exists()


def _bound_by_permissions():
    """Root may read everything: drop the two capabilities that let it (they stay dropped over exec)."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.parametrize("words", [
    ["info", "k.npy"],
    ["query", "k.npy", "q.npy", "-o", "out.npy"],
    ["merge", "k.npy", "k.npy", "-o", "out.sattn"],
    ["sketch", "--k", "k.npy", "--v", "v.npy", "--append", "-o", "k.npy"],
], ids=lambda words: words[0])  # fmt: skip
def test_an_array_given_for_a_checkpoint_is_4(tmp_path, words):
    """What the file is and what to give: nothing is damaged."""
    save_heads(tmp_path)
    line = refused(*words, code=4, words=["k.npy: is an .npy file, not a streamattn checkpoint; give"], cwd=tmp_path,
                   folder=tmp_path)  # fmt: skip
    assert "damaged" not in line
