"""`attend --sketches`, `--top-k` and `--eps`, the real program."""

import json
import os
import subprocess
import threading

import h5py
import numpy as np
import pytest
from clirun import COMMAND, FILES, environment, record_bytes, refused, run, save_heads

HEAVY = 8
N = 4096


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Outputs with heavy rows: values go with one coordinate of the keys, and only HEAVY queries look along it."""
    folder = tmp_path_factory.mktemp("sketches")
    rng = np.random.default_rng(7)
    k = rng.standard_normal((N, 4))
    others = np.column_stack(
        [k[:, 1] ** a * k[:, 2] ** b * k[:, 3] ** c for a in range(4) for b in range(4) for c in range(4)]
    )
    k[:, 0] -= others @ np.linalg.lstsq(others, k[:, 0])[0]  # so that the other queries see nothing of it by chance
    q = rng.standard_normal((N, 4))
    q[:, 0] = 0
    rows = np.sort(rng.choice(N, HEAVY, replace=False))
    q[rows] = np.outer(rng.choice([-2, 2], HEAVY), [1, 0, 0, 0])
    v = np.outer(k[:, 0], [4, -3, 5, 4]) + 0.05 * rng.standard_normal((N, 4))
    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    for part, array in zip("qkv", (q, k, v), strict=True):
        np.save(folder / f"{part}.npy", array)
    np.save(folder / "rows.npy", rows)
    return folder


def _attend(folder, *words, **kwargs):
    said = run("attend", *FILES, "--full", "--degree", "6", "--json", *words, cwd=folder, **kwargs).document
    assert said["memory"]["peak"] <= said["memory"]["projected"]
    return said


def _truth(folder):
    q, k, v = (np.load(folder / f"{part}.npy").astype(np.float64) for part in "qkv")
    shares = np.exp(0.5 * q @ k.T)
    return shares @ v / shares.sum(axis=1, keepdims=True)


def _columns(path):
    with h5py.File(path) as file:
        group = file["head_0"]
        return {name: group[name][:] for name in group}


def test_psi_answers_where_keys_and_values_come_apart(folder, tmp_path):
    said = _attend(
        folder, "--sketches", "psi", "--m1", "65536", "-o", tmp_path / "out.npy", "--audit", "64", "--max-error", "inf"
    )
    error = np.linalg.norm(np.load(tmp_path / "out.npy") - _truth(folder)) / np.linalg.norm(_truth(folder))
    assert error < 0.5 and said["audit"]["rows"] == 64
    assert said["facts"]["params"]["kind"] == "psi" and said["facts"]["params"]["order"] == "kvq"
    again = tmp_path / "again.npy"
    words = [
        "--sketches",
        "psi",
        "--m1",
        "65536",
        "--order",
        "vkq",
        "--block-rows",
        "77",
        "--threads",
        "1",
        "--max-error",
        "inf",
    ]
    _attend(folder, *words, "-o", again)
    assert again.read_bytes() == (tmp_path / "out.npy").read_bytes()


@pytest.mark.parametrize("decoder", ["scan", "peel"])
@pytest.mark.parametrize("kind", ["paper", "phi"])
def test_heavy_rows_come_back(folder, tmp_path, kind, decoder):
    words = ["--sketches", kind, "--top-k", HEAVY, "--m2", "8000", "--decoder", decoder]
    words += ["--m1", "16384"] if kind == "paper" else []
    said = _attend(folder, *words, "--max-error", "1", "--audit", "64", "-o", tmp_path / "x.h5")
    top = said["facts"]["top_k"]
    assert top["by"] == decoder and top["measured"] and top["joint"] and top["significant"] == 4 * HEAVY
    assert top["recovery_ratio"]["worst"] < 1.1 < 3 < top["zero_ratio"]["median"]
    found = _columns(tmp_path / "x.h5")
    assert np.array_equal(np.unique(found["row"]), np.load(folder / "rows.npy"))
    if kind == "phi":
        np.testing.assert_allclose(found["value"], _truth(folder)[found["row"], found["column"]], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("method", ["exact", "poly", "window"])
@pytest.mark.parametrize("mode", ["--full", "--causal"])
def test_every_method_keeps_its_best_rows_by_heaps(folder, tmp_path, method, mode):
    _attend(folder, "--method", method, mode, "-o", tmp_path / "rows.npy")
    said = _attend(folder, "--method", method, mode, "--top-k", "5", "-o", tmp_path / "x.h5")["facts"]["top_k"]
    assert (said["by"], said["measured"], said["recovery_ratio"]["worst"]) == ("heaps", True, 1.0)
    rows, found = np.load(tmp_path / "rows.npy"), _columns(tmp_path / "x.h5")
    for c in range(4):
        here = found["column"] == c
        best = np.sort(np.argsort(-np.abs(rows[:, c]), kind="stable")[:5])
        assert found["row"][here].tolist() == best.tolist()
        assert np.array_equal(found["value"][here].astype(np.float32), rows[best, c])


def test_deviations_from_the_mean_output(folder, tmp_path):
    shifted = tmp_path / "v.npy"
    np.save(shifted, np.load(folder / "v.npy") + np.float32(50))
    words = ["--q", folder / "q.npy", "--k", folder / "k.npy", "--v", shifted, "--full", "--degree", "6", "--json"]
    phi = ["--sketches", "phi", "--m2", "8000", "--audit", "8"]
    for extra, least in (((), 1.0), (("--deviation",), 3.0)):
        top = ["--top-k", HEAVY, *extra]
        for by in (["--method", "exact"], phi):
            said = run("attend", *words, *by, *top, "--force", "-o", tmp_path / "x.h5").document["facts"]["top_k"]
            assert said["zero_ratio"]["median"] >= least and said["deviation"] == bool(extra)
            assert said["recovery_ratio"]["worst"] < (1.1 if extra or by != phi else 2)
    found = _columns(tmp_path / "x.h5")
    np.testing.assert_allclose(found["reference"], 50, atol=1)
    assert np.array_equal(np.unique(found["row"]), np.load(folder / "rows.npy"))


def test_keys_from_a_file_queries_on_a_fifo_and_values_on_standard_input(folder, tmp_path):
    """K -> Q -> V: the values are produced only after the queries have been read."""
    fifo = tmp_path / "q"
    os.mkfifo(fifo)
    q, v = np.load(folder / "q.npy"), np.load(folder / "v.npy")
    words = [
        "--q",
        fifo,
        "--k",
        folder / "k.npy",
        "--v",
        "-",
        "--full",
        "--degree",
        "6",
        "--sketches",
        "phi",
        "--top-k",
        HEAVY,
    ]
    process = subprocess.Popen([*COMMAND, "attend", *map(str, words), "--m2", "8000", "-o", tmp_path / "x.h5",
    "--log-json"],
                               stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())  # fmt: skip
    eaten = threading.Event()

    def queries():
        with open(fifo, "wb") as file:
            file.write(record_bytes(*np.array_split(q, 5)))
        eaten.set()

    threading.Thread(target=queries, daemon=True).start()
    first, *rest = np.array_split(v, 7)
    process.stdin.write(record_bytes(first))
    process.stdin.flush()
    assert eaten.wait(60)
    _, err = process.communicate(record_bytes(*rest))
    assert process.returncode == 0, err.decode()
    top = json.loads(err.splitlines()[-1])["facts"]["top_k"]
    assert top["by"] == "scan" and not top["measured"] and top["significant"] == 4 * HEAVY
    assert np.array_equal(np.unique(_columns(tmp_path / "x.h5")["row"]), np.load(folder / "rows.npy"))


def test_values_that_end_early(folder, tmp_path):
    v = np.load(folder / "v.npy")[:-1]
    words = ["attend", *FILES[:-1], "-", "--full", "--sketches", "psi", "-o", tmp_path / "x.npy"]
    refused(*words, code=4, words=["4095 rows", "k.npy 4096"], folder=tmp_path, cwd=folder, input=record_bytes(v))


def test_the_plan_says_what_sketches_cost_and_when_they_pay(folder):
    words = [
        "attend",
        *FILES,
        "--full",
        "--sketches",
        "paper",
        "--degree",
        "6",
        "--top-k",
        "8",
        "--dry-run",
        "-o",
        "x.h5",
    ]
    plan = run(*words, "--json", cwd=folder).document
    account = plan["sketches"]
    assert account["bytes"]["sk_k"] == 4096 * 210 * 8 and account["exact_accumulator_bytes"] == 210 * 5 * 8
    assert account["break_even_rows"]["keys_and_values"] == -(-account["total_bytes"] // 32)
    assert any("need MORE memory than the data they replace" in note for note in plan["notes"])
    assert any("break-even" in note for note in plan["notes"])
    assert not (folder / "x.h5").exists()


def test_eps_chooses_degree_and_sizes(folder, tmp_path):
    degrees = {}
    save_heads(tmp_path, 2000, 4, 4, factor=0.7)
    for eps in ("0.1", "0.001"):
        words = ["--full", "--eps", eps, "--json", "--audit", "64", "--force", "-o", "x.npy"]
        said = run("attend", *FILES, *words, cwd=tmp_path).document
        degrees[eps] = said["facts"]["params"]["degree"]
        assert said["audit"]["method"]["error"] <= float(eps)
    assert degrees["0.1"] < degrees["0.001"]
    words = ["attend", *FILES, "--full", "--sketches", "psi", "--dry-run", "--json", "-o", "x.npy"]
    sizes = [run(*words, "--eps", eps, cwd=folder).document["params"]["m1"] for eps in ("0.1", "0.01")]
    assert 90 < sizes[1] / sizes[0] < 110


REFUSED = [
    (("--order", "qkv"), 11, "normaliser D"),
    (("--order", "kqv"), 11, "every value beside its key"),
    (("--sketches", "psi", "--order", "kqv"), 11, "needs the values"),
    (("--sketches", "phi", "--order", "vkq", "--top-k", "3"), 11, "second reading of the keys"),
    (("--sketches", "paper", "--top-k", "3", "--causal"), 11, "with every row"),
    (("--sketches", "paper", "--top-k", "3", "--m2", "10"), 11, "too few to decode 3 entries"),
    (("--sketches", "paper", "--top-k", "3", "--m1", "20"), 11, "--m1 20 is too small"),
    (("--sketches", "psi", "--nan-policy", "drop"), 11, "dropped from v"),
    (("--sketches", "paper"), 2, "give --top-k K"),
    (("--sketches", "fast"), 2, "exact, psi, phi or paper"),
    (("--top-k", "0"), 2, "at least 1"),
    (("--top-k", "51"), 2, "only 50 query rows"),
    (("--deviation",), 2, "--top-k"),
    (("--m1", "5"), 2, "--sketches psi, phi or paper"),
    (("--sketches", "psi", "--m2", "5"), 2, "use --m1"),
    (("--sketches", "psi", "--degree", "13"), 2, "float64"),
    (("--sketches", "psi", "--window", "8"), 2, "k and v together"),
    (("--eps", "2"), 2, "between 0 and 1"),
    (("--order", "kkv"), 2, "such as kqv"),
]


@pytest.mark.parametrize(
    "words, code, said", REFUSED, ids=lambda value: " ".join(value) if isinstance(value, tuple) else None
)
def test_what_cannot_work_is_refused(tmp_path, words, code, said):
    save_heads(tmp_path)
    refused(
        "attend",
        *FILES,
        "--method",
        "poly",
        "-o",
        "x.h5",
        *words,
        code=code,
        words=[said],
        folder=tmp_path,
        cwd=tmp_path,
    )


def test_a_pipe_of_keys_cannot_be_read_twice(tmp_path):
    heads = save_heads(tmp_path)
    words = ["--k", "-", "--q", "q.npy", "--v", "v.npy", "--full", "--sketches", "phi", "--top-k", "3", "-o", "x.h5"]
    refused(
        "attend",
        *words,
        code=11,
        words=["reads the keys twice"],
        folder=tmp_path,
        cwd=tmp_path,
        input=record_bytes(heads["k"]),
    )
    both = record_bytes(np.hstack([heads["k"], heads["v"]]))
    words = ["-", "--q", "q.npy", "--full", "--sketches", "paper", "--top-k", "3", "-o", "x.h5"]
    refused("attend", *words, code=11, words=["same rows of a pipe"], folder=tmp_path, cwd=tmp_path, input=both)


def test_more_entries_than_a_pipe_has_rows(tmp_path):
    heads = save_heads(tmp_path)
    words = ["--q", "-", "--k", "k.npy", "--v", "v.npy", "--full", "--top-k", "51", "-o", "x.h5"]
    refused(
        "attend",
        *words,
        code=2,
        words=["only 50 query rows"],
        folder=tmp_path,
        cwd=tmp_path,
        input=record_bytes(heads["q"]),
    )
