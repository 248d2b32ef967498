"""The oracle of attention as models have it: queries at any row, windows that it does not leave, learned sinks,
softcapping and ALiBi."""

import math

import numpy as np


def attention(q, k, v, scale, rows=None, window=None, sink=None, cap=None, slope=0.0):
    """One head: q (n, d), k (m, d), v (m, dv) -> (n, dv), float64. Query i sees the keys up to rows[i] (None: all), the last
    `window` of them, and a token of logit `sink` without a value. Logits are capped, then biased by `slope` a row."""
    out = np.zeros((len(q), v.shape[1]))
    for i in range(len(q)):
        last = len(k) - 1 if rows is None else rows[i]
        seen = range(0 if window is None else max(0, last - window + 1), last + 1)
        logits = [scale * float(q[i].astype("f8") @ k[j].astype("f8")) for j in seen]
        if cap is not None:
            logits = [cap * math.tanh(x / cap) for x in logits]
        logits = [x + slope * (j - last) for j, x in zip(seen, logits)]
        top = max(logits if sink is None else [*logits, sink])
        z = sum(math.exp(x - top) for x in logits) + (0 if sink is None else math.exp(sink - top))
        for j, x in zip(seen, logits):
            out[i] += math.exp(x - top) / z * v[j].astype("f8")
    return out
