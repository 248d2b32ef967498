"""`plan`: what each method would need for an input, or for numbers alone, and which one to take."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from streamattn_cli.engine.jobs.sheets import by_layer
from streamattn_cli.engine.planning.adviser import predicted_poly_error
from streamattn_cli.engine.planning.choose import choose, poly_degree, spread_of
from streamattn_cli.engine.planning.plan import Plan
from streamattn_cli.engine.planning.resolve import resolve
from streamattn_cli.engine.planning.sizing import make_plan
from streamattn_cli.engine.planning.speed import calibrate, expected_seconds
from streamattn_cli.engine.request.problem import Problem, larger_than_data
from streamattn_cli.engine.request.requests import PlanRequest, RunRequest
from streamattn_cli.engine.watch.meter import available_memory
from streamattn_cli.engine.workers.pool import default_threads
from streamattn_cli.errors import CannotMeet, MemoryBudget, UsageError
from streamattn_cli.rows.inputs.open import Inputs, open_inputs
from streamattn_cli.rows.tensors.placeholder import imagined
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.budget import DEFAULT_ROWS
from streamattn_cli.sketches.headparams import HeadParams

LADDER = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)  # resident rows
AUDIT = 64  # rows, on the recommended command line
CLASSES = ((0.01, "up to 1%"), (0.05, "up to 5%"), (0.25, "up to 25%"), (math.inf, "unknown"))


@dataclass(frozen=True)
class Option:
    """One method with the largest setting that fits, or why none does. seconds: None where rows are not known."""

    method: str
    settings: dict
    resident_bytes: int = 0
    projected: int = 0
    seconds: float | None = None
    error: str = "unknown"
    audit: int = 0  # rows that can be audited within the budget
    refused: str | None = None


@dataclass(frozen=True)
class Numbers:
    """An input that does not exist yet."""

    rows: int
    dim: int
    heads: int = 1
    kv_heads: int | None = None
    value_dim: int | None = None
    dtype: str = "f2"


def forecast(request: PlanRequest, numbers: Numbers | None, words: list[str]) -> dict:
    """A JSON-able plan with `options` and `recommended`; `words` are the input's on the recommended command line."""
    if numbers:
        return _forecast(request.run(), _imagined(numbers), words or ["dump.h5"])
    if request.inputs.layer:
        return _of_layers(request, words)
    with open_inputs(request.inputs, apart=True) as inputs:
        return _forecast(request.run(), inputs, words)


