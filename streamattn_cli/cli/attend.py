"""`streamattn attend`: the main job."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from streamattn_cli.cli import options
from streamattn_cli.cli.options import FROM, HOW, SKETCHES, WATCH, WHAT, option
from streamattn_cli.cli.streams import printing


def attend(
    input: options.Input = None,
    output: Annotated[
        str, option("-o", "--output", help="FILE.npy, FILE.h5, or - (.npy records on standard output).")
    ] = "-",
    q: options.Queries = None,
    k: options.Keys = None,
    v: options.Values = None,
    group: options.Group = None,
    layout: options.Layout = None,
    record: options.Record = None,
    raw: options.Raw = None,
    dtype: options.Dtype = None,
    heads: options.QueryHeads = None,
    kv_heads: options.KeyHeads = None,
    dim: options.Dim = None,
    value_dim: options.ValueDim = None,
    select: Annotated[
        str | None, option(help="Key heads to use, such as 0,2 (with their query heads).", rich_help_panel=FROM)
    ] = None,
    rows: Annotated[
        str | None, option(metavar="A:B", help="Rows A to B (not included) only.", rich_help_panel=FROM)
    ] = None,
    q_rows: Annotated[
        str | None, option(metavar="A:B", help="The same for queries of their own.", rich_help_panel=FROM)
    ] = None,
    causal: Annotated[
        bool | None,
        option("--causal/--full", help="Row i sees rows up to i, or all rows.", rich_help_panel=WHAT),
    ] = None,
    scale: options.Scale = None,
    method: Annotated[
        str | None, option(
            help="nystrom, poly, exact; to compare: window, evict, sample, balance, wildcat.",
            show_default="nystrom",
            rich_help_panel=WHAT,
        ),
    ] = None,
    resident_rows: Annotated[
        int | None,
        option(
            help="All but poly, exact: memory of one key head, in rows of k and v; everything counts.",
            show_default="1024",
            rich_help_panel=WHAT,
        ),
    ] = None,
    effort: Annotated[
        str, option(help="nystrom: fast, default or best, time against error.", rich_help_panel=WHAT)
    ] = "default",
    sinks: Annotated[
        int | None, option(help="First rows that stay exact.", show_default="4, poly 0", rich_help_panel=WHAT)
    ] = None,
    window: Annotated[
        int | None,
        option(help="Recent rows that stay exact.", show_default="by --resident-rows, poly 0", rich_help_panel=WHAT),
    ] = None,
    buffer: Annotated[
        int | None,
        option(help="Rows between two compressions.", show_default="by --resident-rows", rich_help_panel=WHAT),
    ] = None,
    atoms: Annotated[
        int | None, option(help="Atoms, or rows, of the history.", show_default="by --resident-rows", rich_help_panel=WHAT)
    ] = None,
    degree: Annotated[int, option(help="poly: degree of the polynomial, 1 to 12.", rich_help_panel=WHAT)] = 4,
    polynomial: Annotated[str, option(help="poly: hermite or taylor.", rich_help_panel=WHAT)] = "hermite",
    beta: Annotated[
        float | None, option(help="poly: bound on |logit|; longer rows are shortened.", rich_help_panel=WHAT)
    ] = None,
    max_error: Annotated[
        float, option(help="poly: refuse when a larger error is predicted.", rich_help_panel=WHAT)
    ] = 0.25,
    eps: Annotated[
        float | None, option(help="poly: error that chooses degree and sizes, such as 0.01.", rich_help_panel=SKETCHES)
    ] = None,
    sketches: Annotated[
        str | None, option(help="exact, psi, phi or paper.", show_default="exact", rich_help_panel=SKETCHES)
    ] = None,
    order: Annotated[
        str | None,
        option(help="In which k, q, v come: kvq, vkq, kqv.", show_default="by --sketches", rich_help_panel=SKETCHES),
    ] = None,
    m1: Annotated[int | None, option(help="Buckets of Psi.", show_default="4096", rich_help_panel=SKETCHES)] = None,
    m2: Annotated[int | None, option(help="Counters of Phi.", show_default="by k", rich_help_panel=SKETCHES)] = None,
    decoder: Annotated[str, option(help="Of Phi: scan or peel.", rich_help_panel=SKETCHES)] = "scan",
    top_k: Annotated[
        int | None, option(help="Any method: write the K largest entries of every column.", rich_help_panel=SKETCHES)
    ] = None,
    per_column: Annotated[
        bool, option("--per-column", help="Decode Phi column by column, not jointly.", rich_help_panel=SKETCHES)
    ] = False,
    deviation: Annotated[
        bool, option("--deviation", help="--top-k of the deviations from the mean output.", rich_help_panel=SKETCHES)
    ] = False,
    memory: Annotated[
        str | None, option(help="Budget above the program itself, such as 512MiB.", rich_help_panel=HOW)
    ] = None,
    audit: Annotated[
        int, option(help="Rows that are also answered exactly, to measure the error.", rich_help_panel=HOW)
    ] = 0,
    seed: Annotated[int, option(help="Of the audit's sample.", rich_help_panel=HOW)] = 0,
    threads: Annotated[int | None, option(help="Threads.", show_default="all", rich_help_panel=HOW)] = None,
    block_rows: Annotated[
        int | None, option(help="Rows read at a time.", show_default="about 4 MiB", rich_help_panel=HOW)
    ] = None,
    nan_policy: Annotated[
        str, option(help="error, or drop rows that are not finite.", rich_help_panel=HOW)
    ] = "error",
    out_dtype: Annotated[
        str | None, option(help="f16, f32 or f64.", show_default="f32; f64 for f64", rich_help_panel=HOW)
    ] = None,
    checkpoint: Annotated[
        str | None, option(help="FILE.sattn to save the run in as it goes on.", rich_help_panel=HOW)
    ] = None,
    checkpoint_every: Annotated[str, option(help="30s, 5min or 1e6rows.", rich_help_panel=HOW)] = "30s",
    resume: Annotated[bool, option("--resume", help="Go on from --checkpoint, if it exists.", rich_help_panel=HOW)] = False,
    skip_rows: Annotated[
        int | None,
        option(
            help="--resume with a pipe: rows to drop at its beginning.",
            show_default="those already done",
            rich_help_panel=HOW,
        ),
    ] = None,
    fingerprint: Annotated[
        bool, option("--fingerprint", help="Compare all of the input on --resume.", rich_help_panel=HOW)
    ] = False,
    dry_run: Annotated[bool, option("--dry-run", help="Print the plan, touch nothing.", rich_help_panel=WATCH)] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    progress_every: options.ProgressEvery = 10.0,
) -> None:
    """Attention outputs for queries over keys and values of any length, in constant memory.

        streamattn attend heads.h5 --causal --resident-rows 512 -o out.npy --audit 64
    """
    from streamattn_cli.engine.request import AttendRequest
    from streamattn_cli.errors import UsageError
    from streamattn_cli.rows.spec import InputSpec
    from streamattn_cli.units import parse_size

    if nan_policy not in ("error", "drop"):
        raise UsageError(f"--nan-policy {nan_policy}: use error or drop")
    to_stdout = output == "-"
    if json and to_stdout and not dry_run:
        raise UsageError("--json needs standard output, where the answers go: name a file with -o, or use --log-json")
    if to_stdout and not dry_run and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("standard output is a terminal, and answers are binary: pipe them on or give -o FILE")
    spec = InputSpec(
        input=input, q=q, k=k, v=v, group=group, layout=layout, record=record, raw=raw, dtype=dtype, heads=heads,
        kv_heads=kv_heads, dim=dim, value_dim=value_dim, select=_numbers(select), rows=_range(rows, "--rows"),
        q_rows=_range(q_rows, "--q-rows"),
    )  # fmt: skip
    request = AttendRequest(
        inputs=spec, output=output, method=method, causal=causal, scale=scale, sinks=sinks, window=window,
        resident_rows=resident_rows, effort=effort, atoms=atoms, buffer=buffer, degree=degree, polynomial=polynomial, beta=beta, max_error=max_error, audit=audit,
        memory=None if memory is None else parse_size(memory), seed=seed, threads=threads, block_rows=block_rows,
        checkpoint=checkpoint, checkpoint_every=checkpoint_every, resume=resume, skip_rows=skip_rows,
        fingerprint=fingerprint, eps=eps, sketches=sketches, order=order, m1=m1, m2=m2, decoder=decoder, top_k=top_k,
        per_column=per_column, deviation=deviation, nan_policy=nan_policy, out_dtype=out_dtype and _out_dtype(out_dtype),
    )  # fmt: skip
    if dry_run:
        _show_plan(request, json)
    else:
        _run(request, json, "json" if log_json else "quiet" if quiet else "auto", progress_every)


def _show_plan(request, json: bool) -> None:
    from streamattn_cli.engine.attend import plan_attend
    from streamattn_cli.report.jsontext import json_line
    from streamattn_cli.report.plan import render_plan

    plan = plan_attend(request).to_dict()
    if json:
        with printing():
            print(json_line({"type": "plan", **plan}))
    else:
        render_plan(plan)


def _run(request, json: bool, mode: str, every: float) -> None:
    from streamattn_cli.engine.attend import attend as run
    from streamattn_cli.engine.signals import Interrupts
    from streamattn_cli.report.jsontext import json_line
    from streamattn_cli.report.outcome import render_outcome
    from streamattn_cli.report.progress import make_listener

    with make_listener(mode, every) as listener, Interrupts(status=listener.status) as interrupts:
        outcome = run(request, listener, interrupts)
    if json:
        with printing():
            print(json_line(outcome.to_dict()))
    elif mode == "auto":
        render_outcome(outcome)


def _out_dtype(word: str) -> str:
    from streamattn_cli.errors import UsageError
    from streamattn_cli.rows.tensor import storage_word

    storage = storage_word(word, "--out-dtype")
    if storage == "bf16":
        raise UsageError("--out-dtype bf16: neither .npy nor NumPy has it; use f16, f32 or f64")
    return storage


def _numbers(word: str | None) -> tuple[int, ...] | None:
    from streamattn_cli.errors import UsageError

    if word is None:
        return None
    try:
        return tuple(int(part) for part in word.split(","))
    except ValueError:
        raise UsageError(f"--select {word}: give numbers with commas between them, such as 0,2") from None


def _range(word: str | None, option: str) -> tuple[int, int | None] | None:
    from streamattn_cli.errors import UsageError

    if word is None:
        return None
    try:
        first, last = word.split(":")
        return int(first or 0), int(last) if last else None
    except ValueError:
        raise UsageError(f"{option} {word}: give A:B, such as 0:4096 or 1000: (to the end)") from None
