"""What a file format is: how it is told from others, which arrays a file holds, and how they are opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from streamattn_cli.rows.formats.names import find_parts
from streamattn_cli.rows.tensors.stored import Stored


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format, by which registry.py finds it.

    `sniff`(path, first bytes): whether a file is of this format; 16 bytes, fewer of a shorter file. `names`(path): its
    arrays, sorted. `arrays`(path, names by key, what 16-bit integers are): those arrays. `parts`(path, letters of q, k, v,
    group or None): the names of these, where `find_parts` does not tell. All raise InputMalformed (4) for a damaged file and
    InputMissing (3) for what is not in it. `unnamed`: a file is one array without a name. `folder`(path): whether a folder is
    of this format. `integers`(path, name, most): the array of that name where its items are whole numbers or bool, at most so
    many; None where they are not.
    """

    name: str
    extensions: tuple[str, ...]
    sniff: Callable[[str, bytes], bool]
    names: Callable[[str], list[str]]
    arrays: Callable[[str, dict[str, str], str | None], dict[str, Stored]]
    parts: Callable[[str, tuple[str, ...], str | None], dict[str, str]] | None = None
    unnamed: bool = False
    folder: Callable[[str], bool] | None = None
    integers: Callable[[str, str, int], np.ndarray | None] | None = None

    def names_of(self, path: str, parts: tuple[str, ...], group: str | None) -> dict[str, str]:
        """The names of the arrays that are these of q, k and v, by their letters."""
        return (self.parts or self._by_names)(path, parts, group)

    def _by_names(self, path: str, parts: tuple[str, ...], group: str | None) -> dict[str, str]:
        return find_parts(path, self.names(path), parts, group)
