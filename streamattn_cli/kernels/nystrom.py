"""`nystrom` without the interpreter: rows become atoms, atoms answer, and whole groups of a stream pass in one call."""

import math

import numpy as np

from streamattn_cli.kernels.atoms import gather, load, store
from streamattn_cli.kernels.compress import compress
from streamattn_cli.kernels.dense import (
    NONE,
    add_history,
    add_sinks,
    exact,
    extend_range,
    finish,
    place,
    relate,
)
from streamattn_cli.kernels.hadamard import turn_columns, turn_rows
from streamattn_cli.kernels.jit import kernel
from streamattn_cli.kernels.queries import factor, learn, typical
from streamattn_cli.kernels.rotary import turn
from streamattn_cli.kernels.rowstore import load as load_rows
from streamattn_cli.kernels.rowstore import store as store_rows
from streamattn_cli.kernels.signed import attend_signed
from streamattn_cli.kernels.twelvebits import decode, encode

ONE, ALL = np.int64(1), np.int64(1 << 62)
NOISE = 0.03  # the relative error of what an atom brings, as the doubt takes it to be


@kernel(cache=True, inline="always")
def insert(gemm, k, c, active, scale, temper, rope, held, centre, bank, model, scratch, alive):
    """Make atoms of new rows k (n, d), c (n, dv + 1); where there is no room, compress them with a slice of `active` atoms.

    held (4,) int64: atoms, -, first of the next slice, stores so far. bank: all atoms (see atoms.load), keys relative to
    centre (d,). model: that of the queries (see queries.learn), and their number
    (1,) int64 of rows. rope: see rotary.turn. scratch (insert_size(...),) and alive (active + n,) bool.
    """
    (new, d), width = k.shape, c.shape[1]
    count, most = held[0], bank[3].shape[0]
    taken = min(active, count) if count + new > most else 0
    first, n = held[2] if taken else 0, taken + new
    root, at = scratch[: d * d].reshape(d, d), d * d
    direction, at = scratch[at : at + d], at + d
    added, at = scratch[at : at + new * d].reshape(new, d), at + new * d
    x, at = scratch[at : at + n * d].reshape(n, d), at + n * d
    w, at = scratch[at : at + n * width].reshape(n, width), at + n * width
    alive, now, draw = alive[:n], np.float64(model[4][0]), np.uint32(held[3])
    if bank[4].shape[0]:
        typical(model[1], scale, rope, now, direction, scratch[at:])
    gather(bank, centre, direction, first, count, k, c, x, w, added, alive)
    if taken:
        held[2] = (first + active) % most
        factor(model[0], model[1], model[2], model[3], root, direction)
        keep = taken + most - count
        compress(gemm, x, w, root, direction, scale, temper, keep, rope, now, draw, scratch[at:], alive)
    store(added, w, alive, first, taken, count, np.uint64(held[3]), bank, scratch[at : at + width - 1])
    held[3] += 1
    held[0] = min(count + new, most)


@kernel(cache=True, inline="always")
def answer(gemm, q, held, centre, bank, rows, kind, k, c, logits, gathered, m, y, doubt):
    """The partial answers m (r,), y (r, dv + 1) of all atoms to queries q (d, r), already scaled, and their doubt (r,).

    rows (., d + dv), stored as KIND `kind`, is what the bank holds as long as held[1] is 0. k
    (tile, d), c (tile, dv + 1), logits and gathered are scratch (see dense.attend). Atoms of six bits answer queries turned as they
    are (METHODS.md (N20), (N22)); q is turned back afterwards.

    The doubt is what z is off by, relative to itself, where every atom errs by itself by NOISE of what it brings: few atoms that
    bring nearly all of it, and weights that cancel, are doubtful. METHODS.md (N15)
    """
    m[:], y[:], doubt[:] = -math.inf, 0, 0
    count, tile, mean = held[0], k.shape[0], bank[4]
    turned = held[1] and mean.shape[0]
    if turned:
        turn_columns(q, False)
    for first in range(0, count, tile):
        n = min(tile, count - first)
        if held[1]:
            load(bank, first, count, k[:n], c[:n])
            if not turned:
                move(k[:n], centre)
        else:
            load_rows(rows[first : first + n], kind, k, c)
        attend_signed(gemm, q, k[:n], c[:n], logits, gathered, m, y, doubt)
    if turned:
        turn_columns(q, True)
        turn_rows(y, mean.shape[0], True)
        shift(m, y, q, centre, mean)
    weight = y.shape[1] - 1
    for i in range(m.shape[0] if held[1] else 0):
        z, noise = y[i, weight], NOISE * math.sqrt(doubt[i])
        doubt[i] = noise / z if z > noise else 1
    if not held[1]:
        doubt[:] = 0


