"""Rows made up as they are read: a seekable tensor of any length with known properties, in constant memory.

Every entry depends only on (seed, stream, global row, column), stream being one of q, k, v: the k rows of a seed are
the same whichever tensors are emitted beside them, however the rows are cut into blocks, on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from streamattn_cli.errors import UsageError
from streamattn_cli.rows.convert import items_of
from streamattn_cli.rows.dtypes import DTYPES, WRITTEN
from streamattn_cli.rows.tensors.tensor import SeekableTensor

STREAMS = {"q": 1, "k": 2, "v": 3, "heavy": 4}
EMITS = ("q", "k", "v", "kv", "qkv")
MAX_ROWS = 1 << 43  # the counter's row part; see kernels/synthetic.py
MAX_WIDTH = 1 << 20
NARROW_ENTRIES = 1 << 14  # entries converted at a time when the storage type is 16 bits wide
_MADE = [name for name, found in DTYPES.items() if found.words[0] in WRITTEN]
SCRATCH_PAIRS = 1 << 12  # CHUNK of kernels/synthetic.py, known without importing numba


@dataclass(frozen=True)
class SyntheticSpec:
    """What to make up.

    Keys have independent normal entries of variance logit_std / (scale sqrt(dim)); queries have random directions and
    all the same length, so that the logits scale * q.k of every query row have standard deviation logit_std. Values are
    standard normal plus value_mean.
    With heavy > 0 every query carries the same component along the unit direction (1, ..., 1)/sqrt(dim), every
    ordinary key carries none, and `heavy` keys, one at a hashed place in each of as many equal segments of the rows,
    are that direction times a length that makes their logit heavy_logit for every query. The r-th heavy row's value is
    shifted by 1 in column r mod value_dim. The entries' variance is then logit_std / (scale sqrt(dim - 1)), because
    one direction is taken: the ordinary logits keep their spread.
    """

    rows: int
    dim: int
    value_dim: int
    heads: int = 1
    kv_heads: int = 1
    logit_std: float = 1.0
    scale: float = 1.0
    heavy: int = 0
    heavy_logit: float = 10.0
    value_mean: float = 0.0
    seed: int = 0
    dtype: str = "f4"

    def __post_init__(self) -> None:
        for name in ("rows", "dim", "value_dim", "heads", "kv_heads"):
            self._demand(getattr(self, name) >= 1, name, "at least 1")
        self._demand(self.rows <= MAX_ROWS, "rows", f"at most {MAX_ROWS}")
        for name in ("logit_std", "scale"):
            value = getattr(self, name)
            self._demand(math.isfinite(value) and value > 0, name, "a finite number above 0")
        self._demand(math.isfinite(self.value_mean), "value_mean", "a finite number")
        self._demand(self.heads % self.kv_heads == 0, "heads", f"a multiple of kv_heads ({self.kv_heads})")
        self._demand(0 <= self.seed < 1 << 64, "seed", "from 0 to 2^64 - 1")
        self._demand(self.dtype in _MADE, "dtype", "one of " + ", ".join(_MADE))
        self._demand(0 <= self.heavy <= self.rows, "heavy", f"from 0 to the number of rows ({self.rows})")
        if self.heavy:
            self._demand(self.dim >= 2, "dim", "at least 2 when heavy rows are planted")
            positive = math.isfinite(self.heavy_logit) and self.heavy_logit > 0
            self._demand(positive, "heavy_logit", "a finite number above 0")

    def _demand(self, met: bool, name: str, expected: str) -> None:
        if not met:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is {getattr(self, name)}: it must be {expected}")

    @property
    def entry_std(self) -> float:
        """Standard deviation of one entry of k (before the heavy direction is set)."""
        free = self.dim - 1 if self.heavy else self.dim
        return math.sqrt(self.logit_std / (self.scale * math.sqrt(free)))

    @property
    def query_length(self) -> float:
        """Length of every query (across the heavy direction, if there is one)."""
        return self.entry_std * math.sqrt(self.dim - 1 if self.heavy else self.dim)

    @property
    def heavy_length(self) -> float:
        """Length of q and of a heavy k along the heavy direction: scale * length**2 = heavy_logit."""
        return math.sqrt(self.heavy_logit / self.scale) if self.heavy else 0.0

    def width(self, part: str) -> int:
        """Columns of one of q, k, v."""
        return {"q": self.heads * self.dim, "k": self.kv_heads * self.dim, "v": self.kv_heads * self.value_dim}[part]


class SyntheticTensor(SeekableTensor):
    """A RowTensor of shape (1, rows, C): the packed columns of `emit`, one of 'q', 'k', 'v', 'kv', 'qkv', in that
    order, heads side by side within each."""

    outer = 1

    def __init__(self, spec: SyntheticSpec, emit: str):
        if emit not in EMITS:
            raise UsageError(f"--emit is {emit!r}: it must be one of " + ", ".join(EMITS))
        widest = max(spec.width(part) for part in emit)
        if widest > MAX_WIDTH:
            raise UsageError(
                f"a row of {widest} columns: at most {MAX_WIDTH} per tensor; use fewer heads or dimensions"
            )
        self.spec = spec
        self.emit = emit
        self.name = f"synthetic:{emit}"
        self.width = sum(spec.width(part) for part in emit)
        self.dtype = spec.dtype
        self.rows = spec.rows
        self._narrow = DTYPES[spec.dtype].itemsize < 4
        # the kernel's scratch, and the floats that 16-bit rows are rounded from
        scratch = 24 * max(SCRATCH_PAIRS, self.width)
        self.held_bytes = scratch + (12 * max(NARROW_ENTRIES, self.width) if self._narrow else 0)

    def read_into(self, buf: np.ndarray, start: int, segment: int | None = None) -> int:
        rows = self.there(buf, start, segment)
        out = buf[0, :rows]
        if not self._narrow:
            self._fill(out, start)
            return rows
        step = max(1, NARROW_ENTRIES // self.width)
        for first in range(0, rows, step):
            wide = np.empty((min(step, rows - first), self.width), np.float32)
            self._fill(wide, start + first)
            out[first : first + len(wide)] = items_of(wide, self.dtype)
        return rows

    def heavy_rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The heavy rows in [start, stop): their ranks among all heavy rows and their row numbers, int64 each."""
        spec = self.spec
        if not spec.heavy or stop <= start:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        from streamattn_cli.kernels.synthetic import heavy_positions

        first = max(0, start * spec.heavy // spec.rows - 1)
        last = min(spec.heavy, stop * spec.heavy // spec.rows + 2)
        positions = np.empty(last - first, np.int64)
        with np.errstate(over="ignore"):
            heavy_positions(_key(spec.seed, "heavy"), spec.rows, spec.heavy, first, positions)
        inside = (positions >= start) & (positions < stop)
        return np.arange(first, last)[inside], positions[inside]

    def _fill(self, out: np.ndarray, start: int) -> None:
        """out (n, C) float32 or float64 = rows start, start + 1, ..."""
        column = 0
        ranks, positions = self.heavy_rows(start, start + len(out))
        for part in self.emit:
            self._fill_part(part, out, start, column)
            width = self.spec.width(part)
            if part == "k":
                along = self.spec.heavy_length / math.sqrt(self.spec.dim)
                out[positions - start, column : column + width] = along
            if part == "v":
                for head in range(self.spec.kv_heads):
                    base = column + head * self.spec.value_dim
                    out[positions - start, base + ranks % self.spec.value_dim] += 1
            column += width

    def _fill_part(self, part: str, out: np.ndarray, start: int, column: int) -> None:
        from streamattn_cli.kernels.synthetic import align_heads, fill_normals, set_length

        spec = self.spec
        scale, mean = (1.0, float(spec.value_mean)) if part == "v" else (spec.entry_std, 0.0)
        # Unsigned products wrap around on purpose; NumPy warns of that when the kernels run without JIT.
        with np.errstate(over="ignore"):
            fill_normals(_key(spec.seed, part), start, spec.width(part), scale, mean, out, column)
        if spec.heavy and part != "v":
            align_heads(out, column, spec.heads if part == "q" else spec.kv_heads, spec.dim, 0.0)
        if part == "q":
            set_length(out, column, spec.heads, spec.dim, spec.query_length)
            if spec.heavy:
                align_heads(out, column, spec.heads, spec.dim, spec.heavy_length)


def _key(seed: int, stream: str) -> np.uint64:
    from streamattn_cli.kernels.synthetic import stream_key

    with np.errstate(over="ignore"):
        return np.uint64(stream_key(np.uint64(seed), np.uint64(STREAMS[stream])))
