"""A file that takes the name of an input while that is read: exit 9 from every command that reads, and no output."""

import os
import shutil
import sys
import threading
from functools import partial

import h5py
import numpy as np
import pytest
from clirun import FILES
from keptruns import not_warmed, save_stream  # noqa: F401

from streamattn_cli.cli.main import main
from streamattn_cli.engine.jobs import inspect  # noqa: F401 - whose name is to be replaced, too
from streamattn_cli.rows.inputs import fingerprint

pytestmark = pytest.mark.usefixtures("not_warmed")
KEYS = ("--k", "k.npy", "--v", "v.npy")
SMALL = ("--resident-rows", "96", "--method", "nystrom")
ATTEND = ("attend", *FILES, "--layout", "THD", "--causal", *SMALL, "-o", "new.npy")
SKETCH = ("sketch", *FILES, "--layout", "THD", *SMALL, "-o", "new.sattn")
QUERY = ("query", "old.sattn", "q.npy", "--layout", "THD", "-o", "new.npy")
CASES = {
    "attend q": (ATTEND, "q.npy"),
    "attend v, audited and repaired": ((*ATTEND, "--audit", "32", "--repair", "5%"), "v.npy"),
    "attend, threads": ((*ATTEND, "--engine", "threads"), "k.npy"),
    "attend, processes": ((*ATTEND, "--engine", "processes", "--threads", "1"), "k.npy"),
    "attend, query model": ((*ATTEND, "--query-model", "model.npy"), "model.npy"),
    "attend, source of a view": (("attend", "view.h5", "--causal", *SMALL, "-o", "new.npy"), "source.h5"),
    "attend, raw file of a dataset": (("attend", "raw.h5", "--causal", *SMALL, "-o", "new.npy"), "raw"),
    "sketch k": (SKETCH, "k.npy"),
    "sketch q": (SKETCH, "q.npy"),
    "shards v": ((*SKETCH, "--shards", "2"), "v.npy"),
    "shards q": ((*SKETCH, "--shards", "2"), "q.npy"),
    "query": (QUERY, "q.npy"),
    "query, audited": ((*QUERY, *KEYS, "--audit", "32"), "v.npy"),
    "compare": (
        ("compare", *FILES, "--layout", "THD", "--causal", "--methods", "window", "--resident-rows", "96"),
        "k.npy",
    ),
    "inspect": (("inspect", *FILES, "--layout", "THD"), "v.npy"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Inputs, and what is made of them, to be copied."""
    folder = tmp_path_factory.mktemp("inputs")
    save_stream(folder, 300, heads=2)
    shutil.copy(folder / "q.npy", folder / "model.npy")
    with h5py.File(folder / "source.h5", "w") as source, h5py.File(folder / "view.h5", "w") as view:
        for part in "qkv":
            source[part] = np.load(folder / f"{part}.npy")
            layout = h5py.VirtualLayout((300, 2, 4), "f4")
            layout[:] = h5py.VirtualSource("source.h5", part, (300, 2, 4))
            view.create_virtual_dataset(part, layout)
    (folder / "raw").write_bytes(np.load(folder / "k.npy").tobytes())
    with h5py.File(folder / "raw.h5", "w") as file:
        for part in "qkv":
            file.create_dataset(part, (300, 2, 4), "f4", external=[("raw", 0, h5py.h5f.UNLIMITED)])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert exit_code(patch, *SKETCH[:-1], "old.sattn", "--quiet") == 0
    return folder


def exit_code(patch, *words):
    """Of the command, in this process."""
    patch.setattr(sys, "argv", ["streamattn", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_takes_the_place_of_an_input_is_9(files, tmp_path, monkeypatch, capfd, case):
    words, target = CASES[case]
    folder = tmp_path / "work"
    shutil.copytree(files, folder)
    monkeypatch.chdir(folder)
    names = set(os.listdir())

    def states(real, *asked):
        """What is known when reading begins; then the other file comes."""
        found = real(*asked)
        other = f"other-{threading.get_ident()}"  # pieces are begun side by side
        shutil.copy2(target, other)
        os.replace(other, target)
        return found

    for module in [m for name, m in sys.modules.items() if name.startswith("streamattn_cli.engine.jobs")]:
        if hasattr(module, "file_states"):
            monkeypatch.setattr(module, "file_states", partial(states, fingerprint.file_states))
    assert exit_code(monkeypatch, *words) == 9
    assert f"{target}: changed while it was being read" in capfd.readouterr().err
    assert set(os.listdir()) == names
