"""Several sequences in one run: each gives the numbers of a run of its own, whatever the blocks, threads and interruptions."""

import json
from dataclasses import replace
from unittest import mock

import h5py
import naive_variants
import numpy as np
import pytest
from clirun import records
from keptruns import METHODS, POLY, make_sketch, not_warmed  # noqa: F401
from keptruns import run as run_once
from test_resume import Stops

from streamattn_cli.checkpoint.container import read
from streamattn_cli.engine.jobs.attend import attend
from streamattn_cli.engine.jobs.sketch import open_sketch_file
from streamattn_cli.engine.jobs.spread import attend_spread
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import CheckpointIncompatible, InputMalformed, Interrupted, UsageError
from streamattn_cli.rows.inputs.open import open_inputs
from streamattn_cli.rows.spec import InputSpec

pytestmark = pytest.mark.usefixtures("not_warmed")
B, HEADS, GROUP, T, D = 4, 2, 2, 300, 8
LENGTHS = (300, 171, 0, 1)
ALL = METHODS | {"exact": {"method": "exact"}, "poly without a bound": POLY}
KINDS = {
    "batch": {"layout": "BHTD"},
    "padded": {"layout": "BHTD", "lengths": ",".join(map(str, LENGTHS))},
    "rows first": {"layout": "BTHD", "lengths": ",".join(map(str, LENGTHS))},
    "packed": {"layout": "THD", "starts": ",".join(map(str, np.cumsum((0, *LENGTHS))))},
}


def run(spec, **words):
    """attend, over what was written before; returns the outcome."""
    return run_once(spec, force=True, **words)


@pytest.fixture(scope="module")
def parts():
    """q, k and v (B, heads, T, D)."""
    rng = np.random.default_rng(5)
    return [rng.standard_normal((B, heads, T, D)).astype(np.float32) for heads in (HEADS * GROUP, HEADS, HEADS)]


def _lengths(kind):
    return (T,) * B if kind == "batch" else LENGTHS


def _saved(folder, kind, parts):
    """The arrays of a kind, as one InputSpec; layout and numbers as KINDS says."""
    found = {}
    for name, array in zip("qkv", parts, strict=True):
        if kind == "packed":
            array = np.concatenate([one[:, :n] for one, n in zip(array, LENGTHS, strict=True)], axis=1).transpose(
                1, 0, 2
            )
        elif kind == "rows first":
            array = array.transpose(0, 2, 1, 3)
        found[name] = str(folder / f"{name}.npy")
        np.save(found[name], np.ascontiguousarray(array))
    return InputSpec(**found, **KINDS[kind])


def _answers(path, kind):
    """What was written for each sequence, (heads, rows, D); and the rest, which must be zeros."""
    out = np.load(path)
    if kind == "packed":
        return np.split(out.transpose(1, 0, 2), np.cumsum(LENGTHS)[:-1], axis=1), np.zeros(0)
    out = out.transpose(0, 2, 1, 3) if kind == "rows first" else out
    lengths = _lengths(kind)
    return [one[:, :n] for one, n in zip(out, lengths, strict=True)], np.concatenate(
        [one[:, n:].ravel() for one, n in zip(out, lengths, strict=True)]
    )


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("method", ALL)
def test_every_sequence_has_the_bytes_of_its_own_run(parts, tmp_path, method, causal):
    alone = []
    for number, rows in enumerate(LENGTHS):
        if rows:
            spec = _saved(tmp_path, "batch", [array[number : number + 1, :, :rows] for array in parts])
            run(spec, output=str(tmp_path / "one.npy"), causal=causal, **_settings(method, rows))
            alone.append(np.load(tmp_path / "one.npy")[0])
    for kind in ("padded", "rows first", "packed"):
        spec = _saved(tmp_path, kind, parts)
        for sizes in ({"threads": 1}, {"threads": 2, "block_rows": 256}, {"threads": 2, "block_rows": 64}):
            run(spec, output=str(tmp_path / "out.npy"), causal=causal, **_settings(method, T), **sizes)
            found, rest = _answers(tmp_path / "out.npy", kind)
            assert not rest.any()
            for one, own in zip([each for each in found if each.shape[1]], alone, strict=True):
                assert np.array_equal(one, own), (kind, sizes, np.abs(one - own).max())