@kernel()
def move(k, centre):
    """Add centre (d,) to every row of k (n, d)."""
    for i in range(k.shape[0]):
        row = k[i]
        for j in range(row.shape[0]):
            row[j] += centre[j]


@kernel()
def shift(m, y, q, centre, mean):
    """Add what the centres of keys (d,) and of values (dv,) bring to partial answers m (r,), y (r, dv + 1) to queries q (d, r)."""
    weight = y.shape[1] - 1
    for j in range(q.shape[0]):
        row, x = q[j], centre[j]
        for i in range(m.shape[0]):
            m[i] += row[i] * x
    for i in range(m.shape[0]):
        row, z = y[i], y[i, weight]
        for j in range(mean.shape[0]):
            row[j] += z * mean[j]


@kernel()
def live(k, c):
    """Move the rows of k (n, d), c (n, dv + 1) that have a weight to the front, and return their number."""
    count, weight = 0, c.shape[1] - 1
    for i in range(c.shape[0]):
        if c[i, weight] != 0:
            for j in range(k.shape[1]):
                k[count, j] = k[i, j]
            for j in range(c.shape[1]):
                c[count, j] = c[i, j]
            count += 1
    return count


@kernel()
def retire(
    gemm, group, active, kind, scale, temper, rope, nan, gone, left, head, held, centre, bank, rows, model, k, c, fit,
    alive,
):  # fmt: skip
    """Move the first `gone` recent rows into the history, group by group, and the other `left` ones to the front. All else as in `step`;
    k, c: scratch."""
    counters, sinks, recent, codes, span = head
    coded = held[1] and codes.shape[0]
    for at in range(0, gone, group):
        if coded:
            decode(codes[at : at + group], centre, bank[4], k, c)
        else:
            load_rows(recent[at : at + group], kind, k, c)
        for i in range(min(group, sinks.shape[0] - counters[1] - at)):
            c[i] = 0
        counters[2] += extend_range(c[:group], span[0], span[1])
        n = live(k[:group], c[:group])
        if held[1]:
            insert(gemm, k[:n], c[:n], active, scale, temper, rope, held, centre, bank, model, fit, alive)
        else:
            store_rows(k[:n], c[:n], kind, nan, rows[held[0] : held[0] + n])
            held[0] += n
    if gone > 0:
        if coded:
            forget(codes, gone, left)
        else:
            forget(recent, gone, left)
        counters[1] += gone


@kernel()
def forget(rows, gone, left):
    """Move `left` rows behind the first `gone` to the front."""
    for i in range(left):
        for j in range(rows.shape[1]):
            rows[i, j] = rows[gone + i, j]
    rows[left : left + gone] = 0


@kernel()
def keep(k, c, row, at, nan, near, room_k, room_c):
    """Put rows k (n, d), c (n, dv + 1), the first of them row `row`, behind the first `at` recent ones, and among the sinks.

    near: whether recent rows are coded, KIND of the stored ones, sinks, recent rows, the same coded, and what these are relative
    to. room_k, room_c: scratch. All else as in `step`.
    """
    coded, kind, sinks, recent, codes, centre, mean = near
    new, end = min(k.shape[0], max(sinks.shape[0] - row, 0)), at + k.shape[0]
    store_rows(k[:new], c[:new], kind, nan, sinks[row : row + new])
    if not coded:
        store_rows(k, c, kind, nan, recent[at:end])
        return
    for i in range(k.shape[0]):
        for j in range(k.shape[1]):
            room_k[i, j] = k[i, j]
        for j in range(c.shape[1]):
            room_c[i, j] = c[i, j]
    encode(room_k, room_c, centre, mean, codes[at:end])


@kernel()
def look_near(gemm, q, near, base, end, low, high, k, c, logits, gathered, ours):
    """The partial answers `ours` over the sinks and the recent rows. near: see `keep`. The rest: see dense.exact."""
    coded, kind, sinks, recent, codes, centre, mean = near
    m, y = ours
    if coded:
        rows = codes, centre, mean
        exact(gemm, q, kind, sinks, rows, base, end, low, high, k, c, logits, gathered, m, y)
    else:
        exact(gemm, q, kind, sinks, recent, base, end, low, high, k, c, logits, gathered, m, y)


@kernel()
def look_back(
    gemm, q, absorbed, span, held, centre, bank, rows, kind, k, c, logits, gathered, past, ours, seen, share,
    doubt,
):  # fmt: skip
    """Add what the history answers to queries q (d, r), with the scratch `past`, to the exact part `ours`; returns how many had z <= 0.

    absorbed: rows that the history has. span: of their values. share, doubt (r,): see dense.add_history. The rest as in `answer`.
    """
    share[:], doubt[:] = 0, 0
    if not absorbed:
        return 0
    answer(gemm, q, held, centre, bank, rows, kind, k, c, logits, gathered, past[0], past[1], doubt)
    bad = add_history(ours[0], ours[1], past[0], past[1], span[0], span[1], seen, share, doubt)
    relate(ours[1], span[0], span[1], doubt)
    return bad


