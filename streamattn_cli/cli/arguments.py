"""Typer arguments of a command, made from the descriptions of its groups of settings (options.py)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer

from streamattn_cli.cli.completion import completion_of
from streamattn_cli.options import SHOWN, Option, option, options_of, spelling

Words = dict[str, Any]  # a command's arguments by name, as typed


@dataclass(frozen=True)
class Shown:
    """What a command shows while it works and when it is done."""

    json: bool = option(False, "The outcome as JSON on standard output.", panel=SHOWN)
    quiet: bool = option(False, "No progress, no outcome.", panel=SHOWN)
    log_json: bool = option(False, "Progress as JSON lines.", panel=SHOWN)
    progress_every: float = option(10.0, "Seconds between progress lines in a log.", panel=SHOWN)


def takes(*groups: type, without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that takes, beside the parameters of its own, the options of `groups`, except those named in `without`.

    It is called with one dict of all of them by name, and with its own. One of its own wins over a field of that name.
    """

    def made(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "words"]
        known = {p.name for p in own} | set(without)
        fields = [p for group in groups for p in _parameters(group) if p.name not in known]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *fields)]

        @functools.wraps(command)
        def run(**words: Any) -> None:
            command(words, **{p.name: words[p.name] for p in own})

        run.__dict__["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return made


def _parameters(group: type) -> Iterator[inspect.Parameter]:
    types = get_type_hints(group)
    annotated: Any = Annotated  # with types that are known when the program runs
    for name, default, described in options_of(group):
        typed = str | None if described.read else types[name]
        annotation = annotated[typed, _typer_option(name, described)]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _typer_option(name: str, described: Option) -> Any:
    choices = described.choices
    return typer.Option(
        *(described.names or (spelling(name),)),
        help=described.help,
        rich_help_panel=described.panel,
        metavar=described.metavar or "|".join(choices) or None,
        show_default=described.shown or True,
        show_envvar=False,  # the rule is told once, at the end of every help text
        autocompletion=completion_of(described),
    )
