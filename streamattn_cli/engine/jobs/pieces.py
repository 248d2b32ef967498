"""A sheet, which is one layer, cut into pieces that are answered apart: some of its sequences, its key heads or its queries.

Full attention of one sequence has two kinds of them: the keys of some key heads, whose sketches are kept for the pieces of
their queries. The sums of a method are rounded in the order of its rows, so that keys themselves are not cut.

Cuts follow from the input alone, so that neither the engine nor the number of workers changes a byte.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.rows.tensors.heads import Heads, select
from streamattn_cli.rows.tensors.ranges import RangeTensor

PIECES = 64  # of a job, where there are as many
LEAST_ROWS = 4096  # of a piece of short sequences, or of queries
ALIGN = 512  # rows: queries are cut where tiles and groups begin
LEAST_AUDIT = 8  # rows of a piece that are audited, if any are

Range = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """Key heads [first, stop), sequences [first, stop), queries [first, stop) and the first rows of a sheet; all of them where
    there is none. keys: the sketches of the keys alone, without answers."""

    heads: Range | None = None
    sequences: Range | None = None
    first: int | None = None
    queries: Range | None = None
    keys: bool = False

    @property
    def name(self) -> str:
        """For messages; empty for all of a sheet."""
        found = []
        for word, chosen in (("key head", self.heads), ("sequence", self.sequences), ("row", self.queries)):
            if chosen:
                first, last = chosen[0], chosen[1] - 1
                found.append(f"{word} {first}" if first == last else f"{word}s {first} to {last}")
        found += [f"first {self.first} rows"] * (self.first is not None)
        return ", ".join(found + ["keys"] * self.keys)

    def query_heads(self, problem: Problem) -> Range:
        """Of the whole sheet, those that it answers."""
        first, stop = self.heads or (0, len(problem.k))
        return first * problem.group, stop * problem.group

    def rows(self, problem: Problem) -> Range:
        """Of the whole sheet, the rows of queries that it answers."""
        if self.queries:
            return self.queries
        if not self.sequences:
            rows = problem.q.rows or 0
            return 0, rows if self.first is None else min(rows, self.first)
        first, stop = self.sequences
        edges = problem.q.several.edges
        return int(edges[first]), int(edges[stop])


def cut(problem: Problem, most: int, each_head: bool = False) -> list[Piece]:
    """At most about `most` pieces: of several sequences, else of key heads, and of queries where these are answered after all
    keys that they see. each_head: one for every key head."""
    heads = len(problem.k)
    if problem.sequences and len(problem.sequences) > 1 and not each_head:
        return [Piece(sequences=each) for each in _by_rows(problem, most)]
    chosen = [piece.heads for piece in cut_heads(problem, heads if each_head else most)]
    alone = each_head or problem.sequences or (problem.causal and problem.params)
    queries = [None] if alone else query_ranges(problem, most // len(chosen))
    if len(queries) == 1:
        return [Piece(heads=each) for each in chosen]
    keys = [Piece(heads=each, keys=True) for each in chosen if problem.params]
    return keys + [Piece(heads=each, queries=rows) for each in chosen for rows in queries]


def cut_heads(problem: Problem, most: int) -> list[Piece]:
    """At most `most` pieces of all rows of some key heads, the last of them the largest; one of all heads has no name."""
    heads = len(problem.k)
    count = min(heads, most)
    borders = [heads * i // count for i in range(count + 1)]
    return [Piece(heads=each) for each in zip(borders, borders[1:], strict=False)] if count > 1 else [Piece()]


def query_ranges(problem: Problem, most: int) -> list[Range]:
    """At most `most` ranges of queries; fewer where each has to read keys for an audit."""
    rows, audit = problem.q.count, problem.request.audit
    count = max(1, min(most, ceil(rows / LEAST_ROWS), max(1, audit // LEAST_AUDIT) if audit else most))
    borders = sorted({min(rows, ceil(rows * i / (count * ALIGN)) * ALIGN) for i in range(count + 1)})
    return list(zip(borders, borders[1:], strict=False))


def _by_rows(problem: Problem, most: int) -> list[Range]:
    """Ranges of sequences with about as many keys each, and with some keys and queries."""
    keys, queries = problem.k.several.edges, problem.q.several.edges
    goal = max(LEAST_ROWS, ceil(int(keys[-1]) / most))
    borders = [0]
    for stop in range(1, len(keys)):
        first = borders[-1]
        if keys[stop] - keys[first] >= goal and queries[stop] > queries[first]:
            borders.append(stop)
    rest = len(keys) - 1
    if borders[-1] < rest:
        first = borders[-1]
        alone = keys[rest] > keys[first] and queries[rest] > queries[first]
        borders = [*borders, rest] if alone or first == 0 else [*borders[:-1], rest]
    return list(zip(borders, borders[1:], strict=False))


def narrow(problem: Problem, piece: Piece) -> Problem:
    """The problem of a piece, with its share of the rows that are audited or repaired."""
    if piece.keys:
        problem = replace(problem, request=replace(problem.request, audit=0, repair=None, doubt=None))
    if piece.queries:
        q = replace(
            problem.q, tensor=RangeTensor(problem.q.tensor, *piece.queries), first=problem.q.first + piece.queries[0]
        )
        first_query = problem.first_query + piece.queries[0] if problem.causal else 0
        problem = _with_share(replace(problem, q=q, first_query=first_query), problem.q.count)
    if piece.sequences:
        problem = _of_some(problem, piece.sequences)
    if piece.first is not None:
        made: dict[tuple, RangeTensor] = {}
        q, k, v = (_first(heads, piece.first, made) for heads in (problem.q, problem.k, problem.v))
        problem = replace(problem, q=q, k=k, v=v)
    if piece.heads:
        first, stop = piece.heads
        q, k, v = select(problem.q, problem.k, problem.v, range(first, stop))
        queries, last = piece.query_heads(problem)
        return replace(
            problem, q=replace(q, before=queries), k=replace(k, before=first), v=replace(v, before=first),
            sink_logits=problem.sink_logits[queries:last],
            bend=problem.bend.of(slice(queries, last)),
        )  # fmt: skip
    return problem


def _of_some(problem: Problem, chosen: Range) -> Problem:
    """The problem of some sequences."""
    made: dict[tuple, RangeTensor] = {}
    q, k, v = (_of_sequences(heads, chosen, made) for heads in (problem.q, problem.k, problem.v))
    return _with_share(replace(problem, q=q, k=k, v=v), problem.q.count)


def _with_share(problem: Problem, of: int) -> Problem:
    """The problem with its share of the rows that are audited or repaired; of: rows of the queries of all."""
    r, share = problem.request, problem.q.count / of
    audit = r.audit and max(LEAST_AUDIT, ceil(r.audit * share))
    repair = str(ceil(int(r.repair) * share)) if r.repair and r.repair.strip().isdigit() else r.repair
    return replace(problem, request=replace(r, audit=audit, repair=repair))


def _first(heads: Heads, rows: int, made: dict[tuple, RangeTensor]) -> Heads:
    """The first rows of heads."""
    rows = min(rows, heads.rows or rows)
    tensor = made.setdefault((id(heads.tensor), rows), RangeTensor(heads.tensor, 0, rows))
    return replace(heads, tensor=tensor)


def _of_sequences(heads: Heads, chosen: Range, made: dict[tuple, RangeTensor]) -> Heads:
    """Some sequences of heads; parts that share a tensor keep sharing one."""
    edges = heads.several.edges
    first, stop = int(edges[chosen[0]]), int(edges[chosen[1]])
    key = id(heads.tensor), first, stop
    if key not in made:
        made[key] = RangeTensor(heads.tensor, first, stop)
    return replace(heads, tensor=made[key], sequences=heads.several.only(*chosen))
