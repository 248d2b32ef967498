"""Options that several commands share, declared once."""

import functools
from typing import Annotated

import typer

option = functools.partial(typer.Option, show_envvar=False)  # the rule is told once, at the end of every help text
ENVIRONMENT = "Every option can also be set by an environment variable, such as STREAMATTN_ATTEND_MEMORY for attend --memory."

FROM, WHAT, HOW, WATCH = "Input", "Attention", "Memory, speed, error", "What is shown"
SKETCHES = "Sketches and sparse outputs"

Input = Annotated[
    str | None,
    typer.Argument(
        metavar="[INPUT]",
        help="File that holds q, k, v (.h5, .safetensors, packed .npy), or - for rows on standard input.",
    ),
]
Queries = Annotated[str | None, option("--q", help="Queries: FILE, FILE:DATASET or -.", rich_help_panel=FROM)]
Keys = Annotated[str | None, option("--k", help="Keys.", rich_help_panel=FROM)]
Values = Annotated[str | None, option("--v", help="Values.", rich_help_panel=FROM)]
Group = Annotated[str | None, option(help="HDF5 group or name prefix of q, k, v.", rich_help_panel=FROM)]
Layout = Annotated[str | None, option(help="Axes: TD, THD, HTD, BTHD, BHTD or TC.", rich_help_panel=FROM)]
Record = Annotated[str | None, option(help="What packed rows hold: qkv, kv, q, k or v.", rich_help_panel=FROM)]
Raw = Annotated[str | None, option(help="Rows without headers, of f16, bf16, f32 or f64.", rich_help_panel=FROM)]
Dtype = Annotated[str | None, option(help="What 16-bit integers are: bf16 or f16.", rich_help_panel=FROM)]
QueryHeads = Annotated[int | None, option("--heads", help="Query heads in fused rows.", rich_help_panel=FROM)]
KeyHeads = Annotated[int | None, option("--kv-heads", help="Key heads in fused rows.", rich_help_panel=FROM)]
Dim = Annotated[int | None, option(help="Length of a query or key in fused rows.", rich_help_panel=FROM)]
ValueDim = Annotated[int | None, option(help="Length of a value.", rich_help_panel=FROM)]
Scale = Annotated[
    str | None,
    option(help="sqrt (1/sqrt(dim)), d (1/dim) or a number.", show_default="of the file, or sqrt", rich_help_panel=WHAT),
]
Json = Annotated[bool, option("--json", help="The outcome as JSON on standard output.", rich_help_panel=WATCH)]
Quiet = Annotated[bool, option("--quiet", help="No progress, no outcome.", rich_help_panel=WATCH)]
LogJson = Annotated[bool, option("--log-json", help="Progress as JSON lines.", rich_help_panel=WATCH)]
ProgressEvery = Annotated[float, option(help="Seconds between progress lines in a log.", rich_help_panel=WATCH)]
