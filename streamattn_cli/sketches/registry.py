"""Which methods there are: ours, one line for each, and those of other packages.

Another package joins with an entry point of the group `streamattn.methods`, whose name is the method's and whose object is
its METHOD. Modules are imported when their method is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamattn_cli import plugins
from streamattn_cli.errors import UsageError

if TYPE_CHECKING:
    from streamattn_cli.sketches.method import History, HistoryParams, Method

HISTORIES = "streamattn_cli.sketches.histories"
BUILT_IN = {
    "nystrom": f"{HISTORIES}.nystrom",
    "poly": f"{HISTORIES}.poly",
    "exact": f"{HISTORIES}.exact",
    "evict": f"{HISTORIES}.evict",
    "window": f"{HISTORIES}.window",
    "sample": f"{HISTORIES}.sample",
    "reservoir": f"{HISTORIES}.reservoir",
    "balance": f"{HISTORIES}.balance",
    "wildcat": f"{HISTORIES}.wildcat",
}
GROUP = "streamattn.methods"


@cache
def installed() -> dict[str, Any]:
    """Entry points of methods of other packages, by name; ours cannot be replaced."""
    return plugins.installed(GROUP, tuple(BUILT_IN))


def names() -> tuple[str, ...]:
    """All methods, ours first."""
    return (*BUILT_IN, *sorted(installed()))


@cache
def find(name: str) -> Method:
    """The method of that name. Raises UsageError where there is none, or its package is broken."""
    if name in BUILT_IN:
        found: Method = import_module(BUILT_IN[name]).METHOD
        return found
    if name not in installed():
        raise UsageError(
            f"method {name}: there is none here; install the package that has it, or use one of {', '.join(names())}"
        )
    from streamattn_cli.sketches.method import Method

    return plugins.load(installed()[name], Method, UsageError)


def usable() -> Iterator[Method]:
    """All methods but those of broken packages; packages are looked for after ours."""
    yield from map(find, BUILT_IN)
    for name in sorted(installed()):
        with suppress(UsageError):
            yield find(name)


@cache
def of(params: type) -> Method:
    """The method to which this class of settings belongs. Raises KeyError for a class of no method."""
    for method in usable():
        if method.params is params:
            return method
    raise KeyError(f"{params.__name__} belongs to no method; methods of other packages are entry points of {GROUP}")


def history_of(params: HistoryParams) -> type[History]:
    """The history that has these settings."""
    history = of(type(params)).history
    assert history is not None
    return history
