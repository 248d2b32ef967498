"""Tables and figures of what bench.py measured."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "paper"))
from svgplot import Figure  # noqa: E402

USUAL = 8192  # rows: kinds of heads of other lengths say theirs
STRESS = ("drift", "needles")
ORACLES = ("evict, knowing the future", "least squares on the future")
OURS = ("nystrom", "nystrom effort=fast")
ALL_ROWS = "all rows in "


def tables(results: list) -> str:
    """Markdown: geometric means over the heads of each kind, ratios to the best baseline, worst heads, p99, stress."""
    by = defaultdict(dict)  # (kind, mode, budget, method) -> {head: result}
    for r in results:
        by[kind_of(r), r.mode, r.budget, r.method][r.head] = r
    text = []
    for kind, mode in dict.fromkeys(key[:2] for key in by):
        mine = {key[2:]: found for key, found in by.items() if key[:2] == (kind, mode)}
        heads = len({head for found in mine.values() for head in found})
        columns = list(dict.fromkeys(budget for budget, method in mine if not method.startswith(ALL_ROWS)))
        text += ["", f"### {kind}, {mode} ({heads} key heads)", "", "| method | " + " | ".join(columns) + " |"]
        text.append("| --- |" + " ---: |" * len(columns))
        for method in dict.fromkeys(method for _, method in mine if not method.startswith(ALL_ROWS)):
            text.append(f"| {method} | " + " | ".join(_cell(mine.get((b, method))) for b in columns) + " |")
        for label, line in _comparisons(mine, columns):
            text.append(f"| {label} | " + " | ".join(line) + " |")
        kept = [(method, budget, found) for (budget, method), found in mine.items() if method.startswith(ALL_ROWS)]
        if kept:
            text += [
                "",
                "Memory that grows with the rows: "
                + "; ".join(f"{m}, {b} of float16's bytes: {_cell(f)}" for m, b, f in kept)
                + ".",
            ]
    return "\n".join(text[1:]) + "\n"


def kind_of(result) -> str:
    """Which table a result belongs to."""
    if result.head in STRESS:
        return result.head
    file = result.head.rsplit(":", 1)[0]
    kind = "sample head" if file == "heads" else "SmolLM2" if file.startswith("smollm2") else file
    return kind if result.rows == USUAL else f"{kind}, {result.rows:,} rows"


def mean_error(found: dict | None, what: str = "error") -> float:
    """Geometric mean over heads."""
    return float(np.exp(np.mean(np.log([max(getattr(r, what), 1e-12) for r in found.values()])))) if found else np.nan


def _cell(found: dict | None, what: str = "error") -> str:
    return f"{mean_error(found, what):.4f}" if found else ""


def _baselines(mine: dict, budget: str) -> dict[str, dict]:
    """The baselines that answered for all heads that nystrom did."""
    heads = mine.get((budget, "nystrom"), {}).keys()
    return {m: f for (b, m), f in mine.items() if b == budget and m not in (*OURS, *ORACLES) and f.keys() == heads
            and not m.startswith(ALL_ROWS)}  # fmt: skip


def _comparisons(mine: dict, columns: list[str]):
    """nystrom over the best baseline: of the means, and on the worst head; its p99, z <= 0 and needles."""
    lines = defaultdict(list)
    for budget in columns:
        ours, others = mine.get((budget, "nystrom")), _baselines(mine, budget)
        if not ours or not others:
            for line in lines.values():
                line.append("")
            continue
        best = min(others, key=lambda m: mean_error(others[m]))
        lines["the best baseline"].append(best)
        lines["nystrom / the best baseline"].append(f"{mean_error(ours) / mean_error(others[best]):.2f}")
        worst = max(r.error / min(f[h].error for f in others.values()) for h, r in ours.items())
        lines["nystrom / the best baseline of that head, worst head"].append(f"{worst:.2f}")
        lines["nystrom, root mean square"].append(f"{np.sqrt(np.mean([r.error**2 for r in ours.values()])):.4f}")
        lines["nystrom, largest"].append(f"{max(r.error for r in ours.values()):.4f}")
        lines["nystrom, p99 of rows"].append(_cell(ours, "p99"))
        lines["nystrom, queries with z <= 0"].append(
            f"{sum(r.guarded for r in ours.values())} of {sum(r.queries for r in ours.values())}"
        )
        if any(np.isfinite(r.needle_error) for r in ours.values()):
            for method in ("nystrom", "evict", "evict bits=6"):
                found = mine.get((budget, method))
                lines[f"{method}, rows that ask for a needle"].append(_cell(found, "needle_error"))
    return lines.items()


def errors_figure(results: list, path: Path) -> None:
    """Error against resident rows: geometric means over the short real heads (without any: the sample head), causal."""
    kinds = {kind_of(r) for r in results if r.mode == "causal"}
    kind = "SmolLM2" if "SmolLM2" in kinds else "sample head"
    plot = Figure(
        f"Causal attention, {kind}: error at equal memory",
        "resident rows of one key head, everything counted",
        "relative error",
    )
    mine = [r for r in results if (kind_of(r), r.mode) == (kind, "causal")]
    for method in dict.fromkeys(r.method for r in mine):
        if method.startswith(ALL_ROWS) or "score=" in method:
            continue
        points = []
        for budget in dict.fromkeys(r.budget for r in mine if r.budget.endswith("%")):
            found = [r for r in mine if (r.method, r.budget) == (method, budget)]
            if found:
                points.append((np.mean([r.resident_rows for r in found]), mean_error({r.head: r for r in found})))
        if points:
            plot.line(method, points, dashed=method in ORACLES and len(points) > 1)  # a lone point needs its mark
    if plot.series:
        plot.save(path)


def rows_figure(results: list, path: Path, budgets: tuple[str, ...] = ("R=256", "R=1024")) -> None:
    """Error against the number of rows at fixed budgets, causal, of the heads that were measured at the most lengths."""
    fixed = [r for r in results if r.mode == "causal" and r.budget in budgets and r.head not in STRESS]
    lengths = {r.head: len({other.rows for other in fixed if other.head == r.head}) for r in fixed}
    heads = [head for head, count in lengths.items() if count == max(lengths.values())]
    if not heads or lengths[heads[0]] < 2:
        return
    plot = Figure("Causal attention: error at fixed memory, " + ", ".join(heads), "rows", "relative error")
    for budget in budgets:
        for method in ("window", "evict bits=6", "evict bits=6 score=last", "nystrom"):
            mine = [r for r in fixed if (r.budget, r.method) == (budget, method) and r.head in heads]
            points = [(n, mean_error({r.head: r for r in mine if r.rows == n})) for n in sorted({r.rows for r in mine})]
            plot.line(f"{method}, {budget}", points, dashed=method != "nystrom")
    plot.save(path)
