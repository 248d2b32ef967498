"""The scales of fp8 rows: one number, or one for each head, that a file has beside an array and its rows are multiplied by."""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod

import numpy as np

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.convert import numbers
from streamattn_cli.rows.dtypes import DTYPES
from streamattn_cli.rows.formats.format import Format
from streamattn_cli.rows.tensors.heads import Heads
from streamattn_cli.rows.tensors.layout import Extent, show
from streamattn_cli.rows.tensors.stored import Scale, Stored

SUFFIXES = ("_scale", ".scale")
MAX_SCALES = 1 << 16  # numbers in a scale: more than there are heads


def with_scale(stored: Stored, held: Format, path: str, name: str, part: str | None) -> Stored:
    """An array `name` of a file, which holds q, k or v (`part`, if that is known), with the scale that the file has for it.

    That is another array or an attribute called like this one, or like its part, with _scale behind. Raises InputMalformed
    for one that is no number above 0, and where there are several.
    """
    if not DTYPES[stored.dtype].scaled:
        return stored
    last = re.split(r"[./]", name)[-1]
    group = name[: len(name) - len(last)]
    lasts = dict.fromkeys([last, part or last])
    words = {f"{group}{word}{suffix}".lstrip("/") for word in lasts for suffix in SUFFIXES}
    found = [word for word in held.names(path) if word.lstrip("/") in words]
    told = [f"{word}_scale" for word in lasts if f"{word}_scale" in stored.attrs]
    if len(found) + len(told) > 1:
        raise InputMalformed(
            f"{stored.name}: several scales found ({', '.join([*found, *told])}), expected one; remove the others"
        )
    if found:
        array = held.arrays(path, {"scale": found[0]}, None)["scale"]
        return replace(stored, scale=Scale(array.name, array.sizes, _checked(array.name, small(array), stored.dtype)))
    if told:
        try:
            values = np.atleast_1d(np.asarray(stored.attrs[told[0]], np.float64))
        except ValueError:
            values = np.array([np.nan])
        name = f"attribute {told[0]} of {stored.name}"
        shape = values.shape if values.size > 1 else ()
        return replace(stored, scale=Scale(name, shape, _checked(name, values.reshape(-1), stored.dtype)))
    return stored


def small(array: Stored, most: int = MAX_SCALES) -> np.ndarray:
    """All numbers of a small array, flat."""
    shape = array.sizes
    if prod(shape) > most:
        raise InputMalformed(
            f"{array.name}: numbers of shape {show(shape)} found, expected one number or one for each head"
        )
    first, rest = (shape or (1,))[0], prod(shape[1:])
    items = np.empty((1, first, rest), DTYPES[array.dtype].holder)
    tensor = array.open(Extent("T" + "D" * (len(shape) - 1), 1, first, rest, 1, 1, rest))
    try:
        tensor.read_into(items, 0)
    finally:
        tensor.close()
    return numbers(items, array.dtype).reshape(-1)


def _checked(name: str, values: np.ndarray, dtype: str) -> tuple[float, ...]:
    """The numbers as float32 has them, if the largest item times each is one."""
    found = DTYPES[dtype]
    largest = float(numbers(np.array([found.limit - 1], found.holder), dtype)[0])
    with np.errstate(over="ignore", invalid="ignore"):
        single = values.astype(np.float32)
        sane = np.isfinite(single * np.float32(largest)) & (single > 0)
    if not sane.all():
        raise InputMalformed(f"{name}: {values[~sane][0]:g} found as the scale of rows, expected a number above 0")
    return tuple(single.tolist())


def scaled(heads: Heads, stored: Stored, part: str, notes: list[str]) -> Heads:
    """The heads of an array with its scale, if it has one, and a note that says so. Raises InputMalformed for other shapes
    than one number, (heads,), (batches, heads) and these with axes of one."""
    if stored.scale is None:
        return heads
    name, shape, values = stored.scale.name, stored.scale.shape, stored.scale.values
    axes, each = tuple(size for size in shape if size != 1), len(heads) // heads.batch
    whole = prod(axes)
    if axes not in ((), (each,), (len(heads),), (heads.batch, each)):
        raise InputMalformed(
            f"{name}: a scale of shape {show(shape)} found for {part}, expected one number or one for each of the "
            f"{len(heads)} heads of {stored.name}; save it like this, or convert the rows to float16"
        )
    notes.append(
        f"{stored.name}: rows are multiplied by {f'{values[0]:g}' if whole == 1 else 'a number for each head'} ({name})"
    )
    factors = values * (len(heads) // whole)
    return heads if set(factors) == {1.0} else replace(heads, factors=factors)
