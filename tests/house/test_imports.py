"""The order of the rooms: each imports only from those below it, and heavy packages only where they are needed."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "streamattn_cli"
TOWER = ["kernels", "rows", "checkpoint", "sketches", "engine", "models", "report", "cli"]  # from the ground up
FLOORS = {  # rooms within a room, from the ground up; files beside them may be anywhere, as long as there is no circle
    "rows": ["tensors", "formats", "inputs", "writers", "synthetic"],
    "sketches": ["coding", "histories", "paper"],
    "engine": ["watch", "request", "saving", "workers", "audit", "planning", "passes", "jobs"],
    "report": ["text", "live", "html"],
}
DOORS = ("api", "api_causal", "api_inputs")
GROUND = ("errors", "options", "plugins", "units", "records", "versions")  # usable by every room but kernels
# importlib to import the others later; contextlib where a cache cannot be written;
# ctypes and llvmlite, which is half of numba, to find and call NumPy's BLAS; hashlib, os and pathlib to name the cache
KERNEL_PACKAGES = {"math", "numba", "numpy", "importlib", "contextlib", "functools", "ctypes", "llvmlite"}
KERNEL_PACKAGES |= {"hashlib", "os", "pathlib", "typing"}


def imports(path, package):
    """(line, absolute module, at module level) of every import of a file; `from a import b` gives a.b."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = path.relative_to(package.parent).with_suffix("").parts[: -node.level]
                base = ".".join([*above, *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield node.lineno, name, id(node) not in inside


def room_of(module, package_name):
    """'streamattn_cli.rows.tensors.tensor.Storage' -> 'rows'; None for what is not ours; '' for the package itself."""
    parts = module.split(".")
    if parts[0] != package_name:
        return None
    return parts[1] if len(parts) > 1 else ""


def complaint(room, target, module):
    """Why a file of `room` must not import `module`, which lies in `target` (None: not ours); None if it may."""
    outer = module.split(".")[0]
    if outer == "click":
        return "typer carries its own click"
    if room == "kernels":
        if target != "kernels" and outer not in KERNEL_PACKAGES | {"__future__"}:
            return "kernels import numba, numpy and math only"
        return None
    if outer == "numba":
        return "numba belongs in kernels"
    if target is None or target in GROUND:
        return "errors.py and units.py import nothing of the rooms" if (room, target) == ("errors", "units") else None
    if room in GROUND:
        return f"{room}.py is below every room"
    if target == "testing" and room != "testing":
        return "testing is for tests"
    if room == "testing" or room == "__main__":
        return None
    if room == "__init__":
        return None if target in DOORS else "the package imports its doors alone"
    if room in DOORS:
        return (
            f"{room}.py is above the engine, and below nothing else" if target in ("models", "report", "cli") else None
        )
    if target in DOORS:
        return None if room in ("models", "cli") else f"{target}.py is above the engine"
    if target not in TOWER:
        return f"{target or 'the package itself'} is no room"
    return f"{room} is below {target}" if TOWER.index(target) > TOWER.index(room) else None


def floor_complaint(path, module, package):
    """Why a file must not import `module` from another room within its room; None if it may."""
    here, there = path.relative_to(package).parts, module.split(".")[1:]
    floors = FLOORS.get(here[0], [])
    if len(here) < 3 or there[:1] != [here[0]] or len(there) < 2 or there[1] not in floors:
        return None
    if here[1] not in floors:
        return f"{here[1]} is no room of {here[0]}"
    return f"{here[1]} is below {there[1]}" if floors.index(there[1]) > floors.index(here[1]) else None


def circles(package):
    """Groups of files that import one another, each as the names of its modules."""
    paths = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in package.rglob("*.py")}
    graph = {}
    for name, path in paths.items():
        found = {target for _, target, _ in imports(path, package)}
        found = {target if target in paths else target.rpartition(".")[0] for target in found}
        graph[name] = (found & set(paths)) - {name}

    def reached(start):
        seen, waiting = set(), [start]
        while waiting:
            for name in graph[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    within = {name: reached(name) for name in graph}
    found = {frozenset(n for n in within[name] if name in within[n]) for name in graph if name in within[name]}
    return [sorted(group) for group in found]


def lazily(room, path, module, top):
    """h5py at module level only in hdf5*.py of rows, but not in rows/formats/hdf5.py; those are imported inside functions
    only, except by one another."""
    is_hdf5 = room == "rows" and path.stem.startswith("hdf5") and path.name != "hdf5.py"
    is_lent = room == "rows" and re.match(r"zarrarrays|arrow\w|parquet\w", path.stem)  # the same of packages of extras
    heavy = module.split(".")[0] in ("h5py", "zarr", "pyarrow", "torch", "transformers", "gguf")
    heavy = heavy or re.search(r"\.rows\.(formats|writers)\.(hdf5\w|zarrarrays|arrow[at]|parquet\w)", module)
    if top and room not in ("kernels", "testing") and module.count(".") > 2 and ".kernels." in module:
        return "import the module, whose stand-in waits: from streamattn_cli.kernels import NAME"
    early = heavy or room == "__init__" and room_of(module, PACKAGE.name) is not None
    return "import it inside a function" if early and top and not (is_hdf5 or is_lent) and room != "testing" else None


def arrows_up(package):
    """Every import of a package that breaks the order, as text."""
    found = []
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        for line, module, top in imports(path, package):
            target = room_of(module, package.name)
            why = complaint(room, target, module) or floor_complaint(path, module, package)
            why = why or lazily(room, path, module, top)
            if why:
                found.append(f"{path.relative_to(package)}:{line} imports {module}: {why}")
    return found


def test_no_arrow_points_up():
    assert arrows_up(PACKAGE) == []


def test_no_files_import_one_another_in_a_circle():
    assert circles(PACKAGE) == []


def test_every_folder_of_a_room_with_floors_is_a_floor():
    for room, floors in FLOORS.items():
        assert {path.parent.name for path in (PACKAGE / room).glob("*/*.py")} == set(floors)


@pytest.mark.parametrize("late", ["", "def f():\n    "])
def test_a_planted_circle_is_found(tmp_path, late):
    package = tmp_path / "streamattn_cli"
    for name, line in {
        "engine/jobs/a": "from streamattn_cli.engine.jobs.b import x",
        "engine/jobs/b": "from streamattn_cli.engine.jobs import c",
        "engine/jobs/c": f"{late}from streamattn_cli.engine.jobs.a import y",
        "engine/jobs/d": "from streamattn_cli.engine.jobs import a",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").write_text(line)
    (package / "engine" / "jobs" / "__init__.py").touch()
    assert circles(package) == [[f"streamattn_cli.engine.jobs.{name}" for name in "abc"]]


def test_every_folder_is_a_room():
    rooms = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE}
    assert rooms <= {*TOWER, "testing"} and {"kernels", "rows", "sketches", "engine", "report", "cli"} <= rooms


@pytest.mark.parametrize(("place", "line", "expected"), [
    ("kernels/a.py", "from streamattn_cli.rows.tensors.tensor import Storage", "kernels import numba, numpy and math only"),
    ("kernels/a.py", "from streamattn_cli.errors import UsageError", "kernels import numba, numpy and math only"),
    ("kernels/a.py", "import h5py", "kernels import numba, numpy and math only"),
    ("__init__.py", "def f():\n    from streamattn_cli.report import table", "the package imports its doors alone"),
    ("__init__.py", "from streamattn_cli import api", "import it inside a function"),
    ("rows/a.py", "import streamattn_cli.sketches.histories.poly", "rows is below sketches"),
    ("rows/a.py", "def f():\n    from ..engine import plan", "rows is below engine"),
    ("rows/a.py", "from .. import report", "rows is below report"),
    ("sketches/a.py", "from streamattn_cli import engine", "sketches is below engine"),
    ("checkpoint/a.py", "from streamattn_cli.sketches.head import HeadParams", "checkpoint is below sketches"),
    ("engine/a.py", "from streamattn_cli.report.text.table import rows", "engine is below report"),
    ("report/a.py", "if True:\n    from streamattn_cli.cli.main import app", "report is below cli"),
    ("api.py", "from streamattn_cli.report.text import table", "api.py is above the engine"),
    ("engine/audit/a.py", "from streamattn_cli.engine.jobs.attend import attend", "audit is below jobs"),
    ("engine/watch/a.py", "def f():\n    from streamattn_cli.engine import passes", "watch is below passes"),
    ("engine/attic/a.py", "from streamattn_cli.engine.jobs.attend import attend", "attic is no room of engine"),
    ("rows/tensors/a.py", "from streamattn_cli.rows.formats.npy import x", "tensors is below formats"),
    ("rows/formats/a.py", "def f():\n    from streamattn_cli.rows.inputs.open import x", "formats is below inputs"),
    ("rows/inputs/a.py", "from streamattn_cli.rows.writers.writer import open_writer", "inputs is below writers"),
    ("rows/writers/a.py", "from streamattn_cli.rows import synthetic", "writers is below synthetic"),
    ("rows/a.py", "from streamattn_cli.rows.writers.hdf5dump import x", "import it inside a function"),
    ("sketches/coding/a.py", "from streamattn_cli.sketches.histories.poly import x", "coding is below histories"),
    ("report/text/a.py", "from streamattn_cli.report.html.svg import x", "text is below html"),
    ("cli/a.py", "from streamattn_cli.testing.sketch import SKETCH_LAWS", "testing is for tests"),
    ("cli/a.py", "import click", "typer carries its own click"),
    ("cli/a.py", "def f():\n    from click.testing import CliRunner", "typer carries its own click"),
    ("engine/a.py", "import numba", "numba belongs in kernels"),
    ("engine/a.py", "import h5py", "import it inside a function"),
    ("models/a.py", "import torch", "import it inside a function"),
    ("engine/a.py", "from streamattn_cli.models.load import load", "engine is below models"),
    ("api_causal.py", "from streamattn_cli.models.load import load", "api_causal.py is above the engine"),
    ("rows/a.py", "from streamattn_cli.rows.formats.hdf5arrays import opened", "import it inside a function"),
    ("rows/formats/zarr.py", "import zarr", "import it inside a function"),
    ("rows/formats/arrow.py", "import pyarrow.ipc", "import it inside a function"),
    ("rows/formats/a.py", "from streamattn_cli.rows.formats.zarrarrays import x", "import it inside a function"),
    ("errors.py", "from streamattn_cli.rows.tensors.tensor import Storage", "errors.py is below every room"),
    ("errors.py", "import streamattn_cli.units", "import nothing of the rooms"),
    ("rows/a.py", "from streamattn_cli.attic import x", "attic is no room"),
    ("sketches/a.py", "from streamattn_cli.kernels.dense import combine", "import the module"),
])  # fmt: skip
def test_a_planted_violation_is_found(tmp_path, place, line, expected):
    path = tmp_path / "streamattn_cli" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'"""A file."""\n{line}\n')
    (found,) = arrows_up(tmp_path / "streamattn_cli")
    assert found.startswith(f"{place}:") and expected in found


@pytest.mark.parametrize(("place", "line"), [
    ("kernels/a.py", "import math\nimport numpy as np\nfrom numba import njit"),
    ("kernels/a.py", "from streamattn_cli.kernels.dense import exp"),
    ("rows/a.py", "import os\nfrom streamattn_cli.errors import UsageError\ndef f():\n    import h5py"),
    ("rows/formats/hdf5x.py", "import h5py\nfrom streamattn_cli.rows.formats.hdf5types import file_storage"),
    ("cli/a.py", "import typer\nfrom streamattn_cli.report.text.table import rows\nfrom . import b"),
    ("testing/a.py", "from streamattn_cli.cli.main import app"),
    ("units.py", "from streamattn_cli.errors import UsageError"),
    ("engine/jobs/a.py", "from streamattn_cli.engine.audit.audit import Auditor"),
    ("cli/a.py", "from streamattn_cli.api import open_sketch"),
    ("models/a.py", "from streamattn_cli.api_causal import CausalAttention"),
    ("sketches/histories/a.py", "from streamattn_cli.sketches.partial import Partial"),
    ("rows/inputs/a.py", "from streamattn_cli.rows.tensors.heads import Heads\nfrom streamattn_cli.rows.spec import x"),
    ("sketches/a.py", "from streamattn_cli.kernels import dense\ndef f():\n    from streamattn_cli.kernels.dense import exp"),
])  # fmt: skip
def test_what_is_allowed_is_not_complained_about(tmp_path, place, line):
    path = tmp_path / "streamattn_cli" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    assert arrows_up(tmp_path / "streamattn_cli") == []


def loaded_by(code, *names):
    """Which of the packages are loaded after running the code in a fresh interpreter."""
    report = f"{code}\nimport sys\nprint('loaded:', *sorted(set({names!r}) & set(sys.modules)))"
    environment = {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_START"}
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.rsplit("loaded:", 1)[1].split()


def test_the_command_line_imports_nothing_heavy():
    assert loaded_by("import streamattn_cli.cli.main", "numpy", "numba", "h5py", "rich", "click") == []


def test_loaded_by_sees_what_is_loaded():
    assert loaded_by("import json, numpy", "numpy", "json", "numba") == ["json", "numpy"]


SAMPLES = PACKAGE.parent / "sample_data"
TINY = [word for part in "qkv" for word in (f"--{part}", str(SAMPLES / f"tiny_{part}.npy"))]


def loaded_by_command(*words):
    """Which of numba and h5py a command loads, which must succeed."""
    code = f"""
from streamattn_cli.cli.main import app
try:
    app({words!r})
except SystemExit as end:
    assert not end.code, end.code
"""
    return loaded_by(code, "numba", "h5py")


def test_inspecting_an_npy_file_needs_neither_numba_nor_h5py():
    assert loaded_by_command("inspect", TINY[1]) == []


def test_a_command_loads_no_other_and_reads_its_words_itself(tmp_path):
    """Typer would ask Pydantic about every option."""
    words = (
        "streamattn",
        "attend",
        *TINY,
        "--causal",
        "--method",
        "exact",
        "--dry-run",
        "--block-rows",
        "512",
        "-o",
        "-",
    )
    code = f"import sys; sys.argv = [*{words!r}]\nfrom streamattn_cli.cli.main import main\ntry: main()\nexcept SystemExit: pass"
    others = "pydantic", "importlib.metadata", "streamattn_cli.cli.compare", "streamattn_cli.cli.plan", "rich"
    assert loaded_by(code, "streamattn_cli.cli.attend", *others) == ["streamattn_cli.cli.attend"]


@pytest.mark.parametrize(("words", "loaded"), [
    (("--rows", "1e9", "--dim", "128", "--heads", "32", "--kv-heads", "8", "--memory", "512MiB"), []),
    (("--rows", "3000", "--dim", "4", "--memory", "64MiB", "--json"), []),
    (("--full", *TINY), []),
    ((str(SAMPLES / "heads.h5"),), ["h5py"]),
])  # fmt: skip
def test_plan_needs_no_kernels(words, loaded):
    assert loaded_by_command("plan", *words) == loaded
