"""ARCHITECTURE.md is the map of the package: every file is on it, and everything on it exists."""

import ast
import re
from pathlib import Path

import pytest
from typer.main import get_command

from streamattn_cli.cli.main import app
from streamattn_cli.engine.request.settings import METHODS

TOP = Path(__file__).resolve().parents[2]
PACKAGE = TOP / "streamattn_cli"
PAGE = (PACKAGE / "ARCHITECTURE.md").read_text()
TASKS = (
    "input format", "method", "option", "interval", "live view", "state array", "fp8", "ETA", "exit code", "effort level",
)  # fmt: skip


def mapped(page):
    """Every file in the tables of the rooms, relative to the package; with its sentence."""
    found = {}
    for room, text in re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL):
        for name, sentence in re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, re.MULTILINE):
            found[name if room == PACKAGE.name else room + name] = sentence
    return found


def files(package):
    """Every file of a package that somebody wrote, relative to it."""
    paths = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(package).as_posix() for path in paths}


def names_in(package):
    """Everything that is defined in a package: modules, functions, classes, parameters, fields and constants."""
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.arg | ast.keyword):
                found.add(node.arg)
    return found


def unknown(page):
    """The words in code type outside the tables that mean nothing: no file, no option, no command, no name."""
    commands = get_command(app).commands
    options = {word for c in commands.values() for p in c.params for word in p.opts}
    known = names_in(PACKAGE) | options | set(commands) | set(METHODS) | LITERAL | {"OTHER"}
    text = re.sub(r"^\| `[^`]+` \|", "|", page, flags=re.MULTILINE)
    return [word for word in re.findall(r"`([^`]+)`", text) if word not in known and not _exists(word)]


LITERAL = {
    "--dry-run", "--method auto", "python -m streamattn_cli", "decides=True", "problem.request",
    "ls tests", "out.npy", "out.npy.json", "sketches/histories/NAME.py", "rows/formats/NAME.py", "streamattn.formats",
    "Params", "streamattn.methods",
}  # fmt: skip


def _exists(word):
    return "/" in word and any(any(top.glob(word)) for top in (PACKAGE, TOP)) or (PACKAGE / word).is_file()


def test_every_file_is_on_the_map():
    assert set(mapped(PAGE)) == files(PACKAGE)


def test_every_sentence_is_one():
    for name, sentence in mapped(PAGE).items():
        assert re.fullmatch(r"[A-Z][^\n]*\.", sentence) and ". " not in sentence, f"{name}: {sentence}"


def test_every_name_exists():
    assert unknown(PAGE) == []


@pytest.mark.parametrize("word", ["engine/attent.py", "make_plans", "--resident-row", "rows/hdf6*.py", "absorb it"])
def test_a_name_that_does_not_exist_is_found(word):
    assert unknown(f"{PAGE}\nSee `{word}`.\n") == [word]


def test_a_file_that_is_not_on_the_map_is_found(tmp_path):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "attic.py").touch()
    assert files(tmp_path) - set(mapped(PAGE)) == {"engine/attic.py"}


def test_the_ten_tasks_are_there():
    tasks = re.findall(
        r"^\*\*([^*]+)\*\*", PAGE.partition("## Where to add what")[2].partition("## Rooms")[0], re.MULTILINE
    )
    assert len(tasks) == len(TASKS)
    assert all(word in task for word, task in zip(TASKS, tasks, strict=True))


def test_the_glossary_is_in_order_and_its_sentences_end():
    entries = re.findall(
        r"^\*\*([^*]+)\*\* (.*?)(?=\n\n|\Z)", PAGE.partition("## Glossary")[2], re.MULTILINE | re.DOTALL
    )
    words = [word.lower() for word, _ in entries]
    assert len(words) > 60 and words == sorted(words)
    assert all(text.strip().endswith(".") for _, text in entries)


def test_contributors_find_the_map():
    assert "streamattn_cli/ARCHITECTURE.md" in (TOP / "CONTRIBUTING.md").read_text()
