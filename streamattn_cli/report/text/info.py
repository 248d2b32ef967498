"""What a checkpoint says about itself, as a short text."""

from __future__ import annotations

import json
from typing import TextIO

from streamattn_cli.report.text.outcome import facts_text
from streamattn_cli.report.text.table import Rows, print_rows
from streamattn_cli.units import format_bytes


def render_info(found: dict, stream: TextIO, width: int | None = None) -> None:
    """Write the description of a checkpoint (see cli/info.py) to `stream`."""
    print_rows(found["file"], info_rows(found), stream, width)


def info_rows(found: dict) -> Rows:
    """The description as (label, text) rows."""
    meta = found["meta"]
    facts = meta.get("params", {})
    rows = [
        ("holds", facts_text(facts) if isinstance(facts, dict) else str(facts)),
        ("rows", f"{meta.get('rows', '?')} ({meta.get('phase', '?')})"),
        ("made by", f"{meta.get('created_by', '?')}, container {found['container']}, schema {meta.get('schema', '?')}"),
        ("size", f"{format_bytes(found['state_bytes'])} of state in {len(found['tensors'])} arrays"),
        ("sources", _sources(meta.get("source", {}))),
        ("output", json.dumps(meta["output"]) if "output" in meta else ""),
    ]
    rows += [("array", f"{t['name']}, {t['dtype']}, {' x '.join(map(str, t['shape']))}") for t in found["tensors"]]
    return [(label, text) for label, text in rows if text]


def _sources(source: object) -> str:
    parts = source.get("absorbed", [source]) if isinstance(source, dict) else []
    told = []
    for part in parts:
        keys = part.get("k", {})
        told.append(
            f"{keys.get('rows', '?')} rows of a {keys.get('kind', 'source')}"
            + (f" ({keys['range']})" if "range" in keys else "")
        )
    return "; ".join(told)
