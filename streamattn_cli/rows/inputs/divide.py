"""Divides heads into sequences: of a batch, padded or not, and of packed rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamattn_cli.errors import InputMalformed, UsageError
from streamattn_cli.options import spelling
from streamattn_cli.rows.inputs.numbers import integers, rows_that_count, said
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.ranges import RangeTensor
from streamattn_cli.rows.tensors.sequences import Sequences
from streamattn_cli.rows.tensors.tensor import RowTensor, SeekableTensor


class SequenceTensor(SeekableTensor):
    """A RowTensor over a batch: the rows of its first sequence, then those of the second, and so on.

    The base has `batch` times as many segments (O), those of each sequence side by side.
    """

    def __init__(self, base: RowTensor, sequences: Sequences):
        self.base, self.sequences = base, sequences
        self.name, self.path, self.dtype, self.width = base.name, base.path, base.dtype, base.width
        self.outer, self.rows = base.outer // len(sequences), sequences.rows
        self.held_bytes = base.held_bytes + sequences.edges.nbytes

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        count = self.there(buf, start, segment)
        for piece in self.sequences.pieces(start, start + count):
            into = buf[:, piece.first - start : piece.last - start]
            whole = into if into.flags.c_contiguous else np.empty(into.shape, into.dtype)
            row = self.sequences.place(piece.number, piece.row)
            self.base.read_into(whole, row, piece.number * self.outer + (segment or 0))
            if whole is not into:
                into[...] = whole
        return count

    def close(self) -> None:
        """Close the tensor underneath."""
        self.base.close()


def said_of_sequences(spec: InputSpec, attrs: dict, apart: bool, notes: list[str]) -> InputSpec:
    """The spec with --lengths or --starts as the file's attributes say it, unless an option does. A note says where they
    are ignored."""
    name = next((name for name in ("lengths", "starts") if name in attrs), None)
    if name is None or spec.lengths or spec.starts:
        return spec
    if spec.rows or spec.q_rows or not apart:
        why = "rows were chosen by hand" if apart else "sequences are not told apart here"
        notes.append(f"attribute {name} is ignored: {why}")
        return spec
    word = said(attrs[name], f"{spec.input or spec.k}: attribute {name}")
    notes.append(f"{name} is taken from the file")
    return replace(spec, lengths=word) if name == "lengths" else replace(spec, starts=word)


def in_sequences(spec: InputSpec, heads: dict[str, Heads], notes: list[str]) -> dict[str, Heads]:
    """The heads of every part with their sequences, if there are several: as many heads as one batch has, over a
    SequenceTensor; or those of packed rows, cut where --starts says, or --lengths that come to all rows.
    Raises UsageError and InputMalformed."""
    if spec.lengths and spec.starts:
        raise UsageError("--lengths is for padded batches, --starts for packed rows; give one of them")
    given = {spelling(name): getattr(spec, name) for name in ("lengths", "starts", "q_lengths", "q_starts")}
    for option, word in given.items():
        if word and (spec.rows or spec.q_rows):
            raise UsageError(f"{option}: its rows are those of whole sequences; omit --rows and --q-rows")
        of_keys = option.replace("q-", "")
        if word and not given[of_keys]:
            raise UsageError(f"{option} {word}: it says of queries what {of_keys} says of keys; give that, too")
    words = {option: word for option, word in given.items() if word}
    counted = {o: rows_that_count(word, o, spec.input) for o, word in words.items() if "lengths" in o}
    numbers = {o: integers(word, o, spec.input) for o, word in words.items() if "starts" in o}
    made: dict[tuple, RowTensor] = {}
    found = {}
    for part, one in heads.items():
        fewer = part == "q" and "k" in heads and one.rows != heads["k"].rows
        if spec.starts:
            option = "--q-starts" if part == "q" and spec.q_starts else "--starts"
            found[part] = _packed(one, f"{option} {given[option]}", numbers[option], made)
        else:
            option = "--q-lengths" if part == "q" and (spec.q_lengths or fewer) else "--lengths"
            lengths, skipped = counted.get(option, (None, None))
            if spec.lengths and lengths is None:
                lengths = np.full(one.batch, one.count)
            found[part] = _apart(one, f"{option} {given[option]}", lengths, skipped, made)
            if lengths is not None and not found[part].several.padded:
                notes.append(
                    f"{one.tensor.name}: {len(lengths)} lengths that come to its {one.rows} rows: those of packed sequences"
                )
    return found


def _apart(
    heads: Heads, word: str, lengths: np.ndarray | None, skipped: np.ndarray | None, made: dict[tuple, RowTensor]
) -> Heads:
    """The sequences of a batch, of each of which `lengths` rows count, after the skipped ones; or of packed rows, where the
    lengths come to all of them."""
    if "B" not in heads.layout:
        if lengths is None:
            return heads
        if skipped is not None or (heads.rows is not None and lengths.sum() != heads.rows):
            raise UsageError(
                f"{heads.tensor.name}: {word}: it has no axis of batches (layout {heads.layout}), and its {heads.rows} rows are "
                f"not those of packed sequences, which were {lengths.sum()}; give --layout BHTD or BTHD, --starts, or --rows"
            )
        return _packed(heads, word, np.concatenate([[0], np.cumsum(lengths)]), made)
    if heads.batch == 1 and lengths is None:
        return heads
    if lengths is not None:
        if len(lengths) != heads.batch:
            raise InputMalformed(f"{heads.tensor.name}: {heads.batch} batches, and {len(lengths)} numbers in {word}")
        wrong = np.flatnonzero((lengths < 0) | (lengths + (0 if skipped is None else skipped) > heads.rows))
        if len(wrong) or not lengths.any():
            one = int(wrong[0]) if len(wrong) else 0
            raise InputMalformed(
                f"{heads.tensor.name}: batch {one} has {heads.rows} rows, and {word} says {lengths[one]}; "
                f"expected 0 to {heads.rows}, not all of them 0"
            )
    count = len(heads) // heads.batch
    sequences = Sequences.of_batch(heads.batch, heads.count, lengths, skipped)
    key = id(heads.tensor), sequences.edges.tobytes(), None if skipped is None else skipped.tobytes()
    tensor = made.setdefault(key, SequenceTensor(heads.tensor, sequences))
    outer, column = heads.outer[:count], heads.column[:count]
    return replace(heads, tensor=tensor, outer=outer, column=column, batch=1, sequences=sequences)


def _packed(heads: Heads, word: str, starts: np.ndarray, made: dict[tuple, RowTensor]) -> Heads:
    name, rows = heads.tensor.name, heads.rows
    if "B" in heads.layout:
        raise UsageError(f"{name}: {word}: it is a batch (layout {heads.layout}); give --lengths instead")
    if starts[0] != 0 or (np.diff(starts) < 0).any() or (rows is not None and starts[-1] > rows):
        raise InputMalformed(
            f"{name}: {word}: expected numbers from 0 on that do not fall, the last at most its "
            f"{'rows' if rows is None else f'{rows} rows'}; found {', '.join(map(str, starts[:5]))} ... {starts[-1]}"
        )
    edges = starts if rows is None or starts[-1] == rows else np.append(starts, rows)
    if edges[-1] == 0:
        raise InputMalformed(f"{name}: {word}: there is no row in any sequence; end with the number of rows")
    tensor = made.setdefault((id(heads.tensor), int(edges[-1])), RangeTensor(heads.tensor, 0, int(edges[-1])))
    return replace(heads, tensor=tensor, sequences=Sequences(edges))
