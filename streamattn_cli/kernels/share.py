"""Which share of the attention falls on a range of tokens."""

import math

from streamattn_cli.kernels.jit import kernel


@kernel(cache=True, fastmath={"reassoc", "contract", "nsz"})
def add_range(weights, low, high, before, m, mass):
    """Add the weights of rows low <= j < high[i] for every query i to mass (r,) float64, in place.

    weights (n, r) are relative to the running maxima m (r,), as softmax_tile leaves them; mass came relative to `before`.
    """
    for i in range(m.shape[0]):
        if m[i] > -math.inf:
            mass[i] *= math.exp(before[i] - m[i])
    for j in range(max(low, 0), weights.shape[0]):
        row = weights[j]
        for i in range(row.shape[0]):
            mass[i] += row[i] if j < high[i] else 0
