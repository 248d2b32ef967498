"""`streamattn capture`: what is written is what a model's attention was given, and `attend` needs no option to answer it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from clirun import COMMAND, environment, records  # noqa: E402
from described import described  # noqa: E402
from smallmodels import KINDS, save_model, save_text  # noqa: E402

from streamattn_cli.cli.main import app  # noqa: E402
from streamattn_cli.errors import CheckpointIncompatible, SourceChanged, StreamattnError  # noqa: E402
from streamattn_cli.models import capture as module  # noqa: E402
from streamattn_cli.models.load import load  # noqa: E402
from streamattn_cli.models.text import token_ids  # noqa: E402

ROWS = 150


def _run(*words, error=None):
    done = CliRunner().invoke(app, [str(word) for word in words])
    if error is None:
        assert done.exit_code == 0, done.exception
    else:
        assert isinstance(done.exception, error), done.exception
    return done


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {kind: save_model(tmp_path_factory.mktemp("model"), kind) for kind in KINDS}
    return made | {"text": save_text(tmp_path_factory.mktemp("text") / "text.txt")}


def own_outputs(folder, text, rows=ROWS):
    """Layer -> what the model's own attention answers, (rows, query heads, value dim)."""
    model, found = load(folder), {}
    model.network.set_attn_implementation("eager")
    for name, part in model.network.named_modules():
        if name.endswith("self_attn"):
            part.o_proj.register_forward_pre_hook(lambda _, given, at=part.layer_idx: found.update({at: given[0][0]}))
    ids = token_ids(model.tokenizer, [text], rows)
    with torch.inference_mode():
        model.network(input_ids=torch.from_numpy(ids)[None])
    heads = model.network.config.num_attention_heads
    return {at: out.reshape(rows, heads, -1).numpy() for at, out in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_exact_answers_to_captured_rows_are_the_models_own(folders, kind, tmp_path):
    dump, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    _run("capture", folders[kind], folders["text"], "-o", dump, "--tokens", ROWS, "--chunk", "64", "--dtype", "f32")
    with h5py.File(dump) as file:
        attrs = {at: dict(file[f"layer{at}"].attrs) for at in range(3)}
        assert file["layer2/q"].dtype == np.float32 and sorted(os.listdir(tmp_path)) == ["dump.h5"]
    assert all(a["tokens"] == ROWS and a["causal"] and a["layout"] == "THD" for a in attrs.values())
    assert [at for at, a in attrs.items() if "local" in a] == {"a": [0, 1, 2], "g": [], "o": []}.get(kind[0], [0, 2])
    assert ("softcap" in attrs[1], "sink_logit" in attrs[1]) == (kind.startswith("softcap"), kind.startswith("sinks"))
    assert ("rope_theta" in attrs[0]) == (kind[0] in "ga" or kind.startswith("softcap"))
    _run("attend", dump, "--layer", "all", "--method", "exact", "-o", out)
    own = own_outputs(folders[kind], folders["text"])
    with h5py.File(out) as file:
        for at in range(3):
            np.testing.assert_allclose(file[f"layer{at}/out"][:], own[at], atol=2e-5 * np.abs(own[at]).max(), rtol=0)


def test_one_layer_some_heads_and_half_the_bytes(folders, tmp_path):
    """Also NumPy reads the file; chosen heads are those of the whole; answers are right to float16."""
    model, text = folders["grouped heads"], folders["text"]
    for name, *words in (
        ("half.npy",), ("brain.npy", "--dtype", "bf16"), ("head.npy", "--heads", "1"), ("whole.npy", "--dtype", "f32"),
    ):  # fmt: skip
        _run("capture", model, text, "-o", tmp_path / name, "--tokens", ROWS, "--layer", "1", *words)
    half, head, whole = (np.load(tmp_path / f"{name}.npy") for name in ("half", "head", "whole"))
    assert half["q"].shape == (ROWS, 4, 12) and half["q"].dtype == np.float16
    np.testing.assert_array_equal(head["q"], half["q"][:, 2:])
    np.testing.assert_array_equal(head["v"], half["v"][:, 1:])
    np.testing.assert_array_equal(whole["k"].astype(np.float16), half["k"])
    brain = np.load(tmp_path / "brain.npy")["v"].view("<u2").astype(np.uint32)[..., 0 : half["v"].shape[2]]
    np.testing.assert_allclose((brain << 16).view(np.float32), whole["v"], rtol=2**-8)
    own = own_outputs(model, text)[1]
    for name, near in (("half", 2e-3), ("brain", 2e-2), ("whole", 2e-5)):
        _run("attend", tmp_path / f"{name}.npy", "--method", "exact", "-o", tmp_path / "out.npy", "--force")
        error = np.linalg.norm(np.load(tmp_path / "out.npy") - own) / np.linalg.norm(own)
        assert error < near, name
    inspected = described(json.loads(_run("inspect", tmp_path / "half.npy", "--json").stdout))
    assert inspected["attributes"]["rope_theta"] == 10000
    assert inspected["command"] == f"streamattn attend {tmp_path / 'half.npy'} -o out.npy"


def test_a_capture_is_piped_into_attend(folders, tmp_path):
    """The bytes are those of the file's; no option says what the rows are."""
    model, text = folders["grouped heads"], folders["text"]
    words = ("capture", model, text, "--layer", "1", "--tokens", "300", "--chunk", "70", "--quiet")
    answers = ("--method", "window", "--resident-rows", "64")
    pipe = subprocess.run(
        ["bash", "-o", "pipefail", "-c", '"${@:3:$1}" -o - | "${@:3+$1:$2}" -', "sh", str(len(COMMAND + [*words])),
         str(len(COMMAND) + 3 + len(answers)), *COMMAND, *words, *COMMAND, "attend", "-", *answers, "-o"],
        capture_output=True, env=environment(),
    )  # fmt: skip
    assert pipe.returncode == 0, pipe.stderr.decode()
    _run(*words, "-o", tmp_path / "dump-{layer}.npy")
    _run("attend", tmp_path / "dump-1.npy", *answers, "-o", tmp_path / "out.npy")
    np.testing.assert_array_equal(np.concatenate(records(pipe.stdout)), np.load(tmp_path / "out.npy"))


KILLED = """
import os, signal, sys
from streamattn_cli.models import capture
calls, read = [], capture.read
def dying(*words):
    calls.append(words)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    read(*words)
capture.read = dying
from streamattn_cli.cli.main import main
main()
"""


def test_a_killed_capture_goes_on_with_the_same_bytes(folders, tmp_path, monkeypatch):
    """Killed for real in the third of five chunks, then stopped in the middle of the fourth."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    name = "dump.h5"
    model = shutil.copytree(folders["a window in every layer"], tmp_path / "model")
    words = ("capture", model, folders["text"], "--chunk", "70", "--tokens", "350")
    _run(*words, "-o", tmp_path / "a" / name)
    target = (*words, "-o", tmp_path / "b" / name)
    code = subprocess.run([sys.executable, "-c", KILLED, *map(str, target)], env=environment()).returncode
    assert code == -9 and not list((tmp_path / "b").glob("dump*.[hn]*5"))
    _run(*target, error=StreamattnError)
    _run(*target[:-1], tmp_path / "b" / name, "--resume", "--dtype", "bf16", error=CheckpointIncompatible)
    _run(*target[:2], tmp_path / "other.txt", *target[3:], "--resume", error=StreamattnError)
    write, seen = module._Capturing.answer, []

    def failing(self, *given):
        seen.append(self._start)
        if self._start == 210 and len(seen) > 4:
            raise RuntimeError("stopped")
        return write(self, *given)

    monkeypatch.setattr(module._Capturing, "answer", failing)
    _run(*target, "--resume", error=RuntimeError)
    monkeypatch.undo()
    done = described(json.loads(_run(*target, "--resume", "--json").stdout))
    assert (done["rows"], done["rows_before"]) == (350, 210) and seen[0] == 140
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in "ab")
    assert first == second and set(first) == {name}


def test_files_for_each_layer_go_on_but_not_with_another_model(folders, tmp_path, monkeypatch):
    model = shutil.copytree(folders["grouped heads"], tmp_path / "model")
    (tmp_path / "a").mkdir()
    words = ("capture", model, folders["text"], "--chunk", "100", "--layer", "0,2", "-o")
    _run(*words, tmp_path / "a" / "dump-{layer}.npy")
    words = (*words, tmp_path / "dump-{layer}.npy")

    def once(*given, calls=[]):  # noqa: B006 - kept between calls
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError
        return read(*given)

    read = module.read
    monkeypatch.setattr(module, "read", once)
    _run(*words, error=RuntimeError)
    monkeypatch.undo()
    was = (model / "config.json").stat()
    os.utime(model / "config.json", (1, 1))
    assert "the model" in str(_run(*words, "--resume", error=SourceChanged).exception)
    os.utime(model / "config.json", ns=(was.st_atime_ns, was.st_mtime_ns))
    monkeypatch.setattr(
        module._Saved, "remove", lambda self: None
    )  # as if it was killed where the first file has its name,
    _run(*words, "--resume")
    monkeypatch.undo()
    (tmp_path / "dump-2.npy").rename(tmp_path / f".dump-2.npy.{_tag(tmp_path)}.tmp")  # and the second has not
    _run(*words, "--resume")
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} and len(files) == 2


def _tag(folder):
    """What marks the unfinished files of captures to dump-{layer}.npy in a folder."""
    return hashlib.sha256(os.fsencode(folder / "dump-{layer}.npy.sattn")).hexdigest()[:8]


def test_refusals_of_captures(folders, tmp_path):
    model, text = folders["grouped heads"], folders["text"]
    (tmp_path / "there.h5").write_bytes(b"")
    for code, word, *words in (
        (2, "--force replaces it", "-o", tmp_path / "there.h5"),
        (2, "choose one with --layer", "-o", tmp_path / "dump.npy"),
        (2, "choose one with --layer", "-o", "-"),
        (2, "unknown; use .npy, .h5", "-o", tmp_path / "dump.bin", "--layer", "1"),
        (2, "gets a group for each layer", "-o", tmp_path / "dump.h5:/x", "--layer", "1"),
        (2, "gets a group for each layer", "-o", tmp_path / "dump-{layer}.h5"),
        (10, "there is no folder", "-o", tmp_path / "absent" / "dump.h5"),
        (2, "has layers 0 to 2", "-o", tmp_path / "dump.h5", "--layer", "3"),
        (2, "layer 0 has 0 to 1", "-o", tmp_path / "dump.h5", "--heads", "2"),
        (2, "--heads 1,x", "-o", tmp_path / "dump.h5", "--heads", "1,x"),
        (2, "--dtype f8", "-o", tmp_path / "dump.h5", "--dtype", "f8"),
        (2, "cannot be resumed", "-o", "-", "--layer", "1", "--resume"),
        (4, "701 are needed", "-o", tmp_path / "dump.h5", "--tokens", "701"),
    ):
        done = _run("capture", model, text, *words, error=StreamattnError)
        assert done.exception.code == code and word in str(done.exception), done.exception
    assert [path.name for path in tmp_path.iterdir()] == ["there.h5"]
    odd = shutil.copy(text, tmp_path / "text.npy")
    done = _run("capture", model, odd, "--layer", "1", "--force", "-o", odd, error=StreamattnError)
    assert done.exception.code == 2 and "is an input" in str(done.exception)
    free = 4 * sum(p.numel() for p in load(model).network.parameters()) + 100_000
    done = _run("capture", model, text, "--layer", "2", "-o", "-", "--memory", free, error=StreamattnError)
    assert done.exception.code == 6 and "reading 700 tokens up to layer 2" in str(done.exception)


@pytest.mark.parametrize("kind", ["grouped heads", "softcap, and windows", "other value dims"])
def test_memory_is_projected_before_a_weight_is_read(folders, kind, tmp_path):
    """Of a pipe, which keeps keys and values in memory, in a process of its own."""
    text = save_text(tmp_path / "text.txt", 3000)
    words = (*COMMAND, "capture", folders[kind], text, "--layer", "2", "-o", "-", "--log-json", "--threads", "1")
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment())
    memory = json.loads(done.stderr.splitlines()[-1])["memory"]
    assert memory["peak"] <= memory["projected"] < memory["peak"] + (96 << 20)  # FREED comes and goes


def test_numbers_beyond_float16_are_refused(folders, tmp_path, monkeypatch):
    answer = module._Capturing.answer
    monkeypatch.setattr(module._Capturing, "answer", lambda self, facts, q, k, v: answer(self, facts, q, k * 1e5, v))
    words = ("capture", folders["grouped heads"], folders["text"], "-o", tmp_path / "dump.h5", "--tokens", "50")
    done = _run(*words, error=StreamattnError)
    assert done.exception.code == 5 and "layer 0: k has numbers of size" in str(done.exception)
    assert list(tmp_path.iterdir()) == []
    _run(*words, "--dtype", "bf16")