def _settings(method, rows):
    """Of a method: a budget that the longest sequence exceeds, the same for all of them."""
    settings = dict(ALL[method])
    if "resident_rows" in settings:
        settings |= {"window": 17, "sinks": 2}
    return settings


MIXED = (1000, 470, 90, 0, 1, 700)  # with 130 resident rows: of nystrom six bits, eight bits, all rows kept
OF_LENGTH = {"nystrom": {}, "evict": {"method": "evict"}, "window": {"method": "window"}, "local": {"local": "300"}}


@pytest.fixture(scope="module")
def mixed():
    """q, k and v (sequences, heads, 1000, D)."""
    rng = np.random.default_rng(8)
    heads = HEADS * GROUP, HEADS, HEADS
    return [rng.standard_normal((len(MIXED), each, max(MIXED), D)).astype(np.float32) for each in heads]


@pytest.mark.parametrize(
    "method, causal", [("nystrom", True), ("nystrom", False), ("evict", False), ("window", True), ("local", True)]
)
def test_settings_follow_the_length_of_each_sequence(mixed, tmp_path, method, causal):
    """What is decided by the number of rows (bits, whether all are kept, groups) is decided for each: also after a stop."""
    words = {"causal": causal, "resident_rows": 130, **OF_LENGTH[method]}
    spec = replace(_saved(tmp_path, "batch", mixed), lengths=",".join(map(str, MIXED)))
    whole = run(spec, output=str(tmp_path / "out.npy"), threads=2, block_rows=256, audit=10**6, **words)
    for number, rows in enumerate(MIXED):
        if rows:
            alone = _saved(tmp_path, "batch", [array[number : number + 1, :, :rows] for array in mixed])
            run(alone, output=str(tmp_path / "one.npy"), **words)
            found = np.load(tmp_path / "out.npy")[number, :, :rows]
            assert np.array_equal(found, np.load(tmp_path / "one.npy")[0]), number
    _saved(tmp_path, "batch", mixed)
    words |= {"checkpoint": str(tmp_path / "c.sattn"), "checkpoint_every": "1rows", "block_rows": 256, "audit": 10**6}
    wanted = (tmp_path / "out.npy").read_bytes()
    request, counter = AttendRequest(inputs=spec, force=True, output=str(tmp_path / "out.npy"), **words), Stops(3)
    with mock.patch("streamattn_cli.engine.passes.driver.pump", counter.pump), pytest.raises(Interrupted):
        attend(request, lambda event: None, counter)
    again = run_once(spec, resume=True, output=str(tmp_path / "out.npy"), **words)
    assert (tmp_path / "out.npy").read_bytes() == wanted
    assert again.audit == whole.audit
    if not causal:
        with pytest.raises(CheckpointIncompatible, match="a run of several sequences"):
            open_sketch_file(str(tmp_path / "c.sattn"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("method", ["nystrom", "sample", "poly"])
def test_all_rows_audited_give_the_error_of_the_file(parts, tmp_path, kind, causal, method):
    """An audit of every row is the comparison of two outputs; and so is one of a part, within its interval."""
    spec, words = _saved(tmp_path, kind, parts), {"causal": causal, **_settings(method, T)}
    run(spec, output=str(tmp_path / "exact.npy"), causal=causal, method="exact")
    everything = run(spec, output=str(tmp_path / "out.npy"), audit=10**6, **words)
    exact, out = (np.load(tmp_path / name).astype(np.float64) for name in ("exact.npy", "out.npy"))
    error = np.linalg.norm(out - exact) / np.linalg.norm(exact)
    assert everything.audit.method.error == pytest.approx(error, rel=1e-4, abs=1e-7)
    part = run(spec, output=str(tmp_path / "out.npy"), audit=64, block_rows=64, **words)
    assert part.audit.method.low <= error <= part.audit.method.high
    assert run(spec, output=str(tmp_path / "out.npy"), audit=64, threads=2, **words).audit == part.audit


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_repaired_rows_are_exact(parts, tmp_path, kind):
    spec, words = _saved(tmp_path, kind, parts), {"causal": True, **_settings("sample", T)}
    run(spec, output=str(tmp_path / "exact.npy"), causal=True, method="exact")
    outcome = run(
        spec, output=str(tmp_path / "out.npy"), audit=64, repair="30%", doubt=str(tmp_path / "d.npy"), **words
    )
    exact, doubt = np.load(tmp_path / "exact.npy"), np.load(tmp_path / "d.npy")
    assert outcome.counts["repaired_answers"] == -(-sum(LENGTHS) * 3 // 10) * doubt.shape[1] and len(doubt) == sum(
        LENGTHS
    )
    found, rows = _answers(tmp_path / "out.npy", kind)[0], np.cumsum((0, *LENGTHS))
    for number, (one, own) in enumerate(zip(found, _answers(tmp_path / "exact.npy", kind)[0], strict=True)):
        sure = (doubt[rows[number] : rows[number + 1]] == 0).all(axis=1)
        np.testing.assert_allclose(one[:, sure], own[:, sure], rtol=0, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize("kind", ["padded", "packed"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("method", ["nystrom", "poly", "window", "exact"])
def test_a_resumed_run_has_the_same_bytes(parts, tmp_path, kind, causal, method):
    spec = _saved(tmp_path, kind, parts)
    words = {"causal": causal, "block_rows": 64, "checkpoint_every": "1rows", **_settings(method, T)}
    words |= {} if method == "exact" else {"audit": 40}
    whole = run(spec, output=str(tmp_path / "whole.npy"), checkpoint=str(tmp_path / "whole.sattn"), **words)
    wanted, stops = (tmp_path / "whole.npy").read_bytes(), 0
    for blocks in range(1, 40):
        paths = {"output": str(tmp_path / "out.npy"), "checkpoint": str(tmp_path / f"{blocks}.sattn")}
        for name in ("out.npy", "out.npy.json"):
            (tmp_path / name).unlink(missing_ok=True)
        request, counter = AttendRequest(inputs=spec, force=True, **paths, **words), Stops(blocks)
        try:
            with mock.patch("streamattn_cli.engine.passes.driver.pump", counter.pump):
                attend(request, lambda event: None, counter)
            break
        except Interrupted:
            stops += 1
        outcome = run_once(spec, resume=True, **paths, **words)
        assert (tmp_path / "out.npy").read_bytes() == wanted, blocks
        assert outcome.audit == whole.audit
    assert stops >= 3


@pytest.mark.parametrize("first, then", [(64, 300), (300, 64)])  # rows of a block; whole sequences fit into 300
def test_a_run_is_resumed_with_other_blocks(parts, tmp_path, first, then):
    spec, words = _saved(tmp_path, "packed", parts), {"causal": False, "audit": 40, **_settings("sample", T)}
    whole = run(spec, output=str(tmp_path / "whole.npy"), **words)
    for blocks in range(1, 40):
        words |= {"output": str(tmp_path / f"{blocks}.npy"), "checkpoint": str(tmp_path / f"{blocks}.sattn")}
        counter = Stops(blocks)
        try:
            with mock.patch("streamattn_cli.engine.passes.driver.pump", counter.pump):
                attend(AttendRequest(spec, block_rows=first, **words), lambda event: None, counter)
            break
        except Interrupted:
            outcome = run_once(spec, resume=True, block_rows=then, **words)
        assert (tmp_path / f"{blocks}.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes(), blocks
        assert outcome.audit == whole.audit
    assert blocks > 1


def test_answers_in_a_pipe_go_on_within_the_keys_of_a_sequence(parts, tmp_path, capfdbinary):
    spec, words = _saved(tmp_path, "packed", parts), {"causal": False, **_settings("sample", T)}
    run(spec, output=str(tmp_path / "whole.npy"), **words)
    request = AttendRequest(spec, "-", checkpoint=str(tmp_path / "c.sattn"), resume=True, block_rows=100, **words)
    counter = Stops(7)  # of three blocks of the first keys, three of their queries, and more keys
    with mock.patch("streamattn_cli.engine.passes.driver.pump", counter.pump), pytest.raises(Interrupted):
        attend(request, lambda event: None, counter)
    assert read(str(tmp_path / "c.sattn"))[1]["phase"] == "keys"
    heard = []
    assert attend(request, heard.append, Interrupts()).rows_before == 300
    assert any("standard output begins with row 300;" in str(event) for event in heard)
    assert np.array_equal(np.concatenate(records(capfdbinary.readouterr().out)), np.load(tmp_path / "whole.npy"))


@pytest.mark.parametrize("form", ["npz", "compressed npz", "hdf5", "chunked hdf5"])
def test_batches_of_every_format(parts, tmp_path, form):
    path = tmp_path / ("x.h5" if "hdf5" in form else "x.npz")
    named = dict(zip("qkv", parts, strict=True))
    if "npz" in form:
        (np.savez_compressed if "compressed" in form else np.savez)(path, **named)
    else:
        with h5py.File(path, "w") as file:
            for name, array in named.items():
                chunks = (2, 1, 70, 4) if "chunked" in form else None
                file.create_dataset(name, data=array, chunks=chunks, compression="gzip" if chunks else None)
    spec = InputSpec(input=str(path), layout="BHTD", lengths=KINDS["padded"]["lengths"])
    with open_inputs(spec, apart=True) as inputs:
        for heads, array in zip((inputs.q, inputs.k, inputs.v), parts, strict=True):
            wanted = np.concatenate([one[:, :n] for one, n in zip(array, LENGTHS, strict=True)], axis=1)
            for first, last in ((0, sum(LENGTHS)), (299, 302), (470, 472)):
                got = np.empty((heads.tensor.outer, last - first, heads.tensor.width), "f4")
                assert heads.tensor.read_into(got, first) == last - first
                assert np.array_equal(got, wanted[:, first:last])


def test_memory_does_not_grow_with_the_sequences(tmp_path):
    """What is projected for 2,000 sequences is what is projected for 20, but for their borders."""
    rng, projected, peaks = np.random.default_rng(0), [], []
    for batch in (20, 2000):
        np.save(tmp_path / "x.npy", rng.standard_normal((batch, 2, 40, 4)).astype(np.float16))
        spec = InputSpec(**{part: str(tmp_path / "x.npy") for part in "qkv"}, layout="BHTD")
        outcome = run(
            spec, output=str(tmp_path / "out.npy"), causal=True, resident_rows=32, method="window", block_rows=1024
        )
        projected.append(outcome.memory["projected"])
        peaks.append(outcome.memory["peak"])
        assert outcome.facts["shapes"]["sequences"] == batch
    assert projected[1] - projected[0] < 3 * 8 * 2001 + 1
    assert peaks[1] <= projected[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_for_every_sequence(parts, tmp_path, kind):
    spec, words = _saved(tmp_path, kind, parts), {"causal": True, "resident_rows": 64}
    run(spec, output=str(tmp_path / "all.npy"), **words)
    run(spec, output=str(tmp_path / "one-{sequence}.npy"), **words)
    files = {"output": str(tmp_path / "job-{sequence}.npy"), "checkpoint": str(tmp_path / "c.sattn")}
    for _ in range(2):  # the second time it is complete already
        request = AttendRequest(spec, **files, engine="threads", resume=True, **words)
        with mock.patch("streamattn_cli.engine.jobs.ceremony.warm"):
            attend_spread(request, lambda event: None, Interrupts())
    found, _ = _answers(tmp_path / "all.npy", kind)
    for number, one in enumerate(found):
        own = np.load(tmp_path / f"one-{number}.npy")
        rows_first = kind in ("rows first", "packed")
        assert np.array_equal(own.transpose(1, 0, 2) if rows_first else own, one)
        assert (tmp_path / f"job-{number}.npy").read_bytes() == (tmp_path / f"one-{number}.npy").read_bytes()
        assert json.loads((tmp_path / f"one-{number}.npy.json").read_text())["sequence"] == number
    assert len(list(tmp_path.glob("one-*.npy"))) == B and not list(tmp_path.glob(".*"))
    with pytest.raises(UsageError, match="one-0.npy: there is a file already"):
        run_once(spec, output=str(tmp_path / "one-{sequence}.npy"), **words)
    with pytest.raises(UsageError, match="is the input"):
        run(replace(spec, q=str(tmp_path / "one-1.npy")), output=str(tmp_path / "one-{sequence}.npy"), **words)


def test_files_for_sequences_are_npy(parts, tmp_path):
    spec = _saved(tmp_path, "batch", parts)
    for words, said in (({"output": "o-{sequence}.h5"}, ".npy files"), ({"doubt": "d-{sequence}.npy"}, "--doubt")):
        files = {"output": "o-{sequence}.npy"} | words
        with pytest.raises(UsageError, match=said):
            run(spec, **{name: str(tmp_path / word) for name, word in files.items()}, causal=True)


REFUSED = {
    "too many numbers": ({"lengths": "1,2,3,4,5"}, "4 batches, and 5 numbers"),
    "a length beyond": ({"lengths": "1,2,3,301"}, "batch 3 has 300 rows, and --lengths 1,2,3,301 says 301"),
    "none": ({"lengths": "0,0,0,0"}, "not all of them 0"),
    "starts of a batch": ({"starts": "0,5"}, "give --lengths instead"),
    "both": ({"lengths": "1,2,3,4", "starts": "0,5"}, "give one of them"),
    "rows too": ({"lengths": "1,2,3,4", "rows": (0, 5)}, "omit --rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_numbers_that_do_not_fit_are_refused(parts, tmp_path, case):
    more, words = REFUSED[case]
    spec = replace(_saved(tmp_path, "batch", parts), **more)
    with pytest.raises(Exception, match=words.replace("(", r"\(")) as found:
        run(spec, output=str(tmp_path / "out.npy"), causal=True)
    assert found.value.code in (2, 4)


@pytest.mark.parametrize("starts", ["1,5", "0,5,4", "0,5,2000"])
def test_starts_that_make_no_sense(parts, tmp_path, starts):
    spec = replace(_saved(tmp_path, "packed", parts), starts=starts)
    with pytest.raises(Exception, match="expected numbers from 0 on that do not fall") as found:
        run(spec, output=str(tmp_path / "out.npy"), causal=True)
    assert found.value.code == 4


@pytest.mark.parametrize("form", ["npy", "npz", "h5", "txt", "beside"])
def test_numbers_come_from_files(parts, tmp_path, form):
    lengths = np.array(LENGTHS, np.int32)
    spec = _saved(tmp_path, "batch", parts)
    word = str(tmp_path / f"n.{form}")
    if form == "npy":
        np.save(word, lengths)
    elif form == "npz":
        np.savez(word, lengths=lengths)
        word += ":lengths"
    elif form == "txt":
        (tmp_path / "n.txt").write_text("300 171\n0,1\n")
    else:
        with h5py.File(tmp_path / "n.h5", "w") as file:
            file["lengths"] = lengths
            file.update(dict(zip("qkv", parts, strict=True)))
        word = "lengths" if form == "beside" else str(tmp_path / "n.h5") + ":/lengths"
        if form == "beside":
            spec = InputSpec(input=str(tmp_path / "n.h5"), layout="BHTD")
    with open_inputs(replace(spec, lengths=word), apart=True) as inputs:
        assert inputs.k.sequences.edges.tolist() == [0, 300, 471, 471, 472]


def test_a_value_that_is_not_finite_is_named_by_its_sequence(parts, tmp_path):
    q, k, v = (array.copy() for array in parts)
    k[1, 1, 100, 3] = np.nan
    with pytest.raises(Exception, match="sequence 1: a value that is not finite in k, row 100, head 1"):
        run(_saved(tmp_path, "padded", (q, k, v)), output=str(tmp_path / "out.npy"), causal=True)


def test_the_outcome_and_the_file_say_how_many(parts, tmp_path):
    outcome = run(_saved(tmp_path, "padded", parts), output=str(tmp_path / "out.npy"), causal=True, audit=32)
    assert outcome.rows == sum(LENGTHS)
    assert any("4 sequences of 0 to 300 rows each" in note for note in outcome.notes)
    assert json.loads((tmp_path / "out.npy.json").read_text())["shapes"]["sequences"] == 4
    assert all(worst.row < LENGTHS[worst.sequence] for worst in outcome.audit.worst)


def test_a_share_of_the_keys_is_that_of_the_longest_sequence(parts, tmp_path):
    words = {"output": str(tmp_path / "out.npy"), "causal": True, "resident_rows": "20%"}
    padded = run(_saved(tmp_path, "padded", parts), **words)
    assert "--resident-rows 20% of 300 keys, those of the longest sequence, for every sequence: 60" in padded.notes
    assert padded.facts["params"]["resident_rows"] <= 60


COUNTS = (40, 171, 0, 1)  # of queries, where there are fewer than keys (300, 171, 0, 1)


def _chunk(folder, kind, parts):
    """As `_saved`, with the last COUNTS queries of every sequence alone."""
    spec, q = _saved(folder, kind, parts), parts[0]
    last = [one[:, n - count : n] for one, n, count in zip(q, LENGTHS, COUNTS, strict=True)]
    if kind == "packed":
        np.save(spec.q, np.concatenate(last, axis=1).transpose(1, 0, 2).copy())
        return replace(spec, q_starts=",".join(map(str, np.cumsum((0, *COUNTS)))))
    padded = np.full((B, HEADS * GROUP, 180, D), np.nan, "f4")
    for into, rows in zip(padded, last, strict=True):
        into[:, : rows.shape[1]] = rows
    np.save(spec.q, padded)
    return replace(spec, q_lengths=",".join(map(str, COUNTS)))


def _parts_of(path, kind):
    out = np.load(path)
    if kind == "packed":
        return np.split(out.transpose(1, 0, 2), np.cumsum(COUNTS)[:-1], axis=1)
    return [one[:, :count] for one, count in zip(out, COUNTS, strict=True)]


@pytest.mark.parametrize("kind", ["padded", "packed"])
@pytest.mark.parametrize("method", ["nystrom", "window", "exact", "poly", "sample"])
def test_fewer_queries_stand_at_the_end_of_every_sequence(parts, tmp_path, kind, method):
    """The bytes of every sequence's own run, for any blocks; all rows audited against them; and resumed after every block."""
    own = []
    for number, (rows, count) in enumerate(zip(LENGTHS, COUNTS, strict=True)):
        if count:
            spec = _saved(tmp_path, "batch", [part[number : number + 1, :, :rows] for part in parts])
            np.save(spec.q, np.load(spec.q)[:, :, rows - count :])
            run(spec, output=str(tmp_path / "one.npy"), causal=True, **_settings(method, rows))
            own.append(np.load(tmp_path / "one.npy")[0])
    spec, words = _chunk(tmp_path, kind, parts), {"causal": True, **_settings(method, T)}
    out, audited = str(tmp_path / "out.npy"), {} if method == "exact" else {"audit": 10**6}
    for sizes in ({"threads": 1}, {"threads": 2, "block_rows": 64}):
        outcome = run(spec, output=out, **words, **sizes, **audited)
        found = [one for one in _parts_of(out, kind) if one.shape[1]]
        for one, expected in zip(found, own, strict=True):
            assert np.array_equal(one, expected), (sizes, np.abs(one - expected).max())
    assert any("the last query of each sees its last key" in note for note in outcome.notes)
    if method == "exact":
        return
    run(spec, output=str(tmp_path / "exact.npy"), causal=True, method="exact")
    exact = np.concatenate([one.ravel() for one in _parts_of(tmp_path / "exact.npy", kind)])
    error = np.linalg.norm(np.concatenate([one.ravel() for one in found]) - exact) / np.linalg.norm(exact)
    assert outcome.audit.method.error == pytest.approx(error, rel=1e-4, abs=1e-6)
    repaired = run(spec, output=out, repair="50%", **words, **audited)
    assert repaired.audit.method.error <= outcome.audit.method.error


@pytest.mark.parametrize("method", ["nystrom", "window", "exact"])
def test_a_chunk_is_resumed_with_the_same_bytes(parts, tmp_path, method):
    spec = _chunk(tmp_path, "packed", parts)
    words = {"causal": True, "block_rows": 64, "checkpoint_every": "1rows", **_settings(method, T)}
    words |= {} if method == "exact" else {"audit": 40}
    whole = run(spec, output=str(tmp_path / "whole.npy"), checkpoint=str(tmp_path / "whole.sattn"), **words)
    wanted, stops = (tmp_path / "whole.npy").read_bytes(), 0
    for blocks in range(1, 40):
        paths = {"output": str(tmp_path / f"{blocks}.npy"), "checkpoint": str(tmp_path / f"{blocks}.sattn")}
        request, counter = AttendRequest(inputs=spec, **paths, **words), Stops(blocks)
        try:
            with mock.patch("streamattn_cli.engine.passes.driver.pump", counter.pump):
                attend(request, lambda event: None, counter)
            break
        except Interrupted:
            stops += 1
        outcome = run_once(spec, resume=True, **paths, **words)
        assert (tmp_path / f"{blocks}.npy").read_bytes() == wanted, blocks
        assert outcome.audit == whole.audit
    assert stops >= 3


def test_one_query_of_every_sequence_against_the_loops(parts, tmp_path):
    """Decoding a batch: no option but --causal; the answers of a window that attention does not leave, too."""
    spec = _saved(tmp_path, "batch", parts)
    q, k, v = parts
    np.save(spec.q, q[:, :, -1:].copy())
    for words, window in (({"method": "exact"}, None), ({"local": "30"}, 30), ({"resident_rows": 400}, None)):
        run(spec, output=str(tmp_path / "o.npy"), causal=True, **words)
        for b, h in np.ndindex(B, HEADS * GROUP):
            one = naive_variants.attention(q[b, h, -1:], k[b, h // GROUP], v[b, h // GROUP], D**-0.5, [T - 1], window)
            np.testing.assert_allclose(np.load(tmp_path / "o.npy")[b, h], one, rtol=1e-4, atol=1e-5)


CHUNKS_REFUSED = {
    "more queries": ({"lengths": "10,300,300,300"}, {}, "sequence 0 has 20 queries and 10 keys"),
    "a row": ({}, {"first_query": "3"}, "--first-query 3: in several sequences"),
    "of queries alone": ({"q_lengths": "1,2,3,4"}, {}, "give that, too"),
}


@pytest.mark.parametrize("case", CHUNKS_REFUSED)
def test_chunks_that_do_not_fit_are_refused(parts, tmp_path, case):
    more, words, message = CHUNKS_REFUSED[case]
    spec = _saved(tmp_path, "batch", parts)
    np.save(spec.q, parts[0][:, :, :20].copy())
    with pytest.raises(Exception, match=message) as found:
        run(replace(spec, **more), output=str(tmp_path / "o.npy"), causal=True, **words)
    assert found.value.code in (2, 4, 11)


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_the_file_says_where_sequences_are(parts, tmp_path, kind):
    """As an attribute; an option wins over it, chosen rows are one sequence, and so is a sketch, which a note says."""
    spec, words = (
        _saved(tmp_path, kind, parts),
        {"causal": True, "method": "window", "window": 30, "output": str(tmp_path / "o.npy")},
    )
    name = "starts" if kind == "packed" else "lengths"
    run(spec, **words)
    expected = np.load(tmp_path / "o.npy")
    with h5py.File(tmp_path / "dump.h5", "w") as file:
        file.update({part: np.load(getattr(spec, part)) for part in "qkv"})
        file.attrs[name] = [int(word) for word in getattr(spec, name).split(",")]
    dump = InputSpec(input=str(tmp_path / "dump.h5"), layout=spec.layout)
    outcome = run(dump, **words)
    assert np.array_equal(np.load(tmp_path / "o.npy"), expected)
    assert f"{name} is taken from the file" in outcome.notes
    other = "0,100" if kind == "packed" else "9,9,9,9"
    assert run(replace(dump, **{name: other}), **words).facts["shapes"]["sequences"] == (2 if kind == "packed" else 4)
    if kind == "packed":
        outcome = run(replace(dump, rows=(0, 200)), **words)
        assert "sequences" not in outcome.facts["shapes"]
    with h5py.File(tmp_path / "dump.h5", "a") as file:
        file.attrs[name] = spec.q
    with pytest.raises(InputMalformed, match=f"attribute {name} is .*expected numbers"):  # no file names another
        run(dump, **words)
    outcome = make_sketch(replace(dump, q=None), tmp_path / "s.sattn", method="window")
    assert any(f"attribute {name} is ignored: sequences" in note for note in outcome.notes)
