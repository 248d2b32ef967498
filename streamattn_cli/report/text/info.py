"""What a checkpoint says about itself, as a short text."""

from __future__ import annotations

import json
from typing import TextIO

from streamattn_cli.report.text.outcome import facts_text
from streamattn_cli.report.text.table import Rows, print_rows
from streamattn_cli.units import format_bytes


def render_info(found: dict, stream: TextIO) -> None:
    """Write the description of a checkpoint (see cli/info.py) to `stream`."""
    print_rows(found["file"], info_rows(found), stream)


def info_rows(found: dict) -> Rows:
    """The description as (label, text) rows."""
    meta = found["meta"]
    facts = meta.get("params", {})
    rows = [
        ("holds", facts_text(facts) if isinstance(facts, dict) else str(facts)),
        ("settings", _settings(facts) if isinstance(facts, dict) else ""),
        ("resident", _resident(found)),
        ("layout", found["layout"] or ""),
        (
            "queries",
            {None: "", "none": "none: it knew no queries"}.get(found["queries"], f"learnt from {found['queries']}"),
        ),
        ("rows", f"{meta.get('rows', '?')} ({meta.get('phase', '?')})"),
        ("made by", f"{meta.get('created_by', '?')}, container {found['container']}, schema {meta.get('schema', '?')}"),
        ("size", f"{format_bytes(found['state_bytes'])} of state in {len(found['tensors'])} arrays"),
        ("sources", _sources(meta.get("source", {}))),
        ("output", json.dumps(meta["output"]) if "output" in meta else ""),
    ]
    rows += [("array", f"{t['name']}, {t['dtype']}, {' x '.join(map(str, t['shape']))}") for t in found["tensors"]]
    return [(label, text) for label, text in rows if text]


def _settings(facts: dict) -> str:
    """The settings of a sketch; a run has them among its facts."""
    head = facts.get("head")
    if not head or "params" in facts:
        return ""
    (history,) = (head["history"] or {"": {}}).values()
    return facts_text({"params": {name: head[name] for name in ("sinks", "window", "group", "storage")} | history})


def _resident(found: dict) -> str:
    if found["resident_rows"] is None:
        return ""
    return f"{found['resident_rows']} rows of k and v for each key head, {format_bytes(found['resident_bytes'])}"


def _sources(source: object) -> str:
    """'heads.h5:/k and heads.h5:/v, rows 0:2048 of 4096' for each source."""
    if not isinstance(source, dict):
        return ""
    parts = source.get("absorbed", [source])
    told = []
    for part in parts:
        keys = part.get("k", {})
        names = [part[name]["name"] for name in ("q", "k", "v") if "name" in part.get(name, {}) and not (
            name == "q" and "absorbed" in source)]  # fmt: skip
        whose = " and ".join(dict.fromkeys(names)) or f"a {keys.get('kind', 'source')}"
        rows = f", {keys['rows']} rows" if "rows" in keys else ""
        told.append(whose + (f", rows {keys['range']} of {keys['rows']}" if "range" in keys else rows))
    return "; ".join(told)
