"""`sample`: a uniform reservoir of the history; each of its m rows stands for n/m (METHODS.md (B3)).

A row's priority is a hash of the seed and its global row, and the m least are kept: the sample does not depend on how
the stream was cut, and merging two shards' samples is exactly the sample of the union.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamattn_cli.kernels import coreset as kernel
from streamattn_cli.sketches.budget import BUDGETED, keeping
from streamattn_cli.sketches.histories.bank import RowHistory, bank_spec
from streamattn_cli.sketches.method import Load, Method, PlainParams
from streamattn_cli.sketches.partial import Partial

WINDOW_SHARE = 0.5  # of the rows; tuned on real heads


@dataclass(frozen=True)
class SampleParams(PlainParams):
    """How many rows are kept, and the seed of their choice."""

    rows: int
    seed: int = 0
    storage: str = "f4"


class SampleHistory(RowHistory):
    """The reservoir of one key head. State arrays: see `state_spec`."""

    @property
    def kept(self) -> int:
        """How many rows it keeps."""
        return int(self.state["held"][0])

    @staticmethod
    def state_spec(params: SampleParams, dim: int, value_dim: int) -> dict[str, tuple[tuple[int, ...], str]]:
        return {
            "rows": bank_spec(params.rows, dim, value_dim, params.storage),
            "priority": ((params.rows,), "u8"),
            "held": ((3,), "i8"),  # rows kept, rows they stand for, next global row
        }

    @staticmethod
    def transient_bytes(params: SampleParams, dim: int, value_dim: int, group: int, queries: int) -> int:
        """Bound on the bytes that are held for a while."""
        return 64 * group + 16 * params.rows

    def begin(self, row: int) -> None:
        """The first row to come has this global number: shards must know it, so that no two choose alike."""
        self.state["held"][2] = row

    def absorb(self, k: np.ndarray, c: np.ndarray, work: dict) -> int:
        """Take in one group of rows, k (n, d), c (n, dv + 1). Returns the number of keys clipped: none."""
        held = self.state["held"]
        priority = np.empty(len(k), np.uint64)
        with np.errstate(over="ignore"):  # unsigned products wrap around on purpose
            kernel.priorities(np.uint64(self.params.seed), np.uint64(held[2]), priority)
        held[2] += len(k)
        for i in np.flatnonzero(c[:, -1] != 0):
            held[1] += 1
            self._offer(priority[i], k[i : i + 1], c[i : i + 1])
        return 0

    def merge(self, other: SampleHistory) -> None:
        """Take in the sample of other rows; the result is the sample of all of them."""
        count, standing, after = (int(x) for x in other.state["held"])
        self.state["held"][1:] += standing, max(0, after - int(self.state["held"][2]))
        for i in range(count):
            self._offer(other.state["priority"][i], *other.bank.load(i, i + 1))

    def partial(self, q: np.ndarray, work: dict, out: Partial) -> int:
        """Answer a tile of queries (their scaled form is work["scaled"]) into `out`. No query is clipped: 0."""
        count, standing = (int(x) for x in self.state["held"][:2])

        def weigh(first: int, c: np.ndarray) -> None:
            c *= standing / count

        self.bank.partial(count, work, out, weigh if standing > count else None)
        return 0

    def _offer(self, priority: np.uint64, k: np.ndarray, c: np.ndarray) -> None:
        """Keep one row if there is room, or in place of the one of the largest priority."""
        held, kept = self.state["held"], self.state["priority"]
        place = int(held[0])
        if place == len(kept):
            place = int(kept.argmax()) if place else 0
            if not len(kept) or priority >= kept[place]:
                return
        else:
            held[0] += 1
        kept[place] = priority
        self.bank.put(place, k, c)


def _micros(load: Load) -> float:
    return load.keeping(load.params.history.rows, 1.16, 24, 0.0019, 0.0)


METHOD = Method(
    name="sample",
    settings=keeping("sample", WINDOW_SHARE, SampleParams),
    options=BUDGETED,
    params=SampleParams,
    history=SampleHistory,
    micros=_micros,
)
