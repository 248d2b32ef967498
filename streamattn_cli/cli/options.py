"""Options that several commands share, declared once."""

import functools
from typing import Annotated

import typer

option = functools.partial(typer.Option, show_envvar=False)  # the rule is told once, at the end of every help text
ENVIRONMENT = (
    "Every option can also be set by an environment variable, such as STREAMATTN_ATTEND_MEMORY for attend --memory."
)

FROM, WHAT, HOW, WATCH = "Input", "Attention", "Memory, speed, error", "What is shown"
SKETCHES = "Sketches and sparse outputs"

Input = Annotated[
    str | None,
    typer.Argument(
        metavar="INPUT",
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
    option(
        help="sqrt (1/sqrt(dim)), d (1/dim) or a number.", show_default="of the file, or sqrt", rich_help_panel=WHAT
    ),
]
Json = Annotated[bool, option("--json", help="The outcome as JSON on standard output.", rich_help_panel=WATCH)]
Quiet = Annotated[bool, option("--quiet", help="No progress, no outcome.", rich_help_panel=WATCH)]
LogJson = Annotated[bool, option("--log-json", help="Progress as JSON lines.", rich_help_panel=WATCH)]
ProgressEvery = Annotated[float, option(help="Seconds between progress lines in a log.", rich_help_panel=WATCH)]
Select = Annotated[
    str | None, option("--select", help="Key heads to use, such as 0,2 (with their query heads).", rich_help_panel=FROM)
]
Rows = Annotated[
    str | None, option("--rows", metavar="A:B", help="Rows A to B (not included) only.", rich_help_panel=FROM)
]
QueryRows = Annotated[
    str | None, option("--q-rows", metavar="A:B", help="The same for queries of their own.", rich_help_panel=FROM)
]
Causal = Annotated[
    bool | None,
    option("--causal/--full", help="Row i sees rows up to i, or all rows.", rich_help_panel=WHAT),
]
Method = Annotated[
    str | None,
    option(
        "--method",
        help="nystrom, poly, exact, or auto to decide by the input; to compare: window, evict, sample, balance, wildcat.",
        show_default="nystrom",
        rich_help_panel=WHAT,
    ),
]
ResidentRows = Annotated[
    int | None,
    option(
        "--resident-rows",
        help="All but poly, exact: memory of one key head, in rows of k and v; everything counts.",
        show_default="1024",
        rich_help_panel=WHAT,
    ),
]
Effort = Annotated[
    str, option("--effort", help="nystrom: fast, default or best, time against error.", rich_help_panel=WHAT)
]
Sinks = Annotated[
    int | None, option("--sinks", help="First rows that stay exact.", show_default="4, poly 0", rich_help_panel=WHAT)
]
Window = Annotated[
    int | None,
    option(
        "--window", help="Recent rows that stay exact.", show_default="by --resident-rows, poly 0", rich_help_panel=WHAT
    ),
]
Buffer = Annotated[
    int | None,
    option("--buffer", help="Rows between two compressions.", show_default="by --resident-rows", rich_help_panel=WHAT),
]
Atoms = Annotated[
    int | None,
    option("--atoms", help="Atoms, or rows, of the history.", show_default="by --resident-rows", rich_help_panel=WHAT),
]
Degree = Annotated[int, option("--degree", help="poly: degree of the polynomial, 1 to 12.", rich_help_panel=WHAT)]
Polynomial = Annotated[str, option("--polynomial", help="poly: hermite or taylor.", rich_help_panel=WHAT)]
Beta = Annotated[
    float | None, option("--beta", help="poly: bound on |logit|; longer rows are shortened.", rich_help_panel=WHAT)
]
MaxError = Annotated[
    float, option("--max-error", help="poly: refuse when a larger error is predicted.", rich_help_panel=WHAT)
]
Eps = Annotated[
    float | None,
    option("--eps", help="poly: error that chooses degree and sizes, such as 0.01.", rich_help_panel=SKETCHES),
]
Sketches = Annotated[
    str | None, option("--sketches", help="exact, psi, phi or paper.", show_default="exact", rich_help_panel=SKETCHES)
]
Order = Annotated[
    str | None,
    option(
        "--order", help="In which k, q, v come: kvq, vkq, kqv.", show_default="by --sketches", rich_help_panel=SKETCHES
    ),
]
M1 = Annotated[int | None, option("--m1", help="Buckets of Psi.", show_default="4096", rich_help_panel=SKETCHES)]
M2 = Annotated[int | None, option("--m2", help="Counters of Phi.", show_default="by k", rich_help_panel=SKETCHES)]
Decoder = Annotated[str, option("--decoder", help="Of Phi: scan or peel.", rich_help_panel=SKETCHES)]
TopK = Annotated[
    int | None,
    option("--top-k", help="Any method: write the K largest entries of every column.", rich_help_panel=SKETCHES),
]
PerColumn = Annotated[
    bool, option("--per-column", help="Decode Phi column by column, not jointly.", rich_help_panel=SKETCHES)
]
Deviation = Annotated[
    bool, option("--deviation", help="--top-k of the deviations from the mean output.", rich_help_panel=SKETCHES)
]
Memory = Annotated[
    str | None, option("--memory", help="Budget above the program itself, such as 512MiB.", rich_help_panel=HOW)
]
Audit = Annotated[
    int, option("--audit", help="Rows that are also answered exactly, to measure the error.", rich_help_panel=HOW)
]
Seed = Annotated[
    int,
    option(
        "--seed",
        help="Of every random choice: the audit's sample, rows that sample and balance keep.",
        rich_help_panel=HOW,
    ),
]
Threads = Annotated[int | None, option("--threads", help="Threads.", show_default="all", rich_help_panel=HOW)]
BlockRows = Annotated[
    int | None, option("--block-rows", help="Rows read at a time.", show_default="about 4 MiB", rich_help_panel=HOW)
]
NanPolicy = Annotated[str, option("--nan-policy", help="error, or drop rows that are not finite.", rich_help_panel=HOW)]
OutDtype = Annotated[
    str | None, option("--out-dtype", help="f16, f32 or f64.", show_default="f32; f64 for f64", rich_help_panel=HOW)
]
Checkpoint = Annotated[
    str | None, option("--checkpoint", help="FILE.sattn to save the run in as it goes on.", rich_help_panel=HOW)
]
CheckpointEvery = Annotated[str, option("--checkpoint-every", help="30s, 5min or 1e6rows.", rich_help_panel=HOW)]
Resume = Annotated[bool, option("--resume", help="Go on from --checkpoint, if it exists.", rich_help_panel=HOW)]
SkipRows = Annotated[
    int | None,
    option(
        help="--resume with a pipe: rows to drop at its beginning.",
        show_default="those already done",
        rich_help_panel=HOW,
    ),
]
Fingerprint = Annotated[
    bool, option("--fingerprint", help="Compare all of the input on --resume.", rich_help_panel=HOW)
]
DryRun = Annotated[bool, option("--dry-run", help="Print the plan, touch nothing.", rich_help_panel=WATCH)]
QueryModel = Annotated[
    str | None,
    option(
        "--query-model",
        metavar="FILE",
        help="nystrom: queries that stand for those to come, FILE or FILE:DATASET.",
        show_default="learnt on the way; full attention: of --q",
        rich_help_panel=WHAT,
    ),
]
