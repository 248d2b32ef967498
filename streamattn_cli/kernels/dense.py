"""Exact softmax over a tile of logits, and the combination of partial answers (METHODS.md (A1), (A2))."""

import math

import numpy as np

from streamattn_cli.kernels.bend import bend_tile
from streamattn_cli.kernels.blas import LEFT, PLAIN, SMALL, product
from streamattn_cli.kernels.exponential import exp
from streamattn_cli.kernels.jit import FAST, kernel
from streamattn_cli.kernels.linear import LANE
from streamattn_cli.kernels.rowstore import load
from streamattn_cli.kernels.twelvebits import read

SEEN = 64  # tokens of a tile that are looked at: a multiple of this
ALL = np.int64(1 << 62)
NONE = np.int64(0)  # typed, or Numba would compile callees for this very number


@kernel(cache=True, fastmath=FAST)
def softmax_tile(logits, c, shift, always, low, high, top, m, y):
    """One step of the online softmax: turn a tile of logits into weights and rescale what was gathered so far.

    logits (n, r), in place. Row j is token j + shift, which query i sees if low[i] <= token < high[i]; the first `always`
    rows it sees whatever low says. c (n, dv + 1): a token of weight 0 is not there, whatever its logit. What is seen
    becomes exp(logit - m[i]), all else 0.
    m (r,), of the logits' dtype, holds the running maximum (-inf at first) and is raised; y (r, w) is multiplied by
    exp(m_old - m_new). top (r,): scratch.
    """
    tokens, weight, nothing = logits.shape[0], c.shape[1] - 1, logits.dtype.type(-np.inf)
    latest, earliest = low[0], high[0]
    for i in range(top.shape[0]):
        top[i] = m[i]
        latest, earliest = max(latest, low[i]), min(earliest, high[i])
    for j in range(tokens):
        row, token = logits[j], j + shift
        if c[j, weight] == 0:
            row[:] = nothing
            continue
        if token >= earliest:
            for i in range(row.shape[0]):
                row[i] = row[i] if token < high[i] else nothing
        if j >= always and token < latest:
            for i in range(row.shape[0]):
                row[i] = row[i] if token >= low[i] else nothing
    whole = tokens - tokens % 4
    for j in range(0, whole, 4):
        r0, r1, r2, r3 = logits[j], logits[j + 1], logits[j + 2], logits[j + 3]
        for i in range(top.shape[0]):
            x = r0[i] if r0[i] > r1[i] else r1[i]
            z = r2[i] if r2[i] > r3[i] else r3[i]
            x = x if x > z else z
            top[i] = x if x > top[i] else top[i]
    for j in range(whole, tokens):
        row = logits[j]
        for i in range(top.shape[0]):
            top[i] = row[i] if row[i] > top[i] else top[i]
    for i in range(top.shape[0]):
        if top[i] > m[i]:
            shrink = math.exp(m[i] - top[i])
            for j in range(y.shape[1]):
                y[i, j] *= shrink
            m[i] = top[i]
        elif top[i] == nothing:
            top[i] = 0
    if top.shape[0] % LANE == 0:
        for j in range(tokens):
            row = logits[j]
            for i in range(row.shape[0]):
                row[i] = exp(row[i] - top[i])
        return
    for j in range(tokens):  # vector code does not begin in the middle of a row: all rows as one
        row = logits[j]
        for i in range(row.shape[0]):
            row[i] -= top[i]
    _exp_all(logits.reshape(-1))


@kernel(fastmath=FAST)
def _exp_all(x):
    for i in range(x.shape[0]):
        x[i] = exp(x[i])


@kernel(cache=True)
def attend(gemm, q, k, c, shift, always, low, high, logits, gathered, m, y, bend=None):
    """Take tokens k (n, d), c (n, dv + 1) into the partial answers (m, y) of queries q (d, r), already scaled.

    As `softmax_tile` between two matrix products, so many tokens at a time as BLAS is fastest with. gemm: `blas.address` of
    the dtype. logits ((n + 1) r or more) and gathered (r, dv + 1) are scratch; in logits[r:] the last weights (n, r) are left.
    bend: see bend_tile; without it there is no code for it.
    """
    count, r = k.shape[0], q.shape[1]
    step = tile_rows(r, max(k.shape[1], c.shape[1]), count)
    top = logits[:r]
    for first in range(0, count, step):
        n = min(step, count - first)
        tile, rows = logits[r : r + n * r].reshape(n, r), c[first : first + n]
        product(gemm, PLAIN, k[first : first + n], q, tile)
        if bend is not None:
            bend_tile(tile, shift + first, bend)
        softmax_tile(tile, rows, shift + first, always - first, low, high, top, m, y)
        product(gemm, LEFT, tile, rows, gathered)
        for i in range(r):
            for j in range(y.shape[1]):
                y[i, j] += gathered[i, j]


