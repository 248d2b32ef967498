"""`sketch --shards`: cuts, engines, merging, and what workers cannot do."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from clirun import refused, run
from hypothesis import given, settings
from hypothesis import strategies as st
from keptruns import METHODS, POLY, answers, keys_only, make_sketch, not_warmed, save_stream, state_of  # noqa: F401

from streamattn_cli.engine.jobs.executors import find_engine
from streamattn_cli.engine.jobs.shards import ALIGN, cut
from streamattn_cli.errors import CannotMeet, InputMissing, MemoryBudget, SourceChanged, StreamattnError, UsageError
from streamattn_cli.rows.spec import InputSpec

ROWS = 64 * ALIGN + 77
COUNTS = range(1, 65) if settings.default.max_examples > 100 else (1, 2, 3, 5, 8, 21, 63, 64)  # nightly, ci

pytestmark = pytest.mark.usefixtures("not_warmed")


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A float64 stream that 64 shards can be cut of."""
    return save_stream(tmp_path_factory.mktemp("long"), ROWS, heads=2, dtype=np.float64)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A float32 stream of a few shards."""
    return save_stream(tmp_path_factory.mktemp("short"), 5000, heads=2)


@given(st.integers(1, 10**7), st.integers(1, 300))
def test_a_cut_is_a_partition(rows, shards):
    ranges = cut(rows, shards)
    assert 1 <= len(ranges) <= shards
    assert ranges[0][0] == 0 and ranges[-1][1] == rows
    assert all(a[1] == b[0] for a, b in zip(ranges, ranges[1:], strict=False))
    assert all(a < b and a % ALIGN == 0 for a, b in ranges)
    if rows >= shards * ALIGN:
        assert len(ranges) == shards
        assert max(b - a for a, b in ranges) <= rows / shards + ALIGN


@pytest.mark.parametrize("words", [POLY, POLY | {"degree": 4, "window": 600, "sinks": 5}], ids=["plain", "window"])
def test_any_number_of_shards_equals_one_pass(long, tmp_path, words):
    one = tmp_path / "one.sattn"
    make_sketch(keys_only(long), one, **words)
    expected = state_of(one)
    for shards in COUNTS:
        path = tmp_path / f"{shards}.sattn"
        assert make_sketch(keys_only(long), path, shards=shards, **words).counts["shards"] == shards
        found = state_of(path)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            scale = np.abs(array[np.isfinite(array)]).max(initial=0)  # the range of no values is infinite
            np.testing.assert_allclose(
                found[name], array, rtol=0, atol=1e-12 * scale, err_msg=f"{name}, {shards} shards"
            )


@pytest.mark.parametrize("shards", [2, 5, 64])
def test_a_sample_is_exactly_that_of_one_pass(long, tmp_path, shards):
    words = METHODS["sample"]
    make_sketch(keys_only(long), tmp_path / "one.sattn", **words)
    make_sketch(keys_only(long), tmp_path / "all.sattn", shards=shards, **words)
    one, all_ = (state_of(tmp_path / f"{name}.sattn") for name in ("one", "all"))
    for name in ("head.counters", "head.recent", "head.range", "head.sinks", "head.history.held"):
        assert np.array_equal(one[name], all_[name]), name
    for head in range(2):
        orders = [state["head.history.priority"][head].argsort() for state in (one, all_)]
        count = len(orders[0])
        rows = [
            state["head.history.rows"][head].reshape(count, -1)[order]
            for state, order in zip((one, all_), orders, strict=True)
        ]
        assert np.array_equal(*rows)
        priorities = [
            state["head.history.priority"][head][order] for state, order in zip((one, all_), orders, strict=True)
        ]
        assert np.array_equal(*priorities)


@pytest.mark.parametrize("name", METHODS)
def test_workers_and_blocks_change_no_byte(short, tmp_path, name):
    made = set()
    for at, extra in enumerate([{"threads": 1}, {"threads": 3, "block_rows": 333}, {"threads": 7, "memory": 64 << 20}]):
        path = tmp_path / f"{at}.sattn"
        make_sketch(short, path, shards=5, **METHODS[name], **extra)
        made.add(path.read_bytes())
    assert len(made) == 1
    assert np.isfinite(answers(tmp_path / "0.sattn", short, tmp_path / "out.npy")).all()


@pytest.mark.parametrize("name", ["nystrom", "sample", "poly"])
def test_key_heads_side_by_side_have_the_bytes_of_one_pass(short, tmp_path, name):
    """Also of a range of rows, whose numbers matter to `sample`."""
    spec = replace(short, rows=(1000, 4500))
    for engine in (None, "threads", "processes" if name == "sample" else "threads"):
        outcome = make_sketch(spec, tmp_path / f"{engine}", engine=engine, threads=2, **METHODS[name])
        assert (tmp_path / f"{engine}").read_bytes() == (tmp_path / "None").read_bytes()
        assert outcome.rows == 3500 and outcome.counts["dropped_keys"] == 0 and "shards" not in outcome.counts


def test_processes_give_the_bytes_of_threads(short, tmp_path):
    for engine in ("threads", "processes"):
        make_sketch(short, tmp_path / engine, shards=3, threads=2, engine=engine, **METHODS["sample"])
    assert (tmp_path / "threads").read_bytes() == (tmp_path / "processes").read_bytes()


def test_a_worker_that_cannot_read_is_named(short, tmp_path, monkeypatch):
    from streamattn_cli.engine.jobs import shards

    def elsewhere(request):
        return replace(request, k=str(tmp_path / "not-here.npy"))

    monkeypatch.setattr(shards, "absolute", elsewhere)
    with pytest.raises(InputMissing, match=r"worker .*, process \d+: shard 0 \(rows 0:\d+\): .*not-here.npy"):
        make_sketch(keys_only(short), tmp_path / "x.sattn", shards=2, threads=1, engine="processes", **POLY)
    assert not (tmp_path / "x.sattn").exists()


def test_a_worker_that_sees_another_file_is_refused(short, tmp_path, monkeypatch):
    from streamattn_cli.engine.jobs import shards

    other = save_stream(tmp_path, 5000, heads=2, seed=5)
    monkeypatch.setattr(shards, "absolute", lambda spec: replace(spec, k=other.k))
    with pytest.raises(SourceChanged, match="first rows of k.*every worker must see the same files"):
        make_sketch(keys_only(short), tmp_path / "x.sattn", shards=2, **POLY)


def test_a_worker_that_is_killed_time_after_time_is_reported(short, tmp_path, monkeypatch):
    from streamattn_cli.engine.jobs import shards, tasks

    monkeypatch.setattr(shards, "absorb_shard", _die)
    monkeypatch.setattr(tasks, "RETRIES", 1)
    with pytest.raises(MemoryBudget, match="a worker died .* and 1 more that were given its work"):
        make_sketch(keys_only(short), tmp_path / "x.sattn", shards=2, threads=1, engine="processes", **POLY)


def _die(_shard):
    os.kill(os.getpid(), signal.SIGKILL)


REFUSED = [
    ({"shards": 0}, UsageError, "--shards 0"),
    ({"shards": 2, "engine": "gpu"}, UsageError, "--engine gpu"),
    ({"shards": 2, "engine": "dask"}, UsageError, "which cluster"),
    ({"shards": 2, "memory": 1 << 20}, MemoryBudget, "needs"),
]


@pytest.mark.parametrize("words, error, said", REFUSED, ids=[said for _, _, said in REFUSED])
def test_refusals(short, tmp_path, monkeypatch, words, error, said):
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    with pytest.raises(error, match=said):
        make_sketch(keys_only(short), tmp_path / "x.sattn", **(POLY | words))
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_cannot_be_cut(tmp_path):
    from io import BytesIO

    stream = BytesIO()
    np.save(stream, np.zeros((9, 8), np.float32))
    stream.seek(0)
    with pytest.raises(CannotMeet, match="pipe passes once"):
        make_sketch(InputSpec(input="-", stdin=stream), tmp_path / "x.sattn", shards=2, **POLY)


def test_few_workers_where_memory_is_short(long, tmp_path):
    """A budget that one worker fits into and two do not: the same bytes, by fewer workers."""
    words = POLY | {"degree": 8, "threads": 6}
    make_sketch(keys_only(long), tmp_path / "a.sattn", shards=6, **words)
    make_sketch(keys_only(long), tmp_path / "b.sattn", shards=6, memory=24 << 20, **words)
    assert (tmp_path / "a.sattn").read_bytes() == (tmp_path / "b.sattn").read_bytes()


# --- several files as one stream


def _pieces(spec, folder, borders):
    """The stream cut into files k-0.npy ..., v-0.npy ...."""
    for part in "kv":
        array = np.load(getattr(spec, part))
        for at, (a, b) in enumerate(zip(borders, borders[1:], strict=False)):
            np.save(folder / f"{part}-{at}.npy", array[a:b])
    return replace(keys_only(spec), k=str(folder / "k-*.npy"), v=str(folder / "v-*.npy"))


@pytest.mark.parametrize("name, shards", [("nystrom", None), ("nystrom", 3), ("sample", None), ("sample", 3)])
def test_files_in_order_are_one_stream(short, tmp_path, name, shards):
    pattern = _pieces(short, tmp_path, [0, 1, 700, 3333, 3334, 5000])
    for rows in (None, (650, 3400)):
        make_sketch(replace(keys_only(short), rows=rows), tmp_path / "one.sattn", shards=shards, **METHODS[name])
        make_sketch(replace(pattern, rows=rows), tmp_path / "many.sattn", shards=shards, **METHODS[name])
        one, many = state_of(tmp_path / "one.sattn"), state_of(tmp_path / "many.sattn")
        assert all(np.array_equal(one[part], many[part]) for part in one)
        (tmp_path / "one.sattn").unlink()
        (tmp_path / "many.sattn").unlink()


def test_rows_of_a_file_among_several_count_once(short, tmp_path):
    from streamattn_cli.engine.jobs.merge import merge
    from streamattn_cli.errors import CheckpointIncompatible

    pattern = _pieces(short, tmp_path, [0, 2000, 5000])
    make_sketch(pattern, tmp_path / "all.sattn", **POLY)
    second = replace(pattern, k=str(tmp_path / "k-1.npy"), v=str(tmp_path / "v-1.npy"))
    make_sketch(second, tmp_path / "second.sattn", **POLY)
    with pytest.raises(CheckpointIncompatible, match="same rows"):
        merge([str(tmp_path / "all.sattn"), str(tmp_path / "second.sattn")], str(tmp_path / "m.sattn"))


def test_files_that_do_not_fit_together(short, tmp_path):
    pattern = _pieces(short, tmp_path, [0, 2000, 5000])
    (tmp_path / "v-1.npy").unlink()
    with pytest.raises(UsageError, match="names 1"):
        make_sketch(pattern, tmp_path / "x.sattn", **POLY)
    np.save(tmp_path / "v-1.npy", np.zeros((3000, 2, 4)))
    with pytest.raises(StreamattnError, match="files of one stream must be alike"):
        make_sketch(pattern, tmp_path / "x.sattn", **POLY)
    with pytest.raises(InputMissing, match="no file has such a name"):
        make_sketch(replace(pattern, k=str(tmp_path / "nothing-*.npy")), tmp_path / "x.sattn", **POLY)


# --- a cluster


@pytest.mark.parametrize("word, address", [("dask=tcp://a:1", "tcp://a:1"), ("dask=local", "local")])
def test_dask_words(word, address):
    assert find_engine(word).address == address


# --- the command


def test_the_command(short, tmp_path):
    """A pattern, shards and a budget; projected memory bounds the measured one."""
    pattern = _pieces(short, tmp_path, [0, 2000, 5000])
    words = ["sketch", "--k", pattern.k, "--v", pattern.v, "--layout", "THD"]
    words += ["--method", "poly", "--degree", 2, "--max-error", "9"]
    one = run(*words, "-o", tmp_path / "one.sattn", "--shards", 4, "--threads", 3, "--json").document
    assert one["counts"]["shards"] == 4 and one["rows"] == 5000
    assert 0 < one["memory"]["peak"] <= one["memory"]["projected"]
    run(*words, "-o", tmp_path / "two.sattn", "--shards", 4, "--threads", 1, "--memory", "40MiB")
    assert (tmp_path / "one.sattn").read_bytes() == (tmp_path / "two.sattn").read_bytes()
    for extra, said in (("--append", "streamattn merge"), ("--resume", "omit --resume to start again")):
        for side in (("--shards", 4), ("--engine", "threads")):
            refused(
                *words,
                "-o",
                tmp_path / "one.sattn",
                *side,
                extra,
                code=2,
                words=[side[0], extra, said],
                folder=tmp_path,
            )


def test_more_rows_in_shards_as_the_refusal_says(short, tmp_path):
    """Sharded new rows merged into the file itself."""
    for rows, name in (((0, 2000), "all.sattn"), ((2000, 5000), "new.sattn")):
        words = ["--k", short.k, "--v", short.v, "--layout", "THD", "--rows", f"{rows[0]}:{rows[1]}"]
        run("sketch", *words, "--method", "sample", "--resident-rows", 160, "--shards", 2, "-o", tmp_path / name)
    merged = run(
        "merge", tmp_path / "all.sattn", tmp_path / "new.sattn", "--force", "-o", tmp_path / "all.sattn", "--json"
    )
    assert merged.document["rows"] == 5000
