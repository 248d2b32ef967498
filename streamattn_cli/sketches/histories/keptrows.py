"""The rows that `evict` keeps, oldest first: all as they are stored, or the older ones in few bits."""

from __future__ import annotations

import numpy as np

from streamattn_cli.sketches.coding.codedrows import CodedRows
from streamattn_cli.sketches.histories.bank import Bank
from streamattn_cli.sketches.partial import Partial


class KeptRows:
    """Rows in a bank, and before them in `coded`, if that is not None.

    held (4,) or (2,) int64 in place: all rows; -; those of them that the bank has, and 1 once the means of `coded` are known.
    """

    def __init__(self, bank: Bank, coded: CodedRows | None, held: np.ndarray):
        self.bank, self.coded, self.held = bank, coded, held

    @property
    def plain(self) -> int:
        """How many rows are as they were stored: the newest."""
        return int(self.held[2] if self.coded else self.held[0])

    @property
    def rounded(self) -> CodedRows:
        """The older rows, where they are in few bits."""
        assert self.coded is not None, "all rows are as they are stored"
        return self.coded

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows as k (n, d) and c (n, dv + 1) = [v, 1], float64."""
        k, c = self.bank.load(0, self.plain)
        older = int(self.held[0]) - self.plain
        if not older:
            return k, c
        dtype = np.float64 if self.bank.storage == "f8" else np.float32
        found = self.rounded.load(0, older, np.empty((older, k.shape[1]), dtype), np.empty((older, c.shape[1]), dtype))
        return np.concatenate([found[0], k]), np.concatenate([found[1], c])

    def keep(self, stay: np.ndarray) -> None:
        """Drop the rows that are not to stay (n,)."""
        older, left = len(stay) - self.plain, int(stay[len(stay) - self.plain :].sum())
        self.bank.rows[:left] = self.bank.rows[: self.plain][stay[older:]]
        if self.coded:
            self.coded.keep(stay[:older])
            self.held[2] = left
        self.held[0] = int(stay.sum())

    def put(self, k: np.ndarray, c: np.ndarray) -> None:
        """Append rows k (n, d), c (n, dv + 1) of weight 1; the oldest of more than the bank has places for are rounded."""
        plain, room = self.plain, len(self.bank.rows)
        over = plain + len(k) - room if self.coded else 0
        if over > 0:
            mine = self.bank.load(0, plain)
            k, c = (np.concatenate(both) for both in zip(mine, (k, c), strict=True))
            if not self.held[3]:
                self.rounded.centre[:], self.rounded.mean[:] = k.mean(axis=0), c[:, :-1].mean(axis=0)
                self.held[3] = 1
            dtype = np.float64 if self.bank.storage == "f8" else np.float32
            k, c = k.astype(dtype), c.astype(dtype)
            self.rounded.put(int(self.held[0]) - plain, k[:over], c[:over])
            k, c, self.held[0], plain = k[over:], c[over:], self.held[0] - plain + over, 0
        self.bank.put(plain, k, c)
        self.held[0] += len(k)
        if self.coded:
            self.held[2] = plain + len(k)

    def partial(self, work: dict, out: Partial) -> None:
        """Answer the tile of queries in work["scaled"] over all rows."""
        out.clear()
        if self.held[0] > self.plain:
            self.rounded.partial(int(self.held[0]) - self.plain, work, out)
        self.bank.add_partial(self.plain, work, out)
