"""Methods and formats of other packages: found by their entry points, used by the command, and held to the conformance suite."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.errors import InputMalformed, UsageError
from streamattn_cli.rows.formats import registry as formats
from streamattn_cli.rows.inputs.paths import find
from streamattn_cli.sketches import registry
from streamattn_cli.sketches.head import HeadAttention
from streamattn_cli.sketches.headparams import HeadParams
from streamattn_cli.sketches.method import Method, MethodOptions
from streamattn_cli.testing.sketch import SKETCH_LAWS, SketchCase

PACKAGE = Path(__file__).parents[1] / "third_party"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A folder of installed packages with that one in it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "streamattn_oldest").symlink_to(PACKAGE / "streamattn_oldest")
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    info = folder / f"streamattn_oldest-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]
    lines = [line for group in points for line in (f"[{group}]", *(f"{n} = {v}" for n, v in points[group].items()))]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def installed(site, monkeypatch):
    """The package as this process sees it, and a registry that has not looked yet."""
    caches = (registry.installed, registry.find, registry.of, formats._points, formats.find)
    monkeypatch.syspath_prepend(str(site))
    for cache in caches:
        cache.cache_clear()
    yield registry.find("oldest")
    for cache in caches:
        cache.cache_clear()


def streamattn(site, folder, *words):
    """The command in a process of its own, with that package installed."""
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "streamattn_cli", *words],
        cwd=folder, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    rng = np.random.default_rng(4)
    for part in "qkv":
        np.save(folder / f"{part}.npy", rng.standard_normal((700, 1, 8)).astype("f4"))
    return folder


INPUT = ("--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "--layout", "THD", "--causal", "--resident-rows", "96")


def test_the_command_uses_it_and_resumes_its_checkpoint(site, stream):
    """One that keeps the oldest rows answers otherwise than a window of the same budget."""
    words = ("attend", *INPUT, "--method", "oldest")
    whole = streamattn(site, stream, *words, "-o", "out.npy", "--checkpoint", "run.sattn")
    assert whole.returncode == 0, whole.stderr
    sketch = streamattn(site, stream, "sketch", "--k", "k.npy", "--v", "v.npy", "--layout", "THD", "--method", "oldest",
                        "--resident-rows", "96", "-o", "s.sattn")  # fmt: skip
    assert sketch.returncode == 0, sketch.stderr
    assert "oldest" in streamattn(site, stream, "info", "s.sattn").stdout
    answered = streamattn(site, stream, "query", "s.sattn", "q.npy", "--layout", "THD", "-o", "answers.npy")
    assert answered.returncode == 0, answered.stderr
    window = streamattn(site, stream, "attend", *INPUT, "--method", "window", "-o", "window.npy")
    assert window.returncode == 0, window.stderr
    outputs = [np.load(stream / name) for name in ("out.npy", "window.npy", "answers.npy")]
    assert all(out.shape == (700, 1, 8) and np.isfinite(out).all() for out in outputs)
    np.testing.assert_allclose(outputs[0][:40], outputs[1][:40], rtol=1e-5, atol=1e-6)  # in tiles of other shapes
    assert np.abs(outputs[0][500:] - outputs[1][500:]).max() > 0.01


def test_plan_and_compare_know_it(site, stream):
    assert "oldest" in streamattn(site, stream, "plan", *INPUT).stdout
    compared = streamattn(site, stream, "compare", *INPUT[:-2], "--methods", "oldest,window", "--resident-rows", "96")
    assert compared.returncode == 0 and "oldest" in compared.stdout, compared.stderr


def test_without_it_its_checkpoints_are_refused_with_its_name(site, stream, tmp_path):
    made = streamattn(site, stream, "sketch", "--k", "k.npy", "--v", "v.npy", "--layout", "THD", "--method", "oldest",
                      "--resident-rows", "96", "-o", str(tmp_path / "s.sattn"))  # fmt: skip
    assert made.returncode == 0, made.stderr
    found = streamattn(tmp_path, stream, "query", str(tmp_path / "s.sattn"), "q.npy", "--layout", "THD", "-o", "x.npy")
    assert found.returncode == 8 and "oldest" in found.stderr and "Traceback" not in found.stderr, found.stderr


@pytest.mark.parametrize(("name", "said"), [
    ("broken", "streamattn_oldest.nothing"), ("misnamed", "no Method of that name"), ("newest", "unknown; install"),
])  # fmt: skip
def test_a_method_that_cannot_be_had_is_refused(site, installed, stream, name, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        registry.find(name)
    found = streamattn(site, stream, "attend", *INPUT, "--method", name, "-o", "x.npy")
    assert found.returncode == 2 and name in found.stderr and "Traceback" not in found.stderr


def test_a_file_of_its_format_is_read(site, stream, tmp_path):
    arrays = [np.load(stream / f"{part}.npy")[:, 0] for part in "qkv"]
    header = b"ROWS" + np.array(arrays[0].shape, "<u4").tobytes()
    (tmp_path / "dump.rows").write_bytes(header + b"".join(array.tobytes() for array in arrays))
    words = ("--causal", "--method", "window", "--resident-rows", "96", "-o")
    found = streamattn(site, tmp_path, "attend", "dump.rows", *words, "out.npy")
    assert found.returncode == 0, found.stderr
    given = streamattn(site, stream, "attend", *INPUT, "--method", "window", "-o", str(tmp_path / "expected.npy"))
    assert given.returncode == 0, given.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.load(tmp_path / "expected.npy")[:, 0])
    named = streamattn(site, tmp_path, "inspect", "dump.rows:nothing")
    assert named.returncode == 3 and "there are q, k and v" in named.stderr


@pytest.mark.parametrize(("start", "said"), [
    ("RAISE and no more", "format:RAISES fails (IndexError"), ("nobody knows this", "nothing:FORMAT fails (ModuleNotFound"),
])  # fmt: skip
def test_a_format_that_fails_is_named(site, installed, tmp_path, monkeypatch, start, said):
    """Where no other knows the file; a package that cannot be loaded keeps no other from being asked."""
    (tmp_path / "x.bin").write_text(start)
    if "RAISES" in said:  # the other would be named first
        points = {name: point for name, point in formats._points().items() if name != "aaa-broken"}
        monkeypatch.setattr(formats, "_points", lambda: points)
        with pytest.raises(InputMalformed, match=re.escape(said)):
            find(str(tmp_path / "x.bin"))
        return
    found = streamattn(site, tmp_path, "inspect", "x.bin")
    assert found.returncode == 4 and "Traceback" not in found.stderr, found.stderr
    assert said in found.stderr and "remove that package" in found.stderr


def test_ours_cannot_be_replaced(installed):
    assert registry.names()[: len(registry.BUILT_IN)] == tuple(registry.BUILT_IN)
    assert registry.find("window").settings.__module__ == "streamattn_cli.sketches.histories.window"


@pytest.mark.parametrize("law", SKETCH_LAWS, ids=lambda law: law.__name__)
def test_it_obeys_the_laws_of_a_sketch(installed, law):
    law(SketchCase(HeadParams(3, 2, 0.5, group=16, window=20, history=installed.params(rows=64))))


def test_every_method_of_ours_makes_settings_within_its_budget():
    head = HeadParams(16, 16, 0.25, storage="f2")
    for name in registry.BUILT_IN:
        method = registry.find(name)
        assert isinstance(method, Method) and method.name == name
        params = method.settings(head, MethodOptions.of(AttendRequest(resident_rows=256)), True, 4096)
        if name == "exact":
            assert params is None
            continue
        assert HeadParams.from_dict(params.to_dict()) == params
        assert HeadAttention(params).history is None or isinstance(HeadAttention(params).history, method.history)
