"""From the words of a command line to a request, and from a request to what the user sees."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import typer

from streamattn_cli.cli.arguments import Words
from streamattn_cli.engine.request.requests import Request
from streamattn_cli.options import options_of
from streamattn_cli.rows.spec import InputSpec

if TYPE_CHECKING:
    from streamattn_cli.engine.watch.signals import Interrupts
    from streamattn_cli.report.live.lines import Quiet

R = TypeVar("R", bound=Request)


def request_of(kind: type[R], words: Words, **decided: Any) -> R:
    """The request of a command's arguments by name; `decided` overrides them. Raises UsageError."""
    words = {**words, **decided}
    spec = InputSpec(**settings(InputSpec, words))
    return kind(inputs=spec, **settings(kind, words))


def settings(group: type, words: Words) -> Words:
    """The fields of a group among the words, read as they say. Raises UsageError."""
    described = {name: option for name, _, option in options_of(group)}
    found = {f.name: words[f.name] for f in fields(group) if f.name in words and f.name != "inputs"}
    for name, word in found.items():
        read = described[name].read if name in described else None
        if read and isinstance(word, str):
            found[name] = read(word)
    return found


def run_and_render(run: Callable, request: object, words: Words) -> None:
    """Run a request while progress is shown, then show its outcome, as the words json, quiet, log_json ... say."""
    from streamattn_cli.engine.watch.events import Event, Finished, Started
    from streamattn_cli.report.text.outcome import render_outcome

    inputs: dict[str, str] = {}

    def told(event: Event) -> None:
        if isinstance(event, Started):
            inputs.update(
                {one["part"]: one["name"] for one in event.plan.get("inputs", ()) if one["name"] != "nothing"}
            )
        listener(Finished(signed(event.outcome, inputs=inputs)) if isinstance(event, Finished) else event)

    with watching(words) as (listener, interrupts):
        outcome = signed(run(request, told, interrupts), inputs=inputs)
    if words["json"]:
        show_json(outcome.to_dict())
    elif not words["quiet"] and not words["log_json"]:
        render_outcome(outcome)
    if outcome.code:
        raise typer.Exit(outcome.code)


@contextmanager
def watching(words: Words) -> Iterator[tuple[Quiet, Interrupts]]:
    """A listener that shows progress as the words quiet, log_json and progress_every say, and signals that stop the run."""
    from streamattn_cli.engine.watch.signals import Interrupts
    from streamattn_cli.report.live.progress import make_listener

    mode = "json" if words.get("log_json") else "quiet" if words.get("quiet") else "auto"
    with make_listener(mode, words.get("progress_every", 10.0)) as listener:
        with Interrupts(status=listener.status) as interrupts:
            yield listener, interrupts


def signed(outcome: Any, **more: Any) -> Any:
    """An Outcome or a Comparison with the command line that asked for it, and when it was done."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(outcome, command_line=shlex.join(["streamattn", *sys.argv[1:]]), finished=now, **more)


def show(document: dict, words: Words, render: Callable[[dict, TextIO], None]) -> None:
    """A document on standard output: as JSON, as the text that `render` writes, or not at all, as the words say."""
    from streamattn_cli.cli.streams import printing

    if words["json"]:
        show_json(document)
    elif not words.get("quiet") and not words.get("log_json"):
        with printing():
            render(document, sys.stdout)


def show_json(document: dict) -> None:
    """One JSON document on standard output."""
    from streamattn_cli.cli.streams import printing
    from streamattn_cli.report.jsontext import json_line

    with printing():
        print(json_line(document))
