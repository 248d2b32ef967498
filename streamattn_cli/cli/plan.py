"""`streamattn plan`: will it fit, how long will it take, which method."""

from __future__ import annotations

from typing import Annotated

from streamattn_cli.cli import options
from streamattn_cli.cli.arguments import Words, takes
from streamattn_cli.cli.options import option
from streamattn_cli.engine.request.requests import PlanRequest
from streamattn_cli.options import INPUT, one_of, options_of
from streamattn_cli.rows.dtypes import WORDS
from streamattn_cli.rows.spec import InputSpec


@takes(InputSpec, PlanRequest)
def plan(
    words: Words,
    input: options.Input = None,
    dtype: Annotated[
        str | None,
        option(
            "--dtype",
            help=f"Of an input that does not exist yet: {one_of(WORDS)}.",
            rich_help_panel=INPUT,
            autocompletion=lambda incomplete: [word for word in WORDS if word.startswith(incomplete)],
        ),
    ] = None,
    rows: Annotated[
        str | None,
        option("--rows", help="Without an input: how many, such as 1e9. With one: A:B.", rich_help_panel=INPUT),
    ] = None,
    json: options.Json = False,
) -> None:
    """What each method would need and how long it would take, from headers or numbers alone; and which one to take.

    streamattn plan --rows 1e9 --dim 128 --heads 32 --kv-heads 8 --memory 512MiB
    """
    from streamattn_cli.cli.words import request_of, show
    from streamattn_cli.engine.jobs.forecast import Numbers, forecast
    from streamattn_cli.errors import UsageError
    from streamattn_cli.report.text.forecast import render_forecast
    from streamattn_cli.rows.dtypes import storage_word
    from streamattn_cli.units import parse_count

    numbers, dim = None, words["dim"]
    exists = any(words[name] is not None for name in ("input", "q", "k", "v"))
    if exists:
        request = request_of(PlanRequest, words)
    else:
        if rows is None or dim is None:
            raise UsageError("no input: name a file, or give numbers: --rows 1e9 --dim 128 --heads 32")
        count = parse_count(rows, "--rows")
        request = request_of(
            PlanRequest, words, rows=None, heads=None, kv_heads=None, dim=None, value_dim=None, dtype=None
        )
        heads, kv_heads, value_dim = words["heads"] or 1, words["kv_heads"], words["value_dim"]
        numbers = Numbers(count, dim, heads, kv_heads, value_dim, storage_word(dtype or "f16", "--dtype"))
    found = forecast(request, numbers, _input_words(words) if exists else [])
    show(found, {"json": json}, render_forecast)


def _input_words(words: dict) -> list[str]:
    """The options that say what the input is, as they were given."""
    plain = {name: default for name, default, _ in options_of(InputSpec)} | {"threads": None}
    line = [words["input"]] if words["input"] is not None else []
    for name, default in plain.items():
        if words.get(name, default) != default:
            line += [f"--{name.replace('_', '-')}", str(words[name])]
    return line + (["--effort", words["effort"]] if words["effort"] != "default" else [])
