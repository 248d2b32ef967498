"""Nothing writes into another object's attributes: an object changes itself, or says what is to be changed."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "streamattn_cli"
OF_LIBRARIES = {  # whose objects have no other way
    "kernels/jit.py": {"function", "state", "engine", "found"},  # of LLVM and Numba
    "cli/plainwords.py": {"param"},  # of Typer
    "cli/streams.py": {"sys"},
}


def targets(node):
    """What a statement writes to."""
    if isinstance(node, ast.Tuple | ast.List):
        return [each for part in node.elts for each in targets(part)]
    if isinstance(node, ast.Assign | ast.Delete):
        return [each for part in node.targets for each in targets(part)]
    if isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For):
        return targets(node.target)
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "object.__setattr__"):
        return [ast.Attribute(node.args[0], ast.unparse(node.args[1]))]
    return targets(node.value) if isinstance(node, ast.Starred) else [node] if isinstance(node, ast.Attribute) else []


def makes(value):
    """Whether an expression is a new object: of a class, or a copy."""
    name = ast.unparse(value.func).split(".")[-1] if isinstance(value, ast.Call) else ""
    return name in ("cls", "copy", "__new__") or name.lstrip("_")[:1].isupper()


def writes(source):
    """Attributes that functions write of what they were given, rather than of their own or of what they have made."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        own = {"self", "cls"}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and makes(node.value):
                own |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.FunctionDef):
                own.add(node.name)
        for node in ast.walk(function):
            for target in targets(node) if isinstance(node, ast.stmt | ast.Call) else ():
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) not in own:
                    found.append(ast.unparse(target))
    return sorted(set(found))


@pytest.mark.parametrize(
    "room", ["", *sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())]
)
def test_nothing_writes_into_another_objects_attributes(room):
    for path in (PACKAGE / room).rglob("*.py") if room else PACKAGE.glob("*.py"):
        known = OF_LIBRARIES.get(str(path.relative_to(PACKAGE)), ())
        assert [each for each in writes(path.read_text()) if each.split(".")[0] not in known] == [], path


@pytest.mark.parametrize(("body", "found"), [
    ("watch.rows += 1", ["watch.rows"]),
    ("self.watch.rows = 1", ["self.watch.rows"]),
    ("a, (b.x, *c.y) = 1, (2, 3)", ["b.x", "c.y"]),
    ("for writer.row in range(3): pass", ["writer.row"]),
    ("sheet = find(sheet)\n    sheet.done: dict = {}", ["sheet.done"]),
    ("setattr(watch, 'rows', 1)", ["watch.'rows'"]),
    ("self.rows = 1", []),
    ("watch = Watch()\n    watch.rows = 1", []),
    ("again = copy(watch)\n    again.rows = 1", []),
])  # fmt: skip
def test_a_planted_write_is_found(body, found):
    assert writes(f"def f(self, watch, sheet, writer):\n    {body}\n") == found
