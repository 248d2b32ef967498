"""`streamattn info`: what a checkpoint holds, from its header alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamattn_cli.cli.options import Json

if TYPE_CHECKING:
    from streamattn_cli.checkpoint.header import Header


def info(
    checkpoint: Annotated[str, typer.Argument(metavar="FILE", help="A sketch or checkpoint, FILE.sattn.")],
    json: Json = False,
) -> None:
    """What a sketch or checkpoint holds. Reads only its header; the seal is checked when the state is read.

    streamattn info heads.sattn
    """
    from streamattn_cli.checkpoint.container import read_header
    from streamattn_cli.cli.words import show
    from streamattn_cli.report.text.info import render_info

    show(_describe(checkpoint, read_header(checkpoint)), {"json": json}, render_info)


def _describe(file: str, header: Header) -> dict:
    """A JSON-able description of a header; metadata that holds JSON is opened up."""
    import json

    meta: dict[str, Any] = {}
    for key, text in header.meta.items():
        try:
            meta[key] = json.loads(text) if text[:1] in "{[" else text
        except ValueError:
            meta[key] = text
    facts, source = (found if isinstance(found := meta.get(key), dict) else {} for key in ("params", "source"))
    tensors = [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in header.tensors]
    head = sum(t.end - t.begin for t in header.tensors if t.name.startswith("head."))
    return {
        "type": "info",
        "file": file,
        "container": header.version,
        "meta": meta,
        **_told(facts, source, head),
        "state_bytes": header.state_bytes,
        "tensors": tensors,
    }


def _told(facts: dict, source: dict, head: int) -> dict:
    """What follows from the metadata and from the bytes of the arrays of all key heads."""
    params, shapes = facts.get("head"), facts.get("shapes", {})
    sources = source.get("absorbed", [source])
    rows = size = None
    if params and head and shapes.get("kv_heads"):
        heads, item = shapes["kv_heads"], {"f4": 4, "f8": 8}.get(params["storage"], 2)
        size = head // heads
        rows = round(size / ((params["dim"] + params["value_dim"]) * item), 1)
    layouts = dict.fromkeys(filter(None, [facts.get("layout"), *(one.get("k", {}).get("layout") for one in sources)]))
    queries = dict.fromkeys(one["q"].get("name", "none") for one in sources if "q" in one and "absorbed" in source)
    model = facts.get("query_model") or ", ".join(queries) or None
    return {"resident_rows": rows, "resident_bytes": size, "layout": ", ".join(layouts) or None, "queries": model}
