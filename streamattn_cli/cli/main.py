"""The `streamattn` command: its subcommands, and how a run ends (exit codes, messages)."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

# One BLAS thread per worker thread: the engine shares out the work itself, and results must not depend on BLAS's split.
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import typer  # noqa: E402
from typer.core import TyperGroup  # noqa: E402

from streamattn_cli.cli.options import ENVIRONMENT  # noqa: E402
from streamattn_cli.cli.plainwords import PlainCommand, PlainGroup  # noqa: E402
from streamattn_cli.cli.streams import fill_standard_streams, let_go_of_broken, printing  # noqa: E402
from streamattn_cli.errors import Interrupted, StreamattnError, UsageError  # noqa: E402
from streamattn_cli.report.jsontext import json_line  # noqa: E402
from streamattn_cli.versions import OURS  # noqa: E402

COMMANDS = (
    "attend", "plan", "compare", "report", "sketch", "query", "merge", "info", "inspect", "generate", "capture", "perplexity",
    "warm",
)  # fmt: skip


def application(only: str | None = None) -> typer.Typer:
    """The command line, with all commands or `only` this one: descriptions of the others take longer than a small run."""
    app = typer.Typer(
        name="streamattn",
        cls=PlainGroup,
        help="Attention over token streams far longer than memory: one pass, constant memory, an honest error estimate.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "STREAMATTN"},
    )
    for name in [only] if only in COMMANDS else COMMANDS:
        command = getattr(import_module(f"streamattn_cli.cli.{name}"), name)
        app.command(cls=PlainCommand, epilog=ENVIRONMENT)(_dying_of_pipe(command))
    if only not in COMMANDS:
        app.command("help", cls=PlainCommand)(help)
    app.callback()(common)
    return app


def __getattr__(name: str) -> typer.Typer:
    """`app`, all of it, made when it is asked for."""
    if name == "app":
        return application()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _dying_of_pipe(command: Callable[..., None]) -> Callable[..., None]:
    """The command, ended as SIGPIPE ends a program when the reader of its output has gone.

    This must happen inside: Typer turns a broken pipe into exit code 1 before it could be seen outside.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            _die_of_pipe()

    return run


def _die_of_pipe() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)


def _commands(incomplete: str) -> list[str]:
    return [name for name in COMMANDS if name.startswith(incomplete)]


def help(
    context: typer.Context,
    command: str | None = typer.Argument(
        None, help="The command; none lists all of them.",
        autocompletion=_commands,
    ),
) -> None:  # fmt: skip
    """Show the help of a command.

    streamattn help attend
    """
    group = context.parent
    assert group is not None and isinstance(group.command, TyperGroup), "help is a command of the application"
    found = group.command.get_command(group, command) if command else group.command
    if found is None:
        raise UsageError(f"help {command}: there is no such command; streamattn help lists all")
    with printing():
        print(found.get_help(type(context)(found, info_name=command, parent=group) if command else group))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"streamattn {OURS}")
        raise typer.Exit


def common(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, allow_from_autoenv=False, help="Show the version."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show a traceback when something fails."),
) -> None:
    """Attention over token streams far longer than memory: one pass, constant memory, an honest error estimate."""


def main() -> None:
    """Run the command line and end the process with the code of README's table."""
    fill_standard_streams()
    gc.set_threshold(100_000)  # imports make many objects and no garbage
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # what is not finite is counted and told by us
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a run owns its signals, Ctrl-C ends us as it ends any program: no traceback, nothing to clean up yet.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.argv[1:] = map(_at_home, sys.argv[1:])
    try:
        _run_app()
    except StreamattnError as error:
        _end(str(error) + (_unquoted() if error.code in (2, 3) else ""), error.code)
    except Interrupted as stop:
        _end(f"stopped by {signal.Signals(stop.signum).name}; {stop.consequence}", 128 + stop.signum)
    except MemoryError as error:
        _end(f"out of memory ({error}); give a smaller --memory so that a smaller plan is made", 6)
    except Exception as error:
        _end(f"internal bug: {type(error).__name__}: {error}. Please report it with the output of the same command, "
             "run as `streamattn --debug ...`", 1)  # fmt: skip
    finally:
        let_go_of_broken()
        gc.freeze()  # the interpreter would look through all there is for garbage, several times, before it ends


def _run_app() -> None:
    """The command line; help and version, which Typer prints, fail as what we print does."""
    try:
        application(_command_word())()
    except (SystemExit, OSError) as stop:
        try:
            if sys.stdout is not None:
                with printing():  # OutputFailed where standard output is full
                    pass
        except BrokenPipeError:
            _die_of_pipe()
        if "extra argument" in getattr(stop.__context__, "message", ""):  # what Typer said of it
            _end(
                f"several words found where one is expected{_unquoted() or _QUOTE}. Only sketch and merge take several files",
                2,
            )
        raise


def _end(message: str, code: int) -> None:
    """Say why the run failed, in the language of its log, and end with this exit code."""
    if _asked("--debug"):
        traceback.print_exc()
    line = f"streamattn: {message}"
    if _asked("--log-json"):
        line = json_line({"type": "error", "code": code, "message": message})
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
    sys.exit(code)


def _at_home(word: str) -> str:
    """--option=~/FILE with the name of the home folder, which no shell puts in there."""
    option, equals, value = word.partition("=")
    return f"{option}={os.path.expanduser(value)}" if equals and option[:2] == "--" and value[:1] == "~" else word


_QUOTE = "; quote a name that holds spaces"


def _unquoted() -> str:
    """What to do where the name of a file was typed without quotes and came as several words; nothing otherwise."""
    words = sys.argv[1:]
    for first in range(len(words)):
        for last in range(first + 2, len(words) + 1):
            name = " ".join(words[first:last])
            if os.path.isfile(name):
                return f"{_QUOTE}: '{name}'"
    return ""


def _command_word() -> str | None:
    """The command of the command line, by its place."""
    return next((word for word in sys.argv[1:] if not word.startswith("-")), None)


def _asked(switch: str) -> bool:
    """Whether a switch is on, by the command line or the environment, where the parsed options are out of reach."""
    command = f"{(_command_word() or '').upper()}_"
    word = switch.removeprefix("--").replace("-", "_").upper()
    values = (os.environ.get(f"STREAMATTN_{scope}{word}", "") for scope in ("", command))
    return switch in sys.argv or any(value.lower() not in ("", "0", "false", "no") for value in values)
