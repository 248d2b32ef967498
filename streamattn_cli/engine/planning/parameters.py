"""What options become for one key head: the parameters of each method."""

from __future__ import annotations

from dataclasses import fields, replace
from sys import float_info

from streamattn_cli.engine.request.problem import DEFAULT_ROWS
from streamattn_cli.engine.request.settings import AttendRequest
from streamattn_cli.errors import UsageError
from streamattn_cli.sketches.budget import KEEPERS, keeper_params, nystrom_params, window_params
from streamattn_cli.sketches.head import HeadParams, spec_bytes
from streamattn_cli.sketches.histories.poly import MAX_DEGREE, PolyParams

DEFAULT_SINKS = 4


def head_params(request: AttendRequest, method: str, head: HeadParams, causal: bool, stream: int | None) -> HeadParams:
    """The parameters of one head for a method, from those that the input decides. UsageError where they make no sense."""
    for name in ("sinks", "window", "resident_rows", "atoms", "buffer"):
        if (getattr(request, name) or 0) < 0:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(request, name)}: must be 0 or more")
    if method == "poly":
        return replace(head, sinks=request.sinks or 0, window=request.window or 0, history=_poly_params(request))
    head = replace(head, sinks=DEFAULT_SINKS if request.sinks is None else request.sinks)
    rows = request.resident_rows or DEFAULT_ROWS
    if method == "nystrom":
        settings = (request.effort, request.window, request.buffer, request.atoms)
        return nystrom_params(head, rows, *settings, causal, stream, request.rope or "")
    if method in KEEPERS:
        return keeper_params(head, method, rows, request.window, request.buffer, request.atoms, causal, request.seed)
    if request.window is None:
        return window_params(head, rows)
    if request.window < 1:
        raise UsageError("--window 0: the window method needs at least the row itself")
    return replace(head, window=request.window)


def unused(request: AttendRequest, method: str) -> list[str]:
    """A note for every option that was given and has no meaning for this method."""
    sized = ("nystrom", "window", *KEEPERS)
    belongs = {
        "degree": ("poly",), "polynomial": ("poly",), "beta": ("poly",), "max_error": ("poly",),
        "effort": ("nystrom",), "query_model": ("nystrom",), "rope": ("nystrom",), "resident_rows": sized,
        "atoms": ("nystrom", *KEEPERS), "buffer": ("nystrom", *KEEPERS),
        "window": (*sized, "poly"), "sinks": (*sized, "poly"),
    }  # fmt: skip
    plain = {f.name: f.default for f in fields(AttendRequest)}
    given = [name for name in belongs if getattr(request, name) != plain[name]]
    return [
        f"--{name.replace('_', '-')} has no meaning for --method {method}"
        for name in given
        if method != "auto" and method not in belongs[name]
    ]


def _poly_params(request: AttendRequest) -> PolyParams:
    if not 1 <= request.degree <= MAX_DEGREE:
        raise UsageError(f"--degree {request.degree}: choose 1 to {MAX_DEGREE} (float64 cannot hold more)")
    if not request.max_error >= 0:
        raise UsageError(f"--max-error {request.max_error:g}: must be 0 or more (0.25 allows a relative error of 25%)")
    if request.beta is not None and not request.beta > 0:
        raise UsageError(f"--beta {request.beta:g}: must be above 0")
    max_error = min(request.max_error, float_info.max)  # "inf" would not be JSON
    return PolyParams(request.degree, request.polynomial, request.beta, max_error)


def poly_bytes(request: AttendRequest, head: HeadParams, degree: int) -> int:
    """Bytes of the state of poly of this degree for one key head."""
    params = head_params(replace(request, degree=degree), "poly", head, False, None)
    return spec_bytes(params.state_spec())
