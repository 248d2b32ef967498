"""Which numbers of a tensor belong to which head, also where one record packs q, k and v side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

from streamattn_cli.errors import CannotMeet, InputMalformed, UsageError
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.spec import RECORDS
from streamattn_cli.rows.tensors.layout import Extent
from streamattn_cli.rows.tensors.sequences import Sequences
from streamattn_cli.rows.tensors.tensor import RowTensor, row_count


@dataclass(frozen=True)
class Heads:
    """Head h, row t is tensor[outer[h], t, column[h] : column[h] + dim]. Several Heads may share one tensor."""

    tensor: RowTensor
    outer: tuple[int, ...]
    column: tuple[int, ...]
    dim: int
    layout: str = "THD"  # how an output that mirrors these heads is laid out
    batch: int = 1  # len(outer) = batch * heads per batch
    sequences: Sequences | None = None  # of the tensor's rows, where there are several
    factors: tuple[float, ...] | None = None  # by which the rows of each head are multiplied, as float32
    units: tuple[float, ...] | None = None  # powers of two that the rows of each head are counted in
    before: int = 0  # heads of the input before these, for messages
    first: int = 0  # row of the input that is row 0 of these
    of: int = 0  # where some were chosen: how many a batch of the input has

    def __len__(self) -> int:
        return len(self.outer)

    @property
    def rows(self) -> int | None:
        """Rows of the tensor, None while unknown."""
        return self.tensor.rows

    @property
    def count(self) -> int:
        """Rows of a tensor that says how many it has."""
        return row_count(self.tensor)

    @property
    def several(self) -> Sequences:
        """The sequences, where there are several."""
        assert self.sequences is not None, f"{self.tensor.name} is one sequence"
        return self.sequences

    def name_of(self, row: int) -> str:
        """The tensor, and the sequence in which a row of the stream is if there are several, for messages."""
        if not self.sequences:
            return self.tensor.name
        return f"{self.tensor.name}, sequence {self.sequences.before + self.sequences.number(row)}"

    def local(self, row: int) -> int:
        """A row of the stream as a row of its sequence."""
        return self.sequences.local(row)[1] if self.sequences else self.first + row

    @property
    def kept(self) -> str:
        """The storage dtype that holds its numbers exactly."""
        return "f4" if self.factors else DTYPES[self.tensor.dtype].kept or self.tensor.dtype

    def take(self, chosen: Sequence[int]) -> Heads:
        """Only these heads, in this order; batches that are not sequences become plain heads."""
        plain = {} if self.sequences else {"BTHD": "THD", "BHTD": "HTD"}
        return replace(
            self,
            outer=tuple(self.outer[h] for h in chosen),
            column=tuple(self.column[h] for h in chosen),
            factors=self.factors and tuple(self.factors[h] for h in chosen),
            units=self.units and tuple(self.units[h] for h in chosen),
            layout=plain.get(self.layout, self.layout),
            batch=1,
            of=self.of or len(self) // self.batch,
        )


def whole(tensor: RowTensor, extent: Extent) -> Heads:
    """All heads of a tensor that holds one of q, k, v alone."""
    outer, column = extent.head_places()
    return Heads(tensor, outer, column, extent.dim, extent.layout, extent.batch)


@dataclass(frozen=True)
class Part:
    """One of q, k, v within a packed record: `heads` heads of `dim` items from item `at` on."""

    at: int
    heads: int
    dim: int


def record_word(word: str) -> str:
    """A --record word; UsageError for an unknown one."""
    if word not in RECORDS:
        raise UsageError(f"--record {word}: unknown; use one of {', '.join(RECORDS)}")
    return word


def split_record(
    width: int | None,
    record: str,
    name: str,
    heads: int | None = None,
    kv_heads: int | None = None,
    dim: int | None = None,
    value_dim: int | None = None,
) -> dict[str, Part]:
    """Places of the parts of a fused record [q heads | k heads | v heads] of `width` items (None: add it up).

    heads defaults to 1, kv_heads to heads, value_dim to dim, and dim to what `width` leaves when divided evenly.
    Raises InputMalformed where the width does not fit, UsageError where neither width nor dim is given.
    """
    query_heads = heads or 1
    key_heads = kv_heads or heads or 1
    count = {"q": query_heads, "k": key_heads, "v": key_heads}
    if dim is None and record == "v":
        dim = value_dim
    if dim is None:
        dim = _even_dim(width, record, count, value_dim, name)
    size = {"q": dim, "k": dim, "v": value_dim or dim}
    parts, at = {}, 0
    for part in record:
        parts[part] = Part(at, count[part], size[part])
        at += count[part] * size[part]
    if width is not None and at != width:
        listed = " + ".join(f"{count[part]} {part} of {size[part]}" for part in record)
        raise InputMalformed(
            f"{name}: {width} items in a row found, expected {at} ({listed}); check --dim, "
            f"--value-dim, --heads, --kv-heads and --record{_packing(record)}"
        )
    return parts


def told_parts(parts: Sequence[tuple[str, int, int]]) -> dict[str, Part]:
    """Places of the parts (name, heads, dim) of a fused record that says what it holds."""
    found, at = {}, 0
    for part, heads, dim in parts:
        found[part] = Part(at, heads, dim)
        at += heads * dim
    return found


def _packing(record: str) -> str:
    """What a record is, for those whose records hold q, k and v in turn."""
    if len(record) == 1:
        return ""
    listed = ", ".join(record[:-1]) + f" and {record[-1]}"
    return f". A row packs {listed} side by side; records of {listed} that take turns are not read"


def _even_dim(width: int | None, record: str, count: dict[str, int], value_dim: int | None, name: str) -> int:
    """The dim that uses up a row of `width` items."""
    if width is None:
        raise UsageError(f"{name}: raw rows do not say how long they are; give --dim")
    shared = [part for part in record if value_dim is None or part != "v"]
    rest = width - (value_dim or 0) * sum(count[part] for part in record if part not in shared)
    heads = sum(count[part] for part in shared)
    if rest <= 0 or rest % heads:
        raise InputMalformed(
            f"{name}: {width} items in a row cannot be shared out evenly over a {record} record of "
            f"{count['q']} query and {count['k']} key heads; give --dim, --value-dim, --heads or "
            f"--kv-heads; or name a file each: --q FILE --k FILE --v FILE{_packing(record)}"
        )
    return rest // heads


def packed_fused(tensor: RowTensor, parts: dict[str, Part]) -> dict[str, Heads]:
    """Heads of each part of a fused row [q heads | k heads | v heads]."""
    return {
        name: Heads(
            tensor,
            outer=(0,) * part.heads,
            column=tuple(part.at + h * part.dim for h in range(part.heads)),
            dim=part.dim,
            layout="TD" if part.heads == 1 else "THD",
        )
        for name, part in parts.items()
    }


def packed_heads(tensor: RowTensor, extent: Extent, parts: dict[str, Part]) -> dict[str, Heads]:
    """Heads of each part where every head's items are [q | k | v]."""
    outer, column = extent.head_places()
    return {
        name: Heads(tensor, outer, tuple(c + part.at for c in column), part.dim, extent.layout, extent.batch)
        for name, part in parts.items()
    }


