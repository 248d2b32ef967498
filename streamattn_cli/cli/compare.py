"""`streamattn compare`: which method is least wrong on this input, at the same memory."""

from __future__ import annotations

from typing import Annotated

from streamattn_cli.cli import options
from streamattn_cli.cli.arguments import Shown, Words, takes
from streamattn_cli.cli.completion import methods as names_of_methods
from streamattn_cli.cli.options import option
from streamattn_cli.engine.request.requests import CompareRequest
from streamattn_cli.options import ATTENTION, BUDGET
from streamattn_cli.rows.spec import InputSpec


@takes(InputSpec, CompareRequest, Shown)
def compare(
    words: Words,
    input: options.Input = None,
    methods: Annotated[
        str,
        option(
            "--methods", help="Names, with settings: nystrom,nystrom:effort=best,poly:degree=2.", show_default="all",
            rich_help_panel=ATTENTION, autocompletion=names_of_methods,
        ),
    ] = "",
    resident_rows: Annotated[
        str,
        option(
            "--resident-rows", help="Memory of one key head in rows of k and v, or share of the keys: N, P% or N,M,...",
            rich_help_panel=ATTENTION,
        ),
    ] = "1024",
    resident: Annotated[
        str | None,
        option("--resident", help="The same in bytes of all key heads: 256KiB,1MiB.", rich_help_panel=ATTENTION),
    ] = None,
    audit: Annotated[
        int, option("--audit", help="Rows that are also answered exactly.", rich_help_panel=BUDGET)
    ] = 128,
) -> None:  # fmt: skip
    """Several methods at equal resident bytes on the same rows: error, speed and memory, and which are best.

        streamattn compare heads.h5 --methods nystrom,window --resident-rows 256,512

    With --layer all on every layer, and on all of them together; with --engine trials run side by side.

    With --json > FILE the same as one document, of which `streamattn report FILE -o FILE.html` makes a page.
    """
    from streamattn_cli.cli.words import request_of, show, signed, watching
    from streamattn_cli.engine.jobs.compare import compare as run
    from streamattn_cli.engine.request.settings import read_budgets
    from streamattn_cli.errors import UsageError
    from streamattn_cli.report.text.compare import render_compare

    memory = words["memory"]
    if memory and "," in memory:
        raise UsageError(f"--memory {memory}: is the budget of one run; for several sizes give --resident {memory}")
    budgets = _sizes(resident) if resident else read_budgets(resident_rows)
    request = request_of(CompareRequest, words, budgets=budgets, by_bytes=bool(resident))
    with watching(words) as (listener, interrupts):
        found = signed(run(request, listener, interrupts))
    show(found.to_dict(), words, render_compare)


def _sizes(text: str) -> tuple[int, ...]:
    from streamattn_cli.units import parse_size

    return tuple(map(parse_size, text.split(",")))
