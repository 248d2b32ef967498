"""`oldest`: the oldest rows of the history stay as they are, all others are forgotten."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from streamattn_cli.sketches.budget import BUDGETED, keeper_params
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.sketches.histories.bank import RowHistory, bank_spec, live
from streamattn_cli.sketches.method import Method, MethodOptions
from streamattn_cli.sketches.partial import Partial


@dataclass(frozen=True)
class OldestParams:
    """How many rows are kept, and in which dtype."""

    rows: int
    storage: str = "f4"

    def to_dict(self) -> dict:
        """JSON-able form."""
        return asdict(self)


class OldestHistory(RowHistory):
    """The kept rows of one key head."""

    @property
    def kept(self) -> int:
        """How many rows it keeps."""
        return int(self.state["held"][0])

    @staticmethod
    def state_spec(params: OldestParams, dim: int, value_dim: int) -> dict:
        """Name -> (shape, dtype) of every state array."""
        return {"rows": bank_spec(params.rows, dim, value_dim, params.storage), "held": ((1,), "i8")}

    def absorb(self, k: np.ndarray, c: np.ndarray, work: dict) -> int:
        """Keep rows while there is room."""
        k, c = live(k, c)
        count = min(len(k), self.params.rows - self.kept)
        self.bank.put(self.kept, k[:count], c[:count])
        self.state["held"][0] += count
        return 0

    def merge(self, other: OldestHistory) -> None:
        """Keep rows of the other history while there is room."""
        if other.kept:
            self.absorb(*other.bank.load(0, other.kept), {})

    def partial(self, q: np.ndarray, work: dict, out: Partial) -> int:
        """Answer a tile of queries over the kept rows."""
        self.bank.partial(self.kept, work, out)
        return 0

    def mean_value(self) -> np.ndarray:
        """What a query is answered that no token answers (dv,)."""
        return np.zeros(self.value_dim)


def _settings(head: HeadParams, options: MethodOptions, causal: bool, stream: int | None) -> HeadParams:
    def history(rows: int, window: int, storage: str) -> OldestParams:
        return OldestParams(rows, storage)

    return keeper_params("oldest", head, options, causal, 0.5, history)


METHOD = Method(
    name="oldest",
    settings=_settings,
    options=BUDGETED,
    params=OldestParams,
    history=OldestHistory,
    micros=lambda load: load.answering(load.params.history.rows),
    compared=False,
)
