"""The sizes of one run and its memory by purpose."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamattn_cli.engine.planning.sketch_memory import sketch_account
from streamattn_cli.engine.request.problem import Problem


@dataclass(frozen=True)
class Plan:
    """Sizes that a run is made of; `parts` are bytes by purpose."""

    problem: Problem
    threads: int
    block_rows: int = 0
    query_block_rows: int = 0  # blocks of the pass over queries, where that is a pass of its own
    query_rows: int = 0  # queries that `exact` holds at a time, 0 for other methods
    passes: tuple[str, ...] = ()
    audit_rows: int = 0
    audit_reason: str | None = None
    repair_rows: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    allowed: int | None = None

    @property
    def whole_sequences(self) -> bool:
        """Whether full attention of several sequences takes whole ones at a time, queries and keys together."""
        p = self.problem
        if not p.sequences or p.causal or p.method == "exact" or not p.k.tensor.seekable:
            return False
        return p.q.sequences == p.k.sequences and p.k.several.longest <= min(self.block_rows, self.query_block_rows)

    @property
    def projected(self) -> int:
        """Bound on the bytes that the run adds to the process."""
        return sum(self.parts.values())

    @property
    def sketch_bytes(self) -> int:
        """Bytes of the sketches of all key heads."""
        return self.parts.get("sketch", 0)

    def to_dict(self) -> dict:
        """JSON-able form, for --dry-run and logs."""
        p = self.problem
        return {
            **p.facts(),
            "inputs": [
                {"name": h.tensor.name, "part": part, "shape": [h.rows, len(h), h.dim], "dtype": h.tensor.dtype}
                for part, h in (("q", p.q), ("k", p.k), ("v", p.v))
            ],
            "rows": p.k.rows,
            "block_rows": self.block_rows,
            "threads": self.threads,
            "passes": list(self.passes),
            "audit_rows": self.audit_rows,
            "repair_rows": self.repair_rows,
            "memory": {"allowed": self.allowed, "projected": self.projected, "parts": self.parts},
            "notes": list(p.notes),
        } | ({"sketches": sketch_account(p)} if p.sketches else {})
