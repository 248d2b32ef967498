"""fp8 rows of every format, through the real program: the same bytes as of their numbers in float32, scales included."""

import json
import re

import h5py
import numpy as np
import pytest
import torchfiles
from clirun import refused, run

from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.writers.hdf5dump import file_type

KINDS = ("f8e4m3", "f8e5m2")
H, T, D = 2, 90, 8
EXACT = ("--causal", "--method", "exact", "--layout", "HTD", "--quiet", "-o")


def number(code, kind):
    """One fp8 number, from the tables of the OCP specification."""
    sign, exponent, fraction = (
        code >> 7,
        (code & 127) >> (3 if kind == "f8e4m3" else 2),
        code & (7 if kind == "f8e4m3" else 3),
    )
    bias, steps = (7, 8) if kind == "f8e4m3" else (15, 4)
    if kind == "f8e4m3" and code & 127 == 127:
        return float("nan")
    if kind == "f8e5m2" and exponent == 31:
        return float("nan") if fraction else (-1.0) ** sign * float("inf")
    size = fraction / steps * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction / steps) * 2.0 ** (exponent - bias)
    return (-1.0) ** sign * size


TABLE = {kind: np.array([number(code, kind) for code in range(256)], "f4") for kind in KINDS}


def make(kind, seed=5, shape=(H, T, D)):
    """Codes of numbers up to about 2 of q, k and v."""
    fitting = np.flatnonzero(np.isfinite(TABLE[kind]) & (np.abs(TABLE[kind]) <= 2)).astype("u1")
    rng = np.random.default_rng(seed)
    return {part: rng.choice(fitting, shape) for part in "qkv"}


def write_safetensors(path, codes, kind, **others):
    """Tensors of codes, and `others` in float32."""
    header, data = {}, b""
    for name, array in [*codes.items(), *others.items()]:
        dtype = DTYPES[kind].safetensors if name in codes else "F32"
        array = array if name in codes else np.asarray(array, "f4")
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def saved(folder, codes, kind, how):
    """Words that name q, k and v of a file."""
    if how == "safetensors":
        return [write_safetensors(folder / "x.safetensors", codes, kind)]
    if how.startswith("torch"):
        dtype = DTYPES[kind].torch[1]
        views = {p: np.ascontiguousarray(a.transpose(1, 0, 2)).transpose(1, 0, 2) for p, a in codes.items()}
        with torchfiles.pretended():
            arrays = {p: torchfiles.Tensor(a, dtype) for p, a in (views if "moved" in how else codes).items()}
            torchfiles.save(folder / "x.pt", arrays)
        return [folder / "x.pt"]
    if how.startswith("hdf5"):
        with h5py.File(folder / "x.h5", "w") as file:
            for part, array in codes.items():
                if how == "hdf5":
                    file[part] = array
                else:
                    kind_ = file_type(kind)
                    space = h5py.h5s.create_simple(array.shape)
                    h5py.h5d.create(file.id, part.encode(), kind_, space).write(
                        h5py.h5s.ALL, h5py.h5s.ALL, array, kind_
                    )
        return [folder / "x.h5", *(["--dtype", kind] if how == "hdf5" else [])]
    if how == "npz":
        np.savez(folder / "x.npz", **codes)
        return [folder / "x.npz", "--dtype", kind]
    for part, array in codes.items():
        np.save(folder / f"c{part}.npy", array if how == "npy" else array.view("V1"))
    return [w for p in "qkv" for w in (f"--{p}", folder / f"c{p}.npy")] + ["--dtype", kind]


def attend(folder, numbers, *words):
    """The bytes of the answers to float32 rows."""
    for part, array in numbers.items():
        np.save(folder / f"{part}.npy", array.astype("f4"))
    run("attend", *(w for p in "qkv" for w in (f"--{p}", folder / f"{p}.npy")), *words, folder / "expected.npy")
    return (folder / "expected.npy").read_bytes()


