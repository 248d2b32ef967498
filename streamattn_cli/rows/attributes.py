"""What a file says about itself in words: HDF5 attributes and safetensors metadata."""

from __future__ import annotations

from math import isfinite

from streamattn_cli.errors import InputMalformed
from streamattn_cli.rows.tensors.layout import LAYOUTS

HEARD = ("scale", "causal", "layout")
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "1.0": True, "0.0": False}


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
