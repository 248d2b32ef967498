"""The k largest entries of every column of a stream of rows, by heaps."""

import numpy as np

from streamattn_cli.kernels.jit import kernel


@kernel(inline="always")
def _worse(keys, rows, i, key, row):
    """Whether item i goes before one of this key and row: by its key, and of equal keys the later row."""
    return keys[i] < key or (keys[i] == key and rows[i] > row)


@kernel(cache=True)
def offer(block, start, side, keys, rows, values):
    """Offer a block (n, c) of rows start.. to the heaps (c, k): keys (least first), rows int64, values float64.

    An entry is kept by its key: |x| for side 0, x for side 1, -x for side -1. Of equal keys the earlier row stays;
    an entry that is not finite is passed over. Empty places have key -inf and row -1.
    """
    k = keys.shape[1]
    for r in range(block.shape[0]):
        for c in range(block.shape[1]):
            x = np.float64(block[r, c])
            key = abs(x) if side == 0 else side * x
            if not key > keys[c, 0] or not np.isfinite(x):
                continue
            heap, i = keys[c], 0
            while True:
                child = 2 * i + 1
                if child >= k:
                    break
                if child + 1 < k and _worse(heap, rows[c], child + 1, heap[child], rows[c, child]):
                    child += 1
                if not _worse(heap, rows[c], child, key, start + r):
                    break
                heap[i] = heap[child]
                rows[c, i] = rows[c, child]
                values[c, i] = values[c, child]
                i = child
            heap[i] = key
            rows[c, i] = start + r
            values[c, i] = x


@kernel(cache=True)
def add_sums(block, sums):
    """sums (3, c) += the count, the sum and the sum of squares of every column's finite entries, row after row."""
    for r in range(block.shape[0]):
        for c in range(block.shape[1]):
            x = np.float64(block[r, c])
            if np.isfinite(x):
                sums[0, c] += 1
                sums[1, c] += x
                sums[2, c] += x * x
