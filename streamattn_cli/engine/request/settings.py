"""What commands can be told, group by group; the options of the command line are made from these fields.

None means: decide for me. `decides=True` marks what outputs or checkpoints depend on: all of attention and sketches, some of the
rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from streamattn_cli.errors import UsageError
from streamattn_cli.options import ATTENTION, BUDGET, SKETCHES, option
from streamattn_cli.sketches import registry
from streamattn_cli.units import parse_size

METHODS = tuple(sorted(registry.BUILT_IN))
METHODS_TO_COMPARE = tuple(name for name in registry.BUILT_IN if name not in ("nystrom", "poly", "exact"))
EFFORTS = ("fast", "default", "best")
ORDERS = {"exact": ("kvq",), "psi": ("kvq", "vkq"), "phi": ("kqv", "kvq"), "paper": ("kqv", "kvq", "vkq")}


def read_out_dtype(word: str) -> str:
    """A --out-dtype word as 'f2', 'f4' or 'f8'."""
    from streamattn_cli.rows.dtypes import number_word

    return number_word(word, "--out-dtype")


def read_rows(word: str) -> int | str:
    """A --resident-rows word: a number of rows, or a percentage of the keys such as 10%, which stays a word."""
    share = word.strip().removesuffix("%")
    try:
        if share != word.strip():
            if 0 < float(share) <= 100:
                return f"{float(share):g}%"
        else:
            return int(word)
    except ValueError:
        pass
    raise UsageError(f"--resident-rows {word}: give a number of rows such as 512, or a share of the keys such as 10%")


def read_budgets(words: str) -> tuple[int | str, ...]:
    """The --resident-rows of several runs: N or P%, with commas between them."""
    found = tuple(map(read_rows, words.split(",")))
    if any(isinstance(rows, int) and rows < 1 for rows in found):
        raise UsageError(f"--resident-rows {words}: give numbers above 0 with commas between them, such as 256,1024")
    return found


attention = partial(option, panel=ATTENTION, decides=True)
said_by_file = partial(attention, shown="of the file, or none", choices=("none",), open=True)
budget = partial(option, panel=BUDGET)
sketching = partial(option, panel=SKETCHES, decides=True)


@dataclass(frozen=True, kw_only=True)
class DirectionSettings:
    """Which keys a query sees."""

    causal: bool | None = attention(None, "Row i sees rows up to i, or all rows.", "--causal/--full")
    first_query: str | None = attention(
        None,
        "Causal with fewer queries than keys: the key row that the first query sees last, or end (the last sees all).",
        shown="end",
        choices=("end",),
        open=True,
        metavar="ROW",
    )


@dataclass(frozen=True, kw_only=True)
class LogitSettings:
    """What is done to logits, and which keys have any."""

    local: str | None = said_by_file(
        None,
        "Sliding window: a row sees itself and the W - 1 before it (transformers' sliding_window; flash-attention's W - 1, 0); "
        "W:LAYERS for those of --layer, or none.",
        metavar="W",
        open=True,
    )
    sink_logit: str | None = said_by_file(
        None,
        "A learned logit of each query head in the denominator: 0.5,-1 or FILE, FILE:DATASET, or none.",
        arrays=True,
        metavar="NUMBERS",
        open=True,
    )
    softcap: str | None = said_by_file(
        None,
        "exact, window, --local: logits become C tanh(logit / C), as attn_logit_softcapping of Gemma 2; or none.",
        metavar="C",
        open=True,
    )
    logit_bias: str | None = said_by_file(
        None,
        "exact, window, --local; causal: slope x (key row - query row) is added to logits. slope: the standard slopes of ALiBi; "
        "or one of each query head, as for --sink-logit; or none.",
        metavar="NUMBERS",
        choices=("slope", "none"),
        arrays=True,
    )
    scale: str | None = attention(
        None,
        "sqrt (1/sqrt(dim)), d (1/dim) or a number.",
        shown="of the file, or sqrt",
        choices=("sqrt", "d"),
        open=True,
        metavar="WORD",
    )


@dataclass(frozen=True, kw_only=True)
class AttentionSettings(LogitSettings, DirectionSettings):
    """Which attention it is."""


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Which method answers, and what it is given."""

    method: str | None = attention(
        None,
        f"nystrom, poly, exact, or auto to decide by the input; to compare: {', '.join(METHODS_TO_COMPARE)}.",
        shown="nystrom",
        choices=(*METHODS, "auto"),
        others=registry.names,
        metavar="METHOD",
    )
    query_model: str | None = attention(
        None,
        "nystrom: queries that stand for those to come, FILE or FILE:DATASET.",
        metavar="FILE",
        arrays=True,
        shown="learnt on the way; full attention: of --q",
    )
    window: int | None = attention(
        None, "Recent rows that stay exact (long nystrom: 12 bits).", shown="by --resident-rows, poly 0"
    )
    degree: int = attention(4, "poly: degree of the polynomial, 1 to 12.")
    polynomial: str = attention("hermite", "poly: which polynomial.", choices=("hermite", "taylor"))
    beta: float | None = attention(None, "poly: bound on |logit|; longer queries are shortened.")
    max_error: float = attention(0.25, "poly: refuse when a larger error is predicted.")


@dataclass(frozen=True, kw_only=True)
class BudgetSettings:
    """How much a key head may keep."""

    resident_rows: int | str | None = attention(
        None,
        "All but poly, exact: memory of one key head, in rows of k and v, or 10% of the longest sequence's keys; all counts.",
        shown="1024",
        read=read_rows,
        metavar="ROWS",
    )