@kernel()
def teach(gemm, raw, share, group, new, rope, fading, lookback, model, scratch):
    """Let the model learn the first `new` queries of each group of raw (r, d); share (r,): of their mass that fell on the history. Both are
    spoilt. fading: log of what older queries count from now on."""
    seen, d = 0, raw.shape[1]
    for i in range(raw.shape[0]):
        if i % group < new:  # all but where the stream ends
            share[seen] = share[i] * share[i] + lookback
            for j in range(d):
                raw[seen, j] = raw[i, j]
            seen += 1
    for i in range(0, seen if rope[0].shape[0] else 0, new):  # one query head's rows
        turn(raw[i : i + new], rope, -np.float64(model[4][0]), -1.0, scratch)
    learn(gemm, raw[:seen], share[:seen], math.exp(fading), model[0], model[1], model[2], model[3], scratch)


@kernel(cache=True)
def step(
    gemm, narrow, sizes, numbers, rope, nan, fallback, sink_logits, start, q, k, c, out, doubts,
    counts, head, held, centre, bank, rows, model, tile, fit, alive,
):  # fmt: skip
    """Take in the rows of k (n, d), c (n, dv + 1) from row `start` on, where a group begins, and answer their causal
    queries q (heads, n, d) into out (heads, n, dv), with doubts (heads, n): what HeadAttention.step does group by group.
    Returns the row before which the rows in the bank must become atoms, or n.

    gemm, narrow: `blas.address` of the rows' dtype and of float32. sizes: rows of a group, window as long as the bank holds rows
    and later, query heads of a tile, active atoms, KIND of the stored rows. numbers: scale, temper, forget of one row, lookback. rope: see rotary.turn. nan: what a dropped row is
    stored as. sink_logits (heads,), or empty: see add_sinks. head: the head's counters, sinks, recent rows, the same coded (or none), and range. tile: the scratch of tiles.tile_spec.
    fit, alive: that of `insert`. counts (3,): how many queries had z <= 0 is added to counts[1], how many saw nothing to
    counts[2]. The rest as in `answer`.
    """
    (group, early, late, stack, active, kind), (scale, temper, fading, lookback) = sizes, numbers
    counters, sinks, recent, codes, span = head
    near = held[1] and codes.shape[0], kind, sinks, recent, codes, centre, bank[4]
    window = late if near[0] else early
    raw, scaled, logits, gathered, bounds, share, m, y, doubt, tile_k, tile_c = tile
    heads, _, d = q.shape
    for a in range(start, k.shape[0], group):
        if held[1] == 0 and held[0] + group > rows.shape[0]:
            return a
        b = min(a + group, k.shape[0])
        row, first = counters[0], counters[1]
        base = max(first, (row - max(window - 1, 0)) // group * group)
        gone, left = base - first, row - base
        retire(
            narrow, group, active, kind, scale, temper, rope, nan, gone, left, head, held, centre, bank, rows, model,
            tile_k, tile_c, fit, alive,
        )  # fmt: skip
        keep(k[a:b], c[a:b], row, left, nan, near, tile_k, tile_c)
        counters[0] += b - a
        for h in range(0, heads, stack):
            some = min(stack, heads - h)
            r = some * group
            columns, low, high = scaled[: d * r].reshape(d, r), bounds[0, :r], bounds[1, :r]
            ours, past, part = (m[0, :r], y[0, :r]), (m[1, :r], y[1, :r]), gathered[:r]
            place(
                q[h : h + some, a:b], group, NONE, q.dtype.type(scale), row + 1, ONE, ALL, raw[:r], columns, low, high
            )
            look_near(gemm, columns, near, base, row + group, low, high, tile_k, tile_c, logits, part, ours)
            if sink_logits.shape[0]:
                add_sinks(ours[0], ours[1], high, sink_logits[h : h + some], group)
            counts[1] += look_back(
                gemm, columns, counters[2], span, held, centre, bank, rows, kind, tile_k, tile_c, logits,
                part, past, ours, high, share[:r], doubt[:r],
            )  # fmt: skip
            teach(narrow, raw[:r], share, group, b - a, rope, fading * (b - a) * some / heads, lookback, model, fit)
            for i in range(some):
                mine = slice(i * group, i * group + b - a)
                for j in range(b - a):
                    doubts[h + i, a + j] = doubt[i * group + j]
                counts[2] += finish(ours[0][mine], ours[1][mine], fallback, out[h + i, a:b])
        model[4][0] += b - a
    return k.shape[0]
