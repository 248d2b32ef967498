"""Which axis is what: layouts by letters, their reduction to (O, T, I), and when a layout may be guessed.

B batch, T rows (tokens), H heads, D items of one head, C heads fused with their items (needs the number of heads).
Batches count as more heads: head index b * H + h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from streamattn_cli.errors import InputMalformed, UsageError

LAYOUTS = ("TD", "TC", "THD", "HTD", "BTHD", "BHTD")
Shape = tuple[int | None, ...]  # None: the unknown row count of a stream
OTHER = {"THD": "HTD", "HTD": "THD", "BTHD": "BHTD", "BHTD": "BTHD"}  # the layout with rows and heads exchanged
TWO_AXES = "save two axes, (rows, heads x items), and give --heads"
PLAUSIBLE = 8  # rows per head, at least, of a reading that is taken before others


@dataclass(frozen=True)
class Extent:
    """One array read in one layout: O, T, I, and where heads are."""

    layout: str
    outer: int  # O
    rows: int | None  # T
    width: int  # I
    batch: int
    heads: int  # per batch
    dim: int  # items of one head
    apart: bool = False  # batches are read one after the other, not side by side

    @property
    def side_by_side(self) -> int:
        """Segments that are read together."""
        return self.outer // self.batch if self.apart else self.outer

    @property
    def turned(self) -> Extent | None:
        """The same array in a file that has the heads of each row side by side; None where that is so already."""
        if self.layout not in ("HTD", "BHTD"):
            return None
        return replace(self, layout=OTHER[self.layout], outer=self.batch, width=self.heads * self.dim)

    @property
    def count(self) -> int:
        """T of an array that says how many rows it has."""
        assert self.rows is not None, f"an array of layout {self.layout} does not say how many rows it has"
        return self.rows

    def head_places(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(outer index, first column) of every head b * heads + h."""
        places = [
            (b * self.heads + h, 0) if self.layout in ("HTD", "BHTD") else (b, h * self.dim)
            for b in range(self.batch)
            for h in range(self.heads)
        ]
        return tuple(o for o, _ in places), tuple(c for _, c in places)


def layout_word(word: str) -> str:
    """A user's or a file's layout word in capitals; UsageError for an unknown one."""
    if word.upper() not in LAYOUTS:
        raise UsageError(f"layout {word}: unknown; use one of {', '.join(LAYOUTS)}")
    return word.upper()


def extent(shape: Shape, layout: str, name: str, heads: int | None = None, dim: int | None = None) -> Extent:
    """Read `shape` as `layout`; `heads` or `dim` split the last axis of TC. InputMalformed if it does not fit."""
    if len(shape) != len(layout):
        raise InputMalformed(
            f"{name}: layout {layout} has {len(layout)} axes, found shape {show(shape)}; "
            f"give --layout {' or '.join(w for w in LAYOUTS if len(w) == len(shape)) or layout}"
        )
    size = _sizes(shape, layout)
    for letter, items in size.items():
        if letter != "T" and not items:
            raise InputMalformed(f"{name}: shape {show(shape)} read as {layout} has an empty axis {letter}")
    if layout == "TC":
        size["H"], size["D"] = split_fused(size["C"], heads, dim, name)
    at = layout.index("T")
    return Extent(
        layout=layout,
        outer=prod(size[letter] for letter in layout[:at]),
        rows=shape[at],
        width=prod(size[letter] for letter in layout[at + 1 :]),
        batch=size.get("B", 1),
        heads=size.get("H", 1),
        dim=size["D"],
    )


def _sizes(shape: Shape, layout: str) -> dict[str, int]:
    """Items along each axis; 0 rows where they are not known."""
    return {letter: items or 0 for letter, items in zip(layout, shape, strict=True)}


def split_fused(width: int, heads: int | None, dim: int | None, name: str) -> tuple[int, int]:
    """(heads, dim) of a fused axis of `width` items, from either or both."""
    if heads is None:
        if dim is None:
            raise UsageError(
                f"{name}: layout TC fuses the heads of {width} items; say how many with --heads "
                f"(--kv-heads for keys and values)"
            )
        heads = width // dim
    found = width // heads if heads else 0
    if heads < 1 or heads * found != width or (dim is not None and found != dim):
        wanted = f"{heads} heads" + (f" of {dim}" if dim is not None else "")
        raise InputMalformed(f"{name}: {width} items in a row cannot be {wanted}; check --heads, --kv-heads and --dim")
    return heads, found


