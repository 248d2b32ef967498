"""How many rows of each kind fit into a budget of R rows of one key head: everything resident is counted, in bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamattn_cli.errors import UsageError
from streamattn_cli.sketches.head import HeadParams, spec_bytes
from streamattn_cli.sketches.nystrom import NystromParams, atom_bytes
from streamattn_cli.sketches.rowstore import HOLDER

WINDOW_SHARE = 0.15  # of the rows, exact recent ones
ACTIVE = {"fast": 64, "default": 192, "best": 512}  # atoms that take part in one compression


def row_bytes(params: HeadParams) -> int:
    """Bytes of one row of k and v as stored: the unit of a budget."""
    return (params.dim + params.value_dim) * np.dtype(HOLDER[params.stored]).itemsize


def window_params(params: HeadParams, rows: int) -> HeadParams:
    """The `window` method within `rows` rows: sinks, and as wide a window as fits beside one group under way."""
    params = replace(params, group=8, window=1)  # small groups, because the one under way counts, too
    free = rows * row_bytes(params) - spec_bytes(params.state_spec())
    window = 1 + free // row_bytes(params) // params.group * params.group
    if free < 0:
        raise UsageError(f"--resident-rows {rows}: too few for {params.sinks} sinks and a group of {params.group}")
    return replace(params, window=window)


def nystrom_params(
    params: HeadParams, rows: int, effort: str, window: int | None, buffer: int | None, atoms: int | None
) -> HeadParams:
    """The `nystrom` method within `rows` rows: sinks, window and buffer exact, atoms and statistics in the rest."""
    group = buffer or _group(rows)
    if group not in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        raise UsageError(f"--buffer {group}: must be a power of two up to 512")
    if window is None:
        window = 1 + max(1, round(WINDOW_SHARE * rows / group)) * group
    history = NystromParams(atoms=0, active=ACTIVE[effort], storage=params.stored)
    params = replace(params, group=group, window=max(window, 1), history=history)
    if atoms is None:
        free = rows * row_bytes(params) - spec_bytes(params.state_spec())
        atoms = free // atom_bytes(params.dim, params.value_dim)
    if atoms < 2 * group:
        least = spec_bytes(params.state_spec()) + 2 * group * atom_bytes(params.dim, params.value_dim)
        raise UsageError(
            f"{max(atoms, 0)} atoms are left of --resident-rows {rows} beside {params.sinks} sinks, a window of "
            f"{params.window}, a buffer of {group} and the query statistics; give --resident-rows "
            f"{-(-least // row_bytes(params))} or more, or a smaller --window or --buffer"
        )
    return replace(params, history=replace(history, atoms=int(atoms), active=min(history.active, int(atoms))))


def _group(rows: int) -> int:
    """Rows of a group (the buffer): about a twelfth of the budget, a power of two from 4 to 32."""
    return 1 << int(np.clip(np.floor(np.log2(max(rows, 1) / 12)), 2, 5))
