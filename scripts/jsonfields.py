"""The reference of report/JSON.md, made from report/schema.json: see scripts/make_pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

REPORT = Path(__file__).resolve().parent.parent / "streamattn_cli" / "report"
BEGIN, END = "<!-- fields -->", "<!-- /fields -->"


def page() -> str:
    """JSON.md as it should be: its text as it is, its reference from the schema."""
    before, _, rest = (REPORT / "JSON.md").read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{reference(json.loads((REPORT / 'schema.json').read_text()))}{END}{after}"


def reference(schema: dict) -> str:
    """A section with a table for every object, documents first."""
    definitions = schema["$defs"]
    objects = [name for name, found in definitions.items() if "properties" in found or _items(found)]
    return "".join(_section(name, definitions) for name in objects)


def _section(name: str, definitions: dict) -> str:
    found = definitions[name]
    lines = [f"\n### {name}\n", f"{found['title']}. {found['description']}\n"]
    lines += ["| field | type | unit | description |", "| --- | --- | --- | --- |"]
    for field, schema, optional in _fields(found, ""):
        told = definitions[_target(schema)] | schema if "$ref" in schema else schema
        name = f"`{field}`{' (optional)' if optional else ''}"
        cells = name, _kind(schema, definitions), told.get("unit", ""), told["description"]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _fields(schema: dict, path: str) -> Iterator[tuple[str, dict, bool]]:
    """(path, schema, whether it may be absent) of every field within a definition."""
    for name, inner in schema.get("properties", {}).items():
        yield path + name, inner, name not in schema.get("required", ())
        yield from _fields(inner, f"{path}{name}.")
    for branch in schema.get("anyOf", ()):
        yield from _fields(branch, path)
    if _items(schema):
        yield from _fields(schema["items"], f"{path[:-1]}[].")


def _items(schema: dict) -> bool:
    """Whether it is a list of objects that are described in place."""
    return isinstance(schema.get("items"), dict) and "properties" in schema["items"]


def _target(schema: dict) -> str:
    return schema["$ref"].rpartition("/")[2]


def _kind(schema: dict, definitions: dict) -> str:
    """The type in words, with a link to the section that describes it."""
    if "$ref" in schema:
        name, found = _target(schema), definitions[_target(schema)]
        return f"[{name}](#{name})" if "properties" in found or _items(found) else _kind(found, definitions)
    if "anyOf" in schema:
        return " or ".join(_kind(branch, definitions) for branch in schema["anyOf"])
    if "const" in schema:
        return f'"{schema["const"]}"'
    if "enum" in schema:
        return ", ".join(f'"{word}"' for word in schema["enum"])
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    inner = schema.get("items")
    return f"array of {_kind(inner, definitions)}" if isinstance(inner, dict) else " or ".join(kinds)
