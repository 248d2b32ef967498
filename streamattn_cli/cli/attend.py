"""`streamattn attend`: the main job."""

from __future__ import annotations

from typing import Annotated

from streamattn_cli.cli import options
from streamattn_cli.cli.options import option
from streamattn_cli.cli.words import attend_request, run_and_render, show_json


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
    select: options.Select = None,
    rows: options.Rows = None,
    q_rows: options.QueryRows = None,
    causal: options.Causal = None,
    scale: options.Scale = None,
    method: options.Method = None,
    resident_rows: options.ResidentRows = None,
    effort: options.Effort = "default",
    query_model: options.QueryModel = None,
    sinks: options.Sinks = None,
    window: options.Window = None,
    buffer: options.Buffer = None,
    atoms: options.Atoms = None,
    degree: options.Degree = 4,
    polynomial: options.Polynomial = "hermite",
    beta: options.Beta = None,
    max_error: options.MaxError = 0.25,
    eps: options.Eps = None,
    sketches: options.Sketches = None,
    order: options.Order = None,
    m1: options.M1 = None,
    m2: options.M2 = None,
    decoder: options.Decoder = "scan",
    top_k: options.TopK = None,
    per_column: options.PerColumn = False,
    deviation: options.Deviation = False,
    memory: options.Memory = None,
    audit: options.Audit = 0,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    block_rows: options.BlockRows = None,
    nan_policy: options.NanPolicy = "error",
    out_dtype: options.OutDtype = None,
    checkpoint: options.Checkpoint = None,
    checkpoint_every: options.CheckpointEvery = "30s",
    resume: options.Resume = False,
    skip_rows: options.SkipRows = None,
    fingerprint: options.Fingerprint = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    progress_every: options.ProgressEvery = 10.0,
) -> None:
    """Attention outputs for queries over keys and values of any length, in constant memory.

    streamattn attend heads.h5 --causal --resident-rows 512 -o out.npy --audit 64
    """
    words = dict(locals())
    from streamattn_cli.cli.streams import refuse_terminal
    from streamattn_cli.engine.attend import attend as run
    from streamattn_cli.engine.attend import plan_attend
    from streamattn_cli.report.plan import render_plan

    if not dry_run:
        refuse_terminal(output, json)
        run_and_render(run, attend_request(words), words)
        return
    plan = plan_attend(attend_request(words)).to_dict()
    if json:
        show_json({"type": "plan", **plan})
    else:
        render_plan(plan)
