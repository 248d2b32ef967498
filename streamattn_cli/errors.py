"""The errors a user can meet: one class per exit code, each a message that says what happened and what to do.

The table in README.md is made from these classes (`exit_code_table`), and a test holds the two together.
"""


class StreamattnError(Exception):
    """An internal bug: something this program should never do."""

    code = 1


class UsageError(StreamattnError):
    """The command line asks for something contradictory or unknown."""

    code = 2


class InputMissing(StreamattnError):
    """An input is missing or cannot be read."""

    code = 3


class InputMalformed(StreamattnError):
    """An input is malformed: shape, dtype, truncated, mismatched rows."""

    code = 4


class NonFinite(StreamattnError):
    """NaN or infinity in the input, and `--nan-policy drop` was not given."""

    code = 5


class MemoryBudget(StreamattnError):
    """The memory budget cannot be met; the message names the largest setting that fits."""

    code = 6


class CheckpointCorrupt(StreamattnError):
    """A checkpoint is damaged."""

    code = 7


class CheckpointIncompatible(StreamattnError):
    """A checkpoint does not fit: method, parameters, version or overlapping rows."""

    code = 8


class SourceChanged(StreamattnError):
    """The input is not the one that the checkpoint was made from."""

    code = 9


class OutputFailed(StreamattnError):
    """The output could not be written: disk full, I/O error, missing folder."""

    code = 10


class CannotMeet(StreamattnError):
    """This method cannot answer this request, for the reason given."""

    code = 11


class Interrupted(BaseException):
    """A signal asked the run to stop; the exit code is 128 + signum."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum
        self.consequence = "no file was left half-written"

    def saved(self, what: str) -> None:
        """Say that what has been done is kept in this file."""
        self.consequence = f"{what} was saved; continue with --resume"


def damaged(name: str, what: str) -> InputMalformed:
    """The error for a file whose bytes are not what its format promises."""
    return InputMalformed(f"{name}: {what}; write or copy it again")


def exit_code_table() -> str:
    """The exit codes as a Markdown table, in order."""
    rows = ["| code | meaning |", "| --- | --- |", "| 0 | Done. |"]
    classes = [StreamattnError, *sorted(StreamattnError.__subclasses__(), key=lambda c: c.code)]
    rows += [f"| {c.code} | {(c.__doc__ or '').strip().splitlines()[0]} |" for c in classes]
    rows.append("| 128+N | Stopped by signal N (130: Ctrl-C, 141: closed pipe). |")
    return "\n".join(rows)
