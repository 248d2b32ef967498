"""`streamattn inspect`: what is in this input."""

from __future__ import annotations

import sys
from typing import Annotated


from streamattn_cli.cli import options
from streamattn_cli.cli.options import option
from streamattn_cli.cli.streams import printing


def inspect(
    input: options.Input = None,
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
    scale: options.Scale = None,
    json: Annotated[bool, option("--json", help="The report as JSON.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """What is in an input: shapes, layouts, dtypes, finite or not, logit spread, and which method fits.

    streamattn inspect heads.h5
    """
    from streamattn_cli.engine.inspect import inspect as look
    from streamattn_cli.engine.signals import Interrupts
    from streamattn_cli.report.inspection import render_inspection
    from streamattn_cli.report.jsontext import json_line
    from streamattn_cli.report.progress import make_listener
    from streamattn_cli.rows.spec import InputSpec

    spec = InputSpec(
        input=input, q=q, k=k, v=v, group=group, layout=layout, record=record, raw=raw, dtype=dtype, heads=heads,
        kv_heads=kv_heads, dim=dim, value_dim=value_dim,
    )  # fmt: skip
    with make_listener("quiet" if quiet else "auto") as listener, Interrupts(status=listener.status) as interrupts:
        report = look(spec, scale, listener, interrupts)
    with printing():
        if json:
            print(json_line(report))
        else:
            render_inspection(report, sys.stdout)
