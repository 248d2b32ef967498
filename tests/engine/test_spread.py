"""`attend --engine`: pieces of layers side by side have the bytes of a run that is not cut, whoever works on them."""

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from clirun import listing
from clirun import run as command
from hypothesis import given
from hypothesis import strategies as st
from keptruns import keys_only, make_sketch, not_warmed, run, silent  # noqa: F401

from streamattn_cli.engine.jobs import sheet, spread
from streamattn_cli.engine.jobs.executors import Opened
from streamattn_cli.engine.jobs.piece_run import answer_piece
from streamattn_cli.engine.jobs.pieces import cut
from streamattn_cli.engine.jobs.query import query
from streamattn_cli.engine.jobs.spread import attend_spread, plan_spread, query_spread
from streamattn_cli.engine.jobs.tasks import check_room
from streamattn_cli.engine.request.requests import AttendRequest, QueryRequest
from streamattn_cli.engine.watch.events import Progress
from streamattn_cli.engine.watch.meter import trim
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import CannotMeet, MemoryBudget, NonFinite, OutputFailed, SourceChanged, UsageError
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.tensors.sequences import Sequences

ROWS, HEADS, KEY_HEADS, DIM = 700, 6, 3, 8
SHAPES = {
    "THD": lambda heads: (ROWS, heads, DIM),
    "HTD": lambda heads: (heads, ROWS, DIM),
    "TC": lambda heads: (ROWS, heads * DIM),
    "BTHD": lambda heads: (4, 300, heads, DIM),
    "BHTD": lambda heads: (4, heads, 300, DIM),
}
SMALL = {"resident_rows": 64}
EVERY = 10**6  # --audit: all rows, so that nothing is left to chance

