"""The sketches of the source paper once more, with explicit matrices, in float64 and without cleverness."""

import math

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x):
    """The finalizer of splitmix64, in Python integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def table_key(seed, table):
    """The key of one hash table of a seed."""
    return mix(mix((seed + GOLDEN) & MASK) ^ mix(((table + 1) * GOLDEN) & MASK))


def place(seed, table, buckets, row):
    """Bucket and sign of a row in a table."""
    h = mix((table_key(seed, table) + row * GOLDEN) & MASK)
    return ((h >> 32) * buckets) >> 32, 1.0 - 2.0 * (h & 1)


def count_sketch(seed, first_table, tables, buckets, rows):
    """The matrix (tables * buckets, rows) of a Count-Sketch."""
    matrix = np.zeros((tables * buckets, rows))
    for t in range(tables):
        for row in range(rows):
            bucket, sign = place(seed, first_table + t, buckets, row)
            matrix[t * buckets + bucket, row] = sign
    return matrix


def bit_tests(seed, first_table, tables, buckets, bits, rows):
    """The matrix of bit-test tables: 1 + bits counters in every bucket."""
    matrix = np.zeros((tables * buckets * (1 + bits), rows))
    for t in range(tables):
        for row in range(rows):
            bucket, sign = place(seed, first_table + t, buckets, row)
            base = (t * buckets + bucket) * (1 + bits)
            matrix[base, row] = sign
            for b in range(bits):
                matrix[base + 1 + b, row] = sign * (row >> b & 1)
    return matrix


def features(x, degree):
    """U2 and the multinomials: all monomials of degree <= g of rows x (n, d), each once, keyed by exponents."""
    from itertools import product

    kept = [a for a in product(range(degree + 1), repeat=x.shape[1]) if sum(a) <= degree]
    columns = {a: np.prod(x ** np.array(a), axis=1) for a in kept}
    many = {a: math.factorial(sum(a)) / math.prod(math.factorial(e) for e in a) for a in kept}
    return columns, many


def best_k(column, k):
    """The k-sparse column nearest to this one."""
    out = np.zeros_like(column)
    for row in sorted(range(len(column)), key=lambda i: (-abs(column[i]), i))[:k]:
        out[row] = column[row]
    return out
