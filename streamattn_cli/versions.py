"""Versions of this package and of those that made a result."""

from __future__ import annotations

from importlib import import_module

OURS = "0.1.0"  # pyproject.toml takes it from here: to look it up where packages are installed takes longer than a small run


def versions(*others: str) -> dict[str, str]:
    """Ours, and those of other packages that are loaded."""
    return {"streamattn-cli": OURS, **{name: str(import_module(name).__version__) for name in others}}