def infer(shapes: Mapping[str, Shape], names: Mapping[str, str]) -> str:
    """The one layout in which all of q, k, v (those present, all with the same number of axes) agree.

    Two axes are always TD. For more axes a reading agrees if k and v have the same batch, heads and rows, q the same
    batch and dim as k, and a whole number of query heads per key head. Readings in which q has as many rows as k win
    over those in which it has not; those must not have more key heads than keys. Of several readings the one with at least
    PLAUSIBLE rows per head is taken. UsageError if more than one is left, InputMalformed if none is.
    """
    axes = {len(shape) for shape in shapes.values()}
    listed = ", ".join(f"{names[part]} {show(shape)}" for part, shape in shapes.items())
    if len(axes) != 1:
        raise UsageError(f"layout not clear from {listed}: different numbers of axes; save them alike")
    candidates = {2: ["TD"], 3: ["THD", "HTD"], 4: ["BTHD", "BHTD"]}.get(axes.pop())
    if candidates is None:
        raise InputMalformed(f"expected arrays of 2 to 4 axes, found {listed}")
    if candidates == ["TD"]:
        return "TD"
    for shared_rows in (True, False):
        agreeing = [word for word in candidates if _agree(shapes, word, shared_rows)]
        if len(agreeing) == 1 and len(shapes) > 1:
            if not shared_rows:
                _check_guess(shapes, agreeing[0], listed)
            return agreeing[0]
        plausible = [word for word in agreeing if _long(shapes, word)]
        if len(plausible) == 1:
            return plausible[0]
        if agreeing:
            raise UsageError(
                f"layout not clear from {listed}: could be {' or '.join(agreeing)}; "
                f"give --layout {candidates[0]} or --layout {candidates[1]}"
            )
    raise InputMalformed(
        f"{listed} fit together in no layout ({' or '.join(candidates)}): k and v need the same rows "
        f"and heads, q and k the same items per head, q a multiple of k's heads; of heads side by side in the last axis "
        f"{TWO_AXES}"
    )


def _long(shapes: Mapping[str, Shape], layout: str) -> bool:
    """Whether this reading gives every array far more rows than heads, as arrays of tokens have."""
    sizes = [_sizes(shape, layout) for shape in shapes.values()]
    return all(size["T"] >= PLAUSIBLE * size["H"] for size in sizes)


def _check_guess(shapes: Mapping[str, Shape], layout: str, listed: str) -> None:
    """Refuse to guess (UsageError) that q has as many heads as there are keys: more likely these are its rows, although they
    do not fit the key heads (where they do, checks.check_layout says what to do, of told layouts as well)."""
    q, keys = (_sizes(shapes[part], layout) for part in ("q", "k" if "k" in shapes else "v"))
    if q["H"] > q["T"] and q["H"] == keys["T"] and q["T"] % keys["H"]:
        raise UsageError(
            f"layout not clear from {listed}: read as {layout}, q would have {q['H']} heads of {q['T']} rows; give "
            f"--layout {layout} if it has"
        )


def infer_query(shape: Shape, name: str, key_heads: int, dim: int, like: str | None = None) -> str:
    """The one layout in which q alone fits `key_heads` key heads of `dim` items. Of several, that with at least PLAUSIBLE
    rows per head, or else `like`, the layout of the keys. UsageError if it is not clear."""
    if len(shape) == 2:
        return "TD"
    candidates = {3: ["THD", "HTD"], 4: ["BTHD", "BHTD"]}.get(len(shape))
    if candidates is None:
        raise InputMalformed(f"{name}: expected 2 to 4 axes, found shape {show(shape)}")
    batches = shape[0] if len(shape) == 4 and shape[0] and key_heads % shape[0] == 0 else 1
    each = key_heads // batches  # a sketch counts the heads of all batches
    heads = {word: _sizes(shape, word)["H"] for word in candidates}
    fitting = [
        word for word in candidates if shape[-1] == dim and (heads[word] % key_heads == 0 or heads[word] % each == 0)
    ]
    plausible = [word for word in fitting if _long({"q": shape}, word)]
    alike = [word for word in fitting if like and word[-3:] == like[-3:]]
    for words in (fitting, plausible, alike):
        if len(words) == 1:
            return words[0]
    raise UsageError(
        f"layout not clear from {name} {show(shape)} and {key_heads} key heads of {dim}; "
        f"give --layout {' or --layout '.join(fitting or candidates)}"
    )


def _agree(shapes: Mapping[str, Shape], layout: str, shared_rows: bool) -> bool:
    """Whether the shapes of q, k, v make sense together in this layout."""
    size = {part: _sizes(shape, layout) for part, shape in shapes.items()}
    if not all(all(sizes.values()) for sizes in size.values()):
        return False
    keys = size.get("k") or size.get("v")
    if keys is None:
        return True
    if "v" in size and any(size["v"].get(axis) != keys.get(axis) for axis in "BHT"):
        return False
    if "q" not in size:
        return True
    q = size["q"]
    if q["T"] != keys["T"] and (shared_rows or keys["T"] < keys["H"]):
        return False
    if "k" in size and q["D"] != keys["D"]:
        return False
    return q.get("B") == keys.get("B") and q["H"] % keys["H"] == 0


def show(shape: Shape) -> str:
    """A shape for messages: '(?, 64)' where the rows are not known."""
    listed = ", ".join("?" if items is None else str(items) for items in shape)
    return f"({listed},)" if len(shape) == 1 else f"({listed})"
