"""What a file says about itself in words: HDF5 attributes and safetensors metadata."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

import numpy as np

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.tensors.layout import LAYOUTS

HEARD = ("scale", "causal", "layout")
SEVERAL = ("_scale", "sink_logit", "logit_bias", "lengths", "starts")  # ends of the names of those that may be lists
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "1.0": True, "0.0": False}


def plain(items: Iterable[tuple[str, object]], name: str) -> dict:
    """Attributes of one value, later ones winning; of several values only scales of rows, and what heads or
    sequences have of their own.

    Raises InputMalformed where one that is heard (HEARD) is of another kind.
    """
    found: dict = {}
    for key, value in items:
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.reshape(-1)[0]
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, (str, int, float, bool)):
            found[key] = value
        elif key.endswith(SEVERAL) and isinstance(value, np.ndarray | list):
            found[key] = value if isinstance(value, list) else value.tolist()
        elif key in HEARD:
            raise InputMalformed(
                f"{name}: attribute {key} is {value!r}, expected one value; correct it, or remove it and give --{key}"
            )
    return found


def clean(attrs: dict, name: str) -> dict:
    """The attributes with `scale` as float, `causal` as bool and `layout` in capitals.

    Raises InputMalformed for a value that cannot be one.
    """
    cleaned = dict(attrs)
    if "scale" in attrs:
        try:
            cleaned["scale"] = float("nan") if isinstance(attrs["scale"], bool) else float(attrs["scale"])
        except ValueError:
            cleaned["scale"] = float("nan")
        if not (isfinite(cleaned["scale"]) and cleaned["scale"] > 0):
            raise InputMalformed(
                f"{name}: attribute scale is {attrs['scale']!r}, expected a number above 0; correct it"
            )
    if "causal" in attrs:
        cleaned["causal"] = _TRUTH.get(str(attrs["causal"]).strip().lower())
        if cleaned["causal"] is None:
            raise InputMalformed(f"{name}: attribute causal is {attrs['causal']!r}, expected true or false")
    if "layout" in attrs:
        cleaned["layout"] = str(attrs["layout"]).strip().upper()
        if cleaned["layout"] not in LAYOUTS:
            raise InputMalformed(
                f"{name}: attribute layout is {attrs['layout']!r}, expected one of {', '.join(LAYOUTS)}"
            )
    return cleaned