HOW = ("safetensors", "torch", "torch, moved", "hdf5", "hdf5, floats", "npz", "npy", "npy of V1")


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_what_the_numbers_give(tmp_path, kind):
    codes = make(kind)
    expected = attend(tmp_path, {part: TABLE[kind][array] for part, array in codes.items()}, *EXACT)
    for how in HOW:
        run("attend", *saved(tmp_path, codes, kind, how), *EXACT, tmp_path / "out.npy", "--force")
        assert (tmp_path / "out.npy").read_bytes() == expected, how
        (tmp_path / "out.npy").unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_raw_rows_of_a_pipe_and_of_a_file(tmp_path, kind):
    codes = {part: array[:1] for part, array in make(kind).items()}
    packed = np.concatenate([codes[part][0] for part in "qkv"], axis=1)
    words = ("--method", "window", "--window", "40", "--sinks", "2", "--causal", "--audit", "8", "--quiet", "-o")
    expected = attend(tmp_path, {part: TABLE[kind][array] for part, array in codes.items()}, "--layout", "HTD", *words)
    (tmp_path / "x.raw").write_bytes(packed.tobytes())
    for word, given in (("-", {"input": packed.tobytes()}), (tmp_path / "x.raw", {})):
        run("attend", word, "--raw", kind, "--dim", D, *words, tmp_path / "out.npy", "--force", **given)
        assert np.array_equal(np.load(tmp_path / "out.npy"), np.load(tmp_path / "expected.npy")[0])
        (tmp_path / "out.npy").unlink()
    assert expected


@pytest.mark.parametrize("method", ["nystrom", "window", "evict", "sample", "reservoir", "balance", "wildcat", "poly"])
def test_every_method_keeps_fp8_rows_exactly_and_is_audited(tmp_path, method):
    """float16 holds all fp8 numbers, and their rows are kept as it: the same bytes as of float16 rows."""
    codes = make("f8e4m3", shape=(H, 700, D))
    for part, array in codes.items():
        np.save(tmp_path / f"{part}.npy", TABLE["f8e4m3"][array].astype("f2"))
    words = ("--method", method, "--causal", "--layout", "HTD", "--audit", "8", "--max-error", "inf", "--json", "-o")
    if method != "poly":
        words = ("--resident-rows", "150", *words)
    said = []
    for name, given in (
        ("a.npy", [write_safetensors(tmp_path / "x.safetensors", codes, "f8e4m3")]),
        ("b.npy", [w for p in "qkv" for w in (f"--{p}", tmp_path / f"{p}.npy")]),
    ):
        said.append(run("attend", *given, *words, tmp_path / name).document["audit"])
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert said[0] == said[1] and said[0]["rows"] == 8


@pytest.mark.parametrize(("scales", "factors"), [
    ({"k_scale": 0.37, "v.scale": [2.5]}, {"k": 0.37, "v": 2.5}),
    ({"k_scale": [0.37, 1.9], "v_scale": [[[3e-3]], [[7.0]]]}, {"k": [0.37, 1.9], "v": [3e-3, 7.0]}),
    ({"q_scale": [[1.5, 0.1]], "v_scale": 1.0}, {"q": [1.5, 0.1]}),
])  # fmt: skip
@pytest.mark.parametrize("how", ["safetensors", "hdf5", "attributes", "torch"])
def test_a_scale_multiplies_the_rows(tmp_path, scales, factors, how):
    codes, kind = make("f8e4m3"), "f8e4m3"
    numbers = {part: TABLE[kind][array] for part, array in codes.items()}
    for part, factor in factors.items():
        numbers[part] = numbers[part] * np.reshape(np.asarray(factor, "f4"), (-1, 1, 1))
    expected = attend(tmp_path, numbers, *EXACT)
    given = [tmp_path / ("x.h5" if how in ("hdf5", "attributes") else "x." + how)]
    if how == "safetensors":
        write_safetensors(given[0], codes, kind, **scales)
    elif how == "torch":
        with torchfiles.pretended():
            others = {name: torchfiles.Tensor(np.asarray(value, "f4")) for name, value in scales.items()}
            torchfiles.save(given[0], {p: torchfiles.Tensor(a, "float8_e4m3fn") for p, a in codes.items()} | others)
    else:
        with h5py.File(given[0], "w") as file:
            for part, array in codes.items():
                file[part] = array
            for name, value in scales.items():
                part, value = name[0], np.squeeze(np.asarray(value, "f4"))
                if how == "hdf5":
                    file[f"{part}_scale"] = value
                else:
                    file[part].attrs[f"{part}_scale"] = value
        given += ["--dtype", kind]
    words = [w for w in EXACT if w != "--quiet"]
    done = run("attend", *given, *words, tmp_path / "out.npy")
    assert (tmp_path / "out.npy").read_bytes() == expected
    for name in scales:
        each = np.size(scales[name]) > 1
        assert (
            "multiplied by a number for each head" if each else "multiplied by "
        ) in done.err and "scale" in done.err


