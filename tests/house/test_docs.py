"""Every command line in the documentation works: README, the pages, and the example in the help of every command."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import llamafiles
import numpy as np
import pytest
import torchfiles
from clirun import SAMPLE, environment, run
from typer.main import get_command

from streamattn_cli.cli.main import app

TOP = Path(__file__).resolve().parents[2]
PAGES = TOP / "streamattn_cli" / "report" / "pages"
JSON = PAGES.parent / "JSON.md"
SMALLER = [(r"--rows 2000000\b", "--rows 20000"), (r"head -c 1000000\b", "head -c 100000")]  # the same words, less work


@pytest.fixture
def folder(tmp_path):
    """A folder with the sample data and a `streamattn` on its path."""
    shutil.copytree(SAMPLE, tmp_path / "sample_data")
    shutil.copy(SAMPLE / "heads.h5", tmp_path / "heads.h5")
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "streamattn"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m streamattn_cli "$@"\n')
    shim.chmod(0o755)
    return tmp_path


def shell(lines, folder):
    """Run lines with bash, as pasted; every command of a pipe must end well but those whose reader has had enough."""
    for pattern, replacement in SMALLER:
        lines = re.sub(pattern, replacement, lines)
    env = environment(PATH=f"{folder / 'bin'}:{os.environ['PATH']}", PYTHONPATH=str(TOP), COLUMNS="100")
    done = subprocess.run(
        ["bash", "-eu", "-c", lines], cwd=folder, env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{lines}\n{done.stderr}"
    assert "Traceback" not in done.stderr and "internal bug" not in done.stderr, done.stderr
    return done


def save_batch(folder):
    """The padded batch and the dumps of layers that recipes name."""
    rows = np.random.default_rng(0).standard_normal((3, 2, 512, 8)).astype("f4")
    np.savez(folder / "batch.npz", q=rows, k=rows, v=rows)
    with h5py.File(folder / "batch.h5", "w") as file:
        file.update(dict.fromkeys("qkv", rows))
        file["lengths"] = [512, 70, 301]
    packed = np.concatenate([one[:, :n] for one, n in zip(rows, (512, 70, 301), strict=True)], axis=1).transpose(
        1, 0, 2
    )
    np.savez(folder / "packed.npz", q=packed, k=packed, v=packed)
    np.save(folder / "chunk_q.npy", packed[:129])
    np.save(folder / "cu_seqlens.npy", np.array([0, 512, 582, 883], np.int32))
    named = {f"layers.{layer}.{part}": rows for layer in (0, 1) for part in "qkv"}
    np.savez(folder / "model-dump.npz", **named, attention_mask=np.ones((3, 512), "i8"))
    config = '{"model_type": "mistral", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}'
    (folder / "config.json").write_text(config)
    with h5py.File(folder / "dump.h5", "w") as file:
        for layer in (0, 1):
            np.savez(folder / f"dump-{layer}.npz", q=rows, k=rows, v=rows)
            for part in "qkv":
                file[f"layer{layer}/{part}"] = rows[0].transpose(1, 0, 2)


def indented_commands(text):
    """The indented blocks that begin with the program's name."""
    blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    plain = ["\n".join(line[4:] for line in block.splitlines()) for block in blocks]
    return [block for block in plain if block.startswith("streamattn ")]


