"""How long a run will take, before it starts: work counted from the settings, times the speed of this machine.

The constants are microseconds on the machine where they were fitted, which takes REFERENCE seconds for a round of the
calibration below; `calibrate` says how much faster or slower this one is. Right within a factor of 2 in 94% and 75%
of 16 random settings there (scripts/times.py --seed 300 and 77 try them again; `evict` with 2,048 rows takes four times as
long): meant for choosing, not for promising.
"""

from __future__ import annotations

import time

import numpy as np

from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.sketches.histories.evict import EvictParams
from streamattn_cli.sketches.histories.monomials import feature_count
from streamattn_cli.sketches.histories.nystrom import NystromParams
from streamattn_cli.sketches.histories.poly import PolyParams
from streamattn_cli.sketches.histories.sample import SampleParams
from streamattn_cli.sketches.histories.wildcat import WildcatParams

REFERENCE = 0.47e-3  # seconds of one round of the calibration
ROUNDS = 200  # at most; about a quarter of a second
READ = 1e9  # bytes a second from a warm disk
OPENING = 0.05  # seconds of a run that come whatever its size


def calibrate() -> float:
    """How many times longer than the reference this machine takes for products, exponentials and a factorisation."""
    q, k = np.full((256, 64), 0.1, "f4"), np.full((512, 64), 0.1, "f4")
    logits = np.empty((256, 512), "f4")
    matrix = np.eye(192) * 2 + 0.001
    times, end = [], time.perf_counter() + 0.25
    for _ in range(ROUNDS):
        began = time.perf_counter()
        np.matmul(q, k.T, out=logits)
        np.exp(logits, out=logits)
        np.linalg.cholesky(matrix)
        times.append(time.perf_counter() - began)
        if time.perf_counter() > end:
            break
    return max(float(np.median(times)) / REFERENCE, 0.05)


def expected_seconds(plan: Plan, factor: float) -> float | None:
    """Seconds of a run, all rows answered; None where the number of rows is not known."""
    p = plan.problem
    if p.k.rows is None or p.q.rows is None:
        return None
    lanes = -(-len(p.k) // min(plan.threads, len(p.k)))
    read = sum(h.rows * len(h) * h.dim for h in (p.q, p.k, p.v)) * 4 / READ
    return OPENING + read + lanes * _lane_micros(plan) * factor * 1e-6


def _lane_micros(plan: Plan) -> float:
    """Microseconds of one key head on one thread."""
    p = plan.problem
    rows, queries, dims = p.k.rows, p.q.rows, p.k.dim + p.v.dim
    # one query and one key: two products and an exponential, in tiles of a few dozen queries or of hundreds
    pair = 0.0005 + 1.9e-5 * dims
    if p.method == "exact":
        return queries * rows * p.group * (0.5 if p.causal else 1.0) * pair
    params, history = p.params, p.params.history
    beside = params.sinks + params.window + params.group / 2 + getattr(history, "atoms", getattr(history, "rows", 0))
    python = 60 * min(plan.threads, len(p.k))  # a group's way through the interpreter, where heads wait for one another
    if isinstance(history, NystromParams):  # one kernel: what a group costs beside products and compression
        python = 30 + 0.015 * history.atoms + 0.07 * (params.sinks + params.window) + 40 * (not p.causal)
    attended = min(beside, rows) * (1 - min(beside, rows) / (2 * rows) if p.causal else 1.0)
    total = queries * p.group * (0.3 + attended * pair) + python * (rows + queries * (not p.causal)) / params.group
    if isinstance(history, PolyParams):
        products = feature_count(p.k.dim, history.degree) * (p.v.dim + 1)
        return total + (rows + queries * p.group) * (0.06 + 2.2e-5 * products)
    full = max(0.0, rows - beside) / params.group  # groups that come when the history is full
    if isinstance(history, NystromParams):
        n = history.active + params.group
        total += full * (4 + n * (0.0062 * p.k.dim + 0.0045 * p.v.dim) + 0.0006 * n * n + 9.2e-6 * n**3)
    elif isinstance(history, SampleParams):
        total += full * python
    elif history:
        known = 0.4 * history.rows if isinstance(history, EvictParams) and not p.causal else 0
        total += full * (150 + known + (0.7 * history.rows if isinstance(history, WildcatParams) else 0))
    return total
