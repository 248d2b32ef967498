"""`streamattn sketch`: keys and values into a sketch that is queried later."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from streamattn_cli.cli.arguments import Shown, Words, takes
from streamattn_cli.cli.completion import arrays
from streamattn_cli.cli.options import option
from streamattn_cli.engine.request.requests import SketchRequest
from streamattn_cli.options import BUDGET, INPUT
from streamattn_cli.rows.spec import InputSpec

if TYPE_CHECKING:
    from streamattn_cli.engine.watch.events import Outcome


@takes(InputSpec, SketchRequest, Shown, without=("q_rows", "layer", "lengths", "starts", "q_lengths", "q_starts"))
def sketch(
    words: Words,
    input: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...",
            help="File that holds k, v (.h5, .safetensors, packed .npy), several or a pattern for one long stream, or -.",
            autocompletion=arrays,
        ),
    ] = None,
    output: Annotated[str, option("-o", "--output", help="The sketch, FILE.sattn.")] = "sketch.sattn",
    append: Annotated[
        bool, option("--append", help="Add the rows to those of the sketch that is there.", rich_help_panel=BUDGET)
    ] = False,
    q: Annotated[
        str | None, option("--q", help="Queries to learn from (nystrom).", rich_help_panel=INPUT, autocompletion=arrays)
    ] = None,
    blind: Annotated[
        bool,
        option(
            "--blind",
            help="Do not learn from the queries that the input holds (nystrom, evict).",
            rich_help_panel=INPUT,
        ),
    ] = False,
    resume: Annotated[bool, option("--resume", help="Resume an unfinished sketch.", rich_help_panel=BUDGET)] = False,
) -> None:
    """Read keys and values once and keep a sketch of them, to be queried, added to and merged.

    streamattn sketch heads.h5 --resident-rows 256 -o heads.sattn
    """
    from streamattn_cli.cli.words import request_of, run_and_render
    from streamattn_cli.engine.jobs.sketch import learning_from_input
    from streamattn_cli.errors import UsageError

    shards = words["shards"]
    _check_target(output, append or resume or words["force"], append)
    run: Callable[..., Outcome]
    side_by_side = "--engine" if shards is None else "--shards"
    if shards is None and words["engine"] is None:
        from streamattn_cli.engine.jobs.sketch import sketch as run
    else:
        from streamattn_cli.engine.jobs.shards import sketch_shards as run

        if append:
            raise UsageError(
                f"{side_by_side} with --append: make a sketch of the new rows alone, by the same settings, and merge the two: "
                f"streamattn sketch ... {side_by_side} {shards or words['engine']} -o new.sattn, then "
                f"streamattn merge {output} new.sattn -o {output} --force"
            )
        if resume:
            raise UsageError(
                f"{side_by_side} with --resume: nothing is saved before all workers are done, so there is nothing to go on "
                f"with; omit --resume to start again, or omit {side_by_side}: such a run is saved as it goes"
            )
    files = input or []
    first = files[0] if files else None
    request = request_of(SketchRequest, words, input=first, more=tuple(files[1:]))
    if blind and q:
        raise UsageError(f"--blind with --q {q}: learn from these queries, or from none; omit one of the two")
    if not blind and not append:
        request = learning_from_input(request)
    run_and_render(run, request, words)


def _check_target(output: str, may_be_there: bool, append: bool) -> None:
    """What is there already is never replaced by accident. Raises UsageError."""
    import os

    from streamattn_cli.engine.jobs.sketch import check_sketch_name
    from streamattn_cli.errors import UsageError

    if append and not os.path.exists(output):
        raise UsageError(f"--append: there is no sketch {output} yet; omit --append to make it")
    if not may_be_there and os.path.isfile(output):
        raise UsageError(
            f"{output}: there is a file already; --append adds to it, --resume goes on with it, --force replaces it"
        )
    if not append:
        check_sketch_name(output)
