"""Small random language models with a tokenizer of bytes, made from a config: nothing is downloaded."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

SHAPES = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 300, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 3, "n_group": 1,
    "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip
# kind -> (class of the config, what differs from SHAPES)
KINDS = {
    "grouped heads": ("LlamaConfig", {}),
    "a window in every layer": ("MistralConfig", {"sliding_window": 40, "head_dim": 12}),
    "softcap, and windows": ("Gemma2Config", {"sliding_window": 40, "head_dim": 12, "attn_logit_softcapping": 2.0}),
    "sinks, and windows": ("GptOssConfig", {"sliding_window": 40, "head_dim": 12, "num_local_experts": 4, "rope_scaling": None}),
    "other value dims": ("DeepseekV3Config", LATENT),
}  # fmt: skip


def save_model(folder, kind, seed=0, tokenizer=True, **shapes):
    """A model of this kind (with other shapes) in `folder`, with weights large enough that attention is no mean."""
    import torch
    import transformers

    name, more = KINDS[kind]
    torch.manual_seed(seed)
    network = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**SHAPES | more | shapes))
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(0, 0.25) if weight.ndim > 1 else weight.add_(0.3 * torch.randn_like(weight))
    network.save_pretrained(folder)
    if tokenizer:
        save_tokenizer(folder)
    return str(folder)


def save_tokenizer(folder):
    """One token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({letter: 3 + at for at, letter in enumerate(letters)}, []))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(folder)


def save_text(path, letters=700):
    """A text of so many letters that is not all the same."""
    text = " ".join(f"{n * n % 97} and {n}" for n in range(letters))[:letters]
    path.write_text(text)
    return str(path)
