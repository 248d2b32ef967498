"""Arrays by name, of shapes and dtypes that a spec says before they are there."""

from __future__ import annotations

import numpy as np

LINE = 64  # bytes of a cache line


def allocate(spec: dict) -> dict[str, np.ndarray]:
    """Arrays for a spec, their pages touched, so that what was projected is what is resident.

    Each begins on a cache line: vectors of a whole line that straddle two cost a quarter of an elimination's speed.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, one in spec.items():
        arrays |= laid_out({name: one}, np.empty(spec_bytes({name: one}) + LINE, np.uint8))
        arrays[name].fill(0)
    return arrays


def laid_out(spec: dict, room: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays for a spec in the bytes of `room`, one after the other, each on a cache line."""
    arrays, at = {}, 0
    for name, (shape, dtype) in spec.items():
        dtype = np.dtype(dtype)
        at += -(room.ctypes.data + at) % LINE
        size = int(np.prod(shape)) * dtype.itemsize
        arrays[name] = room[at : at + size].view(dtype).reshape(shape)
        at += size
    return arrays


def widest(one: dict, other: dict) -> dict:
    """What of `other` is larger than in `one`, or not in it."""
    sizes = [{name: spec_bytes({name: array}) for name, array in spec.items()} for spec in (one, other)]
    return {name: other[name] for name, size in sizes[1].items() if size > sizes[0].get(name, -1)}


def spec_bytes(spec: dict) -> int:
    """Bytes of all arrays of a spec."""
    return sum(int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize for shape, dtype in spec.values())
