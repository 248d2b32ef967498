"""The plan of a run (`--dry-run`) as a short text.

A plan is a dict of plain entries: method, mode, inputs (a list of {name, shape, dtype, heads}), rows, block_rows,
passes (a list of str), memory ({allowed, projected, parts: {name: bytes}}), params (a dict), notes (a list of str).
Entries may be absent.
"""

from __future__ import annotations

import sys

from streamattn_cli.report.text.outcome import facts_text
from streamattn_cli.report.text.table import Rows, print_rows
from streamattn_cli.units import format_bytes


def render_plan(plan: dict) -> None:
    """Write the plan to standard error."""
    print_rows("plan: nothing has been written", plan_rows(plan), sys.stderr)


def plan_rows(plan: dict) -> Rows:
    """The plan as (label, text) rows."""
    rows = [("run", facts_text(plan))]
    rows += [("input", _input(entry)) for entry in plan.get("inputs", ())]
    rows.append(("rows", _rows(plan)))
    rows += [("pass", str(entry)) for entry in plan.get("passes", ())]
    rows += _memory(plan.get("memory", {}))
    rows += [("note", str(note)) for note in plan.get("notes", ())]
    return [(label, text) for label, text in rows if text]


def _input(entry: dict) -> str:
    shape = " x ".join("?" if size is None else str(size) for size in entry.get("shape") or ())
    heads = entry.get("heads")
    words = [str(entry.get("name", "")), shape, entry.get("dtype"), None if heads is None else f"{heads} heads"]
    return ", ".join(str(word) for word in words if word)


def _rows(plan: dict) -> str:
    if "rows" not in plan:
        return ""
    text = "not known before the end" if plan["rows"] is None else str(plan["rows"])
    return text + (f", in blocks of {plan['block_rows']}" if plan.get("block_rows") else "")


def _memory(memory: dict) -> Rows:
    known = [word for word in ("allowed", "projected") if memory.get(word) is not None]
    words = [f"{word} {format_bytes(memory[word])}" for word in known]
    parts = sorted(memory.get("parts", {}).items(), key=lambda part: -part[1])
    return [
        ("memory", ", ".join(words)),
        ("of which", ", ".join(f"{name.replace('_', ' ')} {format_bytes(count)}" for name, count in parts if count)),
    ]
