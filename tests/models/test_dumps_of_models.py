"""A whole model's attention, captured by hand and saved in the ways people save it: the answers are the model's own."""

import json

import h5py
import numpy as np
import pytest
from described import described
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.numpy")
from smallmodels import SHAPES  # noqa: E402

from streamattn_cli.cli.main import app  # noqa: E402

LENGTHS, WINDOW = (120, 80), 40
MIXED = SHAPES | {
    "num_hidden_layers": 4, "sliding_window": WINDOW, "head_dim": 12, "query_pre_attn_scalar": 12, "attn_logit_softcapping": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def captured():
    """(rows of each layer, answers of each layer, cache of the first sequence): four layers, every other with a window, grouped
    heads, a batch of two sequences, the second one padded."""
    from transformers.models.gemma2 import modeling_gemma2 as gemma

    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(transformers.Gemma2Config(**MIXED)).eval()
    network.set_attn_implementation("eager")
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(0, 0.25) if weight.ndim > 1 else weight.add_(0.3 * torch.randn_like(weight))
    rows, answers, plain = [], [], gemma.eager_attention_forward

    def recording(module, query, key, value, *words, **more):
        found = plain(module, query, key, value, *words, **more)
        rows.append([part.numpy() for part in (query, key, value)])
        answers.append(found[0].numpy())
        return found

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(gemma, "eager_attention_forward", recording)
        ids = torch.randint(3, 300, (2, LENGTHS[0]))
        mask = torch.arange(LENGTHS[0])[None] < torch.tensor(LENGTHS)[:, None]
        network(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        batch = list(zip(rows, answers, strict=True))
        cache = network(input_ids=ids[:1], use_cache=True).past_key_values
    return [r for r, _ in batch], [a for _, a in batch], cache


def _save(folder, name, rows):
    """The rows of all layers in one of the ways."""
    named = {
        f"layers.{at}.{part}": array for at, layer in enumerate(rows) for part, array in zip("qkv", layer, strict=True)
    }
    if name == "dump.npz":
        np.savez(folder / name, **named)
    elif name == "dump.safetensors":
        safetensors.save_file(
            {key: np.ascontiguousarray(array) for key, array in named.items()}, folder / name, {"causal": "true"}
        )
    elif name == "dump.h5":
        with h5py.File(folder / name, "w") as file:
            for key, array in named.items():
                file[key.replace(".", "/")] = array
            file.attrs["causal"] = True
            for at in (0, 2):
                file[f"layers/{at}"].attrs["local"] = WINDOW
    else:
        for key, array in named.items():
            np.save(folder / f"{key.replace('.', '-')}.npy", array)


WAYS = {
    "dump.h5": (),
    "dump.safetensors": ("--local", f"{WINDOW}:0,2"),
    "dump.npz": ("--causal", "--local", f"{WINDOW}:0,2"),
    "layers-{layer}": ("--causal", "--local", f"{WINDOW}:0,2"),
}


@pytest.mark.parametrize("name", WAYS)
def test_answers_to_a_saved_model_are_its_own(captured, name, tmp_path):
    """Padding at the end of a sequence is after all its rows: causal attention never sees it."""
    rows, answers, _ = captured
    _save(tmp_path, name, rows)
    files = [str(tmp_path / name)]
    if "{layer}" in name:
        files = [word for part in "qkv" for word in (f"--{part}", str(tmp_path / f"{name}-{part}.npy"))]
    else:
        told = described(json.loads(_done("inspect", *files, "--json")))
        assert "--layer all" in told["command"] and told["tensors"][0]["layout"] == "BHTD"
    _done("attend", *files, "--layer", "all", *WAYS[name], "--method", "exact", "-o", str(tmp_path / "out-{layer}.npy"))
    for at, own in enumerate(answers):
        mine = np.load(tmp_path / f"out-{at}.npy").transpose(0, 2, 1, 3)
        for one, length in enumerate(LENGTHS):
            np.testing.assert_allclose(mine[one, :length], own[one, :length], atol=2e-5 * np.abs(own).max(), rtol=0)


def test_a_saved_cache_answers_the_last_query(captured, tmp_path):
    """Keys and values alone, of a layer without a window: that of the others has only the rows of theirs."""
    rows, answers, cache = captured
    torch.save(cache, tmp_path / "cache.pt")
    np.save(tmp_path / "q.npy", rows[1][0][:1, :, -1:])
    words = ("--group", "layers.1", "--method", "window", "--resident-rows", "512", "-o", tmp_path / "keys.sattn")
    _done("sketch", tmp_path / "cache.pt", *words)
    _done("query", tmp_path / "keys.sattn", tmp_path / "q.npy", "--layout", "BHTD", "-o", tmp_path / "out.npy")
    mine, own = np.load(tmp_path / "out.npy")[0, :, 0], answers[1][0, -1]
    np.testing.assert_allclose(mine, own, atol=2e-5 * np.abs(own).max(), rtol=0)


def _done(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, found.exception
    return found.stdout
