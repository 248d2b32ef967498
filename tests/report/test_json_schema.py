"""What commands write as JSON is what report/schema.json describes: every document, every field, every unit."""

import json

import numpy as np
import pytest
from described import DEFINITIONS, KINDS, SCHEMA, complaints, kind_of
from jsonruns import LOGS, RUNS, all_documents
from jsonschema import Draft202012Validator
from typer.main import get_command

from streamattn_cli.cli.main import app

UNITS = {"bytes", "seconds", "rows", "columns", "heads", "items", "entries", "bits", "none"}


def parts(schema):
    """The schemas within a schema, and itself; references are not followed."""
    yield schema
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ()), *schema.get("prefixItems", ())]
    for part in [*inner, *([schema["items"]] if schema.get("items") else [])]:
        yield from parts(part)


def resolved(schema):
    """The schema that is meant, with its own description where it has one."""
    if "$ref" in schema:
        return resolved(DEFINITIONS[schema["$ref"].rpartition("/")[2]]) | schema
    return schema


def is_numeric(schema):
    """Whether it is a number, or a list of numbers."""
    schema = resolved(schema)
    inner = [*schema.get("prefixItems", ()), *([schema["items"]] if schema.get("items") else [])]
    return bool({"integer", "number"} & set(np.atleast_1d(schema.get("type", [])))) or any(map(is_numeric, inner))


def used(schema, value, where):
    """(place, name) of every property of the schema that a document has."""
    if "$ref" in schema:
        where = schema["$ref"].rpartition("/")[2]
        yield from used(DEFINITIONS[where], value, where)
    for branch in schema.get("anyOf", ()):
        if Draft202012Validator(branch | {"$defs": DEFINITIONS}).is_valid(value):
            yield from used(branch, value, where)
    if isinstance(value, dict):
        for name in value.keys() & schema.get("properties", {}).keys():
            yield where, name
            yield from used(schema["properties"][name], value[name], f"{where}.{name}")
    if isinstance(value, list) and schema.get("items"):
        for item in value:
            yield from used(schema["items"], item, where)


def properties(schema, where):
    """(place, name) of every property of a definition."""
    for name, inner in schema.get("properties", {}).items():
        yield where, name
        yield from properties(inner, f"{where}.{name}")
    for branch in [*schema.get("anyOf", ()), *([schema["items"]] if schema.get("items") else [])]:
        yield from properties(branch, where)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the documents are made."""
    return tmp_path_factory.mktemp("json")


@pytest.fixture(scope="module")
def documents(folder):
    """(name, document) of everything that commands write."""
    return list(all_documents(folder))


def test_every_document_is_as_described(documents):
    wrong = {name: found for name, document in documents if (found := complaints(document))}
    assert wrong == {}
    whole = Draft202012Validator(SCHEMA)
    assert all(whole.is_valid(document) for _, document in documents)


def test_every_file_beside_an_output_is_as_described(documents, folder):
    sides = {path.name: json.loads(path.read_text()) for path in folder.glob("*.npy.json")}
    assert set(sides) == {f"{name}.npy.json" for name in ("out", "saved", "answers", "repaired", "doubt", "packed")}
    assert {name: found for name, side in sides.items() if (found := complaints(side, "side"))} == {}


def test_every_described_field_is_written(documents, folder):
    seen = {entry for _, d in documents for entry in used({"$ref": f"#/$defs/{kind_of(d)}"}, d, "")}
    for path in folder.glob("*.npy.json"):
        seen |= set(used({"$ref": "#/$defs/side"}, json.loads(path.read_text()), ""))
    known = {entry for name, definition in DEFINITIONS.items() for entry in properties(definition, name)}
    assert known - seen == set()


def test_every_command_that_writes_json_is_run():
    commands = get_command(app).commands
    for option, runs in (("--json", RUNS), ("--log-json", LOGS)):
        writers = {name for name, command in commands.items() if any(option in p.opts for p in command.params)}
        writers -= {"perplexity", "capture"}  # which need a model: tests/models run them
        assert writers == {words[0] for words in runs.values()}


def test_the_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)
    known = {part["$ref"] for definition in DEFINITIONS.values() for part in parts(definition) if "$ref" in part}
    assert known | {f"#/$defs/{name}" for name in [*KINDS, "side"]} == {f"#/$defs/{name}" for name in DEFINITIONS}


def test_every_object_takes_only_what_is_described():
    for name, definition in DEFINITIONS.items():
        for part in parts(definition):
            if "object" in part.get("type", ()) or "properties" in part:
                chosen_by_the_file = part is DEFINITIONS["inspection"]["properties"]["attributes"]
                assert (part.get("additionalProperties") is not False) == chosen_by_the_file, name
                assert set(part.get("required", ())) <= set(part["properties"]), name


def test_every_field_has_a_description_and_every_number_a_unit():
    for name, definition in DEFINITIONS.items():
        assert definition["title"] and definition["description"].endswith("."), name
        for part in parts(definition):
            for field, schema in part.get("properties", {}).items():
                assert resolved(schema).get("description", "").endswith("."), f"{name}.{field}"
                if is_numeric(schema):
                    assert resolved(schema).get("unit") in UNITS, f"{name}.{field}"


@pytest.mark.parametrize("change", [
    lambda d: d.update(new=1), lambda d: d["facts"].update(new=1), lambda d: d["facts"]["params"].update(new=1),
    lambda d: d["counts"].update(new=1), lambda d: d["audit"]["method"].update(new=1), lambda d: d.pop("rows"),
    lambda d: d.update(rows="12"), lambda d: d["facts"].update(mode="other"),
])  # fmt: skip
def test_a_field_that_is_not_described_is_found(documents, change):
    document = json.loads(json.dumps(dict(documents)["attend"]))
    assert complaints(document) == []
    change(document)
    assert len(complaints(document)) == 1 and not Draft202012Validator(SCHEMA).is_valid(document)
