"""Man pages and shell completion, made from the commands, and the reference of JSON.md: see scripts/make_pages."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import jsonfields
from typer.main import get_command

from streamattn_cli.cli.main import app
from streamattn_cli.cli.options import ENVIRONMENT
from streamattn_cli.errors import exit_code_table

SHARE = Path(__file__).resolve().parent.parent / "share"
SCRIPTS = {"bash": "streamattn", "zsh": "_streamattn", "fish": "streamattn.fish"}  # the names that the shells look for


# Bash cuts words at : and =, which belong to FILE:DATASET and --option=WORD, unless they are quoted, and replaces only what is
# behind them; what is before them is as it was typed, with backslashes.
BASH = """\
_streamattn_completion() {
    local IFS=$'\\n' word words=() i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i > 1)) && [[ $word == [:=]* || ${words[-1]} == *[:=] ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    word=${words[-1]}
    COMPREPLY=( $( env COMP_WORDS="${words[*]}" \\
                   COMP_CWORD=$((${#words[@]} - 1)) \\
                   _STREAMATTN_COMPLETE=complete_bash $1 ) )
    i=${COMP_WORDS[COMP_CWORD]}
    [[ $i == [:=]* ]] || word=${word%"$i"}
    [[ $word == --*=* ]] && word=${word#*=}
    COMPREPLY=( "${COMPREPLY[@]#"${word//\\\\/}"}" )
    return 0
}

complete -o default -F _streamattn_completion streamattn
"""


# Zsh is to complete only what is behind the = of --option=WORD.
ZSH = """\
() {
  local typed="${words[1,$CURRENT]}"
  [[ ${words[CURRENT]} == --*=* ]] && compset -P 1 '*='
"""
# Fish replaces all of --option=WORD.
FISH = " streamattn | string replace -r -- '^' (string match -r -- '^--[^=]*=|^' (commandline -ct)))\" --condition"


def pages() -> dict[str, str]:
    """File name -> text of every man page."""
    program = get_command(app)
    context = program.make_context("streamattn", ["plan"], resilient_parsing=True)
    summaries = {name: _paragraphs(command)[0] for name, command in program.commands.items()}
    found = {"streamattn.1": _program_page(program, context, summaries)}
    for name, command in program.commands.items():
        inner = command.make_context(name, [], parent=context, resilient_parsing=True)
        found[f"streamattn-{name}.1"] = _command_page(name, command, inner)
    return found


def completions() -> dict[str, str]:
    """File name -> text of every completion script, as Typer writes it but for FILE:DATASET and --option=WORD."""
    run = [sys.executable, "-c", "from streamattn_cli.cli.main import app; app(prog_name='streamattn')"]
    found = {}
    for shell, name in SCRIPTS.items():
        done = subprocess.run(
            run,
            env=os.environ | {"_STREAMATTN_COMPLETE": f"source_{shell}"},
            capture_output=True,
            text=True,
            check=True,
        )
        found[name] = done.stdout.strip() + "\n"
    zsh = found[SCRIPTS["zsh"]].replace('"${words[1,$CURRENT]}"', '"$typed"').replace("() {\n", ZSH, 1)
    fish = found[SCRIPTS["fish"]].replace(' streamattn)" --condition', FISH, 1)
    return found | {SCRIPTS["bash"]: BASH, SCRIPTS["zsh"]: zsh, SCRIPTS["fish"]: fish}


def _program_page(program, context, summaries: dict[str, str]) -> str:
    lines = _head("streamattn", "attention over token streams far longer than memory")
    lines += [".SH SYNOPSIS", r"\fBstreamattn\fR [\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGUMENTS\fR]"]
    lines += [".SH DESCRIPTION", _text(_paragraphs(program)[0]), ".SH COMMANDS"]
    for name, summary in summaries.items():
        lines += [".TP", rf"\fBstreamattn\-{name}\fR(1)", _text(summary)]
    lines += _options(program, context) + _end()
    return "\n".join([*lines, ".SH SEE ALSO", ",\n".join(rf"\fBstreamattn\-{name}\fR(1)" for name in summaries)]) + "\n"


def _command_page(name: str, command, context) -> str:
    summary, *more = _paragraphs(command)
    example = next(text for text in more if text.startswith("streamattn "))
    lines = _head(f"streamattn-{name}", summary.rstrip(".")[0].lower() + summary.rstrip(".")[1:])
    pieces = " ".join(command.collect_usage_pieces(context))
    lines += [".SH SYNOPSIS", rf"\fBstreamattn {name}\fR {_text(pieces)}", ".SH DESCRIPTION", _text(summary)]
    for text in more:
        lines += [] if text == example else [".PP", _text(text)]
    lines += _options(command, context)
    lines += [".SH EXAMPLE", ".nf", _text(example), ".fi", *_end()]
    return "\n".join([*lines, ".SH SEE ALSO", r"\fBstreamattn\fR(1)"]) + "\n"


def _head(name: str, summary: str) -> list[str]:
    title, made_by = name.upper().replace("-", r"\-"), f"streamattn {version('streamattn-cli')}"
    return [f'.TH {title} 1 "" "{made_by}" "User Commands"', ".SH NAME", rf"{_text(name)} \- {_text(summary)}"]


def _options(command, context) -> list[str]:
    """A section per panel of the help."""
    panels: dict[str, list[str]] = {}
    for param in command.get_params(context):
        if (record := param.get_help_record(context)) is not None:
            panel = getattr(param, "rich_help_panel", None)
            title = panel or ("Arguments" if param.param_type_name == "argument" else "Options")
            panels.setdefault(title, []).extend([".TP", rf"\fB{_text(record[0])}\fR", _text(record[1])])
    return [line for title, entries in panels.items() for line in (f".SH {title.upper()}", *entries)]


def _end() -> list[str]:
    lines = [".SH ENVIRONMENT", _text(ENVIRONMENT), ".SH EXIT STATUS"]
    for row in exit_code_table().splitlines()[2:]:
        code, meaning = (cell.strip() for cell in row.strip("|").split("|"))
        lines += [".TP", rf"\fB{code}\fR", _text(meaning.replace("`", ""))]
    return lines


def _paragraphs(command) -> list[str]:
    """The paragraphs of a command's docstring, each as one line."""
    return [" ".join(part.split()) for part in inspect.cleandoc(command.callback.__doc__).split("\n\n")]


def _text(words: str) -> str:
    r"""Words as troff reads them: options keep their hyphens, and no line begins with a command."""
    escaped = words.replace("\\", r"\e").replace("-", r"\-")
    lines = textwrap.wrap(escaped, 80, break_long_words=False, break_on_hyphens=False)
    return "\n".join(r"\&" + line if line[0] in ".'" else line for line in lines)


def main() -> None:
    """Write every file, or complain about those that are not as they should be."""
    wanted = {SHARE / "man" / name: text for name, text in pages().items()}
    wanted |= {SHARE / "completion" / name: text for name, text in completions().items()}
    wanted[jsonfields.REPORT / "JSON.md"] = jsonfields.page()
    there = {path for path in SHARE.rglob("*") if path.is_file()} | {jsonfields.REPORT / "JSON.md"}
    stale = sorted(path for path in wanted.keys() | there if path not in there or path.read_text() != wanted.get(path))
    if "--check" in sys.argv[1:]:
        sys.exit(f"{', '.join(path.name for path in stale)}: out of date, run scripts/make_pages" if stale else 0)
    for path in stale:
        path.unlink(missing_ok=True)
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
            print(path.name)


if __name__ == "__main__":
    main()
