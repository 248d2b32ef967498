"""`streamattn query`: answers from a sketch."""

from __future__ import annotations

from typing import Annotated

import typer

from streamattn_cli.cli import options
from streamattn_cli.cli.options import option


def query(
    checkpoint: Annotated[str, typer.Argument(metavar="SKETCH", help="A sketch, FILE.sattn.")],
    q: Annotated[
        str, typer.Argument(metavar="QUERIES", help="FILE, FILE:DATASET or - (.npy records, answered as they come).")
    ] = "-",
    output: Annotated[
        str, option("-o", "--output", help="FILE.npy, FILE.h5, or - (.npy records on standard output).")
    ] = "-",
    group: options.Group = None,
    layout: options.Layout = None,
    raw: options.Raw = None,
    dtype: options.Dtype = None,
    heads: options.QueryHeads = None,
    q_rows: options.QueryRows = None,
    memory: options.Memory = None,
    threads: options.Threads = None,
    block_rows: options.BlockRows = None,
    nan_policy: options.NanPolicy = "error",
    out_dtype: options.OutDtype = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    progress_every: options.ProgressEvery = 10.0,
) -> None:
    """Answer queries from a sketch: attention over all rows that it has absorbed.

    streamattn query heads.sattn heads.h5:/q -o out.npy
    """
    words = dict(locals())
    from streamattn_cli.cli.streams import refuse_terminal
    from streamattn_cli.cli.words import attend_request, run_and_render
    from streamattn_cli.engine.sketchfile import query as run

    refuse_terminal(output, json)
    run_and_render(run, attend_request(words), words)
