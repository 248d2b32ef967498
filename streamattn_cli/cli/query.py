"""`streamattn query`: answers from a sketch."""

from __future__ import annotations

from typing import Annotated

import typer

from streamattn_cli.cli import options
from streamattn_cli.cli.arguments import Shown, Words, takes
from streamattn_cli.cli.completion import arrays
from streamattn_cli.engine.request.requests import QueryRequest
from streamattn_cli.rows.spec import InputSpec


@takes(
    InputSpec, QueryRequest, Shown,
    without=("record", "kv_heads", "dim", "value_dim", "select", "layer", "lengths", "starts", "q_lengths", "q_starts"),
)  # fmt: skip
def query(
    words: Words,
    sketch: Annotated[str, typer.Argument(metavar="SKETCH", help="A sketch, FILE.sattn.")],
    q: Annotated[
        str,
        typer.Argument(
            metavar="QUERIES",
            help="FILE, FILE:DATASET or - (.npy records, answered as they come).",
            autocompletion=arrays,
        ),
    ] = "-",
    output: options.Answers = "-",
) -> None:
    """Answer queries from a sketch: attention over all rows that it has absorbed.

    How wrong the answers are: --audit 64 --k heads.h5 --v heads.h5, with the keys and values that it was made of.

    streamattn query heads.sattn heads.h5:/q -o out.npy
    """
    from streamattn_cli.cli.streams import refuse_terminal
    from streamattn_cli.cli.words import request_of, run_and_render
    from streamattn_cli.engine.jobs.query import query as run
    from streamattn_cli.engine.jobs.spread import query_spread

    refuse_terminal(output, words["json"])
    run_and_render(query_spread if words["engine"] else run, request_of(QueryRequest, words), words)
