"""Files have one subject, functions fit a screen, and nobody counts commas: none is long, and no list of positional arguments."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "streamattn_cli"
LINES, ARGUMENTS, OF_A_FILE = 60, 8, 400
KERNEL_MODULES = {
    "dense",
    "atoms",
    "compress",
    "kernel",
    "nystrom",
    "coded",
    "countsketch",
    "coreset",
    "monomials",
    "poly",
}


def faults(source, kernel=False, command=False):
    """What is too long in a module. kernel: arrays come by position; command: the signature of a function is made of options."""
    found = ["the file is long"] if source.count("\n") > OF_A_FILE else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0].lineno if command else node.lineno
            if node.end_lineno - first >= LINES:
                found.append(f"{node.name} is long")
            taken = [a.arg for a in node.args.posonlyargs + node.args.args if a.arg not in ("self", "cls")]
            if len(taken) > ARGUMENTS and not (kernel or command):
                found.append(f"{node.name} takes {len(taken)}")
        elif isinstance(node, ast.Call) and len(node.args) > ARGUMENTS and not kernel:
            called = node.func
            if not (isinstance(called, ast.Attribute) and getattr(called.value, "id", None) in KERNEL_MODULES):
                found.append(f"{ast.unparse(called)} is given {len(node.args)}")
    return found


@pytest.mark.parametrize("room", sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()))
def test_files_and_functions_are_short_and_take_few_arguments_by_position(room):
    for path in (PACKAGE / room).rglob("*.py"):
        assert faults(path.read_text(), room == "kernels", room == "cli") == [], path


def test_the_files_above_the_rooms():
    assert [fault for path in PACKAGE.glob("*.py") for fault in faults(path.read_text())] == []


@pytest.mark.parametrize(("source", "fault"), [
    ("def f():\n" + "    x = 1\n" * 60, "f is long"),
    ("def f(a, b, c, d, e, g, h, i, j): ...", "f takes 9"),
    ("x = 1\n" * 401, "the file is long"),
    ("f(1, 2, 3, 4, 5, 6, 7, 8, 9)", "f is given 9"),
])  # fmt: skip
def test_what_is_too_long_is_found(source, fault):
    assert faults(source) == [fault]
    assert faults("def f(self, a, b, c, d, e, g, h, i, *, j): ...") == []
