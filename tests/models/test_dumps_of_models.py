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
from smallmodels import KINDS, SHAPES, save_model  # noqa: E402

from streamattn_cli.cli.main import app  # noqa: E402
from streamattn_cli.models.load import open_model  # noqa: E402
from streamattn_cli.models.survey import attributes, survey  # noqa: E402
from streamattn_cli.rows.inputs.modelconfig import read_config  # noqa: E402

LENGTHS, WINDOW = (120, 80), 40
MIXED = SHAPES | {
    "num_hidden_layers": 4, "sliding_window": WINDOW, "head_dim": 12, "query_pre_attn_scalar": 24, "attn_logit_softcapping": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    """Four layers, every other with a window, grouped heads."""
    torch.manual_seed(0)
    found = transformers.AutoModelForCausalLM.from_config(transformers.Gemma2Config(**MIXED)).eval()
    found.set_attn_implementation("eager")
    with torch.no_grad():
        for weight in found.parameters():
            weight.normal_(0, 0.25) if weight.ndim > 1 else weight.add_(0.3 * torch.randn_like(weight))
    return found


@pytest.fixture(scope="module")
def captured(network):
    """Padding -> (rows of each layer, answers of each layer, mask), of a batch of two sequences, the second one padded at its
    end or at its beginning."""
    from transformers.models.gemma2 import modeling_gemma2 as gemma

    plain, found = gemma.eager_attention_forward, {}
    for side in ("right", "left"):
        rows, answers = [], []

        def recording(module, query, key, value, *words, rows=rows, answers=answers, **more):
            out = plain(module, query, key, value, *words, **more)
            rows.append([part.numpy() for part in (query, key, value)])
            answers.append(out[0].numpy())
            return out

        mask = torch.arange(LENGTHS[0])[None] < torch.tensor(LENGTHS)[:, None]
        mask = mask if side == "right" else mask.flip(1)
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            patch.setattr(gemma, "eager_attention_forward", recording)
            ids = torch.randint(3, 300, (2, LENGTHS[0]), generator=torch.Generator().manual_seed(1))
            network(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        found[side] = rows, answers, mask.long().numpy()
    return found


def _save(folder, name, rows, mask):
    """The rows of all layers, and the mask where a file holds several arrays, in one of the ways; what `attend` is given."""
    named = {
        f"layers.{at}.{part}": array for at, layer in enumerate(rows) for part, array in zip("qkv", layer, strict=True)
    }
    if name == "layers-{layer}":
        for key, array in named.items():
            np.save(folder / f"{key.replace('.', '-')}.npy", array)
        return [word for part in "qkv" for word in (f"--{part}", str(folder / f"{name}-{part}.npy"))]
    whole = {key: np.ascontiguousarray(array) for key, array in named.items()} | {"attention_mask": mask.copy()}
    if name == "dump.npz":
        np.savez(folder / name, **whole)
    elif name == "dump.pt":
        torch.save({key: torch.from_numpy(array) for key, array in whole.items()}, folder / name)
    elif name == "dump.safetensors":
        safetensors.save_file(whole, folder / name)
    else:
        with h5py.File(folder / name, "w") as file:
            for key, array in whole.items():
                file[key.replace(".", "/")] = array
    return [str(folder / name)]


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("dump.pt", "left"), ("dump.npz", "right"), ("dump.npz", "left"), ("dump.safetensors", "left"), ("dump.h5", "right"),
        ("layers-{layer}", "right"),
    ],
)  # fmt: skip
def test_answers_to_a_saved_model_are_its_own(network, captured, name, side, tmp_path):
    """One option says all that a file lacks: --config. Rows that are padding are told by a mask in the file; of .npy files, which
    have none, those at the end are behind all that count, so that causal attention never sees them."""
    rows, answers, mask = captured[side]
    network.config.save_pretrained(tmp_path)
    files = _save(tmp_path, name, rows, mask)
    if len(files) == 1:  # what inspect prints is the command below, but for the method and where answers go
        told = described(json.loads(_done("inspect", *files, "--json")))
        assert f"--layer all --config {tmp_path}/config.json" in told["command"]
    words = ("--layer", "all", "--config", str(tmp_path), "--method", "exact", "-o", str(tmp_path / "out-{layer}.npy"))
    _done("attend", *files, *words)
    for at, own in enumerate(answers):
        mine = np.load(tmp_path / f"out-{at}.npy").transpose(0, 2, 1, 3)
        for one, length in enumerate(LENGTHS):
            count = slice(length) if side == "right" else slice(LENGTHS[0] - length, None)
            np.testing.assert_allclose(mine[one, count], own[one, count], atol=2e-5 * np.abs(own).max(), rtol=0)


def test_a_saved_cache_answers_the_last_query(network, captured, tmp_path):
    """Keys and values alone, of a layer without a window: of the others a cache has one row less than the last query saw."""
    rows, answers, _ = captured["right"]
    with torch.inference_mode():
        ids = torch.randint(3, 300, (2, LENGTHS[0]), generator=torch.Generator().manual_seed(1))
        cache = network(input_ids=ids[:1], use_cache=True).past_key_values
    torch.save(cache, tmp_path / "cache.pt")
    network.config.save_pretrained(tmp_path)
    np.save(tmp_path / "q.npy", rows[1][0][:1, :, -1:])
    words = ("--group", "layers.1", "--config", tmp_path, "--method", "window", "--resident-rows", "512")
    _done("sketch", tmp_path / "cache.pt", *words, "-o", tmp_path / "keys.sattn")
    _done("query", tmp_path / "keys.sattn", tmp_path / "q.npy", "--layout", "BHTD", "-o", tmp_path / "out.npy")
    mine, own = np.load(tmp_path / "out.npy")[0, :, 0], answers[1][0, -1]
    np.testing.assert_allclose(mine, own, atol=2e-5 * np.abs(own).max(), rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_says_what_the_model_says_itself(tmp_path, kind):
    model = open_model(save_model(tmp_path, kind), 1 << 30, 1)
    for at, layer in survey(model, len(model.types) - 1).items():
        found, own = read_config(str(tmp_path), at), attributes(model, layer, 1)
        assert ("sink_logit" in found.unclear) == ("sink_logit" in own)
        assert found.attrs.get("scale", found.dims[0] ** -0.5) == pytest.approx(own["scale"])
        for name in ("causal", "local", "softcap") + (() if "local" in own else ("rope_theta", "rope_pairs")):
            assert found.attrs.get(name) == own.get(name), name
        assert (found.heads, found.key_heads, found.dims[0], found.value_dim) == (
            layer.heads, layer.key_heads, layer.dim, layer.value_dim,
        )  # fmt: skip


def _done(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, found.exception
    return found.stdout