def group_size(q: Heads, k: Heads) -> int:
    """Query heads per key head: query head h attends key head h // group_size. InputMalformed if not whole."""
    if q.batch != k.batch:
        raise InputMalformed(f"{q.tensor.name} has {q.batch} batches, {k.tensor.name} has {k.batch}; they must agree")
    if len(q) % len(k):
        raise InputMalformed(
            f"{q.tensor.name} has {len(q)} query heads and {k.tensor.name} {len(k)} key heads; the "
            f"first must be a multiple of the second (check --layout, --heads, --kv-heads)"
        )
    return len(q) // len(k)


def refuse_pipes(parts: Iterable[Heads], why: str) -> None:
    """Refuse (CannotMeet) heads that can be read only once; why: what reads them in another way."""
    for heads in parts:
        if not heads.tensor.seekable:
            raise CannotMeet(f"{heads.tensor.name}: {why}, and a pipe passes once; write the rows to a file first")


@overload
def select(q: Heads, k: Heads, v: Heads, chosen: Sequence[int]) -> tuple[Heads, Heads, Heads]: ...
@overload
def select(q: None, k: Heads, v: Heads, chosen: Sequence[int]) -> tuple[None, Heads, Heads]: ...
def select(q: Heads | None, k: Heads, v: Heads, chosen: Sequence[int]) -> tuple[Heads | None, Heads, Heads]:
    """Keep the chosen key heads, and all query heads of their groups. UsageError for unknown or repeated heads."""
    there = len(k)
    if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= h < there for h in chosen):
        raise UsageError(
            f"head selection {','.join(map(str, chosen))}: choose different key heads from 0 to "
            f"{there - 1} ({k.tensor.name} has {there})"
        )
    if q is not None:
        group = group_size(q, k)
        q = q.take([h * group + g for h in chosen for g in range(group)])
    return q, k.take(chosen), v.take(chosen)
