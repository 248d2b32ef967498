"""When a run is saved, and what a checkpoint of a run or a sketch says about itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from streamattn_cli.checkpoint.commit import CheckpointWriter
from streamattn_cli.checkpoint.header import canonical_json
from streamattn_cli.engine.watch.phase import Phase
from streamattn_cli.errors import CheckpointIncompatible, SourceChanged, UsageError
from streamattn_cli.rows.inputs.fingerprint import differences
from streamattn_cli.rows.writers.base import Writer
from streamattn_cli.versions import OURS

SCHEMA = 1  # of the state arrays of all methods; raised when their meaning changes

State = dict[str, "np.ndarray | list[np.ndarray]"]


@dataclass(frozen=True)
class Every:
    """How often to save: after `seconds`, or after `rows`."""

    seconds: float | None = 30.0
    rows: int | None = None


def parse_every(word: str) -> Every:
    """'30s', '5min', '1e6rows' or a bare number of seconds. Raises UsageError."""
    for ending, factor in (("rows", None), ("min", 60.0), ("s", 1.0), ("h", 3600.0), ("", 1.0)):
        if word.endswith(ending):
            try:
                number = float(word[: len(word) - len(ending)])
            except ValueError:
                break
            if not 0 <= number < 1e15 or (factor is None and number < 1):
                break
            return Every(None, int(number)) if factor is None else Every(number * factor)
    raise UsageError(f"--checkpoint-every {word}: write 30s, 5min or 1e6rows")


class Saveable(Protocol):
    """A run that can be saved between two blocks."""

    def settle(self) -> None:
        """Wait until all rows so far are done and written; raises what went wrong."""

    def save(self) -> State:
        """The state of everything, views of live arrays."""


class Saver:
    """Commits checkpoints of a run while it goes on.

    Before each commit the outputs are made durable up to there; from then on their unfinished files outlive a failure of
    the run. The state may be views of live arrays: the run waits while it is written.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        facts: Mapping,
        sources: Mapping[str, object],
        every: str,
        output: Writer | None = None,
        doubts: Writer | None = None,
    ):
        """facts, sources: see `describe`; every: the word of --checkpoint-every; doubts: the writer of --doubt."""
        self.writer, self.every = writer, parse_every(every) if every else Every()
        self.seconds = 0.0  # spent saving
        self.commits = 0
        self._facts, self._sources, self._outputs = facts, sources, {"part": output, "doubt": doubts}
        self._position: tuple[Phase, int] | None = None
        self._saved_at = time.monotonic()
        self._saved_row = 0

    def reached(self, phase: Phase, done: int, run: Saveable) -> None:
        """Row `done` of a phase has been reached; saves when it is time."""
        if self._position is None or self._position[0] != phase:
            self._saved_row = min(self._saved_row, done) if self._position is None else 0
        self._position = (phase, done)
        late = self.every.seconds is not None and time.monotonic() - self._saved_at >= self.every.seconds
        far = self.every.rows is not None and done - self._saved_row >= self.every.rows
        if late or far:
            self.save(run)

    def unsaved(self) -> float:
        """Seconds since the last checkpoint, or since the run began."""
        return time.monotonic() - self._saved_at

    def save(self, run: Saveable, ended: bool = False) -> None:
        """Commit where the run is now; nothing if it has not begun. ended: its outputs only lack their names."""
        if self._position is None:
            return
        began = time.monotonic()
        phase, done = self._position
        run.settle()
        place = self._place() | ({"ended": True} if ended else {})
        self.writer.commit(run.save(), describe(self._facts, phase, done, self._sources, place))
        self.commits += 1
        self._saved_at, self._saved_row = time.monotonic(), done
        self.seconds += self._saved_at - began

    def _place(self) -> dict[str, object]:
        """Where the outputs stand, which are durable then."""
        place: dict[str, object] = {}
        for key, file in self._outputs.items():
            if file and file.placed:
                place |= {key: file.keep(), "rows": file.rows_written}
        return place


def describe(facts: Mapping, phase: str, done: int, sources: Mapping[str, object], output: Mapping | None) -> dict:
    """The metadata of a checkpoint: strings only. `facts` are what must agree for it to be resumed."""
    meta = {
        "method": str(facts["method"]),
        "schema": str(SCHEMA),
        "params": canonical_json(facts),
        "seed": str(facts["seed"]),
        "phase": phase,
        "rows": str(done),
        "source": canonical_json(sources),
        "created_by": f"streamattn {OURS}",
    }
    return meta | ({"output": canonical_json(output)} if output else {})


def check_facts(name: str, meta: Mapping[str, str], facts: Mapping) -> None:
    """Refuse (exit 8) to resume a checkpoint of another schema or of a run with other settings, naming them."""
    check_schema(name, meta)
    before, now = json.loads(meta["params"]), json.loads(canonical_json(facts))
    changed = [f"{path}: {a!r} there, {b!r} here" for path, a, b in _unequal("", before, now)]
    if changed:
        raise CheckpointIncompatible(
            f"{name}: made with other settings ({'; '.join(changed[:6])}); give the same command with the same options, "
            "or another --checkpoint"
        )


def check_schema(name: str, meta: Mapping[str, str]) -> None:
    """Refuse (exit 8) a checkpoint whose state this version does not understand."""
    found = meta.get("schema", "none")
    if found != str(SCHEMA):
        raise CheckpointIncompatible(
            f"{name}: state schema {found} found, expected {SCHEMA}; use the version of streamattn that wrote it "
            f"({meta.get('created_by', 'unknown')})"
        )


def check_sources(name: str, meta: Mapping[str, str], sources: Mapping[str, dict]) -> None:
    """Refuse (exit 9) inputs that are not those of the checkpoint."""
    before = json.loads(meta["source"])
    for part, now in sources.items():
        changed = differences(before.get(part, {}), now)
        if changed:
            raise SourceChanged(
                f"{name}: the input for {part} is not the one it was made from ({', '.join(changed)} changed); resume with "
                "the original input, or start again without --resume"
            )


def _unequal(path: str, a: object, b: object) -> Iterator[tuple[str, object, object]]:
    """Leaves in which two JSON values differ, as (path, a, b)."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from _unequal(f"{path}.{key}" if path else key, a.get(key), b.get(key))
    elif a != b:
        yield path, a, b


def stack_heads(states: list[dict[str, np.ndarray]], prefix: str) -> State:
    """One entry per array name, the arrays of all heads in order: checkpoints stack them into one tensor."""
    if not states:
        return {}
    return {f"{prefix}.{name}": [state[name] for state in states] for name in states[0]}


def unstack_heads(state: State, states: list[dict[str, np.ndarray]], prefix: str, name: str) -> None:
    """Copy what `stack_heads` saved back into the arrays of all heads; exit 8 where a shape is another one."""
    for at, head in enumerate(states):
        for key, array in head.items():
            saved = state.get(f"{prefix}.{key}")
            found = "nothing" if saved is None else _form(saved)
            expected = f"{array.dtype} {(len(states), *array.shape)}"
            if saved is None or found != expected:
                raise CheckpointIncompatible(f"{name}: {found} found for {prefix}.{key}, expected {expected}")
            array[...] = saved[at]


def _form(saved: np.ndarray | list[np.ndarray]) -> str:
    """Dtype and shape of an array, or of arrays of one shape as if they were stacked."""
    if isinstance(saved, list):
        return f"{saved[0].dtype} {(len(saved), *saved[0].shape)}"
    return f"{saved.dtype} {saved.shape}"
