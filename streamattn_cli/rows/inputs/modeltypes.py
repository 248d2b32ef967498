"""What models of a type do that their config.json does not say; all else is read from its fields. Of transformers' sources."""

from __future__ import annotations

HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
PARTS = ("text_config", "llm_config", "language_config", "thinker_config")  # of models for pictures, too
# fields that older files leave to the class
DEFAULTS: dict[str, dict] = {
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0},
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
                    "sliding_window": 4096, "rope_theta": 1e6},
    "cohere2": {"sliding_window": 4096},
    "gpt_oss": {"sliding_window": 128, "head_dim": 64},
    "gpt_neo": {"window_size": 256},
    "qwen2": {"use_sliding_window": False}, "qwen2_moe": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False, "head_dim": 128}, "qwen3_moe": {"use_sliding_window": False},
}  # fmt: skip
PATTERNS = {
    "gemma2": 2, "vaultgemma": 2, "gpt_oss": 2, "gemma3_text": 6, "cohere2": 4, "cohere2_moe": 4, "olmo3": 4, "exaone4": 4,
}  # fmt: skip
FROM_LAYER = ("qwen2", "qwen2_moe", "qwen3")  # windows from max_window_layers on
WITHOUT_WINDOWS = ("llama", "gemma", "gpt2", "bloom")
UNSCALED = ("gpt_neo", "gemma3n", "gemma3n_text")  # q.k as it is
INTERLEAVED = ("cohere", "cohere2", "cohere2_moe", "ernie4_5", "ernie4_5_moe", "helium", "llama4_text", "blt")
PARTLY_TURNED = ("gptj", "codegen", "glm", "glm4", "glm4_moe")  # and others by their fields
NO_ROPE_IN_FULL = ("cohere2", "cohere2_moe", "exaone4", "exaone_moe", "afmoe")
SINKS = ("gpt_oss", "granite_swa", "granitemoe_swa")  # learned
SCALED_QUERIES = ("opt", "xglm")  # q is multiplied by 1/sqrt(dim) before attention begins
ENCODERS = """
    albert bert bert-generation big_bird camembert data2vec-text deberta deberta-v2 distilbert electra ernie esm megatron-bert
    modernbert mpnet nomic_bert rembert roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod
"""
OTHERS = {
    "its layers are recurrent, without keys of all rows": "mamba mamba2 falcon_mamba rwkv xlstm recurrent_gemma",
    "it learns biases or positions that are added to logits":
        "t5 mt5 umt5 longt5 reformer xlnet inkling_text inkling2_text inkling2_loop_text baichuan jais",
    "its layers have heads of several numbers or lengths":
        "mimo_v2_flash gemma4 gemma4_text gemma4_unified gemma4_unified_text",
    "its attention is the difference of two": "diffllama",
    "its mask is learned, or depends on the rows": "doge deepseek_v32 deepseek_v4 axk2 glm_moe_dsa hy_v4",
    "its rows see another part of the text than those up to themselves": "git prophetnet xlm moshi",
}  # fmt: skip
# whose facts were compared with the models' own
TRIED = """
    afmoe apertus arcee aria_text beam biogpt bitnet bloom codegen cohere cohere2 cwm deepseek_v2 deepseek_v3 ernie4_5
    ernie4_5_moe exaone exaone4 falcon flex_olmo gemma gemma2 gemma3_text gemma3n_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neo
    gpt_neox gpt_oss gptj granite granite_swa granitemoe helium hunyuan_v1_dense internlm3 lfm2 llama llama4_text minimax_m2
    ministral ministral3 mistral mixtral modernbert-decoder mpt nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe
    qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next seed_oss smollm3 stablelm starcoder2 vaultgemma
"""


def is_among(kind: str, words: str) -> bool:
    """Whether a model type is one of these words."""
    return kind in words.split()


def refusal(kind: str) -> str:
    """Why the attention of a type is not answered; empty for others."""
    return next((why for why, kinds in OTHERS.items() if is_among(kind, kinds)), "")
