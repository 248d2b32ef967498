"""One array as found in a file or stream, before anyone has said which of its axes is the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from streamattn_cli.rows.tensors.layout import Extent, Shape
from streamattn_cli.rows.tensors.tensor import RowTensor


@dataclass(frozen=True)
class Scale:
    """What the rows of an array are multiplied by: its numbers in C order, as float32 has them."""

    name: str  # for messages
    shape: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Stored:
    """Name, shape and storage dtype of an array, and how to open it once its layout is known."""

    name: str  # for messages: "dump.h5:/k"
    shape: Shape
    dtype: str  # key of dtypes.DTYPES
    open: Callable[[Extent], RowTensor]
    attrs: dict = field(default_factory=dict)  # scale, causal, layout ... where the file says so
    notes: tuple[str, ...] = ()
    scale: Scale | None = None
    packed: bool = False  # it is known to hold keys and values side by side
    # (name, heads, dim) of what a row holds side by side, where it says so
    parts: tuple[tuple[str, int, int], ...] = ()
    turned: Callable[[Extent], RowTensor] | None = None  # opens it where it is stored with rows and heads exchanged

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of an array that says how many rows it has."""
        assert None not in self.shape, f"{self.name} does not say how many rows it has"
        return tuple(size for size in self.shape if size is not None)
