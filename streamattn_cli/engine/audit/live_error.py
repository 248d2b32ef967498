"""How wrong a run has been so far, for whoever watches it."""

from __future__ import annotations

import numpy as np

from streamattn_cli.engine.audit.audit import Auditor
from streamattn_cli.engine.audit.exactrows import ExactRows, ExactSequences


class ErrorSoFar:
    """The relative error of the audited rows whose exact answers are complete, kept up as they come."""

    def __init__(self, auditor: Auditor):
        self.auditor = auditor
        self.rows = 0  # compared
        self.wrong = self.size = 0.0  # squared norms of their errors and of their exact answers

    def __call__(self) -> float | None:
        """|answer - exact| / |exact| over all rows compared and all heads; None while there are none."""
        if self.auditor.problem.causal and self.auditor.drawn:
            self._compare(self.auditor.drawn)
        return float(np.sqrt(self.wrong / self.size)) if self.size else None

    def _compare(self, drawn: ExactRows | ExactSequences) -> None:
        """Compare the rows that have become complete since the last time."""
        a = self.auditor
        rows = slice(self.rows, drawn.complete(a.heard))
        if rows.stop <= rows.start:
            return
        for lane in a.lanes:
            answers = a.approx[rows, lane.query_heads].transpose(1, 0, 2)
            exact = drawn.exactly(lane, rows)
            answered = np.isfinite(answers).all(axis=2)
            self.wrong += ((answers - exact)[answered] ** 2).sum()
            self.size += (exact[answered] ** 2).sum()
        self.rows = rows.stop
