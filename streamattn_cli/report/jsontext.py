"""JSON as other programs read it: one line per document, plain types only, no NaN."""

from __future__ import annotations

import json
import math


def json_line(document: dict) -> str:
    """One line of strict JSON. Tuples become lists, NumPy scalars numbers, NaN and infinities null."""
    return json.dumps(_plain(document), allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        return _plain(value.tolist())
    return str(value)