@dataclass(frozen=True, kw_only=True)
class TuningSettings:
    """How a method uses its memory."""

    effort: str = attention("default", "nystrom: time against error.", choices=EFFORTS)
    bits: int | None = attention(
        None, "evict: 4, 6 or 8 bits for each number of a row that is no longer recent.", shown="as stored"
    )
    score: str = attention(
        "mass",
        "evict: rows stay by accumulated attention, by that of the last queries (causal), or as a model expects it.",
        choices=("mass", "last", "expected"),
    )


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """What is known of the rows of a stream."""

    rope: str | None = attention(
        None,
        "nystrom, causal: rotary positions of q and k, THETA:half, THETA:interleaved (THETA alone: half) or none.",
        metavar="WORD",
        choices=("none",),
        open=True,
        shown="of the file",
    )
    sinks: int | None = attention(None, "First rows that stay exact.", shown="4, poly 0")


@dataclass(frozen=True, kw_only=True)
class SizeSettings:
    """The sizes of parts of a method."""

    buffer: int | None = attention(None, "Rows between two compressions.", shown="by --resident-rows")
    atoms: int | None = attention(None, "Atoms, or rows, of the history.", shown="by --resident-rows")


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """The source paper's sketches, and sparse outputs."""

    eps: float | None = sketching(None, "poly: error that chooses degree and sizes, such as 0.01.")
    sketches: str | None = sketching(
        None, "poly: what is kept, the paper's sketches or exact sums.", shown="exact", choices=tuple(ORDERS)
    )
    order: str | None = sketching(
        None, "In which k, q, v come.", shown="by --sketches", choices=("kvq", "vkq", "kqv"), open=True
    )
    m1: int | None = sketching(None, "Buckets of Psi.", shown="4096")
    m2: int | None = sketching(None, "Counters of Phi.", shown="by k")
    decoder: str = sketching("scan", "Of Phi.", choices=("scan", "peel"))
    top_k: int | None = sketching(None, "Any method: write the K largest entries of every column.")
    per_column: bool = sketching(False, "Decode Phi column by column, not jointly.")
    deviation: bool = sketching(False, "--top-k of the deviations from the mean output.")


@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """Memory and threads."""

    memory: int | None = budget(
        None, "Budget above the program itself, such as 512MiB.", read=parse_size, shown="what is free"
    )
    threads: int | None = budget(None, "Threads.", shown="all")


@dataclass(frozen=True, kw_only=True)
class ChanceSettings:
    """Random choices, and rows that are not finite."""

    seed: int = budget(
        0, "Of every random choice: the audit's sample, rows that sample, reservoir and balance keep.", decides=True
    )
    nan_policy: str = budget(
        "error", "What to do with rows that are not finite.", choices=("error", "drop"), decides=True
    )


@dataclass(frozen=True, kw_only=True)
class RunSettings(ChanceSettings, MachineSettings):
    """Memory, speed and chance."""

    block_rows: int | None = budget(None, "Rows read at a time.", shown="about 4 MiB")


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How answers are written and checked."""

    audit: int = budget(0, "Rows that are also answered exactly, to measure the error.", decides=True)
    out_dtype: str | None = budget(
        None,
        "f16, f32 or f64.",
        shown="f32; f64 for f64",
        choices=("f16", "f32", "f64"),
        open=True,
        read=read_out_dtype,
        decides=True,
    )


@dataclass(frozen=True, kw_only=True)
class DoubtSettings:
    """What is done about doubtful answers."""

    repair: str | None = budget(
        None,
        "Make the most doubtful answers exactly afterwards, each of one row by one query head: as many as N rows (or P% of them) "
        "have.",
        decides=True,
    )
    doubt: str | None = budget(
        None, "FILE.npy or .h5 for the doubt of every answer, rows x heads in float16.", decides=True
    )


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """What happens to outputs that are there already."""

    force: bool = budget(False, "Replace outputs that are there already.")


@dataclass(frozen=True, kw_only=True)
class ResumeSettings(OutputSettings):
    """How a run is saved while it goes on, and resumed."""

    checkpoint_every: str = budget("30s", "30s, 5min or 1e6rows.")
    resume: bool = budget(False, "Resume from --checkpoint, if it exists.")
    skip_rows: int | None = budget(
        None, "--resume with a pipe: rows to drop at its beginning.", shown="those already done"
    )
    fingerprint: bool = budget(False, "Compare all of the input on --resume.")


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(ResumeSettings):
    """The same of a run whose checkpoint is a file of its own."""

    checkpoint: str | None = budget(None, "FILE.sattn to save the run in as it goes on.")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Who does the work."""

    engine: str | None = budget(
        None,
        "Who works on pieces or shards side by side: threads, processes, dask=ADDRESS, dask=local.",
        shown="with --shards threads, else none",
        choices=("threads", "processes", "dask=local", "dask="),
        open=True,
    )


@dataclass(frozen=True, kw_only=True)
class ShardSettings(EngineSettings):
    """And how it is cut."""

    shards: int | None = budget(None, "Absorb N ranges of rows side by side, then merge.", decides=True)


@dataclass(frozen=True, kw_only=True)
class ShareSettings:
    """How memory is divided over key heads."""

    memory_per_layer: int | None = budget(
        None,
        "In place of --resident-rows: bytes for the sketches of all key heads of a layer, such as 512KiB.",
        read=parse_size,
        decides=True,
    )
    share: str = budget(
        "equal",
        "What each key head gets of it: equal shares; or adaptive, by its error on its first rows, over all layers.",
        choices=("equal", "adaptive"),
        decides=True,
    )


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """How several layers are run."""

    keep_going: bool = budget(False, "Of --layer: report layers that fail, and finish the others.")
