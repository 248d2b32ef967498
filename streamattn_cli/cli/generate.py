"""`streamattn generate`: rows with known properties, to a pipe or to files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from streamattn_cli.cli.arguments import Shown, Words, takes
from streamattn_cli.engine.request.settings import OutputSettings
from streamattn_cli.options import one_of, option
from streamattn_cli.rows.dtypes import WRITTEN
from streamattn_cli.rows.spec import RECORDS

shape = partial(option, panel="What the rows look like")
spread = partial(option, panel="Their statistics")
target_of = partial(option, panel="Where they go")


@dataclass(frozen=True)
class Made:
    """What the rows are to be like."""

    rows: str = shape("65536", "Number of rows, such as 1e6.")
    dim: int = shape(64, "Columns of one query or key head.")
    value_dim: int | None = shape(None, "Columns of one value head.", shown="as --dim")
    heads: int = shape(1, "Query heads.")
    kv_heads: int | None = shape(None, "Key and value heads.", shown="as --heads")
    emit: str = shape("qkv", "Tensors: q, k, v, kv or qkv, packed in that order.", choices=RECORDS)
    dtype: str = shape("f32", f"{one_of(WRITTEN)}.", choices=WRITTEN, open=True)
    seed: int = spread(0, "Same seed, same rows.")
    logit_std: float = spread(1.0, "Standard deviation of the logits scale q.k.")
    scale: str = spread(
        "sqrt", "The scale meant: sqrt (1/sqrt(dim)), d (1/dim) or a number.", choices=("sqrt", "d"), metavar="WORD"
    )
    heavy: int = spread(0, "Rows with a key that every query looks at.")
    heavy_logit: float = spread(10.0, "Logit of those rows.")
    value_mean: float = spread(0.0, "Mean of every value entry.")
    raw: bool = target_of(False, "Bare rows instead of .npy records (no header at all).")
    block_rows: int | None = target_of(None, "Rows made at a time.", shown="about 1 MiB")


@takes(Made, OutputSettings, Shown)
def generate(
    words: Words,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="- (standard output, .npy records), FILE.npy (packed columns; with {} in the name one file per "
            "tensor), or FILE.h5 (datasets q, k, v).",
        ),
    ] = "-",
) -> None:
    """Generate rows with known properties: any number of them, in constant memory.

    An entry depends only on the seed, the tensor, its row and its column.

        streamattn generate --rows 2000 --dim 8 --logit-std 0.7 --heads 2 made_up.h5
    """
    from streamattn_cli.cli.words import run_and_render, settings
    from streamattn_cli.engine.jobs.generate import GenerateRequest, run_generate
    from streamattn_cli.engine.request.scale import scale_value
    from streamattn_cli.errors import UsageError
    from streamattn_cli.rows.dtypes import storage_word
    from streamattn_cli.rows.synthetic.generated import SyntheticSpec
    from streamattn_cli.units import parse_count

    made = Made(**settings(Made, words))
    if target == "-" and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("standard output is a terminal, and rows are binary: pipe it into a program or name a file")
    if target == "-" and words["json"]:
        raise UsageError("--json needs standard output, where the rows go: name a file, or use --log-json")
    spec = SyntheticSpec(
        rows=parse_count(made.rows, "--rows"),
        dim=made.dim,
        value_dim=made.dim if made.value_dim is None else made.value_dim,
        heads=made.heads,
        kv_heads=made.heads if made.kv_heads is None else made.kv_heads,
        logit_std=made.logit_std,
        scale=scale_value(made.scale, made.dim),
        heavy=made.heavy,
        heavy_logit=made.heavy_logit,
        value_mean=made.value_mean,
        seed=made.seed,
        dtype=storage_word(made.dtype, "--dtype"),
    )
    run_and_render(
        run_generate, GenerateRequest(spec, made.emit, target, made.raw, made.block_rows, words["force"]), words
    )
