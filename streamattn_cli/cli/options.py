"""Arguments that several commands share and that are no settings of a request."""

import functools
from typing import Annotated

import typer

from streamattn_cli.cli.completion import arrays

option = functools.partial(typer.Option, show_envvar=False)  # the rule is told once, at the end of every help text
ENVIRONMENT = (
    "Every option can also be set by an environment variable, such as STREAMATTN_ATTEND_MEMORY for attend --memory."
)

Input = Annotated[
    str | None,
    typer.Argument(
        metavar="INPUT",
        help="File that holds q, k, v (.h5, .safetensors, packed .npy), or - for rows on standard input.",
        autocompletion=arrays,
    ),
]
Answers = Annotated[
    str,
    option(
        "-o",
        "--output",
        help="FILE.npy, FILE.h5, FILE.h5:DATASET to add to a file, or - (.npy records on standard output).",
    ),
]
Force = Annotated[bool, option("--force", help="Replace outputs that are there already.")]
Json = Annotated[bool, option("--json", help="The outcome as JSON on standard output.")]
