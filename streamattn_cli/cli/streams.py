"""Standard input, output and error: closed ones, full ones, and ones whose reader has gone."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def fill_standard_streams() -> None:
    """Let no file of ours become descriptor 0, 1 or 2, where libraries would write into it.

    sys.stdin and sys.stdout stay None where they were closed, so that using them is refused. What a stream's encoding
    does not have is written as "?".
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it stays open to the end
    for stream in filter(None, (sys.stdout, sys.stderr)):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextmanager
def printing() -> Iterator[None]:
    """Everything printed inside is written before it ends: OutputFailed or BrokenPipeError where that fails."""
    from streamattn_cli.errors import OutputFailed
    from streamattn_cli.rows.writers.temporary import failing_as_output

    if sys.stdout is None:
        raise OutputFailed("standard output is closed; there is nowhere to print to")
    with failing_as_output("standard output"):
        yield
        sys.stdout.flush()


def let_go_of_broken() -> None:
    """Forget streams that cannot be written: the interpreter would end with 120 instead of our exit code."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            setattr(sys, name, None)


def refuse_terminal(output: str, json: bool) -> None:
    """Binary answers do not go to a terminal, nor JSON to where the answers go. Raises UsageError."""
    from streamattn_cli.errors import UsageError

    if output != "-":
        return
    if json:
        raise UsageError("--json needs standard output, where the answers go: name a file with -o, or use --log-json")
    if sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("standard output is a terminal, and answers are binary: pipe them on or give -o FILE")
