"""`streamattn plan`: will it fit, how long will it take, which method."""

from __future__ import annotations

from typing import Annotated

from streamattn_cli.cli import options
from streamattn_cli.cli.options import FROM, option


def plan(
    input: options.Input = None,
    q: options.Queries = None,
    k: options.Keys = None,
    v: options.Values = None,
    group: options.Group = None,
    layout: options.Layout = None,
    record: options.Record = None,
    raw: options.Raw = None,
    dtype: Annotated[
        str | None,
        option("--dtype", help="Of an input that does not exist yet: f16, bf16, f32 or f64.", rich_help_panel=FROM),
    ] = None,
    heads: options.QueryHeads = None,
    kv_heads: options.KeyHeads = None,
    dim: options.Dim = None,
    value_dim: options.ValueDim = None,
    select: options.Select = None,
    rows: Annotated[
        str | None,
        option("--rows", help="Without an input: how many, such as 1e9. With one: A:B.", rich_help_panel=FROM),
    ] = None,
    q_rows: options.QueryRows = None,
    causal: options.Causal = None,
    scale: options.Scale = None,
    resident_rows: options.ResidentRows = None,
    effort: options.Effort = "default",
    memory: options.Memory = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """What each method would need and how long it would take, from headers or numbers alone; and which one to take.

    streamattn plan --rows 1e9 --dim 128 --heads 32 --kv-heads 8 --memory 512MiB
    """
    words = dict(locals())
    import sys

    from streamattn_cli.cli.streams import printing
    from streamattn_cli.cli.words import attend_request, show_json
    from streamattn_cli.errors import UsageError
    from streamattn_cli.units import parse_count

    numbers = None
    exists = input is not None or any((q, k, v))
    if exists:
        request = attend_request(words)
        from streamattn_cli.engine.forecast import forecast
    else:
        if rows is None or dim is None:
            raise UsageError("no input: name a file, or give numbers: --rows 1e9 --dim 128 --heads 32")
        count = parse_count(rows, "--rows")
        request = attend_request(words, rows=None, heads=None, kv_heads=None, dim=None, value_dim=None, dtype=None)
        from streamattn_cli.engine.forecast import Numbers, forecast
        from streamattn_cli.rows.tensor import storage_word

        numbers = Numbers(count, dim, heads or 1, kv_heads, value_dim, storage_word(dtype or "f16", "--dtype"))
    from streamattn_cli.report.forecast import render_forecast

    found = forecast(request, numbers, _input_words(words) if exists else [])
    if json:
        show_json(found)
    else:
        with printing():
            render_forecast(found, sys.stdout)


def _input_words(words: dict) -> list[str]:
    """The options that say what the input is, as they were given."""
    names = (
        "q",
        "k",
        "v",
        "group",
        "layout",
        "record",
        "raw",
        "dtype",
        "heads",
        "kv_heads",
        "dim",
        "value_dim",
        "select",
        "rows",
        "q_rows",
        "threads",
    )
    line = [words["input"]] if words["input"] is not None else []
    for name in names:
        if words[name] is not None:
            line += [f"--{name.replace('_', '-')}", str(words[name])]
    return line + (["--effort", words["effort"]] if words["effort"] != "default" else [])
