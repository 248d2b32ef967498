"""Tiles of queries that are answered together: scratch, laid out once for every number of heads."""

from __future__ import annotations

import numpy as np

from streamattn_cli.kernels import dense
from streamattn_cli.sketches.partial import Partial

TILE = 512  # keys of one tile
TILE_QUERIES = 256  # queries of one tile, over several heads where groups are small
ALL = 1 << 62  # a window that is never reached


def tile_spec(dim: int, value_dim: int, queries: int, dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype) of the scratch arrays of one thread."""
    w = value_dim + 1
    return {
        "tile": ((queries, dim), dtype),
        "scaled": ((queries * dim,), dtype),
        "logits": (((TILE + 1) * queries,), dtype),
        "product": ((queries, w), dtype),
        "bounds": ((2, queries), "i8"),
        "share": ((queries,), dtype),
        "m": ((2, queries), dtype),
        "y": ((2, queries, w), "f8"),
        "doubt": ((queries,), "f4"),
        "tile_k": ((TILE, dim), dtype),
        "tile_c": ((TILE, w), dtype),
    }


class QueryTile:
    """Views of one thread's scratch for queries of `heads` heads, `group` rows each.

    queries (r, d); scaled (d, r); bounds (2, r): the first token that a query sees, and the end; exact, past: partial answers;
    they share their doubt (r,), of the history's answer and then of the whole; share (r,): the part of the mass that the
    history brought; `work`: the scratch, cut to r rows.
    """

    def __init__(self, work: dict, heads: int, group: int):
        self.group, rows = group, heads * group
        cut = {name: work[name][:rows] for name in ("tile", "product", "share")}
        cut["scaled"] = work["scaled"][: rows * work["tile"].shape[1]].reshape(-1, rows)
        self.work = {**work, **cut}
        self.queries, self.scaled, self.share = cut["tile"], cut["scaled"], cut["share"]
        self.bounds = work["bounds"][:, :rows]
        self.exact, self.past = (
            Partial(work["m"][i, :rows], work["y"][i, :rows], work["doubt"][:rows]) for i in (0, 1)
        )

    @staticmethod
    def of(work: dict, heads: int, group: int) -> QueryTile:
        """The one of this thread: made at first use."""
        key = ("tile", heads, group)
        if key not in work:
            work[key] = QueryTile(work, heads, group)
        tile: QueryTile = work[key]
        return tile

    def place(self, q: np.ndarray, at: int, scale: float, high: int, slope: int, window: int) -> None:
        """Lay in q (heads, n, d) from row `at` of a group on; query i sees the last `window` tokens before high + slope i."""
        scale = self.queries.dtype.type(scale)
        q = np.ascontiguousarray(q)  # so that there is one kernel of it, not another for parts of a block
        dense.place(q, self.group, at, scale, high, slope, window, self.queries, self.scaled, *self.bounds)

    def add_history(self, range_: np.ndarray, of_weights: bool) -> int:
        """Add what the history answered, `past`, within the range (2, dv) of its values; returns how many rows had z <= 0.

        of_weights: whether its doubt is that of sums of weights.
        """
        past, exact = self.past, self.exact
        bounds, share = self.bounds[1], self.share
        bad = int(dense.add_history(exact.m, exact.y, past.m, past.y, *range_, bounds, share, past.doubt))
        if of_weights:
            dense.relate(exact.y, *range_, past.doubt)
        return bad
