"""Compiled loops.

Numba takes a third of a second to import, and the sizes of a sketch are needed where none of its loops will run. So
`from streamattn_cli.kernels import dense` gives a stand-in, which imports the module when one of its functions is used.
"""

from importlib import import_module


class _Later:
    """A module of this package, not yet imported."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, item: str) -> object:
        if item.startswith("__"):
            raise AttributeError(item)
        found = getattr(import_module(f"{__name__}.{self._name}"), item)
        setattr(self, item, found)
        return found


def __getattr__(name: str) -> _Later:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _Later(name)
