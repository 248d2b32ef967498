"""`streamattn perplexity`: what approximate attention does to a language model."""

from __future__ import annotations

from typing import Annotated

import typer

from streamattn_cli.cli.arguments import Shown, Words, takes
from streamattn_cli.cli.completion import methods as names_of_methods
from streamattn_cli.cli.options import option
from streamattn_cli.models.settings import TextSettings
from streamattn_cli.options import ATTENTION, BUDGET

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder or GGUF file of a language model that transformers loads.")
]
Text = Annotated[
    list[str], typer.Argument(metavar="TEXT...", help="Text files, one after the other, or - for standard input.")
]


@takes(TextSettings, Shown)
def perplexity(
    words: Words,
    model: Model,
    text: Text,
    methods: Annotated[
        str,
        option(
            "--methods", help="Names, such as nystrom,evict,window.", rich_help_panel=ATTENTION,
            autocompletion=names_of_methods,
        ),
    ] = "nystrom,evict,window",
    resident_rows: Annotated[
        str,
        option(
            "--resident-rows", help="Memory of one key head in rows of k and v, or share of the tokens: N, P% or N,M,...",
            rich_help_panel=ATTENTION,
        ),
    ] = "512",
    effort: Annotated[
        str, option("--effort", help="Of nystrom: fast, default or best.", rich_help_panel=ATTENTION)
    ] = "default",
    samples: Annotated[
        int, option("--samples", help="Positions at which whole distributions are compared.", rich_help_panel=BUDGET)
    ] = 256,
    reference_window: Annotated[
        int | None,
        option(
            "--reference-window", help="Rows (and the first 4) that exact attention sees, for texts beyond the context.",
            rich_help_panel=ATTENTION, show_default="all",
        ),
    ] = None,
    seed: Annotated[int, option("--seed", help="Of every random choice.", rich_help_panel=BUDGET)] = 0,
) -> None:  # fmt: skip
    """A model reads a text with the attention of its layers answered in constant memory, beside exact attention.

        streamattn perplexity model book.txt --methods nystrom,window --resident-rows 64,128 --tokens 512

    Tells nats per token of each method and budget, the increase over exact attention with its 95% interval (whole, and by
    position), how far the distributions of the next token are (KL, and how often the first choice is the same), and the bytes of
    attention memory. Needs the extra: pip install 'streamattn-cli[models]'.
    """
    from streamattn_cli.cli.words import settings, show, signed, watching
    from streamattn_cli.engine.planning.resolve import budgets_in_rows
    from streamattn_cli.engine.request.settings import read_budgets
    from streamattn_cli.engine.watch.events import Note
    from streamattn_cli.errors import UsageError
    from streamattn_cli.models.load import find_model
    from streamattn_cli.models.perplexity import Asked, check_methods, perplexity_of, text_bytes
    from streamattn_cli.models.settings import chosen_layers
    from streamattn_cli.models.text import token_ids
    from streamattn_cli.report.text.perplexity import figures, render_perplexity

    if reference_window is not None and reference_window < 1:
        raise UsageError(f"--reference-window {reference_window}: must be at least 1")
    given, words_of_budgets = TextSettings(**settings(TextSettings, words)), read_budgets(resident_rows)
    names = check_methods(methods)
    with watching(words) as (listener, interrupts):
        known = find_model(model, given.threads)
        ids = token_ids(known.tokenizer, text, given.tokens, least=2)
        budgets, shares = budgets_in_rows(words_of_budgets, len(ids))
        for note in shares:
            listener(Note(note))
        layers = chosen_layers(given.layer, model, known.global_layers, len(known.types))
        beside = {"effort": effort, "threads": given.threads, "memory": given.memory}
        asked = Asked(names, budgets, layers, given.chunk, samples, beside, seed, reference_window)
        loaded = known.load(given.memory, text_bytes(known, len(ids), asked), f"reading {len(ids)} tokens")
        found = perplexity_of(
            loaded, ids, asked, text, lambda found: listener(Note(figures(found))), interrupts.check, listener
        )
    show(signed(found).to_dict(), words, render_perplexity)
