"""How many rows of each kind fit into a budget of R rows of one key head: everything resident is counted, in bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamattn_cli.errors import UsageError
from streamattn_cli.sketches.coding.rowstore import HOLDER
from streamattn_cli.sketches.head import HeadParams, spec_bytes
from streamattn_cli.sketches.histories.balance import BalanceParams
from streamattn_cli.sketches.histories.evict import EvictParams
from streamattn_cli.sketches.histories.nystrom import NystromParams, atom_bytes
from streamattn_cli.sketches.histories.sample import SampleParams
from streamattn_cli.sketches.histories.wildcat import WildcatParams
from streamattn_cli.sketches.registry import HistoryParams

WINDOW_SHARE = 0.15  # of the rows, exact recent ones
LONG = 48  # rows of a stream per resident row above which coefficients take sixteen bits
TEMPER = 0.8  # of a model of the queries that was learnt on the way
ACTIVE = {"fast": 64, "default": 192, "best": 512}  # atoms that take part in one compression
ACTIVE_TURNED = {**ACTIVE, "default": 144}  # the same with rotary positions, whose turns take the time of the others
TURNS = {"fast": 1, "default": 2, "best": 4}  # positions of the future that one compression looks at
KEEPERS = ("balance", "evict", "sample", "wildcat")  # methods that choose which rows to keep
KEEPER_WINDOW = {"balance": 0.35, "evict": 0.15, "sample": 0.5, "wildcat": 0.6}  # WINDOW_SHARE of each, tuned alike
PROBES = 32  # queries that `evict` holds for full attention


def row_bytes(params: HeadParams) -> int:
    """Bytes of one row of k and v as stored: the unit of a budget."""
    return (params.dim + params.value_dim) * np.dtype(HOLDER[params.stored]).itemsize


def window_params(params: HeadParams, rows: int) -> HeadParams:
    """The `window` method within `rows` rows: sinks, and as wide a window as fits beside one group under way."""
    # small groups, because the one under way counts, too: a thirty-second of the budget
    params = replace(params, group=1 << int(np.clip(np.log2(max(rows, 1) / 32), 3, 5)), window=1)
    free = rows * row_bytes(params) - spec_bytes(params.state_spec())
    window = 1 + free // row_bytes(params) // params.group * params.group
    if free < 0:
        raise UsageError(f"--resident-rows {rows}: too few for {params.sinks} sinks and a group of {params.group}")
    return replace(params, window=window)


def nystrom_params(
    params: HeadParams, rows: int, effort: str, window: int | None = None, buffer: int | None = None,
    atoms: int | None = None, causal: bool = True, stream: int | None = None, rope: str = "",
) -> HeadParams:  # fmt: skip
    """The `nystrom` method within `rows` rows: sinks, window and buffer exact, atoms and statistics in the rest.

    `stream` is the number of rows that will come, None if nobody knows: coefficients of eight bits serve streams of up
    to LONG rows per resident row; longer ones need sixteen, because each coefficient is rounded many times. Beside those a
    larger buffer costs few atoms: half as many compressions come to the same error (geometric mean over 128 to 2,048 rows
    0.99), in 5% less time at 512 rows, 30% less at 256.
    """
    short = stream is not None and stream <= LONG * rows
    rope = rope if causal else ""
    active, group = (ACTIVE_TURNED if rope else ACTIVE)[effort], buffer or _group(rows)
    if effort == "fast" and causal and not short:
        active, group = min(8 * (5 + rows // 128), ACTIVE["default"]), buffer or _group(rows, 8, 64)
    _check_buffer(group)
    if window is None:
        window = 1 + max(1, round(WINDOW_SHARE * rows / group)) * group if causal else 1
    history = NystromParams(0, active, 8 if short else 16, TEMPER if causal else 1.0, params.stored, rope)
    history = replace(history, turns=TURNS[effort]) if rope else history
    params = replace(params, group=group, window=max(window, 1), history=history)
    if atoms is None:
        free = rows * row_bytes(params) - spec_bytes(params.state_spec())
        atoms = free // atom_bytes(params.dim, params.value_dim, history.bits)
    if atoms < 2 * group:
        least = spec_bytes(params.state_spec()) + 2 * group * atom_bytes(params.dim, params.value_dim, history.bits)
        raise UsageError(
            f"{max(atoms, 0)} atoms are left of --resident-rows {rows} beside {params.sinks} sinks, a window of "
            f"{params.window}, a buffer of {group} and the query statistics; give --resident-rows "
            f"{-(-least // row_bytes(params))} or more, or a smaller --window or --buffer"
        )
    return replace(params, history=replace(history, atoms=int(atoms), active=min(history.active, int(atoms))))


def keeper_params(
    params: HeadParams, method: str, rows: int, window: int | None, buffer: int | None, kept: int | None, causal: bool,
    seed: int,
) -> HeadParams:  # fmt: skip
    """One of the methods that choose rows within `rows` rows: sinks, window and buffer, the history's rows in the rest.

    The window of `evict` lies in its history, whose newest rows it never drops: attention on them must be counted.
    """
    group = buffer or _group(rows // 2)
    _check_buffer(group)
    if window is None:
        window = 1 + max(1, round(KEEPER_WINDOW[method] * rows / group)) * group if causal else 1
    params = replace(params, group=group, window=0 if method == "evict" else max(window, 1))

    def history(count: int) -> HistoryParams:
        if method == "evict":
            return EvictParams(count, min(window, count), probes=0 if causal else PROBES, storage=params.stored)
        if method == "wildcat":
            return WildcatParams(count, storage=params.stored)
        return (SampleParams if method == "sample" else BalanceParams)(count, seed=seed, storage=params.stored)

    fixed, one = (spec_bytes(replace(params, history=history(count)).state_spec()) for count in (0, 1))
    if kept is None:
        kept = (rows * row_bytes(params) - fixed) // (one - fixed)
    if kept < group:
        least = -(-(fixed + group * (one - fixed)) // row_bytes(params))
        raise UsageError(
            f"{max(kept, 0)} rows are left of --resident-rows {rows} for {method} beside {params.sinks} sinks, a "
            f"window of {params.window} and a buffer of {group}; give --resident-rows {least} or more, or a smaller --window "
            "or --buffer"
        )
    return replace(params, history=history(int(kept)))


def _check_buffer(group: int) -> None:
    if group not in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        raise UsageError(f"--buffer {group}: must be a power of two up to 512")


def _group(rows: int, share: int = 12, most: int = 32) -> int:
    """Rows of a group (the buffer): about a twelfth of the budget, a power of two from 4 to 32."""
    return 1 << int(np.clip(np.floor(np.log2(max(rows, 1) / share)), 2, np.log2(most)))
