"""What `perplexity` found: nats per token of each way to answer attention, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

STRETCHES = 32  # of text, whose means are taken to be independent
T_95 = 2.040  # Student's t for 31 degrees of freedom, two-sided


@dataclass(frozen=True)
class Interval:
    """A mean, and its 95% interval."""

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict:
        """JSON-able form."""
        finite = np.isfinite(self.low)
        return {"mean": self.mean, "low": self.low if finite else None, "high": self.high if finite else None}


def paired(differences: np.ndarray) -> Interval:
    """The mean of differences (n,) of neighbouring tokens, with an interval from the means of 32 stretches of text: tokens
    that stand together err together, so that single ones would give too short an interval."""
    mean = float(differences.mean())
    if len(differences) < 2 * STRETCHES:
        return Interval(mean, -np.inf, np.inf)
    means = [part.mean() for part in np.array_split(differences, STRETCHES)]
    half = T_95 * float(np.std(means, ddof=1)) / STRETCHES**0.5
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Reading:
    """One way to answer attention, and what came of it.

    nats (n,) float32: of each token but the first. kl, agree: at the sampled positions. nbytes: of attention memory at the
    end of the text.
    """

    method: str
    resident_rows: int | None
    params: dict = field(default_factory=dict)
    nats: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    kl: list[float] = field(default_factory=list)
    agree: list[bool] = field(default_factory=list)
    nbytes: int = 0
    seconds: float = 0.0

    @property
    def label(self) -> str:
        """For people."""
        return self.method if self.resident_rows is None else f"{self.method} {self.resident_rows}"


@dataclass(frozen=True)
class Perplexity:
    """What the command found. readings[0] is exact; `layers` are those that the others answer by their method; edges: of the
    stretches by which `by_position` is told; reference_window: rows that the exact one looks back in these layers, None: all."""

    model: str
    texts: tuple[str, ...]
    tokens: int
    layers: tuple[int, ...]
    context: int | None
    edges: tuple[int, ...]
    readings: tuple[Reading, ...]
    seconds: float
    memory: dict
    notes: tuple[str, ...]
    command_line: str | None = None
    finished: str | None = None
    reference_window: int | None = None
    versions: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        """What --json prints."""
        exact = self.readings[0]
        return {
            "type": "perplexity",
            "command": "perplexity",
            "model": self.model,
            "texts": list(self.texts),
            "tokens": self.tokens,
            "layers": list(self.layers),
            "context": self.context,
            "reference_window": self.reference_window,
            "readings": [self._reading(reading, exact) for reading in self.readings],
            "seconds": self.seconds,
            "memory": self.memory,
            "notes": list(self.notes),
            "versions": self.versions,
            "command_line": self.command_line,
            "finished": self.finished,
        }

    def _reading(self, reading: Reading, exact: Reading) -> dict[str, Any]:
        seconds = reading.seconds or None
        told = {
            "method": reading.method,
            "resident_rows": reading.resident_rows,
            "params": reading.params.get("params", {}),
            "nats": float(reading.nats.mean(dtype=np.float64)),
            "attention_bytes": reading.nbytes,
            "full_bytes": exact.nbytes,
            "tokens_per_second": self.tokens / seconds if seconds else None,
            "by_position": self.by_position(reading),
        }
        if reading is exact:
            return told
        return told | {
            "increase": increase(reading, exact).to_dict(),
            "kl": float(np.mean(reading.kl)) if reading.kl else None,
            "agreement": float(np.mean(reading.agree)) if reading.agree else None,
            "samples": len(reading.kl),
        }

    def by_position(self, reading: Reading) -> list[dict]:
        """Mean nats of the tokens whose position is from `first` up to `last`, exclusive, and the increase."""
        found, exact = [], self.readings[0]
        for first, last in zip(self.edges, self.edges[1:], strict=False):
            part = slice(max(first - 1, 0), last - 1)  # nats[i] is that of token i + 1
            mean = float(reading.nats[part].mean(dtype=np.float64))
            more = mean - float(exact.nats[part].mean(dtype=np.float64))
            found.append({"first": first, "last": last, "nats": mean, "increase": more})
        return found


def increase(reading: Reading, exact: Reading) -> Interval:
    """By how many nats per token a reading is worse than the exact one, over all tokens."""
    return paired(reading.nats.astype(np.float64) - exact.nats)
