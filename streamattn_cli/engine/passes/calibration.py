"""Sketches at their beginning: every method is shown the first rows and some queries of each sequence that it answers."""

from __future__ import annotations

import threading

import numpy as np

from streamattn_cli.engine.passes.query_model import model_queries
from streamattn_cli.engine.planning.footprint import FIRST_ROWS
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.workers.lanes import Lane
from streamattn_cli.errors import CannotMeet
from streamattn_cli.rows.tensors.ranges import RangeTensor
from streamattn_cli.rows.tensors.sample import spread_rows
from streamattn_cli.rows.tensors.sequences import Sequences
from streamattn_cli.rows.tensors.tensor import RowTensor
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import LINE, laid_out, spec_bytes

Stored = tuple[np.ndarray, np.ndarray, np.ndarray]  # first rows of k and v, and queries, (O, n, I) as they are stored


class Calibration:
    """Shows sketches the first rows and some queries, so that they can choose their settings and predict their error.

    A method that learns from queries as they pass needs none for causal attention, unless keys come before them; then, and for
    full attention, it gets queries from all over the sequence, where that can be read anywhere, or those of --query-model.
    `needed`: whether there is anything to show.
    """

    def __init__(self, problem: Problem, sketches: list[HeadAttention]):
        self.problem, self.sketches = problem, sketches
        history = sketches[0].history if sketches else None
        self.learns = history is not None and history.learns
        self.model = model_queries(problem, FIRST_ROWS) if self.learns and problem.request.query_model else None
        self._answering = self.learns and problem.causal and self.model is None
        self.needed = history is not None and not (self._answering and not problem.later)

    def needed_by(self, number: int) -> bool:
        """Whether there is anything to show at the beginning of a sequence."""
        return self.needed and not (self._answering and not self.problem.first_of(number))

    def read(self, number: int | None = None) -> Stored:
        """The rows to show: of the stream, or of a sequence of it."""
        p = self.problem
        k, v, q = (_part(heads.tensor, heads.sequences, number) for heads in (p.k, p.v, p.q))
        return (
            k.peek(FIRST_ROWS),
            v.peek(FIRST_ROWS),
            spread_rows(q, FIRST_ROWS)[0] if self.learns else q.peek(FIRST_ROWS),
        )

    def show(self, lane: Lane, stored: Stored, work: dict, row: int = 0) -> None:
        """Show a lane's sketch the rows, of which the first has this number in the stream. Raises CannotMeet."""
        p, (k, v, q) = self.problem, stored
        n = min(k.shape[1], v.shape[1])
        first_k = np.empty((n, p.k.dim), p.precision)
        first_c = np.empty((n, p.v.dim + 1), p.precision)
        first_q = np.empty((p.group, q.shape[1], p.q.dim), p.precision)
        dropped = work["lane.dropped"].copy()
        for a, b in lane.steps(0, n):
            first_k[a:b], first_c[a:b] = lane.keys(k, v, a, b, row + a, work)
        for a, b in lane.steps(0, q.shape[1]):
            first_q[:, a:b] = lane.queries(q, a, b, row + a, work)
        work["lane.dropped"][:] = dropped  # they are counted when they pass
        queries = first_q.reshape(-1, p.q.dim) if first_q.size else None
        if self.model is not None:
            queries = self.model[lane.index]
        try:
            self.sketches[lane.index].calibrate(first_k, first_c, queries)
        except CannotMeet as error:
            raise CannotMeet(f"{p.k.name_of(row)}: {error}") from None


def _part(tensor: RowTensor, sequences: Sequences | None, number: int | None) -> RowTensor:
    if number is None or sequences is None:
        return tensor
    first, last = map(int, sequences.edges[number : number + 2])
    return RangeTensor(tensor, first, last)


class Beginnings:
    """Makes the state of a lane new where a sequence begins, with the settings for its length and its first rows.

    every: of each lane its sketch for sequences of every length. reading: held while rows are read, since another thread reads
    the same files.
    """

    def __init__(self, calibration: Calibration, every: list[list[HeadAttention]], reading: threading.Lock):
        self._calibration, self._every, self._reading = calibration, every, reading
        self._shown: dict[
            int, tuple[Stored, int]
        ] = {}  # sequence -> its first rows, and how many lanes want them still
        self._lock = threading.Lock()
        self.clipped = np.zeros(len(every), np.int64)  # keys, in the sequences before
        self.kinds = np.full(len(every), len(calibration.problem.kinds) - 1)  # of a lane's sketches, the one in use

    def choose(self, kinds: np.ndarray) -> None:
        """Of the sketches of the lanes these (lanes,) are in use."""
        self.kinds[:] = kinds
        self._calibration.sketches[:] = [own[kind] for own, kind in zip(self._every, kinds, strict=True)]

    def begin(self, lane: Lane, number: int, row: int, work: dict) -> None:
        """Sequence `number` begins with this row of the stream."""
        problem, sketches, at = self._calibration.problem, self._calibration.sketches, lane.index
        self.clipped[at] += sketches[at].clipped
        self.kinds[at] = problem.kind_of(int(np.diff(problem.k.several.edges[number : number + 2])[0]))
        sketches[at] = self._every[at][self.kinds[at]]
        sketches[at].restart()
        if self._calibration.needed_by(number) and sketches[at].history:
            self._calibration.show(lane, self._first_rows(number), work, row)

    def _first_rows(self, number: int) -> Stored:
        with self._lock:
            if number not in self._shown:
                with self._reading:
                    self._shown[number] = self._calibration.read(number), len(self.kinds)
            stored, wanted = self._shown[number]
            if wanted > 1:
                self._shown[number] = stored, wanted - 1
            else:
                del self._shown[number]
            return stored


def of_every_length(problem: Problem, logits: dict) -> list[HeadAttention]:
    """The sketches of a lane with the settings for every length, in one place of memory: one of them is in use at a time.
    logits: see Problem.logits_of."""
    if not problem.shorter:
        return [HeadAttention(problem.head, **logits)]
    specs = [params.state_spec() for params in problem.kinds]
    room = np.zeros(max(spec_bytes(spec) + LINE * (len(spec) + 1) for spec in specs), np.uint8)
    states = [laid_out(spec, room) for spec in specs]
    return [HeadAttention(*one, **logits) for one in zip(problem.kinds, states, strict=True)]
