"""One sketch of several: of files, or of the shards of a run, one after the other."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from streamattn_cli.checkpoint.commit import save
from streamattn_cli.engine.jobs.sketch import SketchFile, check_sketch_name, open_sketch_file
from streamattn_cli.engine.saving.saver import describe, stack_heads
from streamattn_cli.engine.saving.sources import check_disjoint
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.errors import CheckpointIncompatible, UsageError
from streamattn_cli.rows.targets import refuse_existing
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import allocate


def merge(names: list[str], target: str, pool_queries: bool = False, force: bool = False) -> dict:
    """Merge sketch files of disjoint rows, in the order given, into `target`; returns what it holds.

    Raises CheckpointIncompatible for other parameters, for rows that two of them share, and (without `pool_queries`)
    for sketches that were fitted to different queries.
    """
    if len(names) < 2:
        raise UsageError("merge: give at least two sketches")
    check_sketch_name(target)
    refuse_existing([target], force)
    files = [open_sketch_file(name) for name in names]
    check_alike(files)
    if not pool_queries:
        _check_same_queries(files)
    merged = merge_files(files)
    save(target, *packed(merged))
    return {"type": "merged", "rows": merged.rows, "sketches": len(files), "heads": merged.heads, "output": target}


def merge_files(files: list[SketchFile]) -> SketchFile:
    """Sketches of disjoint rows as one; the state of the first becomes that of all. Raises as `merge` does."""
    check_alike(files)
    check_disjoint([(file.name, file.sources) for file in files])
    first = files[0]
    heads = merge_heads((heads_of(file) for file in files), allocate(first.params.work_spec()))
    state = stack_heads([head.state for head in heads], "head")
    rows = sum(file.rows for file in files)
    sources = [source for file in files for source in file.sources]
    return SketchFile(first.name, first.params, first.heads, state, Phase.SKETCH, rows, first.facts, sources)


def packed(file: SketchFile) -> tuple[dict, dict]:
    """State and metadata of a sketch as a checkpoint has them."""
    return file.state, describe(file.facts, file.phase, file.rows, {"absorbed": file.sources}, None)


def merge_heads(shards: Iterable[list[HeadAttention]], work: dict) -> list[HeadAttention]:
    """Merge shards one after the other into the first, in the order in which they come.

    Every byte depends only on that order. (A balanced tree compresses the atoms of `nystrom` in larger lumps: 16 shards
    of a real head then err by up to 1.25 times one pass, in a row by at most 1.04.)
    """
    shards = iter(shards)
    merged = next(shards)
    for others in shards:
        for head, other in zip(merged, others, strict=True):
            head.merge(other, work)
    return merged


def heads_of(file: SketchFile) -> list[HeadAttention]:
    """A sketch of every key head, over copies of the file's arrays."""
    prefix = "head."
    arrays = {name[len(prefix) :]: array for name, array in file.state.items() if name.startswith(prefix)}
    return [HeadAttention(file.params, {n: np.array(a[i]) for n, a in arrays.items()}) for i in range(file.heads)]


def check_alike(files: list[SketchFile]) -> None:
    """Refuse (exit 8) sketches of different parameters."""
    first = files[0]
    for other in files[1:]:
        for name, option in (("sink_logits", "--sink-logit"), ("softcap", "--softcap"), ("slopes", "--logit-bias")):
            if other.facts.get(name) != first.facts.get(name):
                raise CheckpointIncompatible(
                    f"{first.name} and {other.name} have other {option}: only sketches of the same attention merge"
                )
        if other.facts.get("value_units") != first.facts.get("value_units"):
            raise CheckpointIncompatible(
                f"{first.name} and {other.name} count values in other powers of two, as their first rows ask for; "
                "make one sketch of all rows (sketch 'FILES*', --append or --shards)"
            )
        if other.heads != first.heads or not first.params.takes_in(other.params):
            theirs, ours = (
                other.params.to_dict() | {"heads": other.heads},
                first.params.to_dict() | {"heads": first.heads},
            )
            made_by = [file.facts["method"] for file in (first, other)]
            if made_by[0] != made_by[1]:
                raise CheckpointIncompatible(f"{first.name} was made by {made_by[0]} and {other.name} by {made_by[1]}: only "
                                             "sketches of the same parameters merge")  # fmt: skip
            changed = [f"{key} {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key]]
            raise CheckpointIncompatible(f"{first.name} and {other.name} differ in {'; '.join(changed)}: only sketches of "
                                         "the same parameters merge")  # fmt: skip


def _check_same_queries(files: list[SketchFile]) -> None:
    """Refuse (exit 8) sketches that learnt from different queries: their atoms serve different questions best."""
    first = files[0]
    for other in files[1:]:
        for name in (n for n in first.state if n.startswith("head.history.query.")):
            if not np.array_equal(first.state[name], other.state[name]):
                raise CheckpointIncompatible(
                    f"{first.name} and {other.name} were fitted to different queries; make both with the same --query-model "
                    "FILE or with --blind, or give --pool-queries to merge them all the same"
                )
