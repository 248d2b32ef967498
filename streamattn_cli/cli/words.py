"""From the words of a command line to a request, and from a request to what the user sees."""

from __future__ import annotations

from collections.abc import Callable


def attend_request(words: dict, **decided):
    """The AttendRequest of a command's arguments by name; `decided` overrides them. Raises UsageError."""
    from dataclasses import fields

    from streamattn_cli.engine.request import AttendRequest
    from streamattn_cli.errors import UsageError
    from streamattn_cli.rows.spec import InputSpec
    from streamattn_cli.units import parse_size

    words = {**words, **decided}
    if words.get("nan_policy", "error") not in ("error", "drop"):
        raise UsageError(f"--nan-policy {words['nan_policy']}: use error or drop")
    read = {
        "select": numbers,
        "rows": lambda word: row_range(word, "--rows"),
        "q_rows": lambda word: row_range(word, "--q-rows"),
        "memory": parse_size,
        "out_dtype": out_dtype,
    }
    words = {name: read[name](word) if name in read and word is not None else word for name, word in words.items()}
    spec = InputSpec(**{f.name: words[f.name] for f in fields(InputSpec) if f.name in words})
    taken = {f.name: words[f.name] for f in fields(AttendRequest) if f.name in words and f.name != "inputs"}
    return AttendRequest(inputs=spec, **taken)


def run_and_render(run: Callable, request, words: dict) -> None:
    """Run a request while progress is shown, then show its outcome, as the words json, quiet, log_json ... say."""
    from streamattn_cli.engine.signals import Interrupts
    from streamattn_cli.report.outcome import render_outcome
    from streamattn_cli.report.progress import make_listener

    mode = "json" if words["log_json"] else "quiet" if words["quiet"] else "auto"
    with make_listener(mode, words["progress_every"]) as listener, Interrupts(status=listener.status) as interrupts:
        outcome = run(request, listener, interrupts)
    if words["json"]:
        show_json(outcome.to_dict())
    elif mode == "auto":
        render_outcome(outcome)


def show_json(document: dict) -> None:
    """One JSON document on standard output."""
    from streamattn_cli.cli.streams import printing
    from streamattn_cli.report.jsontext import json_line

    with printing():
        print(json_line(document))


def out_dtype(word: str) -> str:
    """A --out-dtype word as 'f2', 'f4' or 'f8'."""
    from streamattn_cli.errors import UsageError
    from streamattn_cli.rows.tensor import storage_word

    storage = storage_word(word, "--out-dtype")
    if storage == "bf16":
        raise UsageError("--out-dtype bf16: neither .npy nor NumPy has it; use f16, f32 or f64")
    return storage


def numbers(word: str) -> tuple[int, ...]:
    """'0,2' as (0, 2)."""
    from streamattn_cli.errors import UsageError

    try:
        return tuple(int(part) for part in word.split(","))
    except ValueError:
        raise UsageError(f"--select {word}: give numbers with commas between them, such as 0,2") from None


def row_range(word: str, option: str) -> tuple[int, int | None]:
    """'A:B' as (A, B), 'A:' as (A, None)."""
    from streamattn_cli.errors import UsageError

    try:
        first, last = word.split(":")
        return int(first or 0), int(last) if last else None
    except ValueError:
        raise UsageError(f"{option} {word}: give A:B, such as 0:4096 or 1000: (to the end)") from None