def test_scaled_rows_are_kept_as_they_are_multiplied(tmp_path):
    """In float32: neither fp8 nor float16 holds the products. The sketch answers as one of float32 rows does."""
    codes = make("f8e4m3", shape=(H, 300, D))
    path = write_safetensors(tmp_path / "x.safetensors", codes, "f8e4m3", k_scale=[0.37, 1.1], v_scale=0.3)
    numbers = {part: TABLE["f8e4m3"][array] for part, array in codes.items()}
    numbers["k"], numbers["v"] = (
        numbers["k"] * np.array([0.37, 1.1], "f4")[:, None, None],
        numbers["v"] * np.float32(0.3),
    )
    words = (
        "--causal",
        "--layout",
        "HTD",
        "--resident-rows",
        "100",
        "--audit",
        "8",
        "--max-error",
        "inf",
        "--quiet",
        "-o",
    )
    expected = attend(tmp_path, numbers, *words)
    run("attend", path, *words, tmp_path / "out.npy")
    assert (tmp_path / "out.npy").read_bytes() == expected


@pytest.mark.parametrize(("scale", "said"), [
    ([1.0] * 3, "scale of shape (3,)"), ([[1.0] * D] * H, f"scale of shape ({H}, {D})"), (0.0, "above 0"),
    (-1.0, "above 0"), (float("nan"), "above 0"), (float("inf"), "above 0"), (1e38, "above 0"), ([1.0] * 70000, "(70000,)"),
    ([], "(0,)"),
])  # fmt: skip
def test_a_scale_that_is_none_is_4(tmp_path, scale, said):
    path = write_safetensors(tmp_path / "x.safetensors", make("f8e4m3"), "f8e4m3", k_scale=scale)
    words = refused("attend", path, *EXACT, tmp_path / "o.npy", code=4, words=[said], folder=tmp_path)
    assert "k_scale" in words


