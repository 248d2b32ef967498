"""The sheets of a job, which are the layers of a dump: a request for each, and where its answers go."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.request.requests import AttendRequest, CompareRequest, PlanRequest
from streamattn_cli.errors import UsageError
from streamattn_cli.rows.inputs.layers import PLACE, Layer, layers_of, wanted
from streamattn_cli.rows.targets import split_target
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.rows.writers.outshape import OutShape
from streamattn_cli.rows.writers.writer import out_shape


class Joint(Protocol):
    """One file of the outputs of all layers, a rows.writers.hdf5out.JointFile."""

    def open(self, dataset: str, shape: OutShape, rows: int) -> Writer:
        """The writer of one of them."""

    def remove(self, dataset: str) -> None:
        """One of them will not be there."""

    def commit(self) -> None:
        """All of them are complete."""

    def keep(self) -> str:
        """`abort` will leave the unfinished file."""

    def abort(self) -> None:
        """Leave nothing behind; does nothing after `commit`."""


R = TypeVar("R", AttendRequest, CompareRequest, PlanRequest)


def by_layer(request: R) -> list[tuple[Layer, R]]:
    """The layers that a request asks for, and the request of each."""
    return [
        (layer, replace(request, inputs=layer.spec, local=_local(request.local, layer)))
        for layer in layers_of(request.inputs)
    ]


def sheets_of(request: AttendRequest) -> list[tuple[Layer, AttendRequest]]:
    """The same of `attend`, {layer} in the names of its files replaced."""
    found = by_layer(request)
    return [(layer, _with_names(each, layer, len(found))) for layer, each in found]


def _with_names(request: AttendRequest, layer: Layer, count: int) -> AttendRequest:
    names = {name: getattr(request, name) for name in ("output", "doubt", "checkpoint")}
    for name, word in names.items():
        single = word in (None, "-") or name == "checkpoint" or (name == "output" and is_joint(word))
        if count > 1 and not single and PLACE not in word:
            option = "-o" if name == "output" else f"--{name}"
            hint = " or -o FILE.h5, which gets a group for each" if name == "output" else ""
            raise UsageError(f"{option} {word}: {count} layers need a file each: put {PLACE} into its name{hint}")
    if count > 1 and request.top_k and PLACE not in request.output:
        raise UsageError(f"--top-k: {count} layers need a file each: -o top-{PLACE}.h5")
    filled = {name: word and word.replace(PLACE, str(layer.number)) for name, word in names.items()}
    return replace(request, **filled)


def _local(word: str | None, layer: Layer) -> str | None:
    """The word of --local for one layer, which W:LAYERS names or not."""
    if word is None or ":" not in word:
        return word
    window, _, numbers = word.partition(":")
    return window if wanted(numbers, layer.number, f"--local {word}") else "none"


def is_joint(output: str) -> bool:
    """Whether all layers go to one file."""
    file, dataset = split_target(output)
    return dataset is None and PLACE not in output and os.path.splitext(file)[1].lower() in (".h5", ".hdf5")


def dataset_of(layer: Layer) -> str:
    """Where the outputs of a layer are in a file of all."""
    return "/" + layer.group.replace(".", "/") + "/out"


def joint_file(
    request: AttendRequest,
    layers: list[Layer],
    plans: list[Plan],
    asked: int,
    part: str | None = None,
    tag: str | None = None,
) -> Joint | None:
    """The file of all layers; None where each has its own. asked: layers, with those that cannot be run. part: the unfinished
    file of an earlier run; tag: see Temporary."""
    if not is_joint(request.output) or asked == 1:
        return None
    from streamattn_cli.rows.writers.hdf5out import JointFile

    shapes = {
        dataset_of(layer): (_shape(plan), plan.problem.q.count) for layer, plan in zip(layers, plans, strict=True)
    }
    return JointFile(request.output, shapes, part, tag)


def _shape(plan: Plan) -> OutShape:
    p = plan.problem
    return out_shape(len(p.q), p.v.dim, p.out_dtype, p.q.layout, p.q.batch, p.q.sequences)


def into(joint: Joint, layer: Layer) -> Callable[..., Writer]:
    """What opens the writer of a layer in a file of all, called as writer.open_writer is."""

    def opened(
        target: str, rows: int, heads: int, dim: int, dtype: str, layout: str, batch: int, **more: Any
    ) -> Writer:
        return joint.open(dataset_of(layer), out_shape(heads, dim, dtype, layout, batch, more["sequences"]), rows)

    return opened
