"""How a run went over time, in a bounded number of samples."""

from __future__ import annotations

import time

MAX_SAMPLES = 120  # samples; when there are more, every second one goes and the rest count for longer


class Series:
    """Samples of (seconds, phase, rows of the phase, memory), never more than MAX_SAMPLES, spread over the whole run."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._samples: list[tuple[float, str, int, int]] = []
        self._every = 0.0

    def add(self, phase: str, rows: int, memory: int) -> None:
        """Note where the run is; most calls in a long run are forgotten at once."""
        now = time.monotonic() - self._began
        if self._samples and now - self._samples[-1][0] < self._every and phase == self._samples[-1][1]:
            return
        self._samples.append((now, phase, rows, memory))
        if len(self._samples) > MAX_SAMPLES:
            self._samples = self._samples[::2]
            self._every = max(2 * self._every, now / MAX_SAMPLES)

    def to_dict(self) -> dict[str, list]:
        """JSON-able columns: seconds, phase, rows, memory (bytes above the baseline)."""
        phase, rows, memory = ([s[i] for s in self._samples] for i in (1, 2, 3))
        return {"seconds": [round(s[0], 4) for s in self._samples], "phase": phase, "rows": rows, "memory": memory}