@kernel(cache=True)
def exact(gemm, q, kind, sinks, recent, base, end, low, high, k, c, logits, gathered, m, y, bend=None):
    """Answer queries q (d, r) over the sinks and the recent rows, as if they lay side by side, into m (r,), y (r, dv + 1).

    sinks (S, d + dv): the first S rows, stored as KIND `kind`; recent: rows base..end (see twelvebits.read), of which those of sinks that are
    among them count as such. low, high (r,): the tokens that a query sees, sinks aside. k (tile, d), c (tile, dv + 1),
    logits and gathered are scratch (see `attend`). bend: the first four of bend_tile's, or nothing.
    """
    m[:], y[:] = -math.inf, 0
    total, tile = sinks.shape[0], k.shape[0]
    held = min(total, base)
    columns = held + end - base
    for start in range(0, columns, tile):
        n = min(tile, columns - start)
        cut = max(min(held - start, n), 0)  # tokens of this tile that are sinks
        load(sinks[start : start + cut], kind, k, c)
        read(recent, start + cut - held, start + n - held, kind, k[cut:n], c[cut:n])
        shift, always = base - held + start, total - start
        if bend is None:
            attend(gemm, q, k[:n], c[:n], shift, always, low, high, logits, gathered, m, y)
        else:
            bent = bend + (base, held - base)
            attend(gemm, q, k[:n], c[:n], shift, always, low, high, logits, gathered, m, y, bent)


