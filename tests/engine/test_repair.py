"""`--repair`: the most doubtful rows are answered exactly and written; `--doubt`: how far each answer is to be trusted."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from clirun import FILES, SAMPLE, listing, refused, run, save_heads

from streamattn_cli.checkpoint.commit import CheckpointWriter
from streamattn_cli.engine.audit.repair import Repairs
from streamattn_cli.engine.jobs.attend import attend
from streamattn_cli.engine.request.requests import AttendRequest
from streamattn_cli.engine.watch.events import Progress
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.engine.workers.lanes import Answers
from streamattn_cli.errors import Interrupted
from streamattn_cli.rows.spec import InputSpec
from streamattn_cli.rows.writers.npyout import NpyFormat

HEADS = (SAMPLE / "heads.h5", "--rows", "0:2500")
WORDS = ("attend", *HEADS, "--resident-rows", "128")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The outputs: exact, of nystrom, and of nystrom with the answers of 100 rows repaired; with their doubts."""
    folder = tmp_path_factory.mktemp("repair")
    run("attend", *HEADS, "--method", "exact", "-o", "exact.npy", cwd=folder)
    run(*WORDS, "--doubt", "doubt.npy", "-o", "plain.npy", cwd=folder)
    kept = ("--doubt", "less.npy", "-o", "repaired.npy", "--audit", "2500", "--json")
    audit = run(*WORDS, "--repair", "100", *kept, cwd=folder).document
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("exact", "plain", "repaired", "doubt", "less")}
    return arrays | {"outcome": audit, "folder": folder}


def relative(found, exact):
    found, exact = found.astype("f8"), exact.astype("f8")
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


def test_doubtful_answers_are_exact_and_all_others_untouched(made):
    """Each of one row by one query head: some rows have all of theirs repaired, and others one."""
    changed = (made["plain"] != made["repaired"]).any(axis=2)
    assert changed.sum() == 100 * 3 and len(set(changed.sum(axis=1))) > 2
    assert relative(made["repaired"][changed], made["exact"][changed]) < 1e-6
    score = (made["plain"].astype("f8") ** 2).sum(axis=2) * made["doubt"].astype("f8") ** 2
    assert score[changed].min() > 0.99 * np.sort(score, axis=None)[-300]  # the doubts that are written are rounded
    assert made["doubt"].shape == (2500, 3) and made["doubt"].dtype == np.float16
    assert (made["less"][changed] == 0).all() and (made["less"] == made["doubt"])[~changed].all()


def test_the_error_is_told_before_and_after(made):
    audit = made["outcome"]["audit"]
    assert audit["before"]["error"] == pytest.approx(relative(made["plain"], made["exact"]), rel=1e-3)
    assert audit["method"]["error"] == pytest.approx(relative(made["repaired"], made["exact"]), rel=1e-3)
    assert audit["method"]["error"] < 0.95 * audit["before"]["error"]
    assert made["outcome"]["counts"]["repaired_answers"] == 300
    text = " ".join(run(*WORDS, "--repair", "4%", "--audit", "64", "-o", "o.npy", cwd=made["folder"]).err.split())
    assert "(before --repair)" in text and "repaired answers 300" in text
    assert (np.load(made["folder"] / "o.npy") == made["repaired"]).all()


@pytest.mark.parametrize("more", [("--block-rows", "128"), ("--threads", "1"), ("--memory", "24MiB")])
def test_the_same_rows_for_any_blocks_threads_and_batches(made, more):
    run(*WORDS, "--repair", "100", *more, "--force", "-o", "again.npy", cwd=made["folder"])
    assert (np.load(made["folder"] / "again.npy") == made["repaired"]).all()


def test_other_layouts_and_dtypes(made, tmp_path):
    run(*WORDS, "--repair", "100", "--out-dtype", "f16", "-o", "o.h5", "--doubt", "d.h5", cwd=tmp_path)
    with h5py.File(tmp_path / "o.h5") as file, h5py.File(tmp_path / "d.h5") as doubts:
        assert (file["out"][:] == made["repaired"].astype("f2")).mean() > 0.999
        assert doubts["out"].shape == (2500, 3)
    arrays = save_heads(tmp_path, rows=900, dim=4, value_dim=4)
    for name, rows in arrays.items():
        np.save(tmp_path / f"{name}.npy", rows.reshape(1, 1, 900, 4))
    files = (*FILES, "--layout", "BHTD", "--causal", "--resident-rows", "64", "--repair", "50")
    run("attend", *files, "-o", "o.npy", cwd=tmp_path)
    run("attend", *FILES, "--layout", "BHTD", "--causal", "--method", "exact", "-o", "e.npy", cwd=tmp_path)
    found, exact = np.load(tmp_path / "o.npy"), np.load(tmp_path / "e.npy")
    assert found.shape == (1, 1, 900, 4)
    assert (np.abs(found - exact).max(axis=-1) < 1e-5).sum() >= 50


