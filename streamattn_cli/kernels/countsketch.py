"""Count-Sketch: where a row goes, with which sign, and the scan that finds heavy rows again (METHODS.md (S1), (S8)).

Bucket and sign of a row in a table are read off one splitmix64 output of (key of the table, global row): nothing of
the size of the stream is stored, and shards, pipes and machines agree. Unsigned 64-bit products wrap around on
purpose: without JIT the caller silences NumPy's overflow warning.
"""

import numpy as np

from streamattn_cli.kernels.counters import GOLDEN, mix
from streamattn_cli.kernels.jit import kernel

_U1, _U32 = np.uint64(1), np.uint64(32)


@kernel(cache=True)
def table_keys(seed, first, out):
    """Keys (uint64) of the tables first, first + 1, ... of a seed; seed and first are uint64."""
    for i in range(out.shape[0]):
        out[i] = mix(mix(seed + GOLDEN) ^ mix((first + np.uint64(i) + _U1) * GOLDEN))


@kernel(inline="always")
def _hash(key, row):
    return mix(key + np.uint64(row) * GOLDEN)


@kernel(inline="always")
def _bucket(h, buckets):
    """An even number in [0, buckets), buckets < 2^32, from the upper half of a hash."""
    return np.int64(((h >> _U32) * np.uint64(buckets)) >> _U32)


@kernel(inline="always")
def _sign(h):
    return 1.0 - 2.0 * np.float64(h & _U1)


@kernel(cache=True)
def places(keys, buckets, first, target, sign):
    """target (n, >= tables) int64 and sign (n, >= tables) float64 of rows first.. in tables that lie one after the
    other, `buckets` each."""
    for r in range(target.shape[0]):
        for t in range(keys.shape[0]):
            h = _hash(keys[t], first + r)
            target[r, t] = t * buckets + _bucket(h, buckets)
            sign[r, t] = _sign(h)


@kernel(cache=True)
def rows_places(keys, buckets, rows, target, sign):
    """The same for any rows (n,) int64."""
    for i in range(rows.shape[0]):
        for t in range(keys.shape[0]):
            h = _hash(keys[t], rows[i])
            target[i, t] = t * buckets + _bucket(h, buckets)
            sign[i, t] = _sign(h)


@kernel(cache=True)
def bit_places(keys, buckets, bits, rows, at, target, sign, count):
    """Append to every row's targets its counters in bit-test tables: the bucket's sum, and the sum of its rows with bit
    b set for every bit that is set. Counters of a bucket lie together, 1 + bits of them; the tables start at 0."""
    for i in range(rows.shape[0]):
        e = at
        for t in range(keys.shape[0]):
            h = _hash(keys[t], rows[i])
            s = _sign(h)
            base = (t * buckets + _bucket(h, buckets)) * (1 + bits)
            target[i, e] = base
            sign[i, e] = s
            e += 1
            for b in range(bits):
                if (rows[i] >> b) & 1:
                    target[i, e] = base + 1 + b
                    sign[i, e] = s
                    e += 1
        count[i] = e


@kernel(cache=True)
def add_rows(rows, bucket, sign, sketch):
    """sketch[bucket[r]] += sign[r] rows[r], rows (n, w) of any float dtype; bucket and sign (n, 1)."""
    for r in range(rows.shape[0]):
        s = sign[r, 0]
        out = sketch[bucket[r, 0]]
        for j in range(rows.shape[1]):
            out[j] += s * rows[r, j]


@kernel(inline="always")
def _sift(scores, rows, score, row):
    """Replace the least item of a heap (least first) by a better one."""
    size = scores.shape[0]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and scores[child + 1] < scores[child]:
            child += 1
        if scores[child] >= score:
            break
        scores[i] = scores[child]
        rows[i] = rows[child]
        i = child
    scores[i] = score
    rows[i] = row


@kernel(inline="always")
def _middle(values, count):
    """The middle item of the first `count` values, which are sorted in place."""
    for i in range(1, count):
        x = values[i]
        j = i - 1
        while j >= 0 and values[j] > x:
            values[j + 1] = values[j]
            j -= 1
        values[j + 1] = x
    return values[count // 2] if count % 2 else 0.5 * (values[count // 2 - 1] + values[count // 2])


@kernel(cache=True, _nrt=True)
def scan(table, signed, keys, first, stop, scores, rows):
    """Offer rows [first, stop) to the heap (scores, rows), least first, by the size of the median of their counters.

    table (tables, buckets) float64. signed: counters of one column, which count with the row's sign; otherwise they
    are squared norms over the columns. A row is dropped as soon as too few tables can put it above the heap's least.
    """
    tables, buckets = table.shape
    need = tables // 2 + 1
    seen = np.empty(tables)
    for row in range(first, stop):
        least = scores[0]
        up, down = 0, 0
        for t in range(tables):
            h = _hash(keys[t], row)
            x = table[t, _bucket(h, buckets)]
            if signed:
                x *= _sign(h)
                down += x < -least
            up += x > least
            if max(up, down) + tables - 1 - t < need:
                break
            seen[t] = x
        if max(up, down) >= need:
            score = abs(_middle(seen, tables))
            if score > least:
                _sift(scores, rows, score, row)


@kernel(cache=True, _nrt=True)
def medians(z, target, sign, out):
    """out (n, c) = the median over the tables of a row's counters, with its signs; z (counters, c), target, sign (n,
    tables)."""
    tables = target.shape[1]
    seen = np.empty(tables)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for t in range(tables):
                seen[t] = sign[i, t] * z[target[i, t], j]
            out[i, j] = _middle(seen, tables)


@kernel(cache=True)
def add_moments(rows, sums, bounds):
    """sums (2, w) += the sums of rows (n, w) and of their squares; bounds (2, w) become their least and largest
    items."""
    for r in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            x = np.float64(rows[r, j])
            sums[0, j] += x
            sums[1, j] += x * x
            bounds[0, j] = min(bounds[0, j], x)
            bounds[1, j] = max(bounds[1, j], x)
