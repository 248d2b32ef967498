"""Which of the source paper's sketches a run uses, in which order rows come, and how large the sketches are.

Orders are words of k, q and v, such as kqv. D_i = u_i . prod needs all keys before the first query, whatever is
sketched.
    exact  kvq   k and v together: exact accumulators U2^T V
    psi    kvq, vkq   k and v apart, at different times: joined by Psi; rows are written as queries pass
    phi    kqv, kvq   k, then q, then v beside a second reading of k: exact accumulators, outputs recovered from Phi T
    paper  kqv, kvq, vkq   everything passes once: Psi and Phi
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, log2
from typing import cast

import numpy as np

from streamattn_cli.engine.planning.first_rows import first_rows, peek_first
from streamattn_cli.engine.planning.sketch_memory import sketch_notes
from streamattn_cli.engine.request.problem import Problem
from streamattn_cli.engine.request.settings import ORDERS
from streamattn_cli.engine.request.sketching import Sketching
from streamattn_cli.errors import CannotMeet, UsageError
from streamattn_cli.sketches.histories.poly import MAX_DEGREE, PolyHistory, PolyParams
from streamattn_cli.sketches.paper.countsketch import (
    PeelSketch,
    ScanSketch,
    least_counters,
    peel_sketch,
    scan_sketch,
    usual_counters,
)
from streamattn_cli.sketches.paper.sketched import SketchParams

USUAL_M1 = 4096
UNKNOWN_ROWS = 1 << 22  # what sketches are sized for when a pipe does not say how many queries come
UNKNOWN_BITS = 40


def with_sketches(problem: Problem) -> Problem:
    """The problem with its sketches and degree decided. Raises UsageError (2) and CannotMeet (11)."""
    request = problem.request
    kind = request.sketches or "exact"
    order = request.order or ORDERS[kind][0]
    _check_top_k(problem, kind)
    if (request.sketches or request.eps) and (problem.local or problem.sink_logits):
        raise CannotMeet(
            f"--{'sketches' if request.sketches else 'eps'}: the paper's sketches know neither --local nor --sink-logit; omit "
            "it, and any method answers them"
        )
    if kind == "exact" and request.eps is None and request.order in (None, "kvq"):
        _only(
            request.m1 is None and request.m2 is None, "--m1 and --m2 size the sketches of --sketches psi, phi or paper"
        )
        return problem
    _check_order(problem, kind, order)
    _only(problem.method == "poly", "--sketches and --eps belong to --method poly")
    _check_request(problem, kind)
    degree, spread = request.degree, None
    if request.eps is not None:
        degree, spread = _degree(problem, order, request.eps)
    poly = replace(cast("PolyParams", problem.head.history), degree=degree)
    problem = replace(problem, request=replace(request, degree=degree), params=replace(problem.head, history=poly))
    if kind == "exact":
        return problem
    heaps = order != "kqv" and kind in ("psi", "phi")
    phi = None if heaps else _phi(problem, poly, kind)
    usual = USUAL_M1 if spread is None or request.eps is None else ceil(spread / request.eps**2)
    m1 = 0 if kind == "phi" else request.m1 or usual
    params = SketchParams(
        problem.k.dim, problem.v.dim, problem.scale, poly, m1, phi, problem.group, request.seed, centred=kind == "psi"
    )
    sketching = Sketching(kind, order, params, request.decoder, request.per_column, heaps)
    problem = replace(problem, sketches=sketching, params=problem.params if kind == "phi" else None)
    return replace(problem, notes=(*problem.notes, *sketch_notes(problem)))


def _only(met: bool, message: str) -> None:
    if not met:
        raise UsageError(message)


def _check_top_k(problem: Problem, kind: str) -> None:
    k, rows = problem.request.top_k, problem.q.rows
    if k is None:
        _only(not problem.request.deviation, "--deviation is about the columns that --top-k K writes; give --top-k")
        if kind in ("phi", "paper"):
            raise UsageError(f"--sketches {kind}: rows are never produced, only sparse columns; give --top-k K")
        return
    _only(k >= 1, f"--top-k {k}: keep at least 1 entry of every column")
    _only(rows is None or k <= rows, f"--top-k {k}: there are only {rows} query rows; choose at most that many")


def _check_order(problem: Problem, kind: str, order: str) -> None:
    """Refuse what cannot work, with the reason."""
    _only(
        sorted(order) == ["k", "q", "v"],
        f"--order {order}: write k, q and v in the order in which they come, such as kqv",
    )
    if order.index("q") < order.index("k"):
        raise CannotMeet(
            f"--order {order}: queries cannot pass before all keys have: the normaliser D of a query is not known "
            "until then. Let the keys come first"
        )
    if problem.causal and kind != "exact":
        raise CannotMeet(
            f"--sketches {kind} with --causal: D and the sums behind a row would change with every row, and a sketch "
            "holds only their end. Use --full, or --sketches exact"
        )
    if order not in ORDERS[kind]:
        why = {
            "exact": "exact accumulators U2^T V need every value beside its key. Use --sketches psi where v comes "
            "before k, phi where k can be read twice, or paper",
            "psi": "rows are written as queries pass, and that needs the values. Use --sketches paper with --top-k",
            "phi": "the values are joined with a second reading of the keys. Use --sketches psi or paper",
        }[kind]
        raise CannotMeet(f"--sketches {kind} with --order {order}: {why}")
    k, v = problem.k.tensor, problem.v.tensor
    if k is v and not k.seekable and "kv" not in order:
        raise CannotMeet(
            f"{k.name}: k and v come in the same rows of a pipe, not in the order {order}; use --order kvq"
        )
    if kind == "phi" and not k.seekable:
        raise CannotMeet(f"{k.name}: --sketches phi reads the keys twice, and a pipe passes once; use --sketches paper")


def _check_request(problem: Problem, kind: str) -> None:
    r = problem.request
    if r.eps is not None and not 0 < r.eps < 1:
        raise UsageError(f"--eps {r.eps:g}: choose a relative error between 0 and 1, such as 0.01")
    if kind == "exact":
        return
    _only(
        not (r.sinks or r.window), f"--sinks and --window need k and v together, and --sketches {kind} takes them apart"
    )
    _only(r.m1 is None or kind != "phi", "--m1 sizes Psi, and --sketches phi has none: use --m2")
    _only(r.m2 is None or kind != "psi", "--m2 sizes Phi, and --sketches psi has none: use --m1")
    for option, size in (("--m1", r.m1), ("--m2", r.m2)):
        _only(size is None or 1 <= size < 1 << 31, f"{option} {size}: choose between 1 and 2^31")
    if r.nan_policy == "drop":
        raise CannotMeet(
            f"--nan-policy drop with --sketches {kind}: a row dropped from v would still count in prod through its "
            "key, which was read on its own. Correct the input, or use --sketches exact"
        )


def _phi(problem: Problem, poly: PolyParams, kind: str) -> ScanSketch | PeelSketch:
    r, k = problem.request, problem.request.top_k or 0
    rows = problem.q.rows
    bits = UNKNOWN_BITS if rows is None else max(1, ceil(log2(max(rows, 2))))
    joint = not r.per_column and problem.v.dim > 1
    least = least_counters(r.decoder, joint, k, bits)
    m2 = r.m2 or usual_counters(r.decoder, joint, k, rows or UNKNOWN_ROWS, bits, r.eps)
    if m2 < least:
        raise CannotMeet(
            f"--m2 {m2} counters are too few to decode {k} entries from (--decoder {r.decoder}); give at least {least}"
        )
    if r.decoder == "peel":
        return peel_sketch(m2, k, bits, r.seed)
    return scan_sketch(m2, joint, r.seed)


def _degree(problem: Problem, order: str, eps: float) -> tuple[int, float]:
    """The least degree whose error on the first rows stays below --eps; and n / n_eff there."""
    request = problem.request
    values = "v" in order.split("q")[0] or problem.v.tensor.seekable
    least, spread = 1, 1.0
    for _, k, c, q in first_rows(problem, peek_first(problem, values)):
        for degree in range(least, MAX_DEGREE + 2):
            if degree > MAX_DEGREE:
                raise CannotMeet(
                    f"--eps {eps:g}: the logits of {problem.k.tensor.name} reach so far that a polynomial of degree "
                    f"{MAX_DEGREE} (more is beyond float64) still errs by more. Use --method nystrom or exact, or a "
                    "smaller --scale"
                )
            params = PolyParams(degree, request.polynomial, request.beta, float("inf"))
            state = {"mu": np.zeros(problem.k.dim), "radius": np.zeros(2)}
            history = PolyHistory(params, problem.k.dim, c.shape[1] - 1, problem.scale, "f8", state)
            if (
                history.calibrate(k, c, q) or 0.0
            ) <= eps / 2:  # the first rows are a sample: others may be twice as hard
                least = degree
                break
        logits = problem.scale * q[:: max(1, len(q) // 64)].astype(np.float64) @ k.astype(np.float64).T
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        spread = max(spread, float((len(k) * (shares**2).sum(axis=1) / shares.sum(axis=1) ** 2).mean()))
    return least, spread
