"""The word of --scale."""

import math

from streamattn_cli.errors import UsageError


def scale_value(word: str, dim: int) -> float:
    """'sqrt' (1/sqrt(dim)), 'd' (1/dim) or a finite number above 0, as a number; UsageError for anything else."""
    if word in ("sqrt", "d"):
        if dim < 1:
            raise UsageError(f"--dim is {dim}: it must be at least 1")
        return 1 / math.sqrt(dim) if word == "sqrt" else 1 / dim
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"--scale is {word!r}: it must be sqrt (1/sqrt(dim)), d (1/dim) or a number above 0")
    return value
