"""How a law of the conformance suite fails: AssertionError with what was found and what was expected."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np


def require(condition: bool, message: str) -> None:
    """Raise AssertionError(message) unless the condition holds; unlike `assert` it also works under python -O."""
    if not condition:
        raise AssertionError(message)


def require_same_bytes(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Demand equal shapes, dtypes and bytes."""
    same = found.shape == expected.shape and found.dtype == expected.dtype
    require(same, f"{what}: {found.shape} {found.dtype} found, expected {expected.shape} {expected.dtype}")
    if found.tobytes() == expected.tobytes():
        return
    differing = np.flatnonzero(found.reshape(-1) != expected.reshape(-1))
    where = "in signs of zero or NaNs"
    if len(differing):
        where = f"first at flat index {differing[0]}, {len(differing)} in all"
    raise AssertionError(f"{what}: bytes differ, {where}")


def require_close(found: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    """Demand |found - expected| <= tolerance * the largest |expected|, everywhere."""
    require_close_mostly([(found, expected)], tolerance, what)


def require_close_mostly(pairs: Iterable[tuple[np.ndarray, np.ndarray]], tolerance: float, what: str) -> None:
    """Demand of pairs (found, expected) that the median of the largest |found - expected| / the largest |expected| is
    at most `tolerance`."""
    errors = []
    for found, expected in pairs:
        require(found.shape == expected.shape, f"{what}: shape {found.shape} found, expected {expected.shape}")
        size = max(float(np.abs(expected).max(initial=0.0)), 1e-300)
        errors.append(float(np.abs(found.astype(np.float64) - expected).max(initial=0.0)) / size)
    error = float(np.median(errors))
    require(error <= tolerance, f"{what}: relative error {error:.3g} found, expected at most {tolerance:g}")


def require_raises(kind: type[BaseException], call: Callable[[], object], what: str) -> None:
    """Demand that the call raises an exception of this kind."""
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{what}: nothing raised, expected {kind.__name__}")


def edges(total: int, sizes: Iterable[int]) -> list[tuple[int, int]]:
    """Cut [0, total) into pieces of the given sizes, repeated as often as needed."""
    sizes = [size for size in sizes if size > 0]
    cut, at, turn = [], 0, 0
    while at < total:
        end = min(total, at + sizes[turn % len(sizes)])
        cut.append((at, end))
        at, turn = end, turn + 1
    return cut
