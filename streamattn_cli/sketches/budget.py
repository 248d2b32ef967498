"""How many rows of each kind fit into a budget of R rows of one key head: everything resident is counted, in bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from streamattn_cli.errors import UsageError
from streamattn_cli.sketches.headparams import HeadParams, spec_bytes
from streamattn_cli.sketches.method import HistoryParams, MethodOptions

DEFAULT_ROWS = 1024  # --resident-rows
DEFAULT_SINKS = 4
BUDGETED = frozenset(
    {"resident_rows", "atoms", "buffer", "window", "sinks"}
)  # options of a method that is given a budget


def with_sinks(head: HeadParams, options: MethodOptions) -> HeadParams:
    """The parameters with as many sinks as the options say."""
    return replace(head, sinks=DEFAULT_SINKS if options.sinks is None else options.sinks)


def keeper_params(
    name: str, head: HeadParams, options: MethodOptions, causal: bool, share: float,
    history: Callable[[int, int, str], HistoryParams], window_inside: bool = False,
) -> HeadParams:  # fmt: skip
    """A method that chooses which rows to keep: sinks, window and buffer, and history(rows, window, storage) in the rest.

    `share` of the rows are a window where attention is causal. window_inside: the history keeps the window itself.
    """
    head, rows = with_sinks(head, options), options.resident_rows or DEFAULT_ROWS
    group, window = options.buffer or group_rows(rows // 2), options.window
    check_buffer(group)
    if window is None:
        window = 1 + max(1, round(share * rows / group)) * group if causal else 1
    head = replace(head, group=group, window=0 if window_inside else max(window, 1))

    def with_history(count: int) -> HeadParams:
        return replace(head, history=history(count, window, head.stored))

    first = window if window_inside else 0  # rows of the window may take more bytes than others
    fixed, more = (spec_bytes(with_history(count).state_spec()) for count in (first, first + 1))
    one = more - fixed
    fixed -= first * one
    kept = options.atoms
    if kept is None:
        kept = (rows * head.row_bytes - fixed) // one
    if kept < group:
        least = -(-(fixed + group * one) // head.row_bytes)
        raise UsageError(
            f"{max(kept, 0)} rows are left of --resident-rows {rows} for {name} beside {head.sinks} sinks, a "
            f"window of {head.window} and a buffer of {group}; give --resident-rows {least} or more, or a smaller --window "
            "or --buffer"
        )
    return with_history(int(kept))


def keeping(
    name: str, share: float, params: Callable[..., HistoryParams], seeded: bool = True
) -> Callable[[HeadParams, MethodOptions, bool, int | None], HeadParams]:
    """The `settings` of a Method (see method.py) that keeps as many rows as fit, chosen by `--seed` if it is seeded; share: see
    keeper_params."""

    def settings(head: HeadParams, options: MethodOptions, causal: bool, stream: int | None) -> HeadParams:
        seed = {"seed": options.seed} if seeded else {}
        return keeper_params(
            name, head, options, causal, share, lambda rows, window, storage: params(rows, storage=storage, **seed)
        )

    return settings


def check_buffer(group: int) -> None:
    """Refuse (UsageError) a group that is no power of two up to 512."""
    if group not in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        raise UsageError(f"--buffer {group}: must be a power of two up to 512")


def group_rows(rows: int, share: int = 12, most: int = 32) -> int:
    """Rows of a group (the buffer): about a twelfth of the budget, a power of two from 4 to 32."""
    return 1 << int(np.clip(np.floor(np.log2(max(rows, 1) / share)), 2, np.log2(most)))
