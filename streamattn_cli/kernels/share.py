"""Which share of the attention falls on a range of tokens."""

import math

from numba import njit


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def add_range(weights, low, high, before, m, mass):
    """Add the weights of columns low <= j < high[i] of every row i to mass (r,) float64, in place.

    weights (r, c) are relative to the running maxima m (r,), as softmax_tile leaves them; mass came relative to `before`.
    """
    for i in range(weights.shape[0]):
        if m[i] == -math.inf:
            continue
        mass[i] *= math.exp(before[i] - m[i])
        total = 0.0
        for j in range(max(low, 0), min(high[i], weights.shape[1])):
            total += weights[i, j]
        mass[i] += total