pytestmark = pytest.mark.usefixtures("not_warmed")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Short sequences are cut, too."""
    monkeypatch.setattr("streamattn_cli.engine.jobs.pieces.LEAST_ROWS", 1)
    monkeypatch.setattr("streamattn_cli.engine.jobs.ceremony.warm", lambda plan, listener: None)


def _save(folder, layout="THD", seed=0):
    rng = np.random.default_rng(seed)
    spec = {}
    for part, heads in (("q", HEADS), ("k", KEY_HEADS), ("v", KEY_HEADS)):
        np.save(folder / f"{part}.npy", rng.standard_normal(SHAPES[layout](heads)).astype("f4"))
        spec[part] = str(folder / f"{part}.npy")
    more = {"heads": HEADS, "kv_heads": KEY_HEADS} if layout == "TC" else {}
    return InputSpec(**spec, layout=layout, **more)


def _spread(spec, engine="threads", listener=silent, **words):
    return attend_spread(AttendRequest(inputs=spec, engine=engine, **words), listener, Interrupts())


# --- the bytes


@pytest.mark.parametrize("mode", ["causal", "full"])
@pytest.mark.parametrize("layout", SHAPES)
def test_pieces_have_the_bytes_of_one_run(tmp_path, layout, mode):
    spec = _save(tmp_path, layout)
    for name, do in (("one", run), ("all", _spread)):
        files = {"output": str(tmp_path / f"{name}.npy"), "doubt": str(tmp_path / f"{name}.h5")}
        do(spec, causal=mode == "causal", **SMALL, **files)
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "all.npy").read_bytes()
    with h5py.File(tmp_path / "one.h5") as one, h5py.File(tmp_path / "all.h5") as many:
        assert np.array_equal(one["out"], many["out"]) and np.any(one["out"])


@pytest.mark.parametrize(
    "words",
    [
        {"lengths": "300,0,17,211"},
        {"starts": "0,120,121,600,700"},
        {"starts": "0,120,121,600,700", "q_starts": "0,70,71,140,240"},
    ],
    ids=["padded", "packed", "fewer queries"],
)
def test_sequences_have_the_bytes_of_one_run(tmp_path, words):
    spec = replace(_save(tmp_path, "BHTD" if "lengths" in words else "THD"), **words)
    if "q_starts" in words:
        np.save(spec.q, np.load(spec.q)[:240])
    one = run(spec, output=str(tmp_path / "one.npy"), causal=True, audit=EVERY, **SMALL)
    many = _spread(spec, output=str(tmp_path / "all.npy"), causal=True, audit=EVERY, **SMALL)
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "all.npy").read_bytes()
    assert many.rows == one.rows and many.audit.rows == one.audit.rows
    _same_audit(one.audit, many.audit, worst=lambda row: (row.sequence, row.row, row.head))


@pytest.mark.parametrize("method", ["exact", "sample", "window", "poly"])
def test_any_method(tmp_path, method):
    spec = _save(tmp_path)
    words = {"degree": 2, "max_error": float("inf")} if method == "poly" else {} if method == "exact" else SMALL
    for name, do in (("one", run), ("all", _spread)):
        do(spec, output=str(tmp_path / f"{name}.npy"), causal=True, method=method, **words)
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "all.npy").read_bytes()


FULL = {
    "nystrom": SMALL,
    "window": {"method": "window", **SMALL},
    "evict": {"method": "evict", **SMALL},
    "poly": {"method": "poly", "degree": 2, "max_error": float("inf")},
    "exact": {"method": "exact"},
    "exact, causal": {"method": "exact", "causal": True},
}


@pytest.mark.parametrize("name", FULL)
def test_queries_that_see_all_keys_are_cut_by_rows(tmp_path, monkeypatch, name):
    """The keys of each key head, whose sketches are kept in a file meanwhile, then ranges of queries."""
    monkeypatch.setattr("streamattn_cli.engine.jobs.pieces.ALIGN", 256)
    spec, words, told = _save(tmp_path), {"audit": EVERY, "nan_policy": "drop", **FULL[name]}, []
    keys = np.load(spec.k)
    keys[5, 1, 3] = keys[9, 2, 3] = np.nan
    np.save(spec.k, keys)
    one, many = (
        do(spec, output=str(tmp_path / f"{at}.npy"), doubt=str(tmp_path / f"{at}.h5"), **words, **more)
        for at, do, more in (("one", run, {}), ("all", _spread, {"listener": told.append}))
    )
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "all.npy").read_bytes()
    with h5py.File(tmp_path / "one.h5") as a, h5py.File(tmp_path / "all.h5") as b:
        assert np.array_equal(a["out"], b["out"])
    assert many.counts == one.counts and one.counts["dropped_keys"] == 2 and many.rows == one.rows == ROWS
    assert many.audit_reason == one.audit_reason
    if one.audit:
        _same_audit(one.audit, many.audit, worst=lambda row: (row.row, row.head))
    rows = [event.rows for event in told if isinstance(event, Progress)]
    keys_first = KEY_HEADS * ("exact" not in name)
    assert len(rows) == keys_first + KEY_HEADS * 3 and rows[-1] == ROWS + ROWS * bool(keys_first)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [
            *(f"{part}.npy" for part in "qkv"),
            *(f"{at}{end}" for at in ("one", "all") for end in (".npy", ".npy.json", ".h5")),
        ]
    )


@pytest.mark.parametrize("more", [{}, {"repair": "3%"}, {"causal": False}], ids=["plain", "repaired", "full"])
def test_engines_workers_and_blocks_change_no_byte(tmp_path, more):
    spec, made = _save(tmp_path), set()
    ways = [{"threads": 1}, {"threads": 3, "block_rows": 64}, {"threads": 2, "engine": "processes"}]
    for at, way in enumerate(ways):
        path = tmp_path / f"{at}.npy"
        _spread(spec, output=str(path), **{"causal": True, "audit": 32, **SMALL, **more, **way})
        made.add((path.read_bytes(), (tmp_path / f"{at}.npy.json").read_bytes()))
    assert len(made) == 1


def test_what_a_killed_process_had_under_way_is_done_again(tmp_path, monkeypatch):
    spec, words = _save(tmp_path), {"causal": True, "audit": 32, "threads": 2, **SMALL}
    _spread(spec, output=str(tmp_path / "calm.npy"), **words)
    monkeypatch.setenv("KILLED", str(tmp_path / "killed"))
    monkeypatch.setattr(spread, "answer_piece", _dies_once)
    _spread(spec, output=str(tmp_path / "out.npy"), engine="processes", **words)
    assert (tmp_path / "killed").exists()
    for end in ("", ".json"):
        assert (tmp_path / f"out.npy{end}").read_bytes() == (tmp_path / f"calm.npy{end}").read_bytes()


def _dies_once(task):
    """The second key head is answered, and then its process is killed before anybody knows."""
    answered = answer_piece(task)
    if task.piece.heads == (1, 2) and not os.path.exists(os.environ["KILLED"]):
        open(os.environ["KILLED"], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return answered


def test_every_piece_repairs_its_share(tmp_path):
    spec = _save(tmp_path)
    words = {"causal": True, "audit": EVERY, **SMALL}
    plain = _spread(spec, output=str(tmp_path / "plain.npy"), **words)
    found = _spread(spec, output=str(tmp_path / "repaired.npy"), repair="20%", **words)
    assert found.counts["repaired_answers"] == HEADS * ROWS // 5
    assert found.audit.before.error == pytest.approx(plain.audit.method.error, rel=1e-6)
    assert found.audit.method.error < plain.audit.method.error
    _spread(spec, output=str(tmp_path / "exact.npy"), method="exact", causal=True)
    _spread(spec, output=str(tmp_path / "all.npy"), repair="100%", **words)
    np.testing.assert_allclose(np.load(tmp_path / "all.npy"), np.load(tmp_path / "exact.npy"), rtol=2e-5, atol=1e-6)


def test_layers_and_heads_of_a_dump(tmp_path):
    rng, files = np.random.default_rng(1), {}
    for layer in (0, 2):
        for part, heads in (("q", HEADS), ("k", KEY_HEADS), ("v", KEY_HEADS)):
            files[f"layers.{layer}.{part}"] = rng.standard_normal((ROWS, heads, DIM)).astype("f4")
    np.savez(tmp_path / "dump.npz", **files)
    words = (
        "--layer",
        "all",
        "--layout",
        "THD",
        "--causal",
        "--resident-rows",
        "64",
        "--audit",
        EVERY,
        "--quiet",
        "--json",
    )
    made = [
        command("attend", tmp_path / "dump.npz", *words, *engine, "-o", tmp_path / f"{name}.h5").document
        for name, engine in (("one", ()), ("all", ("--engine", "processes", "--threads", "2")))
    ]
    with h5py.File(tmp_path / "one.h5") as one, h5py.File(tmp_path / "all.h5") as many:
        for layer in (0, 2):
            assert np.array_equal(one[f"layers/{layer}/out"], many[f"layers/{layer}/out"])
            assert many[f"layers/{layer}/out"].attrs["method"] == "nystrom"
    one, many = made
    assert many["rows"] == one["rows"] == 2 * ROWS
    assert "peak" not in many["memory"] and {layer["peak"] for layer in many["layers"]} == {None}
    assert many["audit"]["method"]["error"] == pytest.approx(one["audit"]["method"]["error"], rel=1e-9)
    for a, b in zip(one["layers"], many["layers"], strict=True):
        assert b["heads"] == pytest.approx(a["heads"], rel=1e-9)


# --- queries of a sketch


@pytest.fixture
def queried(tmp_path, monkeypatch):
    """Queries, keys and values, a sketch of them, and a function that queries it, on an engine if one is named."""
    monkeypatch.setattr("streamattn_cli.engine.jobs.pieces.ALIGN", 256)
    spec = _save(tmp_path)
    make_sketch(spec, tmp_path / "s.sattn", **SMALL)
    keys = InputSpec(q=spec.q, k=spec.k, v=spec.v, layout="THD")

    def ask(name, **words):
        inputs = keys if words.get("audit") else replace(keys, k=None, v=None)
        request = QueryRequest(inputs, output=str(tmp_path / name), sketch=str(tmp_path / "s.sattn"), **words)
        return (query_spread if request.engine else query)(request, silent, Interrupts())

    return spec, ask


def test_queries_on_an_engine_have_the_bytes_of_one_run(tmp_path, queried):
    _, ask = queried
    one, made = ask("one.npy", audit=EVERY), set()
    for at, way in enumerate(
        [{"threads": 1}, {"threads": 3, "block_rows": 100}, {"threads": 2, "engine": "processes"}]
    ):
        many = ask(f"{at}.npy", audit=EVERY, **{"engine": "threads", **way})
        assert (tmp_path / f"{at}.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()
        made.add((tmp_path / f"{at}.npy.json").read_bytes())
        assert many.rows == one.rows == ROWS and many.counts == one.counts and many.command == "query"
        assert many.facts["params"] == one.facts["params"] and many.notes == one.notes
        _same_audit(one.audit, many.audit, worst=lambda row: (row.row, row.head))
    assert len(made) == 1
    plain = [ask(f"{name}.h5", **words).rows for name, words in (("a", {}), ("b", {"engine": "threads"}))]
    assert plain == [ROWS, ROWS] and (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_bad_query_is_named_by_its_row_and_another_sketch_is_refused(tmp_path, queried, monkeypatch):
    spec, ask = queried
    queries = np.load(spec.q)
    queries[600, 4, 3] = np.nan
    np.save(spec.q, queries)
    with pytest.raises(NonFinite, match="rows 512 to 699: .*row 600, head 4"):
        ask("out.npy", engine="threads")
    make_sketch(keys_only(spec), tmp_path / "other.sattn", **SMALL)
    job, other = spread._job, {"sketch": str(tmp_path / "other.sattn")}
    monkeypatch.setattr(spread, "_job", lambda request, *more: job(replace(request, **other), *more))
    with pytest.raises(SourceChanged, match="seal.*every worker must see the same files"):
        ask("out.npy", engine="threads")
    assert not (tmp_path / "out.npy").exists()


# --- what is told


def _same_audit(one, many, worst):
    assert many.method.error == pytest.approx(one.method.error, rel=1e-9)
    assert many.trivial.error == pytest.approx(one.trivial.error, rel=1e-9)
    assert many.norm == pytest.approx(one.norm, rel=1e-9)
    assert many.norms == pytest.approx(one.norms, rel=1e-9)
    assert many.history_mass == pytest.approx(one.history_mass, rel=1e-9)
    assert [head.error for head in many.heads] == pytest.approx([head.error for head in one.heads], rel=1e-9)
    assert [(worst(row), row.error) for row in many.worst] == [(worst(row), row.error) for row in one.worst]


def test_key_heads_give_the_audit_of_one_run(tmp_path):
    spec = _save(tmp_path)
    one = run(spec, output=str(tmp_path / "one.npy"), causal=True, audit=EVERY, **SMALL)
    trim()  # what runs before have left
    many = _spread(spec, output=str(tmp_path / "all.npy"), causal=True, audit=EVERY, **SMALL)
    _same_audit(one.audit, many.audit, worst=lambda row: (row.row, row.head))
    assert many.audit.rows == ROWS and many.counts == one.counts
    assert many.audit.edges == one.audit.edges and len(many.audit.by_position) == HEADS
    np.testing.assert_allclose(many.audit.by_position, one.audit.by_position, rtol=1e-3)
    assert 0 < many.memory["peak"] <= many.memory["projected"]
    assert many.facts["params"] == one.facts["params"] and many.notes == one.notes


def test_dropped_rows_are_counted_as_in_one_run(tmp_path):
    spec = _save(tmp_path)
    keys = np.load(spec.k)
    keys[5, 1, 3] = np.nan
    np.save(spec.k, keys)
    words = {"causal": True, "nan_policy": "drop", **SMALL}
    one = run(spec, output=str(tmp_path / "one.npy"), **words)
    many = _spread(spec, output=str(tmp_path / "all.npy"), **words)
    assert many.counts == one.counts and one.counts["dropped_keys"] == 1


def test_progress_counts_rows_of_all_layers(tmp_path):
    told = []
    _spread(_save(tmp_path), output=str(tmp_path / "out.npy"), causal=True, listener=told.append, **SMALL)
    rows = [event.rows for event in told if isinstance(event, Progress)]
    assert rows == [round(ROWS * done / KEY_HEADS) for done in (1, 2, 3)]
    assert {event.total for event in told if isinstance(event, Progress)} == {ROWS}


def test_progress_counts_layers(tmp_path):
    rng = np.random.default_rng(0)
    parts = {f"layers.{n}.{part}": rng.standard_normal((90, 2, DIM)).astype("f4") for n in (0, 1) for part in "qkv"}
    np.savez(tmp_path / "dump.npz", **parts)
    words = ("attend", tmp_path / "dump.npz", "--layer", "all", "--layout", "THD", "--causal", "--resident-rows", "64")
    more = ("--log-json", "--progress-every", "0")
    for engine, done in (((), [0, 1]), (("--engine", "threads", "--threads", "1"), [0, 1, 1, 2])):
        log = command(*words, *engine, *more, "-o", tmp_path / f"{len(engine)}.h5").log
        told = [event for event in log if event["type"] == "progress"]
        assert [event["sheets_done"] for event in told] == done and {event["sheets"] for event in told} == {2}


# --- what cannot be


def test_a_value_that_is_not_finite_is_named_by_its_head_and_nothing_is_left(tmp_path):
    spec = _save(tmp_path)
    keys = np.load(spec.k)
    keys[5, 2, 3] = np.nan
    np.save(spec.k, keys)
    before = listing(tmp_path)
    with pytest.raises(NonFinite, match="key head 2: .*row 5, head 2"):
        _spread(spec, output=str(tmp_path / "out.npy"), causal=True, **SMALL)
    assert listing(tmp_path) == before


def test_a_value_that_is_not_finite_is_named_by_its_sequence(tmp_path):
    spec = _save(tmp_path, "BHTD")
    keys = np.load(spec.k)
    keys[2, 1, 7, 3] = np.nan
    np.save(spec.k, keys)
    with pytest.raises(NonFinite, match="sequence 2: .*sequence 2: .*row 7, head 1"):
        _spread(spec, output=str(tmp_path / "out.npy"), causal=True, **SMALL)


def test_workers_that_see_other_files_are_refused(tmp_path, monkeypatch):
    spec = _save(tmp_path)
    (tmp_path / "other").mkdir()
    other = _save(tmp_path / "other", seed=9)
    monkeypatch.setattr(sheet, "absolute", lambda spec: replace(spec, k=other.k))
    with pytest.raises(SourceChanged, match="first rows of k.*every worker must see the same files"):
        _spread(spec, output=str(tmp_path / "out.npy"), causal=True, **SMALL)


def test_workers_that_do_not_see_the_output_say_so(tmp_path, monkeypatch):
    from streamattn_cli.rows.writers.fileout import PlacedWriter

    share = PlacedWriter.share
    monkeypatch.setattr(PlacedWriter, "share", lambda self: replace(share(self), path="/not/here"))
    with pytest.raises(OutputFailed, match="every worker must see under the same path"):
        _spread(_save(tmp_path), output=str(tmp_path / "out.npy"), causal=True, **SMALL)


REFUSED = [
    ({"engine": "gpu"}, UsageError, "--engine gpu"),
    ({"output": "-"}, UsageError, "--engine writes to files"),
    ({"top_k": 3}, UsageError, "--top-k"),
    ({"memory": 1 << 20}, MemoryBudget, "needs"),
]


@pytest.mark.parametrize("words, error, said", REFUSED, ids=[said for _, _, said in REFUSED])
def test_refusals(tmp_path, words, error, said):
    spec = _save(tmp_path)
    before = listing(tmp_path)
    with pytest.raises(error, match=said):
        _spread(spec, **({"output": str(tmp_path / "out.npy"), "causal": True} | words))
    assert listing(tmp_path) == before


def test_a_pipe_cannot_be_cut(tmp_path):
    spec = _save(tmp_path)
    with open(spec.k, "rb") as keys, pytest.raises(CannotMeet, match="pipe passes once"):
        words = {"layout": "THD", "heads": HEADS, "kv_heads": KEY_HEADS, "dim": DIM}
        _spread(replace(spec, k="-", stdin=keys, **words), output=str(tmp_path / "o.npy"), **SMALL)


# --- memory


def test_fewer_workers_where_memory_is_short(tmp_path):
    request = AttendRequest(
        _save(tmp_path), str(tmp_path / "out.npy"), causal=True, engine="threads", threads=3, **SMALL
    )
    three, room = plan_spread(request), plan_spread(replace(request, threads=1)).projected
    assert three.threads == 3 and three.projected == 3 * room
    fewer = plan_spread(replace(request, memory=2 * room + room // 2, block_rows=three.block_rows))
    assert plan_spread(replace(request, engine="dask=tcp://a:1")).projected == room  # of each worker
    assert fewer.threads == 2 and fewer.projected <= 2 * room + room // 2


def test_a_task_is_not_sent_to_workers_that_are_too_small():
    plan = SimpleNamespace(projected=64 << 20)
    check_room(Opened(None, None, 1, 256 << 20), plan)
    check_room(Opened(None, None, 1, None), plan)
    with pytest.raises(MemoryBudget, match=r"a task needs 64.0 MiB .* may take 128 MiB; start workers with more"):
        check_room(Opened(None, None, 1, 128 << 20), plan)


# --- cuts


def _problem(keys, queries=None, heads=1):
    k, q = (Sequences(edges) for edges in (keys, keys if queries is None else queries))
    key_heads = type("K", (), {"__len__": lambda self: heads, "sequences": k, "several": k})()
    return SimpleNamespace(k=key_heads, q=SimpleNamespace(sequences=q, several=q), sequences=k)


@given(st.lists(st.integers(0, 9000), min_size=2, max_size=60), st.integers(1, 80), st.booleans())
def test_a_cut_of_sequences_is_a_partition(lengths, most, fewer_queries):
    edges = np.concatenate([[0], np.cumsum(lengths)])
    queries = np.minimum(edges, edges[-1] // 2) if fewer_queries else edges
    pieces = [piece.sequences for piece in cut(_problem(edges, queries), most)]
    assert pieces[0][0] == 0 and pieces[-1][1] == len(lengths)
    assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    assert len(pieces) <= most + 1
    if queries[-1] > 0:
        assert all(edges[b] > edges[a] and queries[b] > queries[a] for a, b in pieces)


@pytest.mark.parametrize("most, expected", [(1, [None]), (2, [(0, 4), (4, 8)]), (3, [(0, 2), (2, 5), (5, 8)])])
def test_a_cut_of_heads(most, expected):
    problem = SimpleNamespace(k=range(8), sequences=None, causal=True, params=True)
    assert [piece.heads for piece in cut(problem, most)] == expected
    assert [piece.heads for piece in cut(problem, most, each_head=True)] == [(i, i + 1) for i in range(8)]