@kernel(cache=True)
def see(gemm, queries, chunk, positions, window, start, rows, k, c, bounds, logits, gathered, m, y, bend=None):
    """Take tokens start, start + 1, ..., k (n, d), c (n, dv + 1), into the partial answers m (r,), y (r, dv + 1) of r queries.

    queries (r d,): `chunk` at a time, the last fewer, each as columns (d, chunk), already scaled. positions (r,): query i sees
    the last `window` tokens up to positions[i]; empty: all the first `rows` of these. bounds (2, chunk), logits and gathered:
    scratch. bend: the first two of bend_tile's, or nothing; slopes need positions.
    """
    d = k.shape[1]
    for a in range(0, m.shape[0], chunk):
        r = min(chunk, m.shape[0] - a)
        low, high, most = bounds[0, :r], bounds[1, :r], rows if positions.shape[0] == 0 else 0
        least = 0 if positions.shape[0] == 0 else rows
        for i in range(r):
            low[i], high[i] = 0, rows
            if positions.shape[0]:
                high[i] = min(rows, positions[a + i] - start + 1)
                low[i] = max(0, positions[a + i] - start + 1 - window)
                most, least = max(most, high[i]), min(least, low[i])
        seen = min(k.shape[0], -(-most // SEEN) * SEEN)  # nobody here sees the others
        if seen > 0 and least < rows:
            q, part = queries[a * d : (a + r) * d].reshape(d, r), gathered[:r]
            ours = m[a : a + r], y[a : a + r]
            if bend is None:
                attend(gemm, q, k[:seen], c[:seen], NONE, NONE, low, high, logits, part, ours[0], ours[1])
            else:
                bent = bend + (chunk, positions[a : a + r], ALL, start)
                attend(gemm, q, k[:seen], c[:seen], NONE, NONE, low, high, logits, part, ours[0], ours[1], bent)


@kernel(cache=True)
def tile_rows(queries, width, most):
    """How many tokens of so many numbers to take at a time, at most `most`: a multiple of 16 for which products stay
    small, or all where those would be too few."""
    fit = SMALL // max(queries * width, 1)
    fit -= fit % 16
    return most if fit < 64 else min(most, fit)


@kernel(cache=True)
def place(q, group, at, scale, high, slope, window, raw, scaled, lows, highs):
    """Lay queries q (heads, n, d) into a tile of heads x group rows, from row `at` of each head on; the other rows see nothing.

    raw (r, d): the queries; scaled (d, r): scale * the queries. Query i sees the tokens lows <= j < highs (r,), the last
    `window` before high + slope * i.
    """
    heads, n, d = q.shape
    for r in range(heads * group):
        i = r % group - at
        if i < 0 or i >= n:
            raw[r], lows[r], highs[r] = 0, 0, 0
            continue
        highs[r] = high + slope * i
        lows[r] = max(highs[r] - window, 0)
        for j in range(d):
            raw[r, j] = q[r // group, i, j]
    for j in range(d):
        column = scaled[j]
        for r in range(heads * group):
            column[r] = raw[r, j] * scale


@kernel(cache=True)
def add_history(m, y, past_m, past_y, low, high, seen, share, doubt):
    """Make a history's partial answer (past_m, past_y) sane (see `guard`) and add it to (m, y), in place.

    share (r,): which part of the mass it brought, 0..1. doubt (r,): that of the history's answer before, that of the whole
    afterwards. Rows that saw nothing (seen[i] = 0) are left alone. Returns the number of rows whose z was not positive.
    """
    bad, width = 0, y.shape[1] - 1
    for i in range(m.shape[0]):
        share[i] = 0
        if seen[i] == 0:
            doubt[i] = 0
            continue
        if not _sane(past_y[i], low, high):
            bad += 1
            doubt[i] = 1
            continue
        part = past_y[i, width] * _join(m, y, past_m, past_y, i)
        share[i] = min(max(part / y[i, width], 0.0), 1.0)
        doubt[i] *= share[i]
    return bad


@kernel(cache=True, fastmath=FAST)
def relate(y, low, high, doubt):
    """Make of how far sums of weights may be off, doubt (r,), how far answers y (r, dv + 1) may be, relative to their norm.

    low, high (dv,): the range of the values. Weight that is missing moves an answer towards others by as much as values
    differ. Doubts of 1 and more stay; none becomes that. METHODS.md (N15)
    """
    width, spread = low.shape[0], 0.0
    for j in range(width):
        spread += (np.float64(high[j]) - np.float64(low[j])) ** 2
    for i in range(y.shape[0]):
        if not 0 < doubt[i] < 1:
            continue
        row, size = y[i], 0.0
        for j in range(width):
            size += np.float64(row[j]) * np.float64(row[j])
        size /= np.float64(row[width]) ** 2
        away = doubt[i] * (1 + math.sqrt(spread / size)) if size > 0 else (doubt[i] if spread == 0 else np.inf)
        doubt[i] = away / (1 + away) if away < 1e6 else 1 - 1e-6


@kernel(cache=True)
def add_sinks(m, y, seen, logits, group):
    """Add a token without a value, of logit logits[i // group], to the partial answers (m, y) of queries i that see any
    token (seen[i] > 0), in place."""
    width = y.shape[1] - 1
    for i in range(m.shape[0]):
        if seen[i] <= 0:
            continue
        logit = logits[i // group]
        top = m.dtype.type(max(m[i], logit))
        mine = math.exp(m[i] - top)
        for j in range(y.shape[1]):
            y[i, j] *= mine
        y[i, width] += math.exp(logit - top)
        m[i] = top


@kernel(cache=True)
def combine(m, y, other_m, other_y):
    """Add the partial answer (other_m, other_y) of a disjoint set of tokens to (m, y), in place.

    m (r,), y (r, dv + 1) with z in the last column. An empty part has m = -inf.
    """
    for i in range(m.shape[0]):
        if max(m[i], other_m[i]) > -math.inf:
            _join(m, y, other_m, other_y, i)


@kernel()
def _join(m, y, other_m, other_y, i):
    """Row i of `combine`, where either has anything; returns what the other's numbers were multiplied by."""
    top = max(m[i], other_m[i])
    mine = math.exp(m[i] - top)
    theirs = math.exp(other_m[i] - top)
    for j in range(y.shape[1]):
        y[i, j] = y[i, j] * mine + other_y[i, j] * theirs
    m[i] = top
    return theirs


@kernel(cache=True)
def extend_range(c, low, high):
    """Widen low, high (dv,) to the values of the rows of c (n, dv + 1) that have a weight; return the number of those."""
    live = 0
    width = c.shape[1] - 1
    for i in range(c.shape[0]):
        if c[i, width] > 0:
            live += 1
            for j in range(width):
                low[j] = min(low[j], c[i, j])
                high[j] = max(high[j], c[i, j])
    return live


@kernel(cache=True)
def guard(m, y, low, high):
    """Make a compressed part sane, in place; return the number of rows whose z was not positive.

    Such a row contributes nothing (m = -inf). Elsewhere y / z is clipped per channel to [low, high] (dv,), the range
    of the values that the part absorbed.
    """
    bad = 0
    for i in range(m.shape[0]):
        if not _sane(y[i], low, high):
            bad += 1
            m[i] = -math.inf
            y[i] = 0
    return bad


@kernel()
def _sane(row, low, high):
    """Clip a partial answer (dv + 1,) to the range of its values, in place; False where its z is not positive."""
    z = row[row.shape[0] - 1]
    if not (z > 0 and z < math.inf):
        return False
    for j in range(row.shape[0] - 1):
        least, most = low[j] * z, high[j] * z
        x = row[j] if row[j] > least else least
        row[j] = x if x < most else most
    return True


@kernel(cache=True)
def finish(m, y, fallback, out):
    """out (r, dv) = y / z; a row that no token answered gets `fallback` (dv,), and one whose sums or logits are beyond
    the range of floats NaN. Return the number of the first."""
    empty = 0
    width = y.shape[1] - 1
    for i in range(m.shape[0]):
        z = y[i, width]
        if not (z < math.inf and m[i] < math.inf):
            for j in range(width):
                out[i, j] = math.nan
        elif m[i] == -math.inf or z <= 0:
            empty += 1
            for j in range(width):
                out[i, j] = fallback[j]
        else:
            for j in range(width):
                out[i, j] = y[i, j] / z
    return empty