def test_two_scales_of_one_array_are_4(tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", make("f8e5m2"), "f8e5m2", **{"k_scale": 1.0, "k.scale": 1.0})
    refused("attend", path, *EXACT, tmp_path / "o.npy", code=4, words=["several scales"], folder=tmp_path)


def test_a_sketch_is_of_one_scale(tmp_path):
    """The identity of a source has it: a checkpoint is not gone on with when it has changed."""
    codes, sources = make("f8e4m3", shape=(H, 300, D)), []
    for scale in (1.5, 1.25):
        path = write_safetensors(tmp_path / "x.safetensors", codes, "f8e4m3", k_scale=scale)
        run("sketch", path, "--layout", "HTD", "--resident-rows", "100", "--quiet", "-o", tmp_path / f"{scale}.sattn")
        sources.append(json.dumps(run("info", tmp_path / f"{scale}.sattn", "--json").document))
    found = [re.findall(r'"scale": "(\w+)"', text) for text in sources]
    assert len(found[0]) == len(found[1]) == 1 and found[0] != found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_names_it_and_counts_what_is_not_finite(tmp_path, kind):
    codes = make(kind)
    codes["k"][0, 7, 3], codes["v"][1, 30, 0] = 0x7F, 0xFF
    path = write_safetensors(tmp_path / "x.safetensors", codes, kind, v_scale=0.5)
    found = run("inspect", path, "--layout", "HTD", "--json").document
    assert {t["part"]: (t["dtype"], t["not_finite"]) for t in found["tensors"]} == {
        "q": (kind, 0), "k": (kind, 1), "v": (kind, 1),
    }  # fmt: skip
    assert {a["name"].split(":")[-1]: a["dtype"] for a in found["arrays"]}["k"] == kind
    assert any("multiplied by 0.5" in note for note in found["notes"])
    assert b"x.safetensors:v_scale, one number, f4" in run("inspect", path, "--layout", "HTD").out.replace(
        b"\n           ", b" "
    )
    refused("attend", path, *EXACT, tmp_path / "o.npy", code=5, words=["row 7", "head 0"], folder=tmp_path)


def test_the_spread_of_logits_counts_the_scale(tmp_path):
    codes, std = make("f8e4m3"), []
    for scale in (1.0, 0.25):
        path = write_safetensors(tmp_path / "x.safetensors", codes, "f8e4m3", k_scale=[scale] * H)
        std.append(run("inspect", path, "--layout", "HTD", "--json").document["logits"]["row_std_rms"])
    assert std[1] == pytest.approx(std[0] / 4)


@pytest.mark.parametrize(("save", "words"), [
    (lambda a: a, ["uint8", "--dtype f8e4m3 or --dtype f8e5m2"]), (lambda a: a.view("i1"), ["int8", "--dtype f8e4m3"]),
])  # fmt: skip
def test_bytes_of_which_nobody_says_what_they_are_are_4(tmp_path, save, words):
    for part, array in make("f8e4m3").items():
        np.save(tmp_path / f"{part}.npy", save(array))
    given = [w for p in "qkv" for w in (f"--{p}", tmp_path / f"{p}.npy")]
    refused("attend", *given, *EXACT, tmp_path / "o.npy", code=4, words=words, folder=tmp_path)


def test_a_file_of_ml_dtypes_says_which_fp8_it_holds(tmp_path):
    """It names E5M2 f1, which NumPy alone does not know."""
    codes = make("f8e5m2")["k"][0]
    np.save(tmp_path / "k.npy", codes.view("V1"))
    data = (tmp_path / "k.npy").read_bytes()
    assert data.count(b"'|V1'") == 1
    (tmp_path / "k.npy").write_bytes(data.replace(b"'|V1'", b"'<f1'"))
    found = run("inspect", "--k", tmp_path / "k.npy", "--v", tmp_path / "k.npy", "--json").document
    assert [tensor["dtype"] for tensor in found["tensors"]] == ["f8e5m2"] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_never_fp8(tmp_path, kind):
    np.save(tmp_path / "x.npy", np.zeros((5, 12), "f4"))
    words = ("attend", tmp_path / "x.npy", "--record", "qkv", "--out-dtype", kind, "-o", tmp_path / "o.npy")
    refused(*words, code=2, words=["f16, f32 or f64"], folder=tmp_path)
    refused("generate", "--dtype", kind, tmp_path / "g.h5", code=2, words=["--dtype"], folder=tmp_path)


def test_files_of_a_stream_with_different_scales_are_4(tmp_path):
    for at, scale in enumerate((1.5, 0.5)):
        write_safetensors(tmp_path / f"{at}.safetensors", make("f8e4m3", at), "f8e4m3", k_scale=scale)
    words = (
        "sketch",
        tmp_path / "*.safetensors",
        "--layout",
        "HTD",
        "--resident-rows",
        "20",
        "-o",
        tmp_path / "s.sattn",
    )
    refused(*words, code=4, words=["another scale"], folder=tmp_path)


def test_heads_that_are_selected_keep_their_scale(tmp_path):
    codes = make("f8e4m3")
    path = write_safetensors(tmp_path / "x.safetensors", codes, "f8e4m3", v_scale=[3.0, 0.7])
    run("attend", path, *EXACT, tmp_path / "both.npy")
    run("attend", path, "--select", "1", *EXACT, tmp_path / "one.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy")[0], np.load(tmp_path / "both.npy")[1])
