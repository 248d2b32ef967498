"""What --config takes from a config.json of transformers, and what it leaves to options. That the facts are those of models
themselves is asked in tests/models/test_dumps_of_models.py."""

import contextlib
import json
import random

import numpy as np
import pytest
from clirun import refused, run

from streamattn_cli.errors import CannotMeet, InputMalformed, StreamattnError, UsageError
from streamattn_cli.rows.inputs.modelconfig import read_config

SHAPES = {
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "rope_theta": 5e5,
}
OLD = {"n_layer": 6, "n_head": 4, "n_embd": 64}
HALF = {"rope_theta": 5e5, "rope_pairs": "half"}
LATENT = {"qk_nope_head_dim": 48, "qk_rope_head_dim": 16, "kv_lora_rank": 128, "v_head_dim": 32}
YARN = {"rope_scaling": {"type": "yarn", "factor": 40.0, "mscale_all_dim": 1.0}}
# model_type, fields, layer -> attributes beside causal
FACTS = [
    ("llama", SHAPES, 0, HALF),
    ("llama", SHAPES | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 0, {}),
    ("mistral", SHAPES | {"sliding_window": 9}, 5, {"local": 9}),
    ("mistral", SHAPES | {"sliding_window": None}, 5, HALF),
    ("qwen2", SHAPES | {"sliding_window": 9, "use_sliding_window": False}, 5, HALF),
    ("qwen2", SHAPES | {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 4}, 3, HALF),
    ("qwen2", SHAPES | {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 4}, 4, {"local": 9}),
    ("gemma2", SHAPES | {"head_dim": 16}, 0, {"local": 4096, "scale": 1 / 16, "softcap": 50.0}),
    ("gemma2", SHAPES | {"query_pre_attn_scalar": 64, "attn_logit_softcapping": None}, 1, {"scale": 0.125} | HALF),
    ("gemma3", {"text_config": SHAPES | {"model_type": "gemma3_text", "sliding_window": 9}}, 4, {"local": 9, "scale": 1 / 16}),
    ("gemma3", {"text_config": SHAPES | {"model_type": "gemma3_text", "sliding_window": 9}}, 5, {"scale": 1 / 16} | HALF),
    ("cohere2", SHAPES | {"sliding_window": 9}, 3, {}),
    ("cohere2", SHAPES | {"layer_types": ["full_attention", "sliding_attention"] * 3, "sliding_window": 9}, 1, {"local": 9}),
    ("granite", SHAPES | {"attention_multiplier": 0.25}, 0, {"scale": 0.25} | HALF),
    ("gpt2", OLD, 3, {}),
    ("gpt2", OLD | {"scale_attn_by_inverse_layer_idx": True}, 3, {"scale": 1 / 16}),
    ("gpt_neo", OLD | {"attention_layers": ["global", "local"] * 3, "window_size": 9}, 1, {"local": 9, "scale": 1.0}),
    ("bloom", OLD, 0, {"logit_bias": "slope"}),
    ("mpt", {"n_layers": 6, "n_heads": 4, "d_model": 64, "attn_config": {"alibi": True, "softmax_scale": 0.5}}, 0,
     {"logit_bias": "slope", "scale": 0.5}),
    ("cohere", SHAPES, 0, {"rope_theta": 5e5, "rope_pairs": "interleaved"}),
    ("phi", SHAPES | {"partial_rotary_factor": 0.5}, 0, {}),
    ("smollm3", SHAPES, 3, {}),
    ("deepseek_v3", SHAPES | LATENT, 0, {"scale": 0.125}),
    ("deepseek_v3", SHAPES | LATENT | YARN, 0, {"scale": 0.125 * (0.1 * np.log(40.0) + 1) ** 2}),
]  # fmt: skip


def written(folder, kind, fields):
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": kind} | fields))
    return str(path)


@pytest.mark.parametrize(("kind", "fields", "layer", "facts"), FACTS)
def test_facts_of_a_layer(tmp_path, kind, fields, layer, facts):
    found = read_config(written(tmp_path, kind, fields), layer)
    assert found.attrs == pytest.approx({"causal": True} | facts)
    assert not found.unclear and not found.notes


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("bert", SHAPES, "it is an encoder"), ("t5", SHAPES, "biases"), ("mamba2", SHAPES, "recurrent"),
        ("whisper", SHAPES | {"is_encoder_decoder": True}, "an encoder and a decoder"), ("strange", SHAPES, "not known"),
        ("llama4_text", SHAPES | {"attention_chunk_size": 64}, "layer 0 is chunked_attention"),
        ("qwen3_next", SHAPES | {"layer_types": ["linear_attention"] * 6}, "layer 0 is linear_attention"),
    ],
)  # fmt: skip
def test_other_attention_is_refused(tmp_path, kind, fields, words):
    with pytest.raises(CannotMeet, match=words):
        read_config(written(tmp_path, kind, fields), 0)


