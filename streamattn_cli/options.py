"""One description of each option: its help, its choices and how its word is read; commands, requests and pages are made from it.

A group of settings is a frozen dataclass whose fields are declared by `option`. Commands get their arguments from such
classes (cli/arguments.py), and requests are composed of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from streamattn_cli.errors import UsageError

INPUT, ATTENTION, BUDGET, SHOWN = "Input", "Attention", "Memory, speed, error", "What is shown"
SKETCHES = "Sketches and sparse outputs"


@dataclass(frozen=True)
class Option:
    """What the command line knows of a field beside its name, type and default.

    `names`: its spelling, if that is not --field-name. `shown`: the default in words. `choices`: its words, which are
    completed; others are refused unless it is `open`, or `others` gives them, too. `arrays`: its word may
    be FILE or FILE:DATASET, which is read. `heads`, `methods`: its word has numbers of key heads, or names of methods, which are
    completed. `read` makes the field's value of the word typed; raises UsageError. `decides`: outputs or checkpoints depend on
    it, so that a run is not resumed with another value.
    """

    help: str
    panel: str | None = None
    names: tuple[str, ...] = ()
    metavar: str | None = None
    shown: str | None = None
    choices: tuple[str, ...] = ()
    open: bool = False
    others: Callable[[], tuple[str, ...]] | None = None
    arrays: bool = False
    heads: bool = False
    methods: bool = False
    read: Callable[[str], object] | None = None
    decides: bool = False


def option(default: Any, help: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """A dataclass field with its description; `more`: see Option."""
    return field(default=default, metadata={"option": Option(help, panel, names, **more)})


def options_of(group: type) -> Iterator[tuple[str, Any, Option]]:
    """(name, default, description) of every field of a group that has one."""
    for member in fields(group):
        if "option" in member.metadata:
            yield member.name, member.default, member.metadata["option"]


def files_of(settings: Any) -> list[str | None]:
    """The words of the fields that may name a file that is read."""
    return [getattr(settings, name) for name, _, described in options_of(type(settings)) if described.arrays]


def spelling(name: str, described: Option | None = None) -> str:
    """The option as it is typed: --resident-rows."""
    return described.names[0] if described and described.names else f"--{name.replace('_', '-')}"


def check_choices(settings: Any) -> None:
    """Refuse (UsageError) words that are none of the choices of their field."""
    for name, default, described in options_of(type(settings)):
        value = getattr(settings, name)
        if not described.choices or described.open or value == default or value in described.choices:
            continue
        if not described.others or value not in described.others():
            raise UsageError(f"{spelling(name, described)} {value}: use {one_of(described.choices)}")


def one_of(choices: tuple[str, ...]) -> str:
    """'a, b or c'."""
    return " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)
