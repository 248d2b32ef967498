"""The `streamattn` command: its subcommands, and how a run ends (exit codes, messages)."""

from __future__ import annotations

import functools
import os
import signal
import sys

# One BLAS thread per worker thread: the engine shares out the work itself, and results must not depend on BLAS's split.
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import typer  # noqa: E402

from streamattn_cli.cli.attend import attend  # noqa: E402
from streamattn_cli.cli.generate import generate  # noqa: E402
from streamattn_cli.cli.inspect import inspect  # noqa: E402
from streamattn_cli.cli.options import ENVIRONMENT  # noqa: E402
from streamattn_cli.errors import Interrupted, StreamattnError  # noqa: E402

app = typer.Typer(
    name="streamattn",
    help="Attention over token streams far longer than memory: one pass, constant memory, an honest error estimate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "STREAMATTN"},
)


def _dying_of_pipe(command):
    """The command, ended as SIGPIPE ends a program when the reader of its output has gone.

    This must happen inside: Typer turns a broken pipe into exit code 1 before it could be seen outside.
    """

    @functools.wraps(command)
    def run(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGPIPE)

    return run


for _command in (attend, generate, inspect):
    app.command(epilog=ENVIRONMENT)(_dying_of_pipe(_command))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"streamattn {version('streamattn-cli')}")
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
    debug: bool = typer.Option(False, "--debug", help="Show a traceback when something fails."),
) -> None:
    """Attention over token streams far longer than memory: one pass, constant memory, an honest error estimate."""


def main() -> None:
    """Run the command line and end the process with the code of README's table."""
    debug = "--debug" in sys.argv or os.environ.get("STREAMATTN_DEBUG", "") not in ("", "0")
    try:
        app()
    except StreamattnError as error:
        if debug:
            raise
        _end(str(error), error.code)
    except Interrupted as stop:
        _end(f"stopped by {signal.Signals(stop.signum).name}; nothing was left half-written", 128 + stop.signum)
    except MemoryError as error:
        _end(f"out of memory ({error}); give a smaller --memory so that a smaller plan is made", 6)
    except Exception as error:
        if debug:
            raise
        _end(f"internal bug: {type(error).__name__}: {error}. Please report it with the output of the same command "
             "and --debug", 1)  # fmt: skip


def _end(message: str, code: int) -> None:
    try:
        print(f"streamattn: {message}", file=sys.stderr)
    except OSError:
        pass
    sys.exit(code)

