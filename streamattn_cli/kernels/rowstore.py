"""Rows kept exactly, in the dtype they came in: k and v side by side, widened when they are used."""

from streamattn_cli.kernels.jit import kernel
from streamattn_cli.kernels.widen import narrow_row, widen_row


@kernel(cache=True)
def load(rows, kind, k, c):
    """Widen stored rows (n, d + dv) into k (>= n, d) and c (>= n, dv + 1) = [v, weight].

    kind: that of the storage dtype, see widen.py. A row that is not finite stands for a dropped one: all 0, weight 0.
    """
    d, dv = k.shape[1], c.shape[1] - 1
    for i in range(rows.shape[0]):
        bad = widen_row(rows[i, :d], kind, k[i]) + widen_row(rows[i, d:], kind, c[i, :dv])
        c[i, dv] = 1
        if bad:
            k[i] = 0
            c[i] = 0


@kernel(cache=True)
def store(k, c, kind, nan, rows):
    """Keep k (n, d) and c (n, dv + 1) = [v, weight] in rows (n, d + dv); one of weight 0 as `nan`, that item of rows' dtype."""
    d, dv = k.shape[1], c.shape[1] - 1
    for i in range(k.shape[0]):
        if c[i, dv] == 0:
            rows[i] = nan
        else:
            narrow_row(k[i], kind, rows[i, :d])
            narrow_row(c[i, :dv], kind, rows[i, d:])
