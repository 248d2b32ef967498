"""Do q, k and v belong together? And only the rows that were asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from streamattn_cli.errors import InputMalformed, UsageError
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.heads import Heads, group_size
from streamattn_cli.rows.tensors.layout import OTHER, TWO_AXES
from streamattn_cli.rows.tensors.ranges import RangeTensor

TURNED = {3: (1, 0, 2), 4: (0, 2, 1, 3)}  # axes of an array that is brought into it


def check_heads(spec: InputSpec, heads: dict[str, Heads]) -> None:
    """Numbers of heads and items agree with each other and with what the user said. Raises InputMalformed."""
    k, v, q = (heads.get(part) for part in ("k", "v", "q"))
    if k is not None and v is not None and (len(k) != len(v) or k.batch != v.batch):
        raise InputMalformed(
            f"{k.tensor.name} has {len(k)} key heads and {v.tensor.name} {len(v)} value heads; they "
            f"must agree (check --layout and --kv-heads)"
        )
    if q is not None and k is not None:
        if q.dim != k.dim:
            raise InputMalformed(
                f"{q.tensor.name} has query heads of {q.dim} items and {k.tensor.name} key heads of "
                f"{k.dim}; they must agree ({_shared_dim(spec, q, k) or 'check --layout, --heads and --dim'})"
            )
        group_size(q, k)
    said = [("q", "--heads", spec.heads), ("k", "--kv-heads", spec.kv_heads), ("v", "--kv-heads", spec.kv_heads)]
    for part, option, wanted in said:
        of_all = {wanted} if spec.like else set()  # a sketch counts the heads of all batches
        if part in heads and wanted is not None and len(heads[part]) not in of_all | {wanted * heads[part].batch}:
            there = f"{len(heads[part])} heads found for {part}"
            beside = len(heads[part]) == 1 and wanted and not heads[part].dim % wanted
            fused = f"; of heads side by side in the last axis {TWO_AXES}" if beside else ""
            raise InputMalformed(f"{heads[part].tensor.name}: {there}, but {option} {wanted} was given{fused}")
    said = [("q", "--dim", spec.dim), ("k", "--dim", spec.dim), ("v", "--value-dim", spec.value_dim)]
    for part, option, wanted in said:
        if part in heads and wanted is not None and heads[part].dim != wanted:
            there = f"{part} heads of {heads[part].dim} items found"
            raise InputMalformed(f"{heads[part].tensor.name}: {there}, but {option} {wanted} was given")


def _shared_dim(spec: InputSpec, q: Heads, k: Heads) -> str:
    """Numbers of heads that make the heads of fused rows agree, as an advice; nothing where there are none."""
    if {q.layout, k.layout} - {"TD", "TC"}:
        return ""
    query_width, key_width = len(q) * q.dim, len(k) * k.dim
    if spec.heads:
        key_heads = key_width // q.dim
        fits = key_heads * q.dim == key_width and key_heads and spec.heads % key_heads == 0
        return f"give --kv-heads {key_heads}, which makes key heads of {q.dim}, too" if fits else ""
    fitting = [
        f"--dim {dim} for {query_width // dim} query and {key_width // dim} key heads"
        for dim in (64, 128, 256, 96, 80, 32, 16, 8)
        if query_width % dim == key_width % dim == 0 and (query_width // dim) % (key_width // dim) == 0
    ]
    return f"several heads lie side by side in a row: give {' or '.join(fitting[:2])}" if fitting else ""


def check_layout(spec: InputSpec, q: Heads, k: Heads, alone: bool) -> None:
    """Refuse (UsageError) rows and heads that were taken for one another: q and k have other rows, and more heads than rows,
    and agree in the other layout. `alone`: --layout decides of q only. `--heads` says that they are what they seem.
    """
    other, heads, key_heads = OTHER.get(q.layout), len(q) // q.batch, len(k) // k.batch
    rows, keys = q.rows, k.rows
    if other is None or spec.heads is not None or not rows or not keys or rows == keys:
        return
    if heads > rows and heads == keys and rows % key_heads == 0:
        turned = ", ".join(map(str, TURNED[len(other)]))
        mend = f"give --layout {other}" if alone else f"save it as {k.tensor.name} is: q.transpose({turned})"
    elif k.layout == q.layout and key_heads > keys and heads == key_heads and rows % keys == 0:
        mend = f"give --layout {other}"
    else:
        return
    raise UsageError(
        f"{q.tensor.name}: read as layout {q.layout} it has {heads} heads of {rows} rows, and {k.tensor.name} {key_heads} of "
        f"{keys}; read as {other} it has {rows} heads of {heads} rows, and they agree; {mend} (or --heads {heads} if they "
        "are right as they are)"
    )


def check_rows(heads: dict[str, Heads]) -> None:
    """No tensor is empty, and k and v have the same rows where both are known. Raises InputMalformed."""
    for part in heads.values():
        if part.rows == 0:
            raise InputMalformed(f"{part.tensor.name}: no rows, expected at least one")
    k, v = heads.get("k"), heads.get("v")
    if k is not None and v is not None and None not in (k.rows, v.rows) and k.rows != v.rows:
        raise InputMalformed(
            f"{k.tensor.name} has {k.rows} rows and {v.tensor.name} {v.rows}; every key needs one "
            f"value (check --layout, or cut both with --rows)"
        )


def with_ranges(spec: InputSpec, heads: dict[str, Heads]) -> dict[str, Heads]:
    """The heads over only the rows asked for; parts that share a tensor and a range keep sharing one."""
    wanted = {"k": spec.rows, "v": spec.rows, "q": spec.q_rows}
    shares = "q" in heads and any(heads["q"].tensor is heads[part].tensor for part in ("k", "v") if part in heads)
    if shares and spec.q_rows is None:
        wanted["q"] = spec.rows
    if shares and wanted["q"] != spec.rows and not heads["q"].tensor.seekable:
        raise UsageError(
            f"{heads['q'].tensor.name}: queries and keys arrive in the same rows of a pipe; give the same "
            f"range for both"
        )
    made: dict[tuple, RangeTensor] = {}
    ranged = dict(heads)
    for part, one in heads.items():
        if rows := wanted[part]:
            key = (id(one.tensor), rows)
            if key not in made:
                made[key] = RangeTensor(one.tensor, *rows)
            ranged[part] = replace(one, tensor=made[key])
    return ranged


def range_notes(heads: Iterable[Heads]) -> list[str]:
    """What is to be said about ranges that reached beyond the end."""
    tensors = (part.tensor for part in heads)
    return [tensor.note for tensor in tensors if isinstance(tensor, RangeTensor) and tensor.note]
