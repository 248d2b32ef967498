"""Which rows count of a batch: masks, lengths and starts that lie beside q, k and v, and those that options name."""

import h5py
import naive_variants
import numpy as np
import pytest
from clirun import refused, run

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.numpy")

B, HEADS, T, D = 3, 2, 40, 8
LENGTHS = np.array([40, 17, 1])
RIGHT = (np.arange(T) < LENGTHS[:, None]).astype(np.int64)
LEFT = RIGHT[:, ::-1].copy()
EXACT = ("--causal", "--method", "exact", "--quiet")


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(3)
    return {part: rng.standard_normal((B, HEADS, T, D)).astype("f4") for part in "qkv"}


def packed(parts):
    return {
        part: np.concatenate([a[b, :, :n] for b, n in enumerate(LENGTHS)], 1).swapaxes(0, 1)
        for part, a in parts.items()
    }


def wanted(parts, mask=RIGHT):
    """Causal attention of each sequence (B, HEADS, T, D), zeros elsewhere."""
    out = np.zeros((B, HEADS, T, D))
    for b in range(B):
        rows = mask[b].astype(bool)
        for h in range(HEADS):
            q, k, v = (np.float64(parts[part][b, h][rows]) for part in "qkv")
            out[b, h, rows] = naive_variants.attention(q, k, v, D**-0.5, rows=range(len(q)))
    return out


