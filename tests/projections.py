"""Random runs of the real program, to hold what is projected against what is measured."""

import numpy as np
from clirun import run
from rowfiles import DTYPES, bits, lay_out, write_hdf5, write_npy, write_safetensors

METHODS = ("nystrom", "window", "evict", "sample", "reservoir", "balance", "wildcat", "poly", "exact")
LAYOUTS = ("THD", "HTD", "BHTD")


def draw(seed):
    """A setting: what the input looks like, and the words of `attend`. Every method comes once in nine seeds."""
    rng = np.random.default_rng([6, seed])

    def one(*choices):
        return choices[rng.integers(len(choices))]

    method = METHODS[seed % len(METHODS)]
    dim = one(8, 16) if method == "poly" else one(8, 16, 32, 64, 128)
    kv_heads = one(1, 2, 4)
    shape = {
        "rows": int(rng.integers(2000, 4000 if method == "exact" else 12000)),
        "dim": dim,
        "value_dim": one(dim, 2 * dim),
        "heads": kv_heads * one(1, 2, 4),
        "kv_heads": kv_heads,
        "dtype": one(*DTYPES),
        "layout": one(*LAYOUTS),
        "format": one("npy", "h5", "gzip", "safetensors"),
    }
    words = ["--method", method, one("--causal", "--full"), "--threads", one("1", "2")]
    if method == "poly":
        words += ["--degree", one("2", "3"), "--max-error", "inf"]
    elif method != "exact":
        words += ["--resident-rows", str(int(rng.integers(150, 1500)))]
    words += one([], ["--audit", "64"], ["--audit", "256"])
    words += one([], [], ["--checkpoint", "run.sattn", "--checkpoint-every", "0s"], ["--out-dtype", "f16"])
    words += ["-o", one("out.npy", "out.h5")]
    return shape, words


def save(folder, shape):
    """Write the input of a setting; returns the words that name it."""
    rng = np.random.default_rng(shape["rows"])
    sizes = {"q": ("heads", "dim"), "k": ("kv_heads", "dim"), "v": ("kv_heads", "value_dim")}
    arrays = {
        part: lay_out(bits(rng, (shape[heads], shape["rows"], shape[dim]), shape["dtype"]), shape["layout"], 1)
        for part, (heads, dim) in sizes.items()
    }
    words = ["--layout", shape["layout"]]
    if shape["format"] == "npy":
        for part, array in arrays.items():
            words += [f"--{part}", write_npy(folder / f"{part}.npy", array, shape["dtype"])]
        return words + (["--dtype", "bf16"] if shape["dtype"] == "bf16" else [])
    if shape["format"] == "safetensors":
        return [write_safetensors(folder / "in.safetensors", arrays, shape["dtype"]), *words]
    storage = {}
    if shape["format"] == "gzip":
        storage = {"compression": "gzip", "chunks": tuple(min(n, 256) for n in arrays["k"].shape)}
    return [write_hdf5(folder / "in.h5", arrays, shape["dtype"], **storage), *words]


def measure(folder, seed):
    """Run the setting of a seed in `folder`: (description, the outcome's JSON). In a process of its own: pages of a fork
    count as its memory when it touches them, also those that it got from a process that has compiled."""
    shape, words = draw(seed)
    return f"seed {seed}: {shape} {' '.join(words)}", run(
        "attend", *save(folder, shape), *words, "--json", "--quiet", cwd=folder, fresh=True
    ).document
