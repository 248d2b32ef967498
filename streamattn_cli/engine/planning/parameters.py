"""What options become for one key head: the parameters of each method."""

from __future__ import annotations

from dataclasses import fields, replace

from streamattn_cli.engine.request.requests import RunRequest
from streamattn_cli.errors import UsageError
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.headparams import HeadParams, spec_bytes
from streamattn_cli.sketches.method import OPTIONS, MethodOptions


def head_params(
    request: RunRequest, method: str, head: HeadParams, causal: bool, stream: int | None
) -> HeadParams | None:  # fmt: skip
    """The parameters of one head for a method, from those that the input decides; None for `exact`. UsageError where they
    make no sense."""
    for name in ("sinks", "window", "resident_rows", "atoms", "buffer"):
        if (getattr(request, name) or 0) < 0:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(request, name)}: must be 0 or more")
    found: HeadParams | None = registry.find(method).settings(head, MethodOptions.of(request), causal, stream)
    return found


def unused(request: RunRequest, method: str) -> list[str]:
    """A note for every option that was given and has no meaning for this method."""
    if method == "auto":
        return []
    plain, known = {f.name: f.default for f in fields(RunRequest)}, registry.find(method).options
    return [
        f"--{name.replace('_', '-')} has no meaning for --method {method}"
        for name in OPTIONS
        if name not in known and getattr(request, name) != plain[name]
    ]


def poly_bytes(request: RunRequest, head: HeadParams, degree: int) -> int:
    """Bytes of the state of poly of this degree for one key head."""
    params = head_params(replace(request, degree=degree), "poly", head, False, None)
    return spec_bytes(params.state_spec()) if params else 0