def test_what_a_config_does_not_say_is_asked_for(tmp_path):
    for kind, fields, name in [
        ("gpt_oss", SHAPES, "sink_logit"),
        ("opt", SHAPES, "scale"),
        ("falcon", SHAPES | {"alibi": True}, "logit_bias"),
    ]:
        assert name in read_config(written(tmp_path, kind, fields), 0).unclear
    mixed = read_config(written(tmp_path, "gemma2", SHAPES), None)
    assert "local" in mixed.unclear and "local" not in mixed.attrs and "scale" in mixed.attrs
    assert read_config(written(tmp_path, "mistral", SHAPES | {"sliding_window": 9}), None).attrs["local"] == 9


def test_a_model_that_is_not_known_is_read_as_most_are_and_this_is_said(tmp_path):
    found = read_config(written(tmp_path, "brandnew", SHAPES | {"architectures": ["BrandNewForCausalLM"]}), 0)
    assert found.attrs == {"causal": True, "rope_theta": 5e5} and "not a known one" in found.notes[0]


def test_wrong_files_are_refused(tmp_path):
    for text, error in (
        ("", InputMalformed),
        ("[1]", InputMalformed),
        ("{}", CannotMeet),
        ('{"a":' * 9000, InputMalformed),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(error):
            read_config(str(tmp_path), 0)
    with pytest.raises(UsageError, match="layer 6 is not there"):
        read_config(written(tmp_path, "llama", SHAPES), 6)
    refused("inspect", "--config", tmp_path / "none", tmp_path / "x.npy", code=3, words=["x.npy"])


def test_changed_configs_never_end_in_another_error(tmp_path):
    """Any field of any kind."""
    rng = random.Random(5)
    odd = [
        None,
        0,
        -1,
        3,
        1e400,
        float("nan"),
        "3",
        [],
        [1, "a"],
        {},
        {"rope_theta": []},
        True,
        1 << 70,
        ["full_attention"] * 9,
    ]
    for _ in range(4000):
        kind, fields, layer, _ = rng.choice(FACTS)
        fields = json.loads(json.dumps(fields))
        for _ in range(rng.randint(1, 3)):
            inner = fields.get("text_config", fields)
            inner = inner if isinstance(inner, dict) else fields
            name = rng.choice(
                [*inner, "rope_parameters", "no_rope_layers", "sliding_window_pattern", "attn_config", "architectures"]
            )
            inner[name] = rng.choice(odd)
        with contextlib.suppress(StreamattnError):
            read_config(written(tmp_path, kind, fields), rng.choice([layer, None]))


# --- whole runs


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """Two layers of fused rows, (rows, heads x dim), as projections leave them, and the config of their model beside."""
    folder, rng = tmp_path_factory.mktemp("dump"), np.random.default_rng(1)
    widths = {"q": 4 * 16, "k": 2 * 16, "v": 2 * 16}
    arrays = {f"layers.{n}.{p}": rng.standard_normal((50, w)).astype("f4") for n in range(2) for p, w in widths.items()}
    np.savez(folder / "dump.npz", **arrays)
    np.save(folder / "packed.npy", np.concatenate([arrays[f"layers.0.{part}"] for part in "qkv"], 1))
    written(folder, "gemma2", SHAPES | {"head_dim": 16, "sliding_window": 9, "attn_logit_softcapping": None})
    return folder


def out(dump, *words):
    done = run(
        "attend",
        *words,
        "--method",
        "window",
        "--resident-rows",
        "60",
        "-o",
        "o-{layer}.npy" if "--layer" in words else "o-0.npy",
        "--force",
        cwd=dump,
    )
    return np.load(dump / "o-0.npy"), done.err


SPOKEN = ("--heads", "4", "--kv-heads", "2", "--causal", "--scale", "0.0625")


def test_a_config_is_as_good_as_the_options_that_it_stands_for(dump):
    wanted, _ = out(dump, "dump.npz", "--layer", "all", *SPOKEN, "--local", "9:0")
    found, said = out(dump, "dump.npz", "--layer", "all", "--config", ".")
    np.testing.assert_array_equal(found, wanted)
    for told in (
        "gemma2, layer 0, 4 query heads and 2 key heads of 16",
        "scale 0.0625 is taken from ./config.json",
        "local 9 is taken from ./config.json",
        "causal (./config.json says so",
    ):
        assert told in said
    for words in (
        ["packed.npy", "--record", "qkv", "--local", "9"],
        ["dump.npz", "--group", "layers.0"],
        ["--q", "dump.npz:layers.0.q", "--k", "dump.npz:layers.0.k", "--v", "dump.npz:layers.0.v"],
    ):
        np.testing.assert_array_equal(out(dump, *words, "--config", "config.json")[0].reshape(50, 64), wanted)
    pieces, _ = out(dump, "dump.npz", "--layer", "all", "--config", ".", "--engine", "processes")
    np.testing.assert_array_equal(pieces, wanted)


def test_an_option_goes_before_it_and_this_is_said(dump):
    wanted, _ = out(dump, "dump.npz", "--group", "layers.0", *SPOKEN[:4], "--causal", "--scale", "0.5")
    found, said = out(dump, "dump.npz", "--group", "layers.0", "--config", ".", "--scale", "0.5", "--local", "none")
    np.testing.assert_array_equal(found, wanted)
    assert "config.json says scale 0.0625, and --scale 0.5, which is taken" in said
    assert "config.json says local 9, and --local none, which is taken" in said


def test_which_layer_it_is_must_be_known_where_they_differ(dump):
    words = ["--config", ".", "-o", "none.npy"]
    refused(
        "attend",
        "packed.npy",
        "--record",
        "qkv",
        *words,
        code=11,
        words=["layers differ", "--layer", "--local"],
        cwd=dump,
    )


def test_rows_of_another_model_are_refused(dump, tmp_path):
    other = written(tmp_path, "llama", SHAPES | {"head_dim": 32})
    refused(
        "attend",
        dump / "dump.npz",
        "--group",
        "layers.0",
        "--heads",
        "4",
        "--kv-heads",
        "2",
        "--config",
        other,
        "-o",
        "none.npy",
        code=4,
        words=["16 items", "says 32", "--config"],
        cwd=tmp_path,
    )


def test_a_config_beside_a_dump_is_offered_and_not_taken(dump):
    _, said = out(dump, "dump.npz", "--group", "layers.0", *SPOKEN[:4])
    assert (
        "attention is full (the default; --causal or --full decides); config.json says more of it: --config config.json"
        in said
    )
    line = run("inspect", "dump.npz", "--heads", "4", "--kv-heads", "2", "--json", cwd=dump).document["command"]
    assert "--layer all --config config.json" in line
    told = run("inspect", "dump.npz", "--config", ".", "--json", cwd=dump).document
    assert told["attributes"] == {"causal": True, "scale": 0.0625, "local": 9} and "--config ." in told["command"]


def test_other_commands_take_it(dump):
    run("sketch", "dump.npz", "--group", "layers.0", "--config", ".", "--blind", "-o", "one.sattn", "--force", cwd=dump)
    run(
        "sketch",
        "dump.npz",
        "--group",
        "layers.0",
        "--config",
        ".",
        "--blind",
        "--shards",
        "2",
        "--engine",
        "processes",
        "-o",
        "two.sattn",
        "--force",
        cwd=dump,
    )
    for name in ("one", "two"):
        run("query", f"{name}.sattn", "dump.npz:layers.0.q", "--config", ".", "-o", f"{name}.npy", "--force", cwd=dump)
    np.testing.assert_allclose(np.load(dump / "one.npy"), np.load(dump / "two.npy"), atol=1e-6)
    assert np.load(dump / "one.npy").shape == (50, 64)
    told = run(
        "compare",
        "dump.npz",
        "--layer",
        "1",
        "--config",
        ".",
        "--methods",
        "window",
        "--resident-rows",
        "24",
        "--json",
        cwd=dump,
    ).document
    assert '"mode": "causal"' in json.dumps(told) and '"scale": 0.0625' in json.dumps(told)
    plan = run("plan", "dump.npz", "--layer", "all", "--config", ".", "--json", cwd=dump).document
    assert plan["scale"] == 0.0625 and "--config ." in plan["recommended"]["command"]
