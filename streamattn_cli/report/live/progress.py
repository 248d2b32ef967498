"""Progress of a run, for whoever watches stderr: a live bar, plain lines, JSON lines, or nothing.

`make_listener` chooses; the engine calls the result with every event (engine/watch/events.py). A watcher that goes away or
a terminal that misbehaves never stops a run: errors of writing are dropped here.
"""

from __future__ import annotations

import sys
from typing import TextIO

from streamattn_cli.errors import UsageError
from streamattn_cli.report.live.lines import JsonLines, PlainLines, Quiet
from streamattn_cli.report.text.terminal import is_live

MODES = ("auto", "quiet", "json")


def make_listener(mode: str, every: float = 10.0, stderr: TextIO | None = None) -> Quiet:
    """The listener for a mode: 'auto' (live bar on a terminal, else a plain line every `every` seconds), 'json' (lines
    with a `type`, progress every `every` seconds) or 'quiet'. Use it as a context manager, so that a bar is taken down
    when the run fails."""
    stream = sys.stderr if stderr is None else stderr
    if mode not in MODES:
        raise UsageError(f"progress mode {mode!r}: it must be one of " + ", ".join(MODES))
    if not every >= 0:
        raise UsageError(f"--progress-every is {every}: it must be 0 or more seconds")
    if mode == "quiet":
        return Quiet(stream)
    if mode == "json":
        return JsonLines(stream, every)
    if is_live(stream):
        from streamattn_cli.report.live.livebar import LiveBar

        return LiveBar(stream)
    return PlainLines(stream, every)
