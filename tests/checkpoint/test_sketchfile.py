"""Sketches as files: the laws of merging, what is refused, and full disks."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keptruns import METHODS, POLY, answers, keys_only, make_sketch, not_warmed, save_stream, state_of  # noqa: F401

from streamattn_cli.checkpoint.commit import save
from streamattn_cli.checkpoint.container import read
from streamattn_cli.engine.jobs.merge import heads_of, merge
from streamattn_cli.engine.jobs.sketch import open_sketch_file
from streamattn_cli.errors import CheckpointIncompatible, InputMissing, MemoryBudget, OutputFailed, UsageError
from streamattn_cli.sketches.headparams import allocate
from streamattn_cli.sketches.histories.monomials import recentre, table

pytestmark = pytest.mark.usefixtures("not_warmed")
ROWS = 2300

cuts = st.lists(st.integers(1, ROWS - 1), unique=True, min_size=1, max_size=7).map(sorted)
fifties = st.lists(st.integers(1, ROWS // 50 - 1).map(lambda i: 50 * i), unique=True, min_size=1, max_size=7).map(
    sorted
)
slow = settings(suppress_health_check=list(HealthCheck))
EXAMPLES = settings.default.max_examples
each = settings(slow, max_examples=EXAMPLES if EXAMPLES > 100 else 4)  # of every method


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """A float64 stream of two key heads, and a folder of sketches of its ranges, made when they are needed."""
    return save_stream(tmp_path_factory.mktemp("laws"), ROWS, heads=2, dtype=np.float64)


def _parts(stream, folder, borders, words):
    """Sketch files of the ranges between borders; all calibrated alike, by bounds that hold for all rows."""
    names = []
    for a, b in zip([0, *borders], [*borders, ROWS], strict=True):
        names.append(str(folder / f"{a}-{b}.sattn"))
        make_sketch(replace(stream, rows=(a, b)), names[-1], **words)
    return names


def _answers(name, stream, folder):
    return answers(name, stream, folder / "answers.npy")


def _close(found, expected, tolerance):
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@slow
@given(fifties)  # poly chooses its bounds by a part's first rows, and shortens keys that exceed them
def test_merged_poly_holds_the_moments_of_one_pass(stream, tmp_path_factory, borders):
    """Every part has chosen its own centre: moments are moved from one to another without loss."""
    folder, words = tmp_path_factory.mktemp("merge"), POLY | {"degree": 4}
    make_sketch(keys_only(stream), folder / "one.sattn", **words)
    names = _parts(keys_only(stream), folder, borders, words)
    merge(names, str(folder / "all.sattn"))
    assert len(open_sketch_file(str(folder / "all.sattn")).sources) == len(names)
    for one, all_ in zip(_finished(folder / "one.sattn"), _finished(folder / "all.sattn"), strict=True):
        assert np.array_equal(one["counters"], all_["counters"])
        shift = np.sqrt(0.5) * (one["history.mu"] - all_["history.mu"])
        _close(all_["history.moments"], recentre(one["history.moments"], table(4, 4), shift), 1e-12)


def _finished(path):
    """The state arrays of every head when nothing waits any more: how groups were cut cannot be seen in them."""
    file = open_sketch_file(str(path))
    heads = heads_of(file)
    for head in heads:
        head.finish(allocate(file.params.work_spec()))
    return [head.state for head in heads]


@slow
@given(fifties.filter(lambda borders: len(borders) >= 2), st.data())  # one row would bound all that follow
def test_poly_merges_in_any_grouping(stream, tmp_path_factory, borders, data):
    folder = tmp_path_factory.mktemp("grouping")
    names = _parts(keys_only(stream), folder, borders, POLY)
    merge(names, str(folder / "flat.sattn"))
    while len(names) > 2:
        at = data.draw(st.integers(0, len(names) - 2))
        joined = str(folder / f"{len(names)}.sattn")
        merge(names[at : at + 2], joined, force=True)
        names[at : at + 2] = [joined]
    merge(names, str(folder / "nested.sattn"))
    _close(_answers(folder / "nested.sattn", stream, folder), _answers(folder / "flat.sattn", stream, folder), 1e-9)


@slow
@given(cuts)
def test_a_merged_sample_is_that_of_all_rows(stream, tmp_path_factory, borders):
    """To the bit, once rows are put in order: a row's priority depends on its number in the stream alone."""
    folder = tmp_path_factory.mktemp("sample")
    words = METHODS["sample"] | {"sinks": 0}
    make_sketch(keys_only(stream), folder / "one.sattn", **words)
    merge(_parts(keys_only(stream), folder, borders, words), str(folder / "all.sattn"))
    for one, all_ in zip(_finished(folder / "one.sattn"), _finished(folder / "all.sattn"), strict=True):
        assert _sampled(one) == _sampled(all_)
        assert np.array_equal(one["recent"][:1], all_["recent"][:1])


def _sampled(state):
    """(priority, row) of everything that a sample holds, in order, and how many rows it stands for."""
    count, standing, _ = state["history.held"]
    rows = state["history.rows"].reshape(len(state["history.priority"]), -1)
    return sorted((int(state["history.priority"][i]), rows[i].tobytes()) for i in range(count)), int(standing)


