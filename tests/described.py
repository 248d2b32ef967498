"""Whether JSON documents are as report/schema.json describes them."""

import json
from functools import cache
from pathlib import Path

from jsonschema import Draft202012Validator

REPORT = Path(__file__).resolve().parent.parent / "streamattn_cli" / "report"
SCHEMA = json.loads((REPORT / "schema.json").read_text())
DEFINITIONS = SCHEMA["$defs"]
KINDS = [entry["$ref"].rpartition("/")[2] for entry in SCHEMA["oneOf"]]


def kind_of(document):
    """The definition of a document: its type, but for the outcomes of generate and capture."""
    if document["type"] == "outcome":
        return {"generate": "generated", "capture": "captured"}.get(document["command"], "outcome")
    return document["type"]


def complaints(document, name=None):
    """What the schema has against a document, each with its place; name: of its definition, where that is known."""
    return [
        f"{error.json_path}: {error.message}" for error in _validator(name or kind_of(document)).iter_errors(document)
    ]


def described(document):
    """The document, which must be as the schema has it."""
    wrong = complaints(document)
    assert not wrong, f"not as report/schema.json has it: {wrong}"
    return document


@cache
def _validator(name):
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": DEFINITIONS})
