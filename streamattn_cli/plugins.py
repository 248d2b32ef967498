"""What other packages add: objects that their entry points name."""

from __future__ import annotations

from typing import Any, TypeVar

from streamattn_cli.errors import StreamattnError

T = TypeVar("T")


def installed(group: str, ours: tuple[str, ...]) -> dict[str, Any]:
    """The entry points of a group by name, without those of names that are ours."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=group) if point.name not in ours}


def load(point: Any, kind: type[T], error: type[StreamattnError]) -> T:
    """The object of an entry point, which must be a `kind` of the same name; else `error`, which names its package."""
    try:
        found = point.load()
    except Exception as fault:
        raise error(broken(point, fault)) from fault
    if not isinstance(found, kind) or getattr(found, "name", None) != point.name:
        raise error(f"{point.group} {point.name}: {point.value} is no {kind.__name__} of that name; {MEND}")
    return found


def broken(point: Any, fault: Exception) -> str:
    """What to say of a package in whose code something was raised."""
    return f"{point.group} {point.name}: {point.value} fails ({type(fault).__name__}: {fault}); {MEND}"


MEND = "update or remove that package"
