"""Words of the command line as they are typed: text and numbers are read without Pydantic, which Typer otherwise loads, and asks
once for every option, typed or not; that took longer than a small run."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

NUMBERS = {int: re.compile(r"[0-9]{1,18}"), float: re.compile(r"[0-9]{1,18}(\.[0-9]*)?")}


class PlainCommand(TyperCommand):
    """A command whose options take the short way where Typer has one to leave."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See typer: --help is among them."""
        return _plain(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """The same of the options before the command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See typer."""
        return _plain(super().get_params(ctx))


def _plain(params: list[Any]) -> list[Any]:
    for param in params:
        told = getattr(param, "type_descriptor", None)
        if getattr(param, "_runtime_param", param) is None and told and told.parameter_info.parser is None:
            setattr(param, "_runtime_param", _Plain(told.annotation))  # noqa: B010 - not a part of its interface
    return params


class _Plain:
    """Reads a value as Typer does; what is not plainly right is left to Typer, which knows what to say."""

    def __init__(self, kind: Any):
        self._kind = kind

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """See typer: RuntimeParam."""
        single = param.nargs == 1 and not param.multiple
        if value is None:
            return None if single else ()
        if single and self._kind is str and isinstance(value, str):
            return value
        if single and self._kind in NUMBERS:
            if type(value) is self._kind:
                return value
            if isinstance(value, str) and NUMBERS[self._kind].fullmatch(value):
                return self._kind(value)
        if not single and self._kind == list[str] and all(isinstance(word, str) for word in value):
            return list(value)
        param._runtime_param = None
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)
