"""Which layout the plain arrays of an input have: as the user or the file says, or as their shapes tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamattn_cli.errors import InputMalformed, StreamattnError, UsageError
from streamattn_cli.rows.attributes import clean
from streamattn_cli.rows.inputs.arrays import parts_of
from streamattn_cli.rows.inputs.paths import find
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.layout import Extent, extent, infer, infer_query, show
from streamattn_cli.rows.tensors.stored import Stored

if TYPE_CHECKING:
    from streamattn_cli.rows.inputs.modelconfig import ModelConfig

_AXES = {"B": "batches", "T": "rows", "H": "heads", "D": "items", "C": "heads x items"}


@dataclass(frozen=True)
class PlainLayouts:
    """Tells the layouts of arrays that hold one part each.

    plain: these arrays by part; wanted: the parts that are asked for. word: of --layout; dtype: of --dtype. What is inferred is
    added to `notes`.
    """

    spec: InputSpec
    config: ModelConfig | None
    plain: dict[str, Stored]
    wanted: tuple[str, ...]
    word: str | None
    dtype: str | None
    notes: list[str]

    def told(self, stored: Stored) -> str | None:
        """The layout that the user or the file gives."""
        return self.word or clean(stored.attrs, stored.name).get("layout")

    def of_all(self, packed_keys: Heads | None) -> dict[str, str]:
        """The layout of every plain array: told, or inferred with a note."""
        layouts = {part: told for part, stored in self.plain.items() if (told := self.told(stored))}
        unclear = {part: stored for part, stored in self.plain.items() if part not in layouts}
        if not unclear:
            return layouts
        keys = self._known_keys(packed_keys)
        if list(self.plain) == ["q"] and keys is not None:
            q = unclear["q"]
            word = infer_query(q.shape, q.name, *keys, self.spec.like)
        else:
            word = self._infer(unclear, keys)
        for part, stored in unclear.items():
            layouts[part] = self._fused(stored, part) if word == "TD" else word
            axes = ", ".join(_AXES[letter] for letter in layouts[part])
            self.notes.append(f"{stored.name}: {show(stored.shape)} is read as layout {layouts[part]} ({axes})")
        return layouts

    def _known_keys(self, packed: Heads | None) -> tuple[int, int] | None:
        """Number and dim of the key heads, where both are known without their layout."""
        if packed is not None:
            return len(packed), packed.dim
        heads, dim = self.spec.kv_heads, self.spec.dim
        if heads is not None and dim is not None:
            return heads, dim
        return self.config.sizes_of("k") if self.config else None

    def _infer(self, unclear: dict[str, Stored], keys: tuple[int, int] | None) -> str:
        """The layout of these arrays; where it is not clear, key heads of known number and dim (`keys`) tell it, or queries
        beside them that nobody asked for."""
        try:
            return infer({p: s.shape for p, s in unclear.items()}, {p: s.name for p, s in unclear.items()})
        except UsageError:
            if "k" in unclear and keys is not None:
                return infer_query(unclear["k"].shape, unclear["k"].name, *keys, self.spec.like)
            word = self.spec.input
            place = None if word is None or word == "-" or "q" in self.wanted else find(word)
            if place is None or not place.names_arrays or place.inside:
                raise
            try:
                both = unclear | parts_of(place, ("q",), self.spec.group, self.dtype)
                return infer({p: s.shape for p, s in both.items()}, {p: s.name for p, s in both.items()})
            except StreamattnError:
                pass
            raise

    def _fused(self, stored: Stored, part: str) -> str:
        """An array of two axes is TC if the user gives more than one head, or a dim shorter than a row."""
        heads, dim = self._expected(part, stored)
        return "TC" if (heads or 1) > 1 or (dim is not None and dim < stored.sizes[1]) else "TD"

    def _expected(self, part: str, stored: Stored) -> tuple[int | None, int | None]:
        """(heads, dim) of a part as the user gave them, or as the model has them where that is the length of a row."""
        spec = self.spec
        heads = spec.heads if part == "q" else spec.kv_heads or spec.heads
        dim = (spec.value_dim or spec.dim) if part == "v" else spec.dim
        if self.config and heads is None and dim is None:
            told = self.config.sizes_of(part)
            return told if told[0] * told[1] == stored.shape[-1] else (None, None)
        return heads, dim

    def extent(self, stored: Stored, layout: str, part: str) -> Extent:
        heads, dim = self._expected(part, stored) if layout == "TC" else (None, None)
        try:
            return extent(stored.shape, layout, stored.name, heads, dim)
        except InputMalformed as error:
            raise InputMalformed(f"{error}{self._fewer_heads(stored, part)}") from None

    def _fewer_heads(self, stored: Stored, part: str) -> str:
        """The --kv-heads that fit keys or values to the query heads, as an advice; nothing where there is none."""
        spec, q = self.spec, self.plain.get("q")
        if part == "q" or q is None or not spec.heads or spec.kv_heads or q.sizes[-1] % spec.heads:
            return ""
        dim = (spec.value_dim or spec.dim if part == "v" else spec.dim) or q.sizes[-1] // spec.heads
        count, rest = divmod(stored.sizes[-1], dim)
        fits = count and not rest and not spec.heads % count
        return f"; with heads of {dim} as in {q.name} there are {count}: give --kv-heads {count}" if fits else ""
