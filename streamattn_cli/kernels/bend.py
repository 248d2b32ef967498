"""What models do to logits before the softmax, beside scaling them (METHODS.md (A12), (A13))."""

from streamattn_cli.kernels.exponential import exp
from streamattn_cli.kernels.jit import FAST, kernel


@kernel(cache=True, fastmath=FAST)
def bend_tile(tile, token, bend):
    """Bend logits (n, r) in place: x becomes cap tanh(x / cap) + slope (token's row - query's row).

    Row j is token `token` + j. bend: cap, 0 for none; slopes (heads,), of `group` queries each, or empty; group; the rows
    (r,) of the queries; and edge, gap: a token before `edge` is in the row of that number + gap, another in that of its number.
    """
    cap, slopes, group, rows, edge, gap = bend
    one, two = tile.dtype.type(1), tile.dtype.type(2)
    for j in range(tile.shape[0]):
        row = tile[j]
        if cap > 0:
            for i in range(row.shape[0]):
                x = abs(row[i] / cap)
                small = exp(-two * x)
                x = cap * ((one - small) / (one + small))
                row[i] = x if row[i] > 0 else -x
        at = token + j
        at += gap if at < edge else 0
        for h in range(slopes.shape[0]):
            for i in range(h * group, min((h + 1) * group, row.shape[0])):
                row[i] += slopes[h] * tile.dtype.type(at - rows[i])
