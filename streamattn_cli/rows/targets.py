"""What the word of an output means, and whether something is there already: the one policy of all commands."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable

from streamattn_cli.errors import UsageError

SEQUENCE = "{sequence}"  # in the name of an output: a file for each sequence
LONGEST = 1 << 20  # characters of a side file


def split_target(word: str) -> tuple[str, str | None]:
    """(file, dataset) of FILE.h5:DATASET, which adds to a file; (file, None) of any other word. A file whose own name
    holds the colon wins."""
    found = re.fullmatch(r"(.+\.(?:h5|hdf5)):([^:]+)", word, re.IGNORECASE)
    if not found or os.path.lexists(word):
        return word, None
    return found[1], "/" + found[2].strip("/")


def side_of(word: str | None) -> str | None:
    """The JSON file beside an .npy output; None where there is none."""
    if not word or not word.lower().endswith(".npy") or (os.path.exists(word) and not os.path.isfile(word)):
        return None
    return word + ".json"


def numbered(word: str) -> list[str]:
    """The files of an output: with {sequence} in its name those that are there, else the name itself."""
    if SEQUENCE not in word:
        return [word]
    head, _, tail = word.partition(SEQUENCE)
    found = glob.glob(f"{glob.escape(head)}*{glob.escape(tail)}")
    return sorted(name for name in found if name[len(head) : len(name) - len(tail)].isdecimal())


def refuse_existing(words: Iterable[str | None], force: bool) -> None:
    """Refuse (UsageError) outputs that are there already, unless they may be replaced (`--force`).

    A dataset of FILE.h5:DATASET counts, the file around it does not. None, -, pipes and devices are passed over, and so is a
    side file whose .npy is gone.
    """
    for word in (name for given in words if given and given != "-" for name in numbered(given)):
        file, dataset = split_target(word)
        if dataset:
            from streamattn_cli.rows.writers.hdf5out import check_dataset

            check_dataset(file, dataset, force)
        elif not force and os.path.isfile(file) and not _left_over(file):
            raise UsageError(f"{file}: there is a file already; --force replaces it, or choose another name")


def refuse_same(outputs: Iterable[tuple[str, str | None]]) -> None:
    """Refuse (UsageError) two outputs in one file; outputs: (option, word)."""
    seen: dict[str, str] = {}
    for option, word in outputs:
        if not word or word == "-" or split_target(word)[0].startswith("/dev/"):
            continue
        said = f"{option} {word}"
        other = seen.setdefault(os.path.realpath(split_target(word)[0]), said)
        if other is not said:
            raise UsageError(f"{said}: is also where {other} is written; give another name")


def _left_over(file: str) -> bool:
    """Whether this is a side file of streamattn whose .npy was removed."""
    if not file.lower().endswith(".npy.json") or os.path.exists(file[: -len(".json")]):
        return False
    try:
        with open(file, encoding="utf-8") as text:
            found = json.loads(text.read(LONGEST))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"seed", "scale"} <= found.keys()  # as those of attend, query and generate
