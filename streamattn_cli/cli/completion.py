"""What the shell completes beside options: the words of a choice, and the arrays of a file after FILE: ."""

from __future__ import annotations

import os
from collections.abc import Callable

import typer

from streamattn_cli.options import Option


def completion_of(described: Option) -> Callable[..., list[str]] | None:
    """The function that completes the value of an option; None where the shell completes names of files."""
    if described.heads:
        return key_heads
    if described.methods:
        return methods
    if not described.choices:
        return arrays if described.arrays else None

    def words(incomplete: str) -> list[str]:
        others = described.others() if described.others else ()
        found = [word for word in dict.fromkeys((*described.choices, *others)) if word.startswith(incomplete)]
        return found + (arrays(incomplete) if described.arrays else [])

    return words


def arrays(incomplete: str) -> list[str]:
    """FILE:NAME of every array of a file that fits; nothing for a word without a colon, and for files without names."""
    from streamattn_cli.errors import StreamattnError
    from streamattn_cli.rows.inputs.paths import find

    file, colon, start = incomplete.rpartition(":")
    if not colon or not os.path.exists(file):
        return []
    try:
        place = find(file)
        names = place.held.names(file) if place.names_arrays else []
    except (StreamattnError, OSError):
        return []
    names = names if start.startswith("/") or not start else [name.lstrip("/") for name in names]
    return [f"{file}:{name}" for name in names if name.startswith(start)]


def key_heads(ctx: typer.Context, incomplete: str) -> list[str]:
    """Numbers, after the last comma, of the key heads of the input that the words before name; none where it is not clear."""
    from streamattn_cli.errors import StreamattnError
    from streamattn_cli.rows.inputs.open import open_inputs
    from streamattn_cli.rows.spec import InputSpec

    words = {
        name: ctx.params.get(name)
        for name in ("input", "k", "v", "group", "layout", "record", "kv_heads", "heads", "dim")
    }
    if not words["input"] and ctx.args:  # an option that lacks its word leaves the arguments where they are
        words["input"] = ctx.args[0]
    before, comma, start = incomplete.rpartition(",")
    try:
        with open_inputs(InputSpec(**{name: word for name, word in words.items() if word}), need_q=False) as inputs:
            count = len(inputs.heads["k"])
    except (StreamattnError, OSError, TypeError, ValueError):
        return []
    taken = before.split(",")
    return [f"{before}{comma}{n}" for n in range(count) if str(n).startswith(start) and str(n) not in taken]


def methods(incomplete: str) -> list[str]:
    """Names of methods after the last comma."""
    from streamattn_cli.sketches.registry import names

    before, comma, start = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in sorted(names()) if name.startswith(start) and name != "exact"]
