"""The sketches of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from streamattn_cli.rows.tensors.tensor import RowTensor
from streamattn_cli.sketches.paper.countsketch import PeelSketch, ScanSketch
from streamattn_cli.sketches.paper.sketched import SketchParams


@dataclass(frozen=True)
class Sketching:
    """The sketches of a run. `heaps`: the best k are kept exactly while rows are produced, so that Phi is not
    needed."""

    kind: str  # psi, phi or paper
    order: str
    params: SketchParams
    decoder: str
    per_column: bool
    heaps: bool

    @property
    def recovering(self) -> ScanSketch | PeelSketch:
        """Phi, where there is one."""
        assert self.params.phi is not None, "heaps need no Phi"
        return self.params.phi

    def tolerant(self) -> Sketching:
        """The same without the right to refuse."""
        poly = replace(self.params.poly, max_error=float("inf"))
        return replace(self, params=replace(self.params, poly=poly))

    def joined(self, k: RowTensor, v: RowTensor) -> bool:
        """Whether any pass reads keys and values side by side."""
        return self.kind == "phi" or (k is v and not k.seekable)

    def passes(self, audited: bool) -> tuple[str, ...]:
        """What is read, in order, in words."""
        words = {"k": "read keys into prod" + (" and Psi" if self.params.m1 else ""), "v": "read values into Psi"}
        words["q"] = "read queries, answer, write" if self.heaps else "read queries into Phi"
        if self.kind == "phi":
            words["v"] = "read keys again, with values, into exact accumulators"
        found = [words[part] for part in self.order]
        if not self.heaps:
            found.append("join, decode, write" + ("; read queries again to measure the recovery" if audited else ""))
        return (*found, "read keys and values again for the audit") if audited else tuple(found)

    def to_dict(self) -> dict:
        """JSON-able form."""
        phi = self.params.phi
        found = {"kind": self.kind, "order": self.order, "features": self.params.features}
        if self.params.m1:
            found["m1"] = self.params.m1
        if phi:
            found |= {"m2": phi.counters, "decoder": self.decoder, "per_column": self.per_column}
        return found
