"""`streamattn perplexity`: what approximate attention does to a language model."""

from __future__ import annotations

from typing import Annotated

import typer

from streamattn_cli.cli.arguments import Shown, Words, takes
from streamattn_cli.models.settings import ReadingSettings

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder or GGUF file of a language model that transformers loads.")
]
Text = Annotated[
    list[str], typer.Argument(metavar="TEXT...", help="Text files, one after the other, or - for standard input.")
]


@takes(ReadingSettings, Shown)
def perplexity(
    words: Words,
    model: Model,
    text: Text,
) -> None:
    """A model reads a text with the attention of its layers answered in constant memory, beside exact attention.

        streamattn perplexity model book.txt --methods nystrom,window --resident-rows 64,128 --tokens 512

    Tells nats per token of each method and budget, the increase over exact attention with its 95% interval (whole, and by
    position), how far the distributions of the next token are (KL, and how often the first choice is the same), and the bytes of
    attention memory. Needs the extra: pip install 'streamattn-cli[models]'.
    """
    from streamattn_cli.cli.words import settings, show, signed, watching
    from streamattn_cli.engine.watch.events import Note
    from streamattn_cli.models.perplexity import run_perplexity
    from streamattn_cli.report.text.perplexity import figures, render_perplexity

    given = ReadingSettings(**settings(ReadingSettings, words))
    with watching(words) as (listener, interrupts):
        found = run_perplexity(model, text, given, lambda found: listener(Note(figures(found))), listener, interrupts)
    show(signed(found).to_dict(), words, render_perplexity)