@pytest.mark.parametrize("name", METHODS)
@each
@given(borders=cuts)
def test_every_merge_holds_all_rows_and_answers(stream, tmp_path_factory, name, borders):
    folder = tmp_path_factory.mktemp("any")
    spec = stream if name.startswith(("nystrom", "evict")) else keys_only(stream)
    names = _parts(spec, folder, borders, METHODS[name])
    before = [Path(name).read_bytes() for name in names]
    merge(names, str(folder / "all.sattn"))
    assert before == [Path(name).read_bytes() for name in names]
    merge(names, str(folder / "again.sattn"))
    assert (folder / "all.sattn").read_bytes() == (folder / "again.sattn").read_bytes()
    assert (state_of(folder / "all.sattn")["head.counters"][:, 0] == ROWS).all()
    found = _answers(folder / "all.sattn", stream, folder)
    assert np.isfinite(found).all()
    assert found.max() <= np.load(stream.v).max() and found.min() >= np.load(stream.v).min()


@slow
@given(st.integers(0, ROWS - 2), st.integers(1, ROWS), st.integers(0, ROWS - 2), st.integers(1, ROWS))
def test_overlapping_rows_are_refused(stream, tmp_path_factory, a, n, b, m):
    folder = tmp_path_factory.mktemp("overlap")
    ranges = [(a, min(a + n, ROWS)), (b, min(b + m, ROWS))]
    names = []
    for at, rows in enumerate(ranges):
        names.append(str(folder / f"{at}.sattn"))
        make_sketch(replace(keys_only(stream), rows=rows), names[-1], **POLY)
    if max(a, b) < min(ranges[0][1], ranges[1][1]):
        with pytest.raises(CheckpointIncompatible, match="same rows of the same keys"):
            merge(names, str(folder / "x.sattn"))
        assert not (folder / "x.sattn").exists()
    else:
        assert merge(names, str(folder / "x.sattn"))["rows"] == sum(stop - first for first, stop in ranges)


# --- refusals


def test_what_does_not_merge(stream, tmp_path):
    names = [str(tmp_path / f"{at}.sattn") for at in range(3)]
    make_sketch(replace(keys_only(stream), rows=(0, 1000)), names[0], **POLY)
    make_sketch(replace(keys_only(stream), rows=(1000, 2000)), names[1], **(POLY | {"degree": 3}))
    with pytest.raises(CheckpointIncompatible, match="differ in history.*only sketches of the same parameters"):
        merge(names[:2], names[2])
    with pytest.raises(UsageError, match="at least two"):
        merge(names[:1], names[2])
    with pytest.raises(InputMissing, match="2.sattn"):
        merge([names[0], names[2]], names[2])
    (tmp_path / "2.sattn").write_text("a letter to my mother")
    with pytest.raises(Exception, match="2.sattn"):
        merge([names[0], names[0]], names[2])
    assert (tmp_path / "2.sattn").read_text() == "a letter to my mother"


def test_a_sketch_larger_than_memory_is_refused(stream, tmp_path):
    path = str(tmp_path / "s.sattn")
    make_sketch(keys_only(stream), path, **(POLY | {"degree": 8}))
    with pytest.raises(MemoryBudget, match=f"{path}: state of"):
        open_sketch_file(path, 1000)


@pytest.mark.parametrize(("history", "said"), [
    ({"magic": {}}, "method magic: unknown; install"),
    ({"poly": {"magic": 1}}, "parameters that this version does not know"),
])  # fmt: skip
def test_parameters_that_nobody_knows(stream, tmp_path, history, said):
    path = str(tmp_path / "s.sattn")
    make_sketch(keys_only(stream), path, **POLY)
    state, meta = read(path)
    facts = json.loads(meta["params"])
    facts["head"]["history"] = history
    save(path, state, meta | {"params": json.dumps(facts)})
    with pytest.raises(CheckpointIncompatible, match=said):
        open_sketch_file(path)


# --- full disks


@pytest.fixture
def disk(tmp_path):
    """A function that makes tmp_path/disk a file system of so many bytes; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        word = "remount," if os.path.ismount(folder) else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{word}size={size}", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system may be mounted here")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_keeps_the_sketch_that_was_there(stream, disk):
    folder = disk("1m")
    path, words = folder / "s.sattn", POLY | {"degree": 8}
    make_sketch(replace(keys_only(stream), rows=(0, 1200)), path, **words)
    before = path.read_bytes()
    (folder / "ballast").write_bytes(bytes(1 << 20)[: (1 << 20) - len(before) - 16384])
    with pytest.raises(OutputFailed, match="the previous checkpoint, if any, is intact; free some room"):
        make_sketch(replace(keys_only(stream), rows=(1200, ROWS)), path, append=True, **words)
    assert path.read_bytes() == before
    assert sorted(os.listdir(folder)) == ["ballast", "s.sattn"]
    (folder / "ballast").unlink()
    make_sketch(replace(keys_only(stream), rows=(1200, ROWS)), path, append=True, **words)
    assert open_sketch_file(str(path)).rows == ROWS
