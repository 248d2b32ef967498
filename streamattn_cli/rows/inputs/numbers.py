"""Numbers that say something about rows or heads: typed with commas between them, or from a file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import numpy as np

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.formats.names import NAMES_SHOWN
from streamattn_cli.rows.inputs.paths import find
from streamattn_cli.rows.inputs.scales import small

MAX_NUMBERS = 1 << 27  # numbers in a file


def integers(word: str, option: str, beside: str | None = None) -> np.ndarray:
    """The numbers (n,) int64 of a word: `5,9,7`; FILE or FILE:DATASET of any format, or plain text; or the name of a dataset in
    the file `beside`. Raises UsageError, InputMissing and InputMalformed."""
    if re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", word):
        return _checked(np.array([int(part) for part in word.split(",")], np.object_), word, option)
    return _checked(_found(word, option, beside, int), word, option)


def rows_that_count(word: str, option: str, beside: str | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """The same of --lengths, which may also be a mask (sequences, rows) of 0 and 1: how many rows of each sequence count, and how
    many are before them (None for none)."""
    if re.fullmatch(r"[\d\s,]+", word):
        return integers(word, option, beside), None
    found = _found(word, option, beside, int)
    return (_checked(found, word, option), None) if found.ndim < 2 else of_mask(found, f"{option} {word}")


def of_mask(mask: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows that count, and those before them, of a mask (sequences, rows) whose ones are side by side. InputMalformed."""
    ones = np.asarray(mask).astype(bool)
    if mask.ndim != 2 or mask.size > MAX_NUMBERS or mask.dtype.kind not in "iub" or not np.array_equal(ones, mask):
        raise InputMalformed(f"{name}: {mask.dtype} of shape {mask.shape} found, expected (sequences, rows) of 0 and 1")
    lengths = ones.sum(axis=1, dtype=np.int64)
    before = np.where(lengths > 0, ones.argmax(axis=1), 0).astype(np.int64)
    at = np.arange(mask.shape[1])
    whole = (at >= before[:, None]) & (at < (before + lengths)[:, None])
    wrong = np.flatnonzero((whole != ones).any(axis=1))
    if len(wrong):
        raise InputMalformed(
            f"{name}: the ones of sequence {wrong[0]} are not side by side; rows between others cannot be left out: save the "
            "rows that count, or say which ones do (--lengths)"
        )
    return lengths, before if before.any() else None


def decimals(word: str, option: str, beside: str | None = None) -> np.ndarray:
    """Finite numbers (n,) float64 of a word, as `integers` takes them: `0.5,-1,2e-3`, FILE, FILE:DATASET or a dataset."""
    try:
        found = np.array([float(part) for part in word.split(",")])
    except ValueError:
        found = np.asarray(_found(word, option, beside, float))
    if (
        found.dtype.kind not in "fiu"
        or found.ndim != 1
        or not 1 <= len(found) <= MAX_NUMBERS
        or not np.isfinite(found).all()
    ):
        raise InputMalformed(
            f"{option} {word}: {found.dtype} numbers of shape {found.shape} found, expected one axis of finite numbers"
        )
    return found.astype(np.float64)


def said(value: object, name: str) -> str:
    """The numbers of an attribute as a word. Raises InputMalformed for anything else: no file says which other files are read."""
    word = value if isinstance(value, str) else ",".join(map(str, np.atleast_1d(np.asarray(value)).tolist()))
    if not re.fullmatch(r"[-+.,eE\s\d]*\d[-+.,eE\s\d]*", word):
        raise InputMalformed(f"{name} is {word[:80]!r}, expected numbers; correct it")
    return word


def _found(word: str, option: str, beside: str | None, kind: Callable[[str], int | float]) -> np.ndarray:
    path, colon, inside = word.rpartition(":")
    if os.path.lexists(word) or not (colon and os.path.lexists(path)):
        path, inside = word, ""
    if os.path.lexists(path) or beside is None or not os.path.lexists(beside) or not find(beside).names_arrays:
        return _read(path, inside, option, kind)
    try:
        return _read(beside, word, option, kind)
    except InputMissing as error:
        raise InputMissing(f"{option} {word}: there is no such file; and as a name in the input, {error}") from error


def _read(path: str, inside: str, option: str, kind: Callable[[str], int | float]) -> np.ndarray:
    if path.lower().endswith((".txt", ".csv")):
        try:
            with open(path, encoding="ascii") as file:
                words = re.split(r"[\s,]+", file.read(MAX_NUMBERS * 8).strip())
            return np.array([kind(word) for word in words], np.object_ if kind is int else np.float64)
        except OSError as error:
            raise InputMissing(f"{path}: {error.strerror}; check the path") from error
        except ValueError as error:
            raise InputMalformed(
                f"{path}: expected {'whole ' if kind is int else ''}numbers with commas or line breaks between them: {error}"
            ) from error
    place = find(path)
    if place.kind == "pipe":
        raise UsageError(f"{option} {path}: numbers are read from a file; save them, or type them")
    if not place.names_arrays:
        try:
            plain: np.ndarray = np.load(path, allow_pickle=False, mmap_mode="r")
            return plain
        except (OSError, ValueError, EOFError) as error:
            raise InputMalformed(f"{path}: unreadable: {error}") from error
    held, names = place.held, [name.lstrip("/") for name in place.held.names(path)]
    if inside.lstrip("/") not in names:
        raise InputMissing(
            f"{path}: no array {inside or '(name it: FILE:NAME)'} for {option}; there are: {', '.join(names[:NAMES_SHOWN])}"
        )
    whole = held.integers(path, inside, MAX_NUMBERS) if held.integers else None
    return small(held.arrays(path, {"one": inside}, None)["one"], MAX_NUMBERS) if whole is None else whole


def _checked(found: np.ndarray, word: str, option: str) -> np.ndarray:
    """As (n,) int64."""
    exact = found.dtype.kind in "iu" or found.dtype == np.object_
    if not exact or found.ndim != 1 or not 1 <= len(found) <= MAX_NUMBERS or found.min() < 0 or found.max() > 1 << 53:
        raise InputMalformed(
            f"{option} {word}: {found.dtype} numbers of shape {found.shape} found, expected one axis of whole numbers that are "
            "not negative"
        )
    return found.astype(np.int64)
