"""`exact`: all attention, in as many passes over the keys as the held queries need. It keeps no sketch."""

from __future__ import annotations

from streamattn_cli.sketches.method import Load, Method


def _micros(load: Load) -> float:
    return load.queries * load.rows * load.group * (0.5 if load.causal else 1.0) * load.pair


METHOD = Method(
    name="exact",
    settings=lambda head, options, causal, stream: None,
    micros=_micros,
    compared=False,
)
