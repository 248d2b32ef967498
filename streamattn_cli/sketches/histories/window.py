"""`window`: sinks and recent rows exactly, and nothing of the others (StreamingLLM)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamattn_cli.errors import UsageError
from streamattn_cli.sketches.budget import DEFAULT_ROWS, with_sinks
from streamattn_cli.sketches.headparams import HeadParams, spec_bytes
from streamattn_cli.sketches.method import Load, Method, MethodOptions


def window_params(params: HeadParams, rows: int) -> HeadParams:
    """The `window` method within `rows` rows: sinks, and as wide a window as fits beside one group under way."""
    # small groups, because the one under way counts, too: a thirty-second of the budget
    params = replace(params, group=1 << int(np.clip(np.log2(max(rows, 1) / 32), 3, 5)), window=1)
    free = rows * params.row_bytes - spec_bytes(params.state_spec())
    window = 1 + free // params.row_bytes // params.group * params.group
    if free < 0:
        raise UsageError(f"--resident-rows {rows}: too few for {params.sinks} sinks and a group of {params.group}")
    return replace(params, window=window)


def _settings(head: HeadParams, options: MethodOptions, causal: bool, stream: int | None) -> HeadParams:
    head = with_sinks(head, options)
    if options.window is None:
        return window_params(head, options.resident_rows or DEFAULT_ROWS)
    if options.window < 1:
        raise UsageError("--window 0: the window method needs at least the row itself")
    return replace(head, window=options.window)


METHOD = Method(
    name="window",
    settings=_settings,
    options=frozenset({"resident_rows", "window", "sinks"}),
    micros=Load.answering,
    miniature=lambda params: replace(params, window=min(params.window, 300), sinks=min(params.sinks, 4)),
)