def _of_layers(request: PlanRequest, words: list[str]) -> dict:
    """The forecast of the layer with most rows, and under `job` what its recommendation comes to over all of them."""
    sheets, rows = by_layer(request), []
    for _, each in sheets:
        with open_inputs(each.inputs, apart=True) as inputs:
            rows.append(inputs.parts[1].count)
    largest = sheets[rows.index(max(rows))][1]
    with open_inputs(largest.inputs, apart=True) as inputs:
        found = _forecast(largest.run(), inputs, words)
    best, factor = found["recommended"], found["speed_factor"]
    wanted: dict[str, Any] = {
        "method": best["method"],
        "audit": best["audit"],
        "max_error": math.inf,
        **best["settings"],
    }
    layers: list[dict[str, Any]] = []
    times, alone = [], 0
    for (layer, each), count in zip(sheets, rows, strict=True):
        with open_inputs(each.inputs, apart=True) as inputs:
            plan, one = (
                make_plan(resolve(each.run(**{**wanted, "threads": threads}), inputs)) for threads in (each.threads, 1)
            )
        alone = max(alone, one.projected)
        times.append(expected_seconds(one, factor) or 0.0)
        told = {"number": layer.number, "group": layer.group, "rows": count, "projected": plan.projected}
        layers.append(told | {"seconds": expected_seconds(plan, factor) or 0.0})
    room = request.memory or available_memory()
    workers = min(request.threads or default_threads(), len(sheets), max(1, room // alone) if room else len(sheets))
    best["command"] = best["command"].replace("-o out.npy", "-o out.h5") + (
        " --engine processes" if workers > 1 else ""
    )
    job = {
        "layers": layers,
        "seconds": sum(layer["seconds"] for layer in layers),
        "projected": max(layer["projected"] for layer in layers),
        "workers": workers,
        "workers_seconds": max(max(times), sum(times) / workers),
        "workers_projected": workers * alone,
    }
    return found | {"job": job}


def _imagined(n: Numbers) -> Inputs:
    for name in ("rows", "dim", "heads", "kv_heads", "value_dim"):
        value = getattr(n, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    kv_heads = n.kv_heads or n.heads
    shapes = (n.heads, n.dim), (kv_heads, n.dim), (kv_heads, n.value_dim or n.dim)
    q, k, v = (imagined(n.dtype, n.rows, *shape) for shape in shapes)
    return Inputs(q, k, v)


def _forecast(request: RunRequest, inputs: Inputs, words: list[str]) -> dict:
    problem = resolve(replace(request, method="window"), inputs)  # for mode, scale and shapes, the same for all
    request = replace(request, resident_rows=problem.request.resident_rows)
    head = replace(problem.head, sinks=0, window=0, group=256, local=False)
    spread = spread_of(inputs, problem.scale, problem.causal, problem.first_query)
    factor = calibrate()
    budget = request.budget * head.row_bytes
    degree = poly_degree(request, head, budget, spread["row_std_rms"] if spread else 1.0)
    options = [_option(method.name, request, inputs, spread, degree, factor) for method in registry.usable()]
    chosen = _choice(request, problem, head, spread, options)
    facts = {name: value for name, value in problem.facts().items() if name not in ("method", "params", "seed")}
    return {
        "type": "forecast",
        "input": problem.k.tensor.name,
        **facts,
        "memory": request.memory,
        "logits": spread,
        "speed_factor": round(factor, 2),
        "options": [asdict(o) for o in options],
        "recommended": chosen | {"command": _command(request, problem, chosen, words)},
        "notes": list(inputs.notes),
    }


def _choice(
    request: RunRequest, problem: Problem, head: HeadParams, spread: dict | None, options: list[Option]
) -> dict:  # fmt: skip
    seekable = all(h.tensor.seekable for h in (problem.q, problem.k, problem.v))
    found = choose(request, head, problem.k.rows, seekable, spread, bool(problem.bend))
    by_name = {o.method: o for o in options}
    if by_name[found.method].refused:
        fits = next((o for o in sorted(options, key=lambda o: o.method == "exact") if not o.refused), None)
        if fits is None:
            raise MemoryBudget(f"{problem.k.tensor.name}: no method fits; nystrom: {by_name['nystrom'].refused}")
        return {"method": fits.method, "settings": fits.settings, "audit": fits.audit,
                "reason": f"{found.method} does not fit ({by_name[found.method].refused})"}  # fmt: skip
    settings = dict(by_name[found.method].settings)
    if found.degree:
        settings["degree"] = found.degree
    audit = by_name[found.method].audit
    return {"method": found.method, "settings": settings, "audit": audit, "reason": found.reason}


def _option(
    method: str, request: RunRequest, inputs: Inputs, spread: dict | None, degree: int | None, factor: float
) -> Option:  # fmt: skip
    """The setting of a method for the budget: the largest on the ladder, or the usual one where no budget was given."""
    tried: str | None = None
    for audit, settings in product((AUDIT, 0), _settings(method, request, degree)):
        try:
            wanted = replace(request, method=method, audit=audit, max_error=math.inf, **settings)
            plan = make_plan(resolve(wanted, inputs))
        except (MemoryBudget, UsageError, CannotMeet) as error:
            tried = tried or str(error)
            continue
        if method == "poly" and (more := larger_than_data(plan.problem)):
            tried = more
            continue
        expected, seconds = _error_class(method, plan, spread), expected_seconds(plan, factor)
        return Option(method, settings, plan.sketch_bytes, plan.projected, seconds, expected, plan.audit_rows)
    return Option(method, {}, refused=tried)


def _settings(method: str, request: RunRequest, degree: int | None) -> list[dict]:
    """What to try, the most wanted first."""
    if method == "exact":
        return [{}]
    if method == "poly":
        return [{"degree": degree} for degree in reversed(range(1, (degree or 1) + 1))]
    if request.resident_rows:
        return [{"resident_rows": request.resident_rows}]
    if request.memory is None:
        return [{"resident_rows": DEFAULT_ROWS}]
    return [{"resident_rows": rows} for rows in reversed(LADDER)]


def _error_class(method: str, plan: Plan, spread: dict | None) -> str:
    """In words: of poly by its formula for values without structure, which was above the measured error of every head tried;
    nobody knows that of the others before they run."""
    problem = plan.problem
    if (
        method == "exact"
        or problem.local
        or (problem.params and problem.k.rows is not None and problem.params.window >= problem.k.rows)
    ):
        return "none"
    if method != "poly" or spread is None or not spread["row_std"]:
        return "unknown"
    error = predicted_poly_error(problem.request.degree, spread["row_std_rms"])
    return next(words for limit, words in CLASSES if error < limit)


def _command(request: RunRequest, problem: Problem, chosen: dict, words: list[str]) -> str:
    """The command line to paste."""
    line = ["streamattn", "attend", *words]
    line += ["--causal" if problem.causal else "--full", "--method", chosen["method"]]
    for option, word in (
        ("--first-query", request.first_query), ("--local", request.local), ("--sink-logit", request.sink_logit),
        ("--softcap", request.softcap), ("--logit-bias", request.logit_bias), ("--scale", request.scale),
    ):  # fmt: skip
        line += [option, word] if word else []
    for name, value in chosen["settings"].items():
        line += [f"--{name.replace('_', '-')}", str(value)]
    if request.memory:
        whole, rest = divmod(request.memory, 1 << 20)
        line += ["--memory", str(request.memory) if rest else f"{whole}MiB"]
    line += ["-o", "out.npy"]
    if chosen["audit"]:
        line += ["--audit", str(chosen["audit"])]
    return shlex.join(line)
