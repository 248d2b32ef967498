"""Progress as lines: nothing, plain lines, or JSON lines."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TextIO

from streamattn_cli.engine.watch.events import Event, Finished, Note, Progress, Started
from streamattn_cli.report.jsontext import json_line
from streamattn_cli.units import format_bytes, format_duration, is_timed


class Quiet:
    """Shows nothing but notes on which the result depends, and can still say where the run is when asked (`status`, for
    SIGUSR1)."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.last: Progress | None = None

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Progress):
            self.last = event
        elif isinstance(event, Note) and event.decides:
            self.note(event)

    def note(self, event: Note) -> None:
        """Write a note."""
        self.write(f"note: {event.text}")

    def status(self) -> None:
        """Write one line that says where the run is now, whatever the interval."""
        self.write(progress_line(self.last) if self.last else "streamattn: no rows yet")

    def close(self) -> None:
        """Take down whatever is on the screen; may be called twice."""

    def write(self, line: str) -> None:
        """Write a line to the watcher, if there still is one."""
        try:
            self.stream.write(line + "\n")
            self.stream.flush()
        except (OSError, ValueError, RuntimeError):
            # OSError: a closed pipe or a full disk. ValueError: a closed stream. RuntimeError: a status line asked for
            # while another was being written ("reentrant call").
            return


class _Interval(Quiet):
    """Lets a progress event pass once per interval; the clock starts with the first one."""

    def __init__(self, stream: TextIO, every: float):
        super().__init__(stream)
        self.every = every
        self._shown: float | None = None

    def due(self) -> bool:
        now = time.monotonic()
        if self._shown is None:
            self._shown = now
        if now - self._shown < self.every:
            return False
        self._shown = now
        return True


class PlainLines(_Interval):
    """One line per interval, for logs."""

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Note) and not event.decides:
            self.note(event)
        elif isinstance(event, Progress) and self.due():
            self.write(progress_line(event))


class JsonLines(_Interval):
    """One JSON document per line: types started, progress, note, outcome."""

    def note(self, event: Note) -> None:
        self.write(json_line({"type": "note", "text": event.text}))

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Started):
            self.write(json_line({"type": "started", "plan": event.plan}))
        elif isinstance(event, Note):
            if not event.decides:
                self.note(event)
        elif isinstance(event, Finished):
            self.write(json_line(event.outcome.to_dict()))
        elif self.due():
            self.write(json_line({"type": "progress", **asdict(event)}))

    def status(self) -> None:
        last = asdict(self.last) if self.last else {"phase": None, "rows": 0}
        self.write(json_line({"type": "status", **last}))


def eta_seconds(event: Progress) -> float | None:
    """Seconds to the end of this phase at this run's mean rate so far; None when it cannot be known."""
    done = event.rows - event.rows_before
    if event.total is None or done <= 0 or not is_timed(event.seconds):
        return None
    return max(0, event.total - event.rows) * event.seconds / done


def progress_line(event: Progress) -> str:
    """One plain line; its words (rows, rows/s, ETA, sketch, memory now, peak, budget) are stable."""
    rows = f"rows {event.rows}"
    if event.total is not None:
        rows += f" of {event.total} ({100 * event.rows / max(1, event.total):.1f}%)"
    parts = [rows]
    if is_timed(event.seconds):
        rate = (event.rows - event.rows_before) / event.seconds
        parts += [f"{rate:.0f} rows/s", f"{format_bytes(event.bytes / event.seconds)}/s"]
    eta = eta_seconds(event)
    parts.append(f"elapsed {format_duration(event.seconds)}")
    if eta is not None:
        parts.append(f"ETA {format_duration(eta)}")
    if event.sheets:
        parts.append(f"layers done {event.sheets_done} of {event.sheets}")
    if event.sketch_bytes:
        parts.append(f"sketch {format_bytes(event.sketch_bytes)}")
    memory = f"memory now {format_bytes(event.memory_now)} peak {format_bytes(event.memory_peak)}"
    if event.memory_allowed is not None:
        memory += f" budget {format_bytes(event.memory_allowed)}"
    parts.append(memory)
    if event.unsaved_seconds is not None:
        parts.append(f"not saved for {format_duration(event.unsaved_seconds)}")
    if event.error is not None:
        parts.append(f"error so far {event.error:.3g}")
    return f"streamattn {event.phase}: " + ", ".join(parts)
