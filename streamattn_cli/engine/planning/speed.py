"""How long a run will take, before it starts: work counted from the settings, times the speed of this machine.

The constants are microseconds on the machine where they were fitted, which takes REFERENCE seconds for a round of the
calibration below; `calibrate` says how much faster or slower this one is. scripts/times.py compares them with runs.
"""

from __future__ import annotations

import time

import numpy as np

from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.method import Load

REFERENCE = 0.196e-3  # seconds of one round of the calibration
CALIBRATING = 0.25  # seconds
READ = 1e9  # bytes a second from a warm disk
OPENING = 0.02  # seconds of a run that come whatever its size


def calibrate() -> float:
    """How many times longer than the reference this machine takes for products and exponentials, at its best: nothing is
    allocated, and it may have been asleep."""
    q, k = np.full((256, 64), 0.1, "f4"), np.full((512, 64), 0.1, "f4")
    logits = np.empty((256, 512), "f4")
    times, now = [], time.perf_counter()
    end = now + CALIBRATING
    while now < end:
        began = now
        np.matmul(q, k.T, out=logits)
        np.exp(logits, out=logits)
        now = time.perf_counter()
        times.append(now - began)
    return max(float(np.quantile(times, 0.25)) / REFERENCE, 0.05)


def expected_seconds(plan: Plan, factor: float) -> float | None:
    """Seconds of a run, all rows answered; None where the number of rows is not known."""
    p = plan.problem
    if p.k.rows is None or p.q.rows is None:
        return None
    lanes = -(-len(p.k) // min(plan.threads, len(p.k)))
    read = sum(h.count * len(h) * h.dim for h in (p.q, p.k, p.v)) * 4 / READ
    return OPENING + read + lanes * _lane_micros(plan) * factor * 1e-6


def _lane_micros(plan: Plan) -> float:
    """Microseconds of one key head on one thread."""
    p = plan.problem
    lanes = min(plan.threads, len(p.k))
    several = len(p.sequences) if p.sequences else 1
    load = Load(p.params, p.k.count / several, p.q.count / several, p.group, p.k.dim, p.v.dim, p.causal, lanes)
    # all rows may fit, which leaves no history
    method = "window" if p.params and not p.params.history else p.method
    return several * registry.find(method).micros(load)
