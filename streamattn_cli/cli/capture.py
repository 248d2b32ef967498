"""`streamattn capture`: the rows that a language model's attention is given."""

from __future__ import annotations

from typing import Annotated

from streamattn_cli.cli.arguments import Shown, Words, takes
from streamattn_cli.cli.options import option
from streamattn_cli.cli.perplexity import Model, Text
from streamattn_cli.engine.request.settings import OutputSettings
from streamattn_cli.models.settings import CaptureSettings


@takes(CaptureSettings, OutputSettings, Shown)
def capture(
    words: Words,
    model: Model,
    text: Text,
    output: Annotated[
        str,
        option("-o", "--output", help="FILE.h5 (a group for each layer), FILE-{layer}.npy, FILE.npy or - (one layer)."),
    ],
) -> None:
    """A model reads a text, and what its attention is given becomes a dump that `attend` reads without options.

        streamattn capture model book.txt -o captured.h5 --tokens 512

    Writes q, k and v after the rotary embedding, with scale, local windows, sinks, softcap and rotary positions as attributes.
    Memory is that of the model and of one chunk. Needs the extra: pip install 'streamattn-cli[models]'.
    """
    from streamattn_cli.cli.streams import refuse_terminal
    from streamattn_cli.cli.words import run_and_render, settings
    from streamattn_cli.models.capture import CaptureRequest, run_capture

    refuse_terminal(output, words["json"])
    given = CaptureSettings(**settings(CaptureSettings, words))
    run_and_render(run_capture, CaptureRequest(model, tuple(text), output, given, words["force"]), words)
