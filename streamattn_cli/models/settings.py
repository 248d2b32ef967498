"""The options of the commands that run a language model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from streamattn_cli.engine.request.settings import EFFORTS, read_budgets
from streamattn_cli.errors import UsageError
from streamattn_cli.options import ATTENTION, BUDGET, INPUT, check_choices, one_of, option
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.spec import read_numbers
from streamattn_cli.units import parse_size

KINDS = tuple(DTYPES[name].words[0] for name in ("f2", "bf16", "f4"))


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """How a model reads a text."""

    layer: str | None = option(
        None, "Layers, such as 14, 0:8 or 1,5, or all.", panel=INPUT, shown="those without a window"
    )
    tokens: int | None = option(None, "Read so many tokens.", panel=INPUT, shown="all")
    chunk: int = option(512, "Tokens that pass through the model at a time.", panel=BUDGET)
    memory: int | None = option(
        None, "What model and text may take, such as 4GiB.", panel=BUDGET, read=parse_size, shown="what is free"
    )
    threads: int | None = option(None, "Threads.", panel=BUDGET, shown="all")

    def __post_init__(self) -> None:
        for name in ("tokens", "chunk", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} {value}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ReadingSettings(TextSettings):
    """The methods that answer attention while it reads, and what is measured."""

    methods: str = option("nystrom,evict,window", "Names, such as nystrom,evict,window.", panel=ATTENTION, methods=True)
    resident_rows: tuple[int | str, ...] = option(
        "512", "Memory of one key head in rows of k and v, or share of the tokens: N, P% or N,M,...", panel=ATTENTION,
        read=read_budgets,
    )  # fmt: skip
    effort: str = option("default", "nystrom: time against error.", panel=ATTENTION, choices=EFFORTS)
    reference_window: int | None = option(
        None,
        "Rows (and the first 4) that exact attention sees, for texts beyond the context.",
        panel=ATTENTION,
        shown="all",
    )
    samples: int = option(256, "Positions at which whole distributions are compared.", panel=BUDGET)
    seed: int = option(0, "Of every random choice.", panel=BUDGET)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        if self.reference_window is not None and self.reference_window < 1:
            raise UsageError(f"--reference-window {self.reference_window}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class CaptureSettings(TextSettings):
    """What is captured while it reads."""

    layer: str | None = option(None, "Layers, such as 14, 0:8 or 1,5.", panel=INPUT, shown="all")
    heads: tuple[int, ...] | None = option(
        None, "Key heads, such as 0,2 (with their query heads).", "--heads", panel=INPUT, shown="all",
        read=partial(read_numbers, name="--heads"),
    )  # fmt: skip
    dtype: str = option(KINDS[0], f"{one_of(KINDS)}.", panel=BUDGET, choices=KINDS)
    resume: bool = option(False, "Continue an earlier capture into the same files.", panel=BUDGET)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)


def chosen_layers(word: str | None, name: str, usual: list[int], count: int) -> list[int]:
    """The numbers of the layers that --layer means, of a model with `count` of them; without a word the usual ones. Raises
    UsageError where there are none."""
    from streamattn_cli.rows.inputs.layers import wanted  # brings NumPy, which other commands need not wait for

    found = usual if word is None else [number for number in range(count) if wanted(word, number, f"--layer {word}")]
    if not found:
        why = f"--layer {word}: {name} has layers 0 to {count - 1}" if word else f"{name}: every layer has a window"
        raise UsageError(f"{why}; choose some with --layer")
    return found
