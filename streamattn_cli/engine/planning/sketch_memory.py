"""What sketches cost, and from how many rows on they pay: against the rows they replace, against storing the output,
and against exact accumulators."""

from __future__ import annotations

from math import ceil, prod

import numpy as np

from streamattn_cli.engine.planning.first_rows import FIRST
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.writers.topk import BestRows
from streamattn_cli.sketches.headparams import spec_bytes
from streamattn_cli.sketches.histories.poly import PolyHistory
from streamattn_cli.units import format_bytes, format_count


def sketch_parts(problem: Problem, reading: int) -> dict[str, int]:
    """Bytes by purpose that sketches add to a run whose read buffers take `reading` bytes.

    The first rows are looked at before any page of the sketches is in use, and columns are decoded when the read
    buffers are gone: only what exceeds these counts.
    """
    p = problem.sketching.params
    sketch = len(problem.k) * spec_bytes(p.state_spec())
    first = PolyHistory.calibration_bytes(FIRST, p.dim, max(p.dim, p.value_dim), problem.group)
    decoding = 5 * p.phi.counters * p.value_dim * 8 if p.phi else 0
    return {
        "sketch": sketch,
        "moments": len(problem.k) * 2 * p.features * (p.value_dim + 1) * 8,
        "first_rows": max(0, first - sketch),
        "decoding": max(0, decoding - reading),
    }


def top_k_parts(problem: Problem) -> dict[str, int]:
    """Bytes of the heaps of --top-k, where there are heaps."""
    r = problem.request
    if r.top_k is None or (problem.sketches and not problem.sketches.heaps and not r.audit):
        return {}
    return {"heaps": BestRows.projected_bytes(r.top_k, len(problem.q), problem.v.dim, r.deviation)}


def sketch_account(problem: Problem) -> dict:
    """The planner's figures, JSON-able: sizes in bytes over all heads, and break-even numbers of rows."""
    p = problem.sketching.params
    sizes = {
        name: len(problem.k) * prod(shape) * np.dtype(dtype).itemsize
        for name, (shape, dtype) in p.state_spec().items()
        if name in ("sk_k", "sk_v", "prod", "sk_q")
    }
    total = sum(sizes.values())
    exact = len(problem.k) * p.features * (p.value_dim + 1) * 8
    inputs = sum(len(h) * h.dim * DTYPES[h.tensor.dtype].itemsize for h in (problem.k, problem.v))
    output = len(problem.q) * problem.v.dim * 4
    account = {
        "degree": p.poly.degree,
        "bytes": sizes,
        "total_bytes": total,
        "exact_accumulator_bytes": exact,
        "break_even_rows": {"keys_and_values": ceil(total / inputs), "output": ceil(total / output)},
    }
    if problem.request.top_k and p.phi:
        account["heap_bytes"] = problem.request.top_k * len(problem.q) * problem.v.dim * 24
    return account


def sketch_notes(problem: Problem) -> list[str]:
    """The same in sentences, with a plain word where sketches take more memory than what they replace."""
    a = sketch_account(problem)
    even, total = a["break_even_rows"], format_bytes(a["total_bytes"])
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in a["bytes"].items())
    notes = [
        f"sketches take {total} ({parts}) at any number of rows: as much as the keys and values of "
        f"{format_count(even['keys_and_values'])} rows, or as the output of {format_count(even['output'])} rows "
        f"(break-even)"
    ]
    rows = problem.k.rows
    if rows is not None and rows < even["keys_and_values"]:
        notes.append(
            f"these sketches need MORE memory than the data they replace: {rows} rows of keys and values are "
            f"{format_bytes(a['total_bytes'] * rows / even['keys_and_values'])}"
        )
    if problem.sketching.params.m1:
        times = sum(a["bytes"][name] for name in ("sk_k", "sk_v", "prod")) / a["exact_accumulator_bytes"]
        notes.append(
            f"exact accumulators would take {format_bytes(a['exact_accumulator_bytes'])}, Psi takes {times:.3g} "
            f"times that at any "
            "number of rows: it earns its memory only where k and v cannot be read together"
        )
    if "heap_bytes" in a:
        notes.append(
            f"Phi takes {format_bytes(a['bytes']['sk_q'])}; where v is complete before q comes, exact heaps need "
            f"{format_bytes(a['heap_bytes'])} for a better result"
        )
    return notes
