"""`streamattn generate`: rows with known properties, to a pipe or to files."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from streamattn_cli.cli import options
from streamattn_cli.cli.options import option
from streamattn_cli.cli.streams import printing

SHAPE, SPREAD, WHERE = "What the rows look like", "Their statistics", "Where they go"


def generate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="- (standard output, .npy records), FILE.npy (packed columns; with {} in the name one file per "
            "tensor), or FILE.h5 (datasets q, k, v).",
        ),
    ] = "-",
    rows: Annotated[str, option(help="Number of rows, such as 1e6.", rich_help_panel=SHAPE)] = "65536",
    dim: Annotated[int, option(help="Columns of one query or key head.", rich_help_panel=SHAPE)] = 64,
    value_dim: Annotated[
        int | None, option(help="Columns of one value head.", show_default="as --dim", rich_help_panel=SHAPE)
    ] = None,
    heads: Annotated[int, option(help="Query heads.", rich_help_panel=SHAPE)] = 1,
    kv_heads: Annotated[
        int | None, option(help="Key and value heads.", show_default="as --heads", rich_help_panel=SHAPE)
    ] = None,
    emit: Annotated[
        str, option(help="Tensors: q, k, v, kv or qkv, packed in that order.", rich_help_panel=SHAPE)
    ] = "qkv",
    dtype: Annotated[str, option(help="f16, bf16, f32 or f64.", rich_help_panel=SHAPE)] = "f32",
    seed: Annotated[int, option(help="Same seed, same rows.", rich_help_panel=SPREAD)] = 0,
    logit_std: Annotated[
        float, option(help="Standard deviation of the logits scale q.k.", rich_help_panel=SPREAD)
    ] = 1.0,
    scale: Annotated[
        str, option(help="The scale meant: sqrt (1/sqrt(dim)), d (1/dim) or a number.", rich_help_panel=SPREAD)
    ] = "sqrt",
    heavy: Annotated[int, option(help="Rows with a key that every query looks at.", rich_help_panel=SPREAD)] = 0,
    heavy_logit: Annotated[float, option(help="Logit of those rows.", rich_help_panel=SPREAD)] = 10.0,
    value_mean: Annotated[float, option(help="Mean of every value entry.", rich_help_panel=SPREAD)] = 0.0,
    raw: Annotated[
        bool, option("--raw", help="Bare rows instead of .npy records (no header at all).", rich_help_panel=WHERE)
    ] = False,
    block_rows: Annotated[
        int | None, option(help="Rows made at a time.", show_default="about 1 MiB", rich_help_panel=WHERE)
    ] = None,
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    progress_every: options.ProgressEvery = 10.0,
    json: options.Json = False,
) -> None:
    """Make up rows with known properties: any number of them, in constant memory.

    An entry depends only on the seed, the tensor, its row and its column.

        streamattn generate --rows 2000 --dim 8 --logit-std 0.7 --heads 2 made_up.h5
    """
    from streamattn_cli.engine.scale import scale_value
    from streamattn_cli.engine.generate import GenerateRequest, run_generate
    from streamattn_cli.engine.signals import Interrupts
    from streamattn_cli.errors import UsageError
    from streamattn_cli.report.jsontext import json_line
    from streamattn_cli.report.outcome import render_outcome
    from streamattn_cli.report.progress import make_listener
    from streamattn_cli.rows.synthetic import SyntheticSpec
    from streamattn_cli.rows.tensor import storage_word
    from streamattn_cli.units import parse_count

    if target == "-" and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("standard output is a terminal, and rows are binary: pipe it into a program or name a file")
    if target == "-" and json:
        raise UsageError("--json needs standard output, where the rows go: name a file, or use --log-json")
    spec = SyntheticSpec(
        rows=parse_count(rows, "--rows"),
        dim=dim,
        value_dim=dim if value_dim is None else value_dim,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        logit_std=logit_std,
        scale=scale_value(scale, dim),
        heavy=heavy,
        heavy_logit=heavy_logit,
        value_mean=value_mean,
        seed=seed,
        dtype=storage_word(dtype, "--dtype"),
    )
    request = GenerateRequest(spec, emit, target, raw, block_rows)
    mode = "json" if log_json else "quiet" if quiet else "auto"
    with make_listener(mode, progress_every) as listener, Interrupts(status=listener.status) as interrupts:
        outcome = run_generate(request, listener, interrupts)
    if json:
        with printing():
            print(json_line(outcome.to_dict()))
    elif mode == "auto":
        render_outcome(outcome)
