"""Numbers that say something about rows or heads: typed with commas between them, or from a file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import numpy as np

from streamattn_cli.errors import InputMalformed, InputMissing, UsageError
from streamattn_cli.rows.inputs.paths import find

MOST = 1 << 27  # numbers in a file
NAMED = ("hdf5", "npz")  # formats in which an array beside q, k and v is found by its name


def integers(word: str, option: str, beside: str | None = None) -> np.ndarray:
    """The numbers (n,) int64 of a word: `5,9,7`; FILE or FILE:DATASET of .npy, .npz, HDF5 or plain text; or the name of a
    dataset in the file `beside`. Raises UsageError, InputMissing and InputMalformed."""
    if re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", word):
        return _checked(np.array([int(part) for part in word.split(",")], np.object_), word, option)
    return _checked(_found(word, option, beside, int), word, option)


def decimals(word: str, option: str, beside: str | None = None) -> np.ndarray:
    """Finite numbers (n,) float64 of a word, as `integers` takes them: `0.5,-1,2e-3`, FILE, FILE:DATASET or a dataset."""
    try:
        found = np.array([float(part) for part in word.split(",")])
    except ValueError:
        found = np.asarray(_found(word, option, beside, float))
    if found.dtype.kind not in "fiu" or found.ndim != 1 or not 1 <= len(found) <= MOST or not np.isfinite(found).all():
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
    if os.path.lexists(path) or beside is None or not os.path.isfile(beside) or find(beside).kind not in NAMED:
        return _read(path, inside, option, kind)
    try:
        return _read(beside, word, option, kind)
    except InputMissing as error:
        raise InputMissing(f"{option} {word}: there is no such file; and as a name in the input, {error}") from error


def _read(path: str, inside: str, option: str, kind: Callable[[str], int | float]) -> np.ndarray:
    if path.lower().endswith((".txt", ".csv")):
        try:
            with open(path, encoding="ascii") as file:
                words = re.split(r"[\s,]+", file.read(MOST * 8).strip())
            return np.array([kind(word) for word in words], np.object_ if kind is int else np.float64)
        except OSError as error:
            raise InputMissing(f"{path}: {error.strerror}; check the path") from error
        except ValueError as error:
            raise InputMalformed(
                f"{path}: expected {'whole ' if kind is int else ''}numbers with commas or line breaks between them: {error}"
            ) from error
    form = find(path).kind
    if form == "hdf5":
        return _of_hdf5(path, inside, option)
    if form not in ("npy", "npz"):
        raise UsageError(f"{option} {path}: numbers are read from .npy, .npz, .h5 and .txt; save them so, or type them")
    try:
        found = np.load(path, allow_pickle=False, mmap_mode="r" if form == "npy" else None)
        if isinstance(found, np.ndarray):
            return found
        with found:
            if inside not in found:
                raise InputMissing(
                    f"{path}: no array {inside or '(name it: FILE:NAME)'}; there are: {', '.join(found)}"
                )
            member: np.ndarray = found[inside]
            return member
    except (OSError, ValueError, EOFError) as error:
        raise InputMalformed(f"{path}: unreadable: {error}") from error


def _of_hdf5(path: str, inside: str, option: str) -> np.ndarray:
    from streamattn_cli.rows.formats.hdf5arrays import dataset_names, opened

    with opened(path) as file:
        if not inside or inside not in file or not hasattr(file[inside], "shape"):
            listed = ", ".join(dataset_names(path))
            raise InputMissing(
                f"{path}: no dataset {inside or '(name it: FILE:DATASET)'} for {option}; there are: {listed}"
            )
        if file[inside].size > MOST:
            raise InputMalformed(f"{path}:{inside}: {file[inside].size} numbers for {option}, expected at most {MOST}")
        numbers: np.ndarray = file[inside][()]
        return numbers


def _checked(found: np.ndarray, word: str, option: str) -> np.ndarray:
    """As (n,) int64."""
    exact = found.dtype.kind in "iu" or found.dtype == np.object_
    if not exact or found.ndim != 1 or not 1 <= len(found) <= MOST or found.min() < 0 or found.max() > 1 << 53:
        raise InputMalformed(
            f"{option} {word}: {found.dtype} numbers of shape {found.shape} found, expected one axis of whole numbers that are "
            "not negative"
        )
    return found.astype(np.int64)
