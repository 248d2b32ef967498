"""Squared norms of answers: how much a row may weigh in an error."""

from __future__ import annotations

import numpy as np

from streamattn_cli.kernels.jit import kernel

LANES = 4


@kernel(cache=True)
def squares(rows, out):
    """Squared norm of every row and head of rows (n, heads, dim), to out (n, heads) float64; the same for any n."""
    n, heads, dim = rows.shape
    whole = dim - dim % LANES
    for i in range(n):
        for h in range(heads):
            a = b = c = d = 0.0
            for j in range(0, whole, LANES):
                w, x, y, z = rows[i, h, j], rows[i, h, j + 1], rows[i, h, j + 2], rows[i, h, j + 3]
                a += np.float64(w) * np.float64(w)
                b += np.float64(x) * np.float64(x)
                c += np.float64(y) * np.float64(y)
                d += np.float64(z) * np.float64(z)
            for j in range(whole, dim):
                a += np.float64(rows[i, h, j]) * np.float64(rows[i, h, j])
            out[i, h] = (a + b) + (c + d)