def fenced(text, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_every_command_of_the_readme_works(folder):
    save_batch(folder)
    commands = indented_commands((TOP / "README.md").read_text())
    assert len(commands) >= 5
    for command in (*commands, *commands):  # pasted again, they find their own outputs
        shell(command, folder)
    assert (folder / "out.npy").exists()


def test_the_example_of_the_json_page_works(folder):
    (command,) = indented_commands(JSON.read_text())
    error, high = map(float, shell(command, folder).stdout.split())
    assert 0 < error < high


def example(command):
    """The indented line of a command's docstring."""
    (line,) = re.findall(r"^ +(streamattn .*)$", command.callback.__doc__, re.MULTILINE)
    return line


COMMANDS = {command.callback.__name__: command for command in app.registered_commands}
NEEDS = {  # what must have been done before an example works
    "merge": "streamattn sketch heads.h5 --rows 0:900 --scale d --method poly --degree 2 -o shard0.sattn --quiet\n"
    "streamattn sketch heads.h5 --rows 900:1800 --scale d --method poly --degree 2 -o shard1.sattn --quiet",
    "query": "streamattn sketch heads.h5 --scale d --method poly --degree 2 -o heads.sattn --quiet",
    "info": "streamattn sketch heads.h5 --scale d --method poly --degree 2 -o heads.sattn --quiet",
    "report": "streamattn attend heads.h5 --rows 0:1000 --method window --audit 16 --json -o o.npy > outcome.json",
}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_example_in_the_help_works(folder, name):
    line = example(COMMANDS[name])
    assert line.split()[1] == name
    if "model" in line.split():
        pytest.importorskip("transformers")
        from smallmodels import save_model, save_text

        save_model(folder / "model", "grouped heads")
        save_text(folder / "book.txt")
    if name in NEEDS:
        shell(NEEDS[name], folder)
    shell(line, folder)
    told = run(name, "--help", env={"COLUMNS": "200"}).out.decode()
    assert line in " ".join(told.split())


def test_every_command_of_the_pages_works(folder):
    folder.joinpath("rows.c").write_text(
        next(c for c in fenced((PAGES / "formats.md").read_text(), "c") if "main" in c)
    )
    subprocess.run(["cc", "-o", "rows", "rows.c"], cwd=folder, check=True)
    rng = np.random.default_rng(0)
    for name in "qkv":
        np.save(folder / f"{name}.npy", rng.standard_normal((1, 2, 700, 16)).astype(np.float16))
    save_batch(folder)
    slot = np.zeros((700, 32), np.float16) + np.arange(32, dtype=np.float16) / 32
    llamafiles.save(folder / "slot.bin", [(slot, slot)] * 2, transposed=True)
    with torchfiles.pretended():
        keys, values = ([torchfiles.Tensor(np.load(folder / f"{name}.npy"))] * 4 for name in "kv")
        layers = [torchfiles.instance("DynamicLayer", keys=k, values=v) for k, v in zip(keys, values, strict=True)]
        torchfiles.save(folder / "cache.pt", torchfiles.instance("DynamicCache", layers=layers))
    for page in sorted(PAGES.glob("*.md")):
        commands = fenced(page.read_text(), "sh")
        assert commands
        for command in commands:
            shell(command, folder)
    assert np.load(folder / "rows.npy").shape == (1000, 4) and (folder / "run.html").exists()


def test_the_python_of_the_pages_does_what_it_says(tmp_path):
    blocks = fenced((PAGES / "formats.md").read_text(), "python")
    assert len(blocks) == 3
    for block in blocks:
        ast.parse(block)
    names = {}
    exec(next(b for b in blocks if "def raw_to_npy" in b), names)  # noqa: S102 - our own page
    rows = np.arange(5 * 2 * 3, dtype=np.float32)
    rows.tofile(tmp_path / "k.raw")
    names["raw_to_npy"](tmp_path / "k.raw", tmp_path / "k.npy", 2, 3)
    np.testing.assert_array_equal(np.load(tmp_path / "k.npy"), rows.reshape(5, 2, 3))
    exec(next(b for b in blocks if "def describe_rows" in b), names)  # noqa: S102 - our own page
    q, k = np.ones((5, 4, 8), "f2"), np.ones((5, 2, 8), "f2")
    np.save(tmp_path / "rows.npy", names["describe_rows"](q, k, k, 0.25))
    run("attend", tmp_path / "rows.npy", "--method", "exact", "-o", tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (5, 4, 8)


def test_shell_completion_is_there():
    done = subprocess.run(
        [sys.executable, "-c", "from streamattn_cli.cli.main import app; app(prog_name='streamattn')"],
        env=environment(_STREAMATTN_COMPLETE="source_bash"),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert "COMPREPLY" in done.stdout and done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-c", "from streamattn_cli.cli.main import app; app(prog_name='streamattn')"],
        env=environment(_STREAMATTN_COMPLETE="complete_bash", COMP_WORDS="streamattn comp", COMP_CWORD="1"),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.stdout.split() == ["compare"]


def test_the_pages_name_only_options_that_exist():
    """A renamed option must not live on in the documentation."""
    commands = get_command(app).commands.values()
    declared = {
        word for command in commands for option in command.params for word in (*option.opts, *option.secondary_opts)
    }
    for page in [TOP / "README.md", JSON, *PAGES.glob("*.md")]:
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", page.read_text()))
        others = {"--help", "--install-completion", "--port", "--nthreads", "--memory-limit"}  # Typer's, Dask's
        assert used <= declared | others, (page.name, used - declared)