def save(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".pt":
        torch.save({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}, path)
    elif path.suffix == ".safetensors":
        safetensors.save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return path


def check(path, parts, mask, *words, layout="BHTD"):
    done = run("attend", path, *words, "--causal", "--method", "exact", "-o", "out.npy", "--force", cwd=path.parent)
    out = np.load(path.parent / "out.npy")
    if layout == "BHTD":
        np.testing.assert_allclose(out, wanted(parts, mask), atol=2e-6)
    else:
        rows = [wanted(parts)[b, :, :n] for b, n in enumerate(LENGTHS)]
        np.testing.assert_allclose(out, np.concatenate(rows, 1).swapaxes(0, 1), atol=2e-6)
    return done.err


@pytest.mark.parametrize("kind", ["npz", "pt", "safetensors", "h5"])
@pytest.mark.parametrize(("mask", "dtype"), [(RIGHT, "i8"), (LEFT, "?")])
def test_a_mask_in_the_file_says_which_rows_count(tmp_path, parts, kind, mask, dtype):
    path = save(tmp_path / f"dump.{kind}", parts | {"attention_mask": mask.astype(dtype)})
    assert "attention_mask says which rows count (--lengths)" in check(path, parts, mask)


def test_rows_before_a_sequence_are_skipped_by_all_ways_through_a_run(tmp_path, parts):
    """The bytes of the plain run: by rows first, in files of their own, in pieces, resumed, and of every head alone."""
    path = save(tmp_path / "dump.npz", parts | {"attention_mask": LEFT})
    turned = save(tmp_path / "turned.npz", {n: a.swapaxes(1, 2) for n, a in parts.items()} | {"attention_mask": LEFT})
    words = ("--causal", "--method", "window", "--resident-rows", "24", "--quiet", "--force")

    def out(path, name, *more):
        run("attend", path, *words, *more, "-o", tmp_path / name)
        return np.load(tmp_path / name.format(sequence=1))

    whole = out(path, "out.npy")
    assert not whole[1, :, :23].any() and whole[1, :, 23:].all()
    np.testing.assert_array_equal(out(turned, "turned.npy", "--layout", "BTHD"), whole.swapaxes(1, 2))
    np.testing.assert_array_equal(out(path, "s-{sequence}.npy"), whole[1, :, 23:])
    np.testing.assert_array_equal(out(path, "pieces.npy", "--engine", "threads", "--block-rows", "8"), whole)
    np.testing.assert_array_equal(out(path, "one.npy", "--select", "1")[:, 0], whole[:, 1])
    run("attend", path, *words[:-1], "-o", tmp_path / "h.h5", "--checkpoint", tmp_path / "c.sattn")
    with h5py.File(tmp_path / "h.h5") as file:
        np.testing.assert_array_equal(file["out"][()], whole)


def test_masks_and_lengths_are_files_of_any_kind(tmp_path, parts):
    plain = save(tmp_path / "plain.npz", parts)
    np.save(tmp_path / "mask.npy", LEFT)
    save(tmp_path / "more.safetensors", {"mask": LEFT.astype("u1"), "lengths": LENGTHS})
    check(plain, parts, LEFT, "--lengths", tmp_path / "mask.npy")
    check(plain, parts, LEFT, "--lengths", f"{tmp_path}/more.safetensors:mask")
    check(plain, parts, RIGHT, "--lengths", f"{tmp_path}/more.safetensors:lengths")


@pytest.mark.parametrize(
    ("name", "array", "told"),
    [
        ("lengths", LENGTHS, "lengths says which rows count (--lengths)"),
        ("layers.seq_lens", LENGTHS.astype("i4"), ""),
        ("attention_mask", np.tri(T, dtype="i8"), "not heeded: shape (40, 40) found, expected (3, 40) of 0 and 1"),
        ("attention_mask", RIGHT * 2, "not heeded"),
        ("attention_mask", RIGHT.astype("f4"), "not heeded: expected whole numbers"),
        ("lengths", np.array([40, 17, 1, 5]), "not heeded: its 4 numbers are not those of 3 batches"),
    ],
)
def test_what_does_not_fit_is_said_and_not_heeded(tmp_path, parts, name, array, told):
    path = save(tmp_path / "dump.npz", parts | {name: array})
    mask = RIGHT if told.endswith("(--lengths)") else np.ones_like(RIGHT)
    assert told in check(path, parts, mask)
    if told:  # an option goes before it
        assert "heeded" not in check(path, parts, RIGHT, "--lengths", "40,17,1")


def test_the_nearest_array_is_taken(tmp_path, parts):
    """Of the layer itself before that of all layers."""
    names = {f"layers.1.{n}": a for n, a in parts.items()} | {
        "layers.1.lengths": LENGTHS,
        "layers.2.lengths": LENGTHS * 0 + 3,
    }
    path = save(tmp_path / "dump.npz", names | {"lengths": LENGTHS * 0 + 7})
    assert "layers.1.lengths says" in check(path, parts, RIGHT)


def test_a_mask_with_holes_is_refused(tmp_path, parts):
    holed = RIGHT.copy()
    holed[1, 5] = 0
    path = save(tmp_path / "dump.npz", parts | {"attention_mask": holed})
    refused(
        "attend", path, "--causal", "-o", tmp_path / "o.npy", code=4, words=["sequence 1", "side by side", "--lengths"]
    )
    one = save(tmp_path / "one.npz", {n: a[0] for n, a in parts.items()} | {"attention_mask": RIGHT[1]})
    refused("attend", one, "--causal", "-o", tmp_path / "o.npy", code=4, words=["one sequence", "--rows A:B"])


@pytest.mark.parametrize("said", ["option", "attribute", "array", "starts"])
def test_lengths_that_come_to_all_rows_are_those_of_packed_sequences(tmp_path, parts, said):
    rows = packed(parts)
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    more = {"array": {"seq_lens": LENGTHS}, "starts": {"cu_seqlens": starts.astype("i4")}}.get(said, {})
    path = save(tmp_path / "dump.h5", rows | more)
    if said == "attribute":
        with h5py.File(path, "a") as file:
            file.attrs["lengths"] = LENGTHS
    words = ("--lengths", "40,17,1") if said == "option" else ()
    note = check(path, parts, RIGHT, *words, "--layout", "THD", layout="THD")
    assert ("those of packed sequences" if said != "starts" else "(--starts)") in note


def test_lengths_that_do_not_are_refused(tmp_path, parts):
    path = save(tmp_path / "dump.npz", packed(parts))
    words = ["58 rows", "which were 57", "--starts"]
    refused("attend", path, "--causal", "--lengths", "40,17", "-o", tmp_path / "o.npy", code=2, words=words)