def test_full_attention_is_repaired_too(tmp_path):
    save_heads(tmp_path, rows=900, dim=4, value_dim=4)
    words = ("attend", *FILES, "--full", "--resident-rows", "64", "-o", "o.npy", "--audit", "900", "--json")
    audit = run(*words, "--repair", "100%", cwd=tmp_path).document["audit"]
    assert audit["method"]["error"] < 1e-6 < 0.01 < audit["before"]["error"]


def test_a_repaired_run_is_resumed_to_the_same_bytes(made, tmp_path):
    kept = (
        "--repair",
        "100",
        "--checkpoint",
        "c.sattn",
        "--checkpoint-every",
        "500rows",
        "-o",
        "o.npy",
        "--doubt",
        "d.npy",
    )
    run(*WORDS, *kept, "--block-rows", "512", cwd=tmp_path)
    assert (np.load(tmp_path / "o.npy") == made["repaired"]).all()
    done = run(*WORDS, *kept, "--resume", cwd=tmp_path)
    assert "complete already" in done.err
    refused(*WORDS, "--repair", "99", *kept[2:], "--resume", cwd=tmp_path, code=8, words=["repair"])


REFUSED = {
    "not a number": (("--repair", "many", "-o", "o.npy"), 2),
    "more than all": (("--repair", "120%", "-o", "o.npy"), 2),
    "standard output": (("--repair", "5%"), 2),
    "exact": (("--method", "exact", "--repair", "5%", "-o", "o.npy"), 2),
    "top-k": (("--top-k", "4", "--repair", "5%", "-o", "o.h5"), 2),
    "doubt of top-k": (("--top-k", "4", "--doubt", "d.npy", "-o", "o.h5"), 2),
    "doubt to standard output": (("--doubt", "-", "-o", "o.npy"), 2),
    "doubt is the output": (("--doubt", "./o.npy", "-o", "o.npy"), 2),
    "doubt is an input": (("--doubt", "k.npy", "-o", "o.npy"), 2),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_repaired_is_refused(tmp_path, name):
    save_heads(tmp_path, rows=300, dim=4, value_dim=4)
    words, code = REFUSED[name]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    refused(
        "attend",
        *FILES,
        "--full",
        *words,
        cwd=tmp_path,
        code=code,
        words=["--" + ("doubt" if "doubt" in name else "repair")] if code == 2 and "input" not in name else ["k.npy"],
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_pipe_cannot_be_repaired(tmp_path):
    arrays = save_heads(tmp_path, rows=300, dim=4, value_dim=4)
    words = (
        "--q",
        "-",
        "--k",
        "k.npy",
        "--v",
        "v.npy",
        "--raw",
        "f32",
        "--dim",
        "4",
        "--full",
        "--repair",
        "3",
        "-o",
        "o.npy",
    )
    refused("attend", *words, input=arrays["q"].tobytes(), cwd=tmp_path, code=11, words=["--repair"])


@pytest.mark.parametrize("blocks", [[400], [1] * 400, [7, 300, 93]])
def test_the_most_doubtful_answers_of_any_blocks_are_held(blocks):
    rng = np.random.default_rng(2)
    rows, doubt = rng.standard_normal((400, 2, 3)).astype("f4"), rng.random((400, 2)).astype("f4")
    doubt[100:200] = 0  # exact: nothing to repair
    rows[7] = np.nan  # dropped
    score = np.nan_to_num((rows.astype("f8") ** 2).sum(axis=2) * doubt.astype("f8") ** 2).reshape(-1)
    repairs, at = Repairs(700, 2), 0
    for n in blocks:
        repairs.observe(at, Answers(rows[at : at + n], doubt[at : at + n]))
        at += n
    found = list(repairs.batches(100))
    assert [len(batch) for batch in found] == [100] * 5 + [98]
    assert (np.concatenate(found) == np.flatnonzero(score)).all() and len(np.flatnonzero(score)) == 598
    few = Repairs(5, 2)
    few.observe(0, Answers(rows, doubt))
    assert (next(few.batches(9)) == np.sort(np.argsort(-score)[:5])).all()


class StopsIn(Interrupts):
    """Stops a run in a phase, as Ctrl-C would."""

    def __init__(self, phase):
        super().__init__()
        self.phase, self.seen = phase, False

    def check(self):
        """See Interrupts."""
        if self.seen:
            raise Interrupted(2)

    def hear(self, event):
        """A listener that waits for the phase."""
        self.seen |= isinstance(event, Progress) and event.phase == self.phase


def request(folder, name, **words):
    """A run that audits and repairs, of blocks so short that every phase has several."""
    files = {part: str(folder / f"{part}.npy") for part in "qkv"}
    kept = {
        "audit": 64,
        "repair": "40",
        "resident_rows": 64,
        "block_rows": 64,
        "memory": 1 << 27,
        "causal": True,
    } | words
    return AttendRequest(InputSpec(**files), str(folder / f"{name}.npy"), doubt=str(folder / f"{name}.d.npy"), **kept)


def same(folder, *names):
    """Whether the answers and the doubts under all these names are equal, and nothing unfinished is left."""
    answers, doubts = ({(folder / (name + end)).read_bytes() for name in names} for end in (".npy", ".d.npy"))
    return len(answers) == len(doubts) == 1 and not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("phase", ["rows", "audit", "repair"])
def test_a_run_that_is_stopped_in_any_phase_is_resumed_to_the_same_bytes(tmp_path, phase):
    save_heads(tmp_path, rows=900, dim=4, value_dim=4)
    attend(request(tmp_path, "whole"), lambda event: None, Interrupts())
    saved, stops = {"checkpoint": str(tmp_path / "c.sattn")}, StopsIn(phase)
    with pytest.raises(Interrupted):
        attend(request(tmp_path, "parts", **saved), stops.hear, stops)
    outcome = attend(request(tmp_path, "parts", resume=True, **saved), lambda event: None, Interrupts())
    assert same(tmp_path, "whole", "parts") and outcome.counts["repaired_answers"] == 40


@pytest.mark.parametrize("phase", ["audit", "repair"])
def test_a_run_that_is_stopped_without_a_checkpoint_leaves_nothing(tmp_path, phase):
    save_heads(tmp_path, rows=900, dim=4, value_dim=4)
    before, stops = listing(tmp_path), StopsIn(phase)
    with pytest.raises(Interrupted):
        attend(request(tmp_path, "parts"), stops.hear, stops)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("commit", [1, 2])
def test_a_run_that_ends_between_its_last_steps(tmp_path, monkeypatch, commit):
    """The doubts are there and the answers are not, or both are and the checkpoint does not know."""
    save_heads(tmp_path, rows=900, dim=4, value_dim=4)
    attend(request(tmp_path, "whole"), lambda event: None, Interrupts())
    saved, left, finish = {"checkpoint": str(tmp_path / "c.sattn")}, [commit], NpyFormat.finish

    def fails(self, *words):
        if not left[0]:
            raise MemoryError
        left[0] -= 1
        finish(self, *words)

    write = CheckpointWriter.commit

    def fails_when_done(self, state, meta):
        if meta["phase"] == "done":
            raise MemoryError
        write(self, state, meta)

    with monkeypatch.context() as patch:
        patch.setattr(NpyFormat, "finish", fails)
        patch.setattr(CheckpointWriter, "commit", fails_when_done)
        with pytest.raises(MemoryError):
            attend(request(tmp_path, "parts", **saved), lambda event: None, Interrupts())
    assert (tmp_path / "parts.d.npy").exists() and (tmp_path / "parts.npy").exists() == (commit == 2)
    attend(request(tmp_path, "parts", resume=True, **saved), lambda event: None, Interrupts())
    assert same(tmp_path, "whole", "parts")


def test_doubts_beside_answers_that_cannot_be_read_back_are_resumed(tmp_path):
    save_heads(tmp_path, rows=900, dim=4, value_dim=4)
    device = {"output": "/dev/null", "repair": None}
    attend(replace(request(tmp_path, "whole"), **device), lambda event: None, Interrupts())
    saved, stops = {"checkpoint": str(tmp_path / "c.sattn")}, StopsIn("rows")
    with pytest.raises(Interrupted):
        attend(replace(request(tmp_path, "parts", **saved), **device), stops.hear, stops)
    attend(replace(request(tmp_path, "parts", resume=True, **saved), **device), lambda event: None, Interrupts())
    assert (tmp_path / "whole.d.npy").read_bytes() == (tmp_path / "parts.d.npy").read_bytes()


def test_an_output_that_cannot_be_opened_leaves_the_other_one_neither(tmp_path):
    save_heads(tmp_path, rows=300, dim=4, value_dim=4)
    before = listing(tmp_path)
    words = ("attend", *FILES, "--full", "-o", "o.npy", "--doubt", "none/d.npy")
    refused(*words, cwd=tmp_path, code=10, words=["none/d.npy", "mkdir"])
    assert listing(tmp_path) == before


@pytest.mark.parametrize("more", [(), ("--audit", "64"), ("--audit", "64", "--repair", "20"), ("--repair", "20")])
def test_dropped_keys_are_counted_once_whatever_reads_them_again(tmp_path, more):
    arrays = save_heads(tmp_path, rows=900, dim=4, value_dim=4)
    arrays["k"][[5, 300, 890, 899]] = np.nan
    np.save(tmp_path / "k.npy", arrays["k"])
    words = ("attend", *FILES, "--causal", "--resident-rows", "64", "--nan-policy", "drop", "--json", "-o", "o.npy")
    assert run(*words, *more, cwd=tmp_path).document["counts"]["dropped_keys"] == 4


def test_repairing_every_row_stays_within_its_projection(tmp_path):
    words = (*WORDS, "--memory", "1GiB", "--repair", "100%", "--json", "-o", tmp_path / "o.npy")
    run(*words)  # kernels are compiled
    memory = run(*words, "--force").document["memory"]
    assert 0.5 * memory["projected"] <= memory["peak"] <= memory["projected"]
