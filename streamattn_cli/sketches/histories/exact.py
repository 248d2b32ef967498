"""`exact`: all attention, in as many passes over the keys as the held queries need. It keeps no sketch."""

from __future__ import annotations

from streamattn_cli.sketches.method import Load, Method

METHOD = Method(
    name="exact",
    settings=lambda head, options, causal, stream: None,
    micros=Load.answering,
    compared=False,
)
