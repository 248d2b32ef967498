"""`streamattn inspect`: what is in this input."""

from __future__ import annotations

from typing import Annotated

from streamattn_cli.cli import options
from streamattn_cli.cli.arguments import Shown, Words, takes
from streamattn_cli.cli.options import option
from streamattn_cli.engine.request.settings import AttentionSettings
from streamattn_cli.rows.spec import InputSpec


@takes(
    InputSpec, AttentionSettings, Shown,
    without=(
        "select", "rows", "q_rows", "lengths", "starts", "q_lengths", "q_starts", "causal",
        "first_query", "local", "sink_logit", "softcap", "logit_bias", "log_json", "progress_every",
    ),
)  # fmt: skip
def inspect(
    words: Words,
    input: options.Input = None,
    json: Annotated[bool, option("--json", help="The report as JSON.")] = False,
) -> None:
    """What is in an input: shapes, layouts, dtypes, finite or not, logit spread, and which method fits.

    streamattn inspect heads.h5
    """
    from streamattn_cli.cli.words import settings, show, watching
    from streamattn_cli.engine.jobs.inspect import inspect as look
    from streamattn_cli.report.text.inspection import render_inspection

    spec = InputSpec(**settings(InputSpec, words))
    with watching(words) as (listener, interrupts):
        report = look(spec, words["scale"], listener, interrupts)
    show(report, {"json": json}, render_inspection)
