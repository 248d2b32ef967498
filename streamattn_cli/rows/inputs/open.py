"""From the words of a command line to q, k, v ready to be read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.options import one_of
from streamattn_cli.rows.attributes import clean
from streamattn_cli.rows.dtypes import DTYPES, PATTERNS, storage_word
from streamattn_cli.rows.formats.missing import PartlyStored
from streamattn_cli.rows.inputs import arrays
from streamattn_cli.rows.inputs.checks import check_heads, check_layout, check_rows, range_notes, with_ranges
from streamattn_cli.rows.inputs.divide import in_sequences, said_of_sequences
from streamattn_cli.rows.inputs.layers import number_of
from streamattn_cli.rows.inputs.packedcache import halves, packed_cache
from streamattn_cli.rows.inputs.padding import said_beside
from streamattn_cli.rows.inputs.paths import Place, find
from streamattn_cli.rows.inputs.plainlayouts import PlainLayouts
from streamattn_cli.rows.inputs.scales import scaled
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.heads import (
    Heads,
    Part,
    packed_fused,
    packed_heads,
    record_word,
    select,
    split_record,
    told_parts,
    whole,
)
from streamattn_cli.rows.tensors.layout import LAYOUTS, Extent, extent, layout_word, show
from streamattn_cli.rows.tensors.stored import Stored
from streamattn_cli.rows.tensors.tensor import RowTensor

if TYPE_CHECKING:
    from streamattn_cli.rows.inputs.modelconfig import ModelConfig


@dataclass
class Inputs:
    """The opened input; a context manager that closes it."""

    q: Heads | None
    k: Heads | None
    v: Heads | None
    attrs: dict = field(default_factory=dict)  # scale (float), causal (bool) and others where a file says so
    notes: tuple[str, ...] = ()  # what was inferred, one line each
    config: ModelConfig | None = None  # of --config, whose facts are among `attrs` where the file says nothing
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def parts(self) -> tuple[Heads, Heads, Heads]:
        """q, k and v, where all of them were asked for."""
        assert self.q and self.k and self.v, "opened without one of q, k and v"
        return self.q, self.k, self.v

    @property
    def heads(self) -> dict[str, Heads]:
        """Those that were asked for, by their letters."""
        return {part: heads for part, heads in (("q", self.q), ("k", self.k), ("v", self.v)) if heads is not None}

    def source(self, name: str) -> str:
        """Where an attribute is from, for notes."""
        return self.config.name if self.config and name in self.config.taken else "the file"

    def close(self) -> None:
        """Close all files."""
        self._stack.close()

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_inputs(spec: InputSpec, need_q: bool = True, need_kv: bool = True, apart: bool = False) -> Inputs:
    """Open k, v and q, or those of them that are needed, check that they fit together, and read nothing but headers.

    apart: batches, and what --lengths and --starts say, become sequences (see sequences.py); else batches are more heads. Of
    a pipe the first row is read and kept. Raises InputMissing (3), InputMalformed (4) and UsageError (2).
    """
    with ExitStack() as stack:
        config = _config(spec) if spec.config else None
        opening = _Opening(spec, ("q",) * need_q + ("k", "v") * need_kv, stack, apart, config)
        heads = opening.heads()
        check_heads(spec, heads)
        if config:
            config = config.beside(heads, opening.attrs, spec, opening.notes)
        attrs = opening.attrs | (config.taken if config else {})
        if need_q and need_kv:
            check_layout(spec, heads["q"], heads["k"], opening.decides_of_q_alone)
        heads = with_ranges(spec, heads)
        check_rows(heads)
        said = said_of_sequences(spec, attrs, apart, opening.notes)
        said = said_beside(said, heads, apart, opening.notes)
        if apart:
            heads = in_sequences(said, heads, opening.notes)
        q, k, v = (heads.get(part) for part in ("q", "k", "v"))
        if spec.select is not None and k is not None and v is not None:
            q, k, v = select(q, k, v, spec.select)
        notes = dict.fromkeys([*opening.notes, *range_notes(heads.values())])
        return Inputs(q, k, v, attrs, tuple(notes), config, stack.pop_all())


def _config(spec: InputSpec) -> ModelConfig:
    """That of --config."""
    from streamattn_cli.rows.inputs.modelconfig import read_config  # most runs have none

    return read_config(spec.config or "", number_of(spec))


class _Opening:
    """The steps of opening: words -> stored arrays -> layouts -> tensors -> heads."""

    def __init__(
        self, spec: InputSpec, parts: tuple[str, ...], stack: ExitStack, apart: bool, config: ModelConfig | None
    ):
        self.attrs: dict = {}
        self.notes: list[str] = []
        self._config = config
        self._spec = spec
        self._parts = parts
        self._stack = stack
        self._apart = apart
        word = layout_word(spec.layout) if spec.layout else None
        self._raw = storage_word(spec.raw, "--raw") if spec.raw else None
        self._dtype = storage_word(spec.dtype, "--dtype") if spec.dtype else None
        if self._dtype and not DTYPES[self._dtype].patterns:
            raise UsageError(
                f"--dtype {spec.dtype}: it tells what 8- or 16-bit integers are; use {one_of(PATTERNS)}, or omit it"
            )
        self._plain: dict[str, Stored] = {}  # part -> array that holds it alone
        self._layouts = PlainLayouts(spec, config, self._plain, parts, word, self._dtype, self.notes)
        self._packed: list[tuple[str, tuple[str, ...], Stored]] = []  # record, what is taken of it, array or stream

    def heads(self) -> dict[str, Heads]:
        """Heads of every part asked for."""
        self._gather()
        found: dict[str, Heads] = {}
        for record, wanted, stored in self._packed:
            heads = self._unpack(stored, record)
            found.update((part, heads[part]) for part in wanted)
        layouts = self._layouts.of_all(found.get("k"))
        for part, stored in self._plain.items():
            shape = self._layouts.extent(stored, layouts[part], part)
            found[part] = scaled(self._whole(stored, shape, part), stored, part, self.notes)
        return {part: found[part] for part in self._parts}

    @property
    def decides_of_q_alone(self) -> bool:
        """Whether --layout says something about q and nothing about k."""
        return "k" not in self._plain

    # --- words -> stored arrays

    def _gather(self) -> None:
        """Sort every word's array into plain and packed ones."""
        words = {part: word for part in self._parts if (word := getattr(self._spec, part))}
        rest = tuple(part for part in self._parts if part not in words)
        self._check_words(words, rest)
        for part, word in words.items():
            place = None if word == "-" else find(word)
            if place is None or place.kind == "pipe":
                self._pack(self._stream(word, part), part, (part,))
            else:
                stored = self._keep(arrays.single(place, word, part, self._dtype), place.note)
                if stored.parts:
                    self._pack(stored, part, (part,))
                else:
                    self._plain[part] = stored
        if rest and self._spec.input is not None:
            self._gather_input(self._spec.input, rest)

    def _check_words(self, words: dict[str, str], rest: tuple[str, ...]) -> None:
        given = self._spec.input
        if [given, *words.values()].count("-") > 1:
            raise UsageError("only one of the inputs can be standard input (-); write the others to files")
        if given is None and rest:
            named = ", ".join(rest)
            raise UsageError(f"no input for {named}: give --{rest[0]} FILE, or one file or - that holds {named}")
        if given is not None and not rest:
            raise UsageError(
                f"{given}: nothing is left to read from it, {', '.join(self._parts)} have files of their own; omit it"
            )

    def _gather_input(self, word: str, rest: tuple[str, ...]) -> None:
        """The input that holds the parts without a file of their own."""
        place = None if word == "-" else find(word, raw=self._raw is not None)
        if place is not None and place.names_arrays and place.inside is None:
            self._gather_named(place, rest)
            return
        record, at = self._record(word, rest), len(self.notes)
        alone = False
        if place is None or place.kind == "pipe":
            stored = self._stream(word, record)
        elif place.kind == "raw" and self._raw is not None:
            stored = arrays.raw_file(place.path, self._raw, self._raw_width(word, record))
        else:
            stored = self._keep(arrays.single(place, word, None, self._dtype), place.note)
            alone = len(record) == 1 and not stored.parts
        if self._spec.record is None and not stored.parts:
            self.notes.insert(at, f"{word}: rows are taken as --record {record}")
        if alone:
            self._plain[record] = stored
        else:
            self._pack(stored, record, rest)

    def _pack(self, stored: Stored, record: str, wanted: tuple[str, ...]) -> None:
        """Take the wanted parts of an array or stream that holds those of `record`, or those that it says. InputMalformed."""
        if stored.parts:
            record = "".join(part for part, _, _ in stored.parts)
            if lacking := [part for part in wanted if part not in record]:
                raise InputMalformed(
                    f"{stored.name}: its rows are {_listed(stored.parts)}; give --{lacking[0]} FILE, which they lack"
                )
        self._packed.append((record, wanted, stored))

    def _gather_named(self, place: Place, parts: tuple[str, ...]) -> None:
        """Parts from a file that names its arrays, or keys and values from its packed cache."""
        try:
            found = arrays.parts_of(place, parts, self._spec.group, self._dtype)
        except InputMissing:
            cache = packed_cache(place, self._spec.group, self._dtype) if {"k", "v"} <= {*parts} else None
            if cache is None:
                raise
            others = tuple(part for part in parts if part == "q")
            found = arrays.parts_of(place, others, self._spec.group, self._dtype) if others else {}
            both = halves(cache)
            if both is None:
                self._pack(replace(self._keep(cache, place.note), packed=True), "kv", ("k", "v"))
            found |= both or {}
        self._plain.update((part, self._keep(stored, place.note)) for part, stored in found.items())

    def _record(self, word: str, rest: tuple[str, ...]) -> str:
        """The record kind as given, or what is needed."""
        if self._spec.record is None:
            return record_word("".join(rest))
        lacking = [part for part in rest if part not in record_word(self._spec.record)]
        if lacking:
            raise UsageError(
                f"{word}: a {self._spec.record} record lacks {', '.join(lacking)}; give --{lacking[0]} "
                f"FILE or another --record"
            )
        return self._spec.record

    def _stream(self, word: str, record: str) -> Stored:
        """Standard input or a fifo, as .npy records or raw rows."""
        if word == "-":
            name, file = "standard input", arrays.standard_input(self._spec.stdin)
        else:
            name, file = word, self._stack.enter_context(arrays.pipe(word))
        if self._raw is not None:
            return arrays.raw_stream(file, name, self._raw, self._raw_width(name, record))
        return self._keep(arrays.record_stream(file, name, self._dtype), None)

    def _keep(self, stored: Stored, note: str | None) -> Stored:
        """Remember the notes and attributes that come with an array. InputMalformed for one number."""
        if stored.shape == ():
            raise InputMalformed(f"{stored.name}: an array without axes, expected rows; choose another one")
        self.notes += [*([note] if note else []), *stored.notes]
        self.attrs.update(clean(stored.attrs, stored.name))
        return stored

    def _open(self, stored: Stored, shape: Extent, part: str = "k") -> RowTensor:
        tensor = stored.open(replace(shape, apart=self._apart))
        self._stack.callback(tensor.close)
        if isinstance(tensor, PartlyStored) and tensor.missing:
            count = sum(last - first for first, last in tensor.missing)
            if self._spec.missing == "zeros":
                tensor.allow_missing()
                self.notes.append(
                    f"{stored.name}: {count} rows are not stored and are zeros or the file's fill value (--missing zeros)"
                )
            elif not (self._spec.rows or (part == "q" and self._spec.q_rows)):  # else: as soon as one is read
                tensor.refuse_missing(tensor.missing[0][0], count)
        return tensor

    def _whole(self, stored: Stored, shape: Extent, part: str) -> Heads:
        """The heads of a plain array; in its own order where that has the heads of each row side by side."""
        if stored.turned is None or shape.turned is None:
            return whole(self._open(stored, shape, part), shape)
        heads = whole(self._open(replace(stored, open=stored.turned), shape.turned, part), shape.turned)
        return replace(heads, layout=shape.layout)

    # --- packed rows

    def _split(self, width: int | None, record: str, name: str, one_head: bool = False) -> dict[str, Part]:
        """Places of the parts in a row, or (one_head) in the items of one head."""
        spec, config = self._spec, self._config
        if config and not one_head and (spec.heads, spec.kv_heads, spec.dim, spec.value_dim) == (None,) * 4:
            parts = [(part, *config.sizes_of(part)) for part in record]
            if sum(heads * dim for _, heads, dim in parts) == (width or 0):
                return told_parts(parts)
        heads = (1, 1) if one_head else (spec.heads, spec.kv_heads)
        return split_record(width, record, name, *heads, spec.dim, spec.value_dim)

    def _raw_width(self, name: str, record: str) -> int:
        """Items of one raw row, from what the user said."""
        return sum(part.heads * part.dim for part in self._split(None, record, name).values())

    def _unpack(self, stored: Stored, record: str) -> dict[str, Heads]:
        """Heads of every part of a packed array."""
        fused = len(stored.shape) == 2
        layout = "TD" if fused else self._packed_layout(stored)
        shape = extent(stored.shape, layout, stored.name)
        if stored.parts:
            parts = told_parts(stored.parts)
        else:
            parts = self._split(shape.dim, record, stored.name, one_head=not fused)
            self._check_record(stored, record)
        tensor = self._open(stored, shape)
        heads = packed_fused(tensor, parts) if fused else packed_heads(tensor, shape, parts)
        listed = _listed([(part, len(heads[part]), heads[part].dim) for part in record])
        self.notes.append(f"{stored.name}: {show(stored.shape)} rows are {listed}")
        return {part: scaled(heads[part], stored, part, self.notes) for part in record}

    def _check_record(self, stored: Stored, record: str) -> None:
        """Refuse one array of a file for several parts where nothing says that its rows are packed: it may be one of them."""
        spec = self._spec
        told = stored.packed or spec.record is not None or spec.dim is not None
        if len(record) > 1 and stored.shape[0] is not None and not told:
            raise UsageError(
                f"{stored.name}: one array {show(stored.shape)} for {', '.join(record)}; give --record {record} if every row "
                f"of it holds them side by side, or a file for each: {' '.join(f'--{part} FILE' for part in record)}"
            )

    def _packed_layout(self, stored: Stored) -> str:
        """Of a packed array with a head axis: records of three axes are (rows, heads, items) unless a file's
        layout is given."""
        told = None if stored.shape[0] is None else self._layouts.told(stored)
        if told or len(stored.shape) == 3:
            return told or "THD"
        words = [word for word in LAYOUTS if len(word) == len(stored.shape)]
        if not words:
            raise InputMalformed(f"{stored.name}: expected 2 to 4 axes, found shape {show(stored.shape)}")
        raise UsageError(
            f"{stored.name}: layout not clear from shape {show(stored.shape)}; give --layout {' or '.join(words)}"
        )


def _listed(parts: Sequence[tuple[str, int, int]]) -> str:
    """'9 q of 64 | 3 k of 64 | 3 v of 64'."""
    return " | ".join(f"{heads} {part} of {dim}" for part, heads, dim in parts)
