"""What decides the shape of a key head's sketch, and arrays of such shapes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.method import HistoryParams
from streamattn_cli.sketches.tiles import TILE_QUERIES, tile_spec

LINE = 64  # bytes of a cache line


@dataclass(frozen=True)
class HeadParams:
    """What decides the shape of a head's state.

    `dtype` is the precision of the arithmetic, "f4" or "f8"; `storage` that of rows kept exactly (f2, bf16, f4, f8;
    empty: as dtype). `group` divides 512. local: attention itself reaches no further than the window.
    """

    dim: int
    value_dim: int
    scale: float
    dtype: str = "f4"
    sinks: int = 0
    window: int = 0
    group: int = 256
    history: HistoryParams | None = None
    storage: str = ""
    local: bool = False

    def to_dict(self) -> dict:
        """JSON-able form; the history under the name of its kind."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "history"}
        if not self.local:
            del plain["local"]  # as before there was that
        return plain | {
            "history": {registry.of(type(self.history)).name: self.history.to_dict()} if self.history else None
        }

    @classmethod
    def from_dict(cls, plain: dict) -> HeadParams:
        """The parameters that `to_dict` gave; KeyError or TypeError for anything else, UsageError for an unknown method."""
        history = plain["history"]
        if history is not None:
            ((name, settings),) = history.items()
            params = registry.find(name).params
            if params is None:
                raise TypeError(f"method {name} has no settings")
            history = params(**settings)
        return cls(**{**plain, "history": history})

    def takes_in(self, other: HeadParams) -> bool:
        """Whether a sketch of parameters `other` can be merged into one of these."""
        if self.history is None or type(self.history) is not type(other.history):
            return self == other
        merges = registry.history_of(self.history).merges(self.history, other.history)
        return merges and replace(self, history=other.history) == other

    @property
    def stored(self) -> str:
        """Storage dtype of exact rows."""
        return self.storage or self.dtype

    @property
    def stack(self) -> int:
        """Query heads answered in one tile."""
        return max(1, TILE_QUERIES // self.group)

    @property
    def recent_rows(self) -> int:
        """Capacity of the recent rows: the group under way and the whole groups that the window reaches back into."""
        return self.group * (1 + -(-max(self.window - 1, 0) // self.group))

    @property
    def coded_bytes(self) -> int:
        """Bytes of a recent row in the few bits that the history's settings ask for, 0 where it stays as it is stored."""
        if not getattr(self.history, "recent_bits", 0):
            return 0
        return sum(numbers + -(-numbers // 2) + 2 for numbers in (self.dim, self.value_dim))

    @property
    def early_window(self) -> int:
        """The window as long as recent rows are not yet in few bits: as much of it as there is room for."""
        if not self.coded_bytes:
            return self.window
        return (self._recent_bytes // (self.row_bytes * self.group) - 1) * self.group + 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of k and v as stored: the unit of a budget."""
        return (self.dim + self.value_dim) * DTYPES[self.stored].itemsize

    @property
    def _recent_bytes(self) -> int:
        return max(self.recent_rows * self.coded_bytes, self.group * self.row_bytes)

    def base(self, group: int, window: int | None = None) -> int:
        """First recent row while group number `group` is answered."""
        first = group * self.group - max((self.window if window is None else window) - 1, 0)
        return max(0, first // self.group * self.group)

    def exact_from(self, rows: np.ndarray, stream: int | None, causal: bool) -> np.ndarray | None:
        """First row that is exact beside the sinks when query rows (n,) int64 are answered; (n,) int64.

        Full attention answers when all rows of the stream have passed: None if nobody knows how many these are.
        """
        if causal and self.history:
            return np.array([self.base(int(row) // self.group) for row in rows], np.int64)
        if causal:
            first: np.ndarray = np.maximum(rows - self.window + 1, 0)
            return first
        return None if stream is None else np.full(len(rows), max(stream - self.window, 0))

    def state_spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of every state array."""
        d, width = self.dim, self.dim + self.value_dim
        spec = {
            "counters": ((4,), "i8"),  # rows absorbed, first recent row, rows in the history, keys clipped
            "sinks": ((self.sinks, width), DTYPES[self.stored].holder),
            "recent": ((self._recent_bytes,), "u1")
            if self.coded_bytes
            else ((self.recent_rows, width), DTYPES[self.stored].holder),
            "range": ((2, self.value_dim), self.dtype),  # of the values in the history
        }
        if self.history:
            inner = registry.history_of(self.history).state_spec(self.history, d, self.value_dim)
            spec |= {f"history.{name}": s for name, s in inner.items()}
        return spec

    def work_spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, dtype) of the scratch arrays of one thread."""
        d, g = self.dim, self.group * self.stack
        spec = tile_spec(d, self.value_dim, g, self.dtype)
        spec["counts"] = (3,), "i8"  # queries clipped, guarded (z <= 0), unanswered
        if self.history:
            spec |= registry.history_of(self.history).work_spec(
                self.history, d, self.value_dim, self.group, g, self.dtype
            )
        return spec


def allocate(spec: dict) -> dict[str, np.ndarray]:
    """Arrays for a spec, their pages touched, so that what was projected is what is resident.

    Each begins on a cache line: vectors of a whole line that straddle two cost a quarter of an elimination's speed.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, one in spec.items():
        arrays |= laid_out({name: one}, np.empty(spec_bytes({name: one}) + LINE, np.uint8))
        arrays[name].fill(0)
    return arrays


def laid_out(spec: dict, room: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays for a spec in the bytes of `room`, one after the other, each on a cache line."""
    arrays, at = {}, 0
    for name, (shape, dtype) in spec.items():
        dtype = np.dtype(dtype)
        at += -(room.ctypes.data + at) % LINE
        size = int(np.prod(shape)) * dtype.itemsize
        arrays[name] = room[at : at + size].view(dtype).reshape(shape)
        at += size
    return arrays


def widest(one: dict, other: dict) -> dict:
    """What of `other` is larger than in `one`, or not in it."""
    sizes = [{name: spec_bytes({name: array}) for name, array in spec.items()} for spec in (one, other)]
    return {name: other[name] for name, size in sizes[1].items() if size > sizes[0].get(name, -1)}


def spec_bytes(spec: dict) -> int:
    """Bytes of all arrays of a spec."""
    return sum(int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize for shape, dtype in spec.values())
