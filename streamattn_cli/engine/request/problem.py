"""What the headers of an input decide about a request."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streamattn_cli.engine.request.requests import RunRequest
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.sequences import Sequences
from streamattn_cli.sketches.bend import STRAIGHT, Bend
from streamattn_cli.sketches.headparams import HeadParams, spec_bytes
from streamattn_cli.units import format_bytes

if TYPE_CHECKING:
    from streamattn_cli.engine.request.sketching import Sketching


def larger_than_data(problem: Problem) -> str | None:
    """That the sketches take more than the keys and values that they stand for, in words; None where they do not, or nobody
    knows how many rows come."""
    rows = problem.k.rows
    if not problem.params or rows is None:
        return None
    row, kept = len(problem.k) * problem.params.row_bytes, problem.sketch_bytes
    if kept <= (rows + problem.rows_before) * row:
        return None
    return (
        f"a sketch of {format_bytes(kept)} is larger than the {rows} rows of keys and values that it stands for "
        f"({format_bytes(rows * row)}): it pays from {-(-kept // row)} rows on"
    )


@dataclass(frozen=True)
class Problem:
    """A request with everything decided that the headers of the input decide."""

    request: RunRequest
    q: Heads
    k: Heads
    v: Heads
    causal: bool
    scale: float
    method: str
    precision: str  # of the arithmetic: float64 only for float64 input
    params: HeadParams | None  # None for `exact`
    notes: tuple[str, ...]
    sketches: Sketching | None = None  # see engine/planning/sketches.py
    rows_before: int = 0  # of the sketch that this one is appended to
    local: int | None = None  # keys that a row sees, itself included; None for all
    sink_logits: tuple[float, ...] = ()  # of the query heads, where there are any
    bend: Bend = STRAIGHT  # of the logits: softcap and ALiBi
    first_query: int = 0  # causal: the row of keys that query 0 sees last
    shorter: tuple[tuple[int, HeadParams], ...] = ()  # see engine/planning/by_length.py

    @property
    def head(self) -> HeadParams:
        """The parameters of one head, of a method that keeps a sketch."""
        assert self.params is not None, "exact attention has no parameters"
        return self.params

    @property
    def kinds(self) -> list[HeadParams]:
        """The parameters of sequences of all lengths, those of the longest last; empty for `exact`."""
        return [*(params for _, params in self.shorter), self.params] if self.params else []

    def kind_of(self, rows: int) -> int:
        """Which of the `kinds` serves a sequence of so many keys."""
        return bisect_left([most for most, _ in self.shorter], rows)

    @property
    def sketching(self) -> Sketching:
        """The sketches of --sketches, where there are any."""
        assert self.sketches is not None, "a run without --sketches"
        return self.sketches

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return len(self.q) // len(self.k)

    @property
    def sequences(self) -> Sequences | None:
        """Of the keys, where there are several."""
        return self.k.sequences

    @property
    def longest(self) -> int | None:
        """Keys of the longest sequence; None while unknown."""
        return self.k.sequences.longest if self.k.sequences else self.k.rows

    def logits_of(self, query_heads: slice) -> dict[str, Any]:
        """What is said of the logits of some query heads, as HeadAttention and ExactQueries take it."""
        return {
            "sink_logits": np.array(self.sink_logits[query_heads], np.float64),
            "bend": self.bend.of(query_heads),
        }

    def of_query_head(self, head: int) -> Problem:
        """The problem of one query head and its key head."""
        key = [head // self.group]
        return replace(
            self, q=self.q.take([head]), k=self.k.take(key), v=self.v.take(key),
            sink_logits=self.sink_logits[head : head + 1], bend=self.bend.of(slice(head, head + 1)),
        )  # fmt: skip

    @property
    def later(self) -> bool:
        """Causal: whether keys come before a first query."""
        return self.causal and bool(self.first_query or (self.sequences and self.sequences != self.q.sequences))

    def first_of(self, number: int) -> int:
        """Causal: the row of keys that the first query of a sequence sees last. Of several the last query sees the last key."""
        if not (self.sequences and self.later):
            return self.first_query
        keys, queries = (np.diff(heads.several.edges[number : number + 2]) for heads in (self.k, self.q))
        return int(keys[0] - queries[0])

    def keys_of(self, row: int) -> int | None:
        """How many of the first keys the queries up to this row see; None for all."""
        if not (self.causal and self.sequences):
            return self.first_query + row + 1 if self.causal else None
        number, local = self.q.several.local(row)
        return int(self.k.several.edges[number]) + self.first_of(number) + local + 1

    @property
    def out_dtype(self) -> str:
        """Dtype of the output."""
        return self.request.out_dtype or self.precision

    @property
    def sketch_bytes(self) -> int:
        """Bytes of the sketches of all key heads, in which sequences of all lengths have room; 0 for `exact`."""
        return len(self.k) * max((spec_bytes(params.state_spec()) for params in self.kinds), default=0)

    @property
    def shapes(self) -> dict:
        """Sizes by their names, for plans and outcomes."""
        several = {"sequences": len(self.k.sequences)} if self.k.sequences else {}
        return (
            several
            | {
                "queries": self.q.rows,
                "keys": self.k.rows,
                "heads": len(self.q),
                "kv_heads": len(self.k),
                "dim": self.k.dim,
                "value_dim": self.v.dim,
            }
            | ({"batches": self.q.batch} if self.q.batch > 1 else {})
            | ({"first_query": self.first_query} if self.first_query else {})
        )

    def facts(self) -> dict:
        """Everything that identifies the result, JSON-able."""
        r = self.request
        params: dict[str, Any] = {}
        if self.params:
            params = _told(self.params)
            resident = spec_bytes(self.params.state_spec())
            params["resident_bytes"] = resident
            params["resident_rows"] = round(resident / self.params.row_bytes, 1)
        if self.shorter:
            params["shorter"] = [{"up_to": most, "params": _told(one)} for most, one in self.shorter]
        params |= {"local": self.local} if self.local else {}
        params |= {"sink_logits": list(self.sink_logits)} if self.sink_logits else {}
        params |= self.bend.facts()
        params |= {"value_units": list(self.v.units)} if self.v.units else {}
        return {
            "method": self.method,
            "mode": "causal" if self.causal else "full",
            "params": params | (self.sketches.to_dict() if self.sketches else {}),
            "scale": self.scale,
            "shapes": self.shapes,
            "seed": r.seed,
            "precision": self.precision,
        }


def _told(params: HeadParams) -> dict[str, Any]:
    """The settings of a sketch, JSON-able."""
    history = params.history.to_dict() if params.history else {}
    return {"sinks": params.sinks, "window": params.window, "group": params.group, **history}
