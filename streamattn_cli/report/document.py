"""Outcomes, comparisons and what `perplexity` found as JSON files, and pages as files."""

from __future__ import annotations

import json
import os
import sys
from math import inf
from typing import Any

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.targets import refuse_existing
from streamattn_cli.rows.writers.temporary import Temporary, failing_as_output

KINDS = {
    "outcome": ("command", "facts", "rows", "seconds", "memory", "counts", "bytes_read", "wait_seconds"),
    "perplexity": ("model", "texts", "tokens", "layers", "readings", "notes"),
    "comparison": ("input", "facts", "trials", "trivial", "audited", "truth_seconds"),
}


def read_document(name: str) -> dict:
    """The document in a file (- is standard input): one JSON document, or the last such line of a log.

    Raises InputMissing (3) and InputMalformed (4).
    """
    try:
        if name == "-":
            if sys.stdin is None:
                raise InputMissing("standard input is closed; name the file")
            text = sys.stdin.read()
        else:
            with open(name, encoding="utf-8") as file:
                text = file.read()
    except OSError as error:
        raise InputMissing(f"{name}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputMalformed(
            f"{name}: not text; expected what attend, compare or perplexity wrote with --json"
        ) from error
    for line in reversed([text, *text.splitlines()]):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        needed = KINDS.get(str(found.get("type"))) if isinstance(found, dict) else None
        if needed and found.keys() >= {*needed}:
            whole: dict = _with_infinities(found)
            return whole
    raise InputMalformed(f"{'standard input' if name == '-' else name}: no outcome or comparison found; make one with "
                         "attend, compare or perplexity, --json > run.json (not the file beside an output)")  # fmt: skip


def _with_infinities(found: Any) -> Any:
    """The document with errors that are infinite, which JSON has as null, as numbers again."""
    if isinstance(found, list):
        return [_with_infinities(entry) for entry in found]
    if not isinstance(found, dict):
        return found
    infinite = "median_row" in found or found.keys() == {"row", "head", "error"}  # an estimate, or a row of the worst
    errors = ("error", "median_row", "p95_row") if infinite else ()
    return {key: inf if value is None and key in errors else _with_infinities(value) for key, value in found.items()}


def save_page(page: str, name: str, force: bool = False) -> None:
    """Write a page to a file, which gets its name when it is complete. Raises UsageError and OutputFailed."""
    if not name.endswith((".html", ".htm")):
        raise UsageError(f"{name}: a page is called FILE.html; or give - for standard output")
    if os.path.isdir(name):
        raise UsageError(f"{name}: is a folder; name a file in it")
    refuse_existing([name], force)
    with failing_as_output(name):
        file = Temporary(name)
        try:
            with os.fdopen(os.dup(file.fd), "wb") as stream:
                stream.write(page.encode())
            file.commit()
        finally:
            file.abort()
